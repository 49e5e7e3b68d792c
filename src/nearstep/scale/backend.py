"""What a backend must do so that one loop runs on one process or on many."""

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

Item = TypeVar("Item")


@runtime_checkable
class Backend(Protocol):
    """Processes, devices, and what crosses between them.

    A backend that shards weights does so in `place`, gathers them in `weights_to_save`, and takes its own norm in
    `gradient_norm`; the loop does not change.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    def place(self, model: nn.Module) -> nn.Module:
        """Put a model on the device (sharded, if this backend shards), with the same weights on every process."""

    def add_up(self, values: Tensor) -> Tensor:
        """Sum over processes, the same on all of them."""

    def gather(self, item: Item) -> list[Item]:
        """What every process passed, in the order of ranks, on all of them."""

    def gather_to_main(self, item: Item) -> list[Item]:
        """What every process passed, in the order of ranks, on rank 0; nothing on the others."""

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over processes, in place; one that is missing on this process counts as zero."""

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Euclidean norm of all gradients together."""

    def weights_to_save(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The whole state dict on rank 0, None elsewhere."""

    def wait_for_all(self) -> None:
        """Return once every process has come here."""

    def close(self) -> None:
        """Leave the process group, if this backend joined it."""
