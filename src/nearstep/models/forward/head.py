"""The output layer of a causal model, and what the model does to its logits after it."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearstep.models.adapters import base_layer


@dataclass(frozen=True)
class LogitShape:
    """What a model does to the logits of its linear layer: cap · tanh(scale · linear / cap)."""

    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class OwnLogits:
    """Logits are read off the whole model: it has no linear layer at its end, or does something else after it."""

    vocabulary: int


class Same(nn.Module):
    """In the place of an output layer where the model gives its logits itself."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, logits: Float[Tensor, "*places vocabulary"]) -> Float[Tensor, "*places vocabulary"]:
        """What is given."""
        return logits


@dataclass(frozen=True)
class Head:
    """The output layer of a causal model: logits = cap · tanh(scale · linear(hidden) / cap).

    `linear` is called, its weights are never read: adapters on it, hooks that wait for its call and layers that gather
    their weights for it work as in the model's own forward pass.
    """

    linear: nn.Module  # nn.Linear, or peft's wrapper around one
    scale: float = 1.0
    softcap: float | None = None
    known: int | None = None  # logits from this id on are left out: they belong to no token

    @property
    def vocabulary(self) -> int:
        """How many logits an action has."""
        rows = cast(nn.Linear, base_layer(self.linear)).out_features
        return rows if self.known is None else min(rows, self.known)

    def linear_logits(self, hidden: Float[Tensor, "places width"]) -> Float[Tensor, "places vocabulary"]:
        """What the linear layer gives for ids that there are."""
        found: Tensor = self.linear(hidden)
        return found[..., : self.vocabulary]

    def logits(self, hidden: Float[Tensor, "places width"]) -> Float[Tensor, "places vocabulary"]:
        """Logits at the given places, in the model's type."""
        return self.shaped(self.linear_logits(hidden))

    def shaped(self, linear: Float[Tensor, "places vocabulary"]) -> Float[Tensor, "places vocabulary"]:
        """Logits from what the linear layer gave."""
        logits = linear if self.scale == 1 else linear * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap
