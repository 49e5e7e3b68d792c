"""What a backend must do so that one loop runs on one process or on many."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from nearstep.models.forward.forward import PassRunner

Item = TypeVar("Item")


@dataclass(frozen=True)
class RoleNetwork:
    """A network of the loop, and whether a pass of rows calls each of its layers once, however many rows they are."""

    model: nn.Module
    one_pass: bool
    role: str | None = None  # as whole_roles has it, where its name is another: several critics are all value


@dataclass(frozen=True)
class WholeNetwork:
    """A network with whole weights, to be written; a copy on the CPU, or the one that trains."""

    model: nn.Module
    is_copy: bool


@runtime_checkable
class Backend(Protocol):
    """Processes, devices, and what crosses between them.

    Rows are dealt to shares. A share is a process; where several compute layers together they have the same share, and
    `rank` and `world_size` count shares: what goes by rows need not know of it.

    Networks of the loop are staged when they are loaded, and spread once all of them are ready. A backend that deals
    out their weights does so in `spread`, gathers them around passes and in `gathered` and `whole`; the loop does not
    change. Every other model is placed.
    """

    @property
    def rank(self) -> int:
        """Number of this process's share of the rows, from 0."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes and tells: of all with rank 0 the first."""

    @property
    def leads(self) -> bool:
        """Whether this is the first of the processes that have its share."""

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine, from 0."""

    @property
    def world_size(self) -> int:
        """Number of shares; of processes, where each has one of its own."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    def in_step(self) -> bool:
        """Whether processes gather weights together, so that they must run as many passes as each other."""

    def place(self, model: nn.Module) -> nn.Module:
        """Put a model on the device, whole, with the same weights on every process."""

    def stage(self, model: nn.Module) -> nn.Module:
        """Put a network where it is made ready: where it will compute, or beside that until it is spread."""

    def spread(self, networks: Mapping[str, RoleNetwork]) -> Mapping[str, PassRunner]:
        """Put the networks of the loop where they will compute, with the same weights on every process; what runs the
        passes of each role. Before any optimizer is made: weights may be other objects afterwards."""

    def gathered(self, *networks: nn.Module | None) -> AbstractContextManager[None]:
        """While passes without a gradient run, any number on each process: all weights are here. All processes come."""

    def add_up(self, values: Tensor) -> Tensor:
        """Sum over shares, the same on all processes."""

    def gather(self, item: Item) -> list[Item]:
        """What the first process of every share passed, in the order of ranks, on all of them."""

    def gather_to_main(self, item: Item) -> list[Item]:
        """What the first process of every share passed, in the order of ranks, on the main one; nothing on others."""

    def everywhere(self, item: Item) -> list[Item]:
        """What every process passed, those of one share too."""

    def once(self, ask: Callable[[], Item]) -> Item:
        """What is asked outside of the run, or by chance of time: the first process of a share asks, and all of the
        share have its answer, or its error. An answer is pickled."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the weights."""

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over processes, in place; one that is missing on this process counts as zero."""

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Euclidean norm of all gradients together."""

    def whole(self, model: nn.Module) -> WholeNetwork | None:
        """A network to be written, on the main process; None elsewhere. All processes call this."""

    def wait_for_all(self) -> None:
        """Return once every process has come here."""

    def close(self) -> None:
        """Leave the process group, if this backend joined it."""
