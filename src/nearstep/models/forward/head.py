"""The output layer of a causal model."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearstep.models.adapters import base_layer


@dataclass(frozen=True)
class Head:
    """The output layer of a causal model: logits = cap · tanh(scale · linear(hidden) / cap).

    `linear` is called, its weights are never read: adapters on it, hooks that wait for its call and layers that gather
    their weights for it work as in the model's own forward pass.
    """

    linear: nn.Module  # nn.Linear, or peft's wrapper around one
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """How many logits an action has."""
        return cast(nn.Linear, base_layer(self.linear)).out_features

    def logits(self, hidden: Float[Tensor, "places width"]) -> Float[Tensor, "places vocabulary"]:
        """Logits at the given places, in the model's type."""
        return self.shaped(self.linear(hidden))

    def shaped(self, linear: Float[Tensor, "places vocabulary"]) -> Float[Tensor, "places vocabulary"]:
        """Logits from what the linear layer gave."""
        logits = linear if self.scale == 1 else linear * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap
