"""How rows go on from the model's own cache, where ours cannot keep what it needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from nearstep.models.forward.trunk import cached_states


@dataclass
class OwnCache:
    """Rows that all get one token at a time. Padded on the left, so that the newest token of each is the last."""

    trunk: PreTrainedModel
    autocast: bool
    mask: Int[Tensor, "rows width"]
    kept: dict[str, object]

    @staticmethod
    @torch.no_grad()
    def begin(
        trunk: PreTrainedModel, rows: Sequence[Sequence[int]], device: torch.device, *, autocast: bool
    ) -> "tuple[OwnCache, Float[Tensor, 'rows size']]":
        """Read the beginnings of rows; the state of each one's last token."""
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        states, kept = cached_states(trunk, ids, mask, {}, autocast=autocast)
        return OwnCache(trunk, autocast, mask, kept), states

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows size"]:
        """Read one more token of every row; its state."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        states, self.kept = cached_states(self.trunk, tokens[:, None], self.mask, self.kept, autocast=self.autocast)
        return states
