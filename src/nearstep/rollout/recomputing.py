"""Generating without kept keys and values: every row is computed anew for each of its tokens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nearstep.models.forward.forward import states_of
from nearstep.models.forward.layout import RowTokens
from nearstep.models.roles import Policy
from nearstep.rollout.decoding import logits_of
from nearstep.types import row_groups


@dataclass
class RecomputedBatch:
    """The rows being generated from a policy that our cache cannot serve; `ids[i]` is all there is of `rows[i]`."""

    policy: Policy
    max_tokens: int  # in one forward pass
    slots: int
    rows: list[int] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)

    @property
    def free(self) -> int:
        """How many rows may enter."""
        return self.slots - len(self.rows)

    @property
    def has_room(self) -> bool:
        """Whether rows may enter."""
        return self.free > 0

    def enter(self, rows: list[int], prompts: list[list[int]]) -> Tensor:
        """Take new rows in; logits of their first response token, [rows, vocabulary]."""
        self.rows.extend(rows)
        self.ids.extend(map(list, prompts))
        return self._next(prompts)

    def step(self, tokens: Tensor) -> Tensor:
        """Add its newest token to each row; logits of the next, [live, vocabulary]."""
        for ids, token in zip(self.ids, tokens.tolist(), strict=True):
            ids.append(token)
        return self._next(self.ids)

    def leave(self, finished: set[int]) -> None:
        """Forget finished rows."""
        live = [(row, ids) for row, ids in zip(self.rows, self.ids, strict=True) if row not in finished]
        self.rows, self.ids = [row for row, _ in live], [ids for _, ids in live]

    def _next(self, all_ids: list[list[int]]) -> Tensor:
        logits, device = [], self.policy.device
        for group in row_groups([len(ids) for ids in all_ids], self.max_tokens, len(all_ids)):
            ids = all_ids[group.start : group.stop]
            lengths = torch.tensor([len(row) for row in ids], device=device)
            tokens = torch.tensor([token for row in ids for token in row], device=device)
            states = states_of(
                self.policy, RowTokens(tokens, lengths, torch.zeros_like(lengths)), lengths.cumsum(0) - 1
            )
            logits.append(logits_of(self.policy, states))
        return torch.cat(logits)
