"""Processes that make their passes together, each with a share of the tokens of a row (sequence parallelism)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nearstep.common.errors import ConfigError
from nearstep.models.forward.forward import PassRunner
from nearstep.models.forward.shared_pass import Partners
from nearstep.scale.backend import RoleNetwork, WholeNetwork
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import TorchBackend, own_limit
from nearstep.scale.turns import rounds_of

Found = TypeVar("Found")
Item = TypeVar("Item")


@dataclass(frozen=True)
class SequenceGroup:
    """Partners that are neighbours by rank."""

    place: int
    size: int
    processes: TorchBackend
    group: dist.ProcessGroup

    @staticmethod
    def of(processes: TorchBackend, size: int) -> "SequenceGroup":
        """The one of this process; all processes call this. Raises ConfigError where they do not come out even."""
        world = processes.world_size
        if world % size:
            raise ConfigError(
                f"sp_size = {size} with {world} process{'es' * (world > 1)}: sp_size must divide the number of "
                "processes. Start as many with nearstep ppo --nproc or torchrun --nproc_per_node, or leave sp_size out"
            )
        group, _ = dist.new_subgroups(size, timeout=own_limit(processes.device.type == "cuda"))
        return SequenceGroup(processes.rank % size, size, processes, group)

    def gather(self, item: Item) -> list[Item]:
        """See Partners.gather."""
        items: list[Item | None] = [None] * self.size
        with self.processes.together("rows of one pass"):
            dist.all_gather_object(items, item, group=self.group)
        return items  # type: ignore[return-value]

    def exchange(self, values: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """See Partners.exchange."""
        return _Exchange.apply(values, list(sent), list(received), self)  # type: ignore[no-untyped-call, no-any-return]

    def send(self, values: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """The exchange itself."""
        found = values.new_empty(sum(received), *values.shape[1:])
        with self.processes.together("tokens of one pass"):
            dist.all_to_all_single(found, values.contiguous(), received, sent, group=self.group)
        return found


class _Exchange(torch.autograd.Function):
    """Values to partners; their gradients go back to where they came from."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sent: list[int], received: list[int], group: SequenceGroup) -> Tensor:
        ctx.way_back = received, sent, group
        return group.send(values, sent, received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        received, sent, group = ctx.way_back
        return group.send(gradient, received, sent), None, None, None


@dataclass(frozen=True)
class SharedRunner:
    """Runs the passes of a network that trains: they are made by all partners."""

    partners: Partners
    inner: PassRunner

    def __call__(self, one_pass: Callable[[], Found]) -> Found:
        """See PassRunner."""
        return self.inner(one_pass)


@dataclass(frozen=True)
class SequenceBackend:
    """A backend whose processes make the passes of training in groups; all else they do as that backend has it.

    Every process has rows of its own, and samples and scores them. What it holds of a pass is its share of the tokens
    of all partners, so that a row of any of them lies over all.
    """

    inner: TorchBackend | ShardedBackend
    partners: SequenceGroup

    @staticmethod
    def over(inner: TorchBackend | ShardedBackend, size: int) -> "SequenceBackend":
        """Of groups of so many; all processes call this. Raises ConfigError as SequenceGroup.of does."""
        processes = inner if isinstance(inner, TorchBackend) else inner.processes
        return SequenceBackend(inner, SequenceGroup.of(processes, size))

    @property
    def rank(self) -> int:
        """See Backend.rank."""
        return self.inner.rank

    @property
    def is_main(self) -> bool:
        """See Backend.is_main."""
        return self.inner.is_main

    @property
    def leads(self) -> bool:
        """See Backend.leads."""
        return self.inner.leads

    @property
    def local_rank(self) -> int:
        """See Backend.local_rank."""
        return self.inner.local_rank

    @property
    def world_size(self) -> int:
        """See Backend.world_size."""
        return self.inner.world_size

    @property
    def device(self) -> torch.device:
        """See Backend.device."""
        return self.inner.device

    @property
    def in_step(self) -> bool:
        """See Backend.in_step: of weights. Passes take turns, see TakesTurns."""
        return self.inner.in_step

    def turns(self, tokens: Sequence[int], limit: int) -> list[bool]:
        """See TakesTurns.turns. As many in every group where processes gather weights together."""
        size, everyone = self.partners.size, self.gather(list(tokens))
        groups = [everyone[first : first + size] for first in range(0, self.world_size, size)]
        rounds = [rounds_of(group, size * limit) for group in groups]
        number, place = divmod(self.rank, size)
        own = [each[place] for each in rounds[number]]
        missing = max(map(len, rounds)) - len(own) if self.in_step else 0
        return own + [False] * missing

    def place(self, model: nn.Module) -> nn.Module:
        """See Backend.place."""
        return self.inner.place(model)

    def stage(self, model: nn.Module) -> nn.Module:
        """See Backend.stage."""
        return self.inner.stage(model)

    def spread(self, networks: Mapping[str, RoleNetwork]) -> Mapping[str, PassRunner]:
        """See Backend.spread."""
        return {name: SharedRunner(self.partners, run) for name, run in self.inner.spread(networks).items()}

    def gathered(self, *networks: nn.Module | None) -> AbstractContextManager[None]:
        """See Backend.gathered."""
        return self.inner.gathered(*networks)

    def add_up(self, values: Tensor) -> Tensor:
        """See Backend.add_up."""
        return self.inner.add_up(values)

    def gather(self, item: Item) -> list[Item]:
        """See Backend.gather."""
        return self.inner.gather(item)

    def everywhere(self, item: Item) -> list[Item]:
        """See Backend.everywhere."""
        return self.inner.everywhere(item)

    def once(self, ask: Callable[[], Item]) -> Item:
        """See Backend.once."""
        return self.inner.once(ask)

    def gather_to_main(self, item: Item) -> list[Item]:
        """See Backend.gather_to_main."""
        return self.inner.gather_to_main(item)

    def backward(self, loss: Tensor) -> None:
        """See Backend.backward."""
        self.inner.backward(loss)

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See Backend.add_up_gradients. Each process has those of its tokens: their sum is that of all."""
        self.inner.add_up_gradients(parameters)

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """See Backend.gradient_norm."""
        return self.inner.gradient_norm(parameters)

    def whole(self, model: nn.Module) -> WholeNetwork | None:
        """See Backend.whole."""
        return self.inner.whole(model)

    def wait_for_all(self) -> None:
        """See Backend.wait_for_all."""
        self.inner.wait_for_all()

    def close(self) -> None:
        """See Backend.close."""
        self.inner.close()
