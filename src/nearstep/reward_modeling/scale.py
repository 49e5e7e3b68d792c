"""Where the zero and the unit of a reward lie: put into the head after training, so that every reader sees them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Scale:
    """reward · factor + offset."""

    factor: float = 1.0
    offset: float = 0.0

    @staticmethod
    def putting_at_zero(rewards: Float[Tensor, " texts"], *, unit: bool) -> "Scale":
        """The scale on which these rewards have mean 0 (arXiv 1909.08593, section 2) and, with `unit`, deviation 1.

        Rewards that are all the same keep their unit.
        """
        deviation = rewards.double().std(correction=0).item() if unit else 1.0
        factor = 1 / deviation if deviation > 0 else 1.0
        return Scale(factor, -rewards.double().mean().item() * factor)

    @torch.no_grad()
    def fold_into(self, head: nn.Linear) -> None:
        """Make the head give rewards on this scale; one without a bias gives them without the offset."""
        head.weight.mul_(self.factor)
        if head.bias is not None:
            head.bias.mul_(self.factor).add_(self.offset)
