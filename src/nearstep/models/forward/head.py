"""The output layer of a causal model, and memory for its logits."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class Scratch:
    """Memory for logits that is used again: on a CPU, asking the system for it anew costs a fifth of the product."""

    spare: Tensor | None = None

    def take(self, places: int, like: Tensor) -> Tensor:
        """A line of `places` numbers with anything in them; nobody else has it until it is given back."""
        spare, self.spare = self.spare, None
        fits = spare is not None and len(spare) >= places and (spare.dtype, spare.device) == (like.dtype, like.device)
        return spare if spare is not None and fits else like.new_empty(places)

    def give_back(self, taken: Tensor) -> None:
        """Keep it for the next; a GPU's own allocator does that better."""
        self.spare = taken if taken.is_cpu else None


@dataclass(frozen=True)
class Head:
    """The output layer of a causal model: logits = cap · tanh(scale · (hidden @ weightᵀ + bias) / cap)."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    scratch: Scratch = field(default_factory=Scratch, compare=False, repr=False)

    def logits(self, hidden: Float[Tensor, "places width"]) -> Float[Tensor, "places vocabulary"]:
        """Logits at the given places, in the model's type."""
        return self.shaped(self.linear(hidden))

    def shaped(self, linear: Float[Tensor, "places vocabulary"]) -> Float[Tensor, "places vocabulary"]:
        """Logits from what the linear layer gave."""
        logits = linear if self.scale == 1 else linear * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap
