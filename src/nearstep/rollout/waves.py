"""Generating in waves from the model's own cache: rows enter together, and the next ones when all have left."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nearstep.models.forward.own_cache import OwnCache
from nearstep.models.roles import Policy
from nearstep.rollout.decoding import logits_of


@dataclass
class Wave:
    """The rows being generated: `rows[i]` has place `places[i]` in the cache, where finished rows keep theirs."""

    policy: Policy
    slots: int
    rows: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    cache: OwnCache | None = None

    @property
    def free(self) -> int:
        """How many rows may enter."""
        return 0 if self.rows else self.slots

    @property
    def has_room(self) -> bool:
        """Whether rows may enter: only all at once."""
        return not self.rows

    def enter(self, rows: list[int], prompts: list[list[int]]) -> Tensor:
        """Read the prompts of new rows; logits of their first response token, [rows, vocabulary]."""
        trunk = self.policy.trunk
        assert isinstance(trunk, PreTrainedModel), "proved of transformers models only"
        self.rows, self.places = list(rows), list(range(len(rows)))
        self.cache, states = OwnCache.begin(trunk, prompts, self.policy.device, autocast=self.policy.autocast)
        return logits_of(self.policy, states)

    def step(self, tokens: Tensor) -> Tensor:
        """Feed each live row its newest token; logits of the next, [live, vocabulary]. Finished rows get any token."""
        assert self.cache is not None, "rows enter before they step"
        places = torch.tensor(self.places, device=tokens.device)
        newest = tokens.new_zeros(len(self.cache.mask)).index_copy(0, places, tokens)
        return logits_of(self.policy, self.cache.step(newest)[places])

    def leave(self, finished: set[int]) -> None:
        """Look at finished rows no longer."""
        live = [(row, place) for row, place in zip(self.rows, self.places, strict=True) if row not in finished]
        self.rows, self.places = [row for row, _ in live], [place for _, place in live]
