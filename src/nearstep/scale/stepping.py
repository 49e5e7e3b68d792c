"""What steps the weights of a network in its optimizer's place, where a backend keeps them in a form of its own."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nearstep.scale.shards import InPieces


@runtime_checkable
class Stepper(Protocol):
    """One network that learns: its float32 weights and their moments, of which this process may hold a share."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """This process's share. Once gradients are added up they lie on these; whoever clips scales them there."""

    def step(self) -> None:
        """One optimizer step with the gradients on the share, and the network's weights are what came of it."""

    def free_gradients(self) -> None:
        """Let go of all gradients."""

    def shape(self, weight: nn.Parameter) -> torch.Size:
        """The shape of a whole weight of the network."""

    def weight(self, weight: nn.Parameter) -> InPieces:
        """A weight of the network in float32."""

    def moments(self, weight: nn.Parameter) -> dict[str, InPieces | Tensor]:
        """What the optimizer keeps of a weight, by its own names; nothing before its first step."""

    def restore(self, weights: Sequence[Tensor], moments: Sequence[Mapping[str, Tensor]]) -> None:
        """Put back weights and moments, whole, in the order of the weights that train. All processes call this.

        Raises CheckpointError for moments that no step of this stepper leaves.
        """


@runtime_checkable
class MakesSteppers(Protocol):
    """A backend that has steppers."""

    def stepper(
        self, network: nn.Module, weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> Stepper | None:
        """What steps the weights of a network that was spread; None where the optimizer does. All processes call it."""
