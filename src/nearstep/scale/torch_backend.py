"""torch's own backend: one process, or data parallel over the processes that torchrun started."""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nearstep.common.telling import LOST_PEER
from nearstep.common.waiting import WATCHDOG, listed, waiting
from nearstep.config.launcher import cpu_is_asked_for
from nearstep.models.forward.forward import PassRunner, as_it_is
from nearstep.scale.backend import RoleNetwork, WholeNetwork
from nearstep.scale.launcher import end_with_launcher
from nearstep.scale.peers import GONE_SECONDS, Peer, end_stopped, who_is_gone

Item = TypeVar("Item")

NO_LIMIT = timedelta(days=365)  # of torch's own: ours says what is awaited, and does not count time spent stopped
LATER_SECONDS = 3.0  # whoever waits for others lets them say first what they wait for
BUCKET_BYTES = 25 * 2**20  # of gradients that are summed in one message


@dataclass(frozen=True)
class TorchBackend:
    """Every process holds whole models; gradients are summed once per optimizer step.

    They are summed here rather than by DistributedDataParallel, because processes may have different numbers of
    micro-batches, or none, in a step: the sum comes after all of them.
    """

    rank: int
    world_size: int
    device: torch.device
    local_rank: int = 0
    joined: bool = False
    others: tuple[Peer, ...] = ()

    def place(self, model: nn.Module) -> nn.Module:
        """Move to the device; rank 0's weights go to every process."""
        model.to(self.device)
        if self.world_size > 1:
            with self.together("the same weights on all"):
                for tensor in (*model.parameters(), *model.buffers()):
                    dist.broadcast(tensor.data, src=0)
        return model

    @property
    def is_main(self) -> bool:
        """See Backend.is_main."""
        return self.rank == 0

    @property
    def leads(self) -> bool:
        """See Backend.leads."""
        return True

    @property
    def in_step(self) -> bool:
        """See Backend.in_step."""
        return False

    def stage(self, model: nn.Module) -> nn.Module:
        """See Backend.stage: it will compute where it is."""
        return self.place(model)

    def spread(self, networks: Mapping[str, RoleNetwork]) -> Mapping[str, PassRunner]:
        """See Backend.spread: whole networks stay where they were staged."""
        return dict.fromkeys(networks, as_it_is)

    def gathered(self, *networks: nn.Module | None) -> AbstractContextManager[None]:
        """See Backend.gathered."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See Backend.backward."""
        loss.backward()

    def add_up(self, values: Tensor) -> Tensor:
        """See Backend.add_up."""
        if self.world_size == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        with self.together("a sum"):
            dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, item: Item) -> list[Item]:
        """See Backend.gather."""
        if self.world_size == 1:
            return [item]
        items: list[Item | None] = [None] * self.world_size
        with self.together("what each has"):
            dist.all_gather_object(items, item)
        return items  # type: ignore[return-value]

    def everywhere(self, item: Item) -> list[Item]:
        """See Backend.everywhere."""
        return self.gather(item)

    def once(self, ask: Callable[[], Item]) -> Item:
        """See Backend.once."""
        return ask()

    def gather_to_main(self, item: Item) -> list[Item]:
        """See Backend.gather_to_main."""
        if self.world_size == 1:
            return [item]
        items: list[Item | None] | None = [None] * self.world_size if self.rank == 0 else None
        with self.together("what each has, on rank 0"):
            dist.gather_object(item, items, dst=0)
        return [] if items is None else items  # type: ignore[return-value]

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See Backend.add_up_gradients. One message per bucket, not one per parameter; the copies of one bucket are all
        that it needs beside the gradients."""
        if self.world_size == 1:
            return
        used = self.add_up(torch.tensor([parameter.grad is not None for parameter in parameters]).int())
        for parameter, processes in zip(parameters, used.tolist(), strict=True):
            if parameter.grad is None and processes > 0:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        with self.together("the sum of gradients"):
            for bucket in buckets(gradients, BUCKET_BYTES):
                _sum_together(bucket)

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """See Backend.gradient_norm."""
        return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])

    def whole(self, model: nn.Module) -> WholeNetwork | None:
        """See Backend.whole."""
        return WholeNetwork(model, is_copy=False) if self.rank == 0 else None

    def wait_for_all(self) -> None:
        """See Backend.wait_for_all."""
        if self.world_size > 1:
            with self.together("all to come here"):
                dist.barrier()

    def close(self) -> None:
        """See Backend.close."""
        if self.joined and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """While processes wait for each other. Raises LostProcessError where one of them is gone."""
        later = min(LATER_SECONDS, 0.1 * (WATCHDOG.limit_seconds or 0.0))
        with waiting(f"other processes ({what})", self._awaited, more_seconds=later):
            try:
                yield
            except RuntimeError as error:
                problem = who_is_gone(self.others, GONE_SECONDS)
                if problem is None and not any(word in str(error) for word in LOST_PEER):
                    raise
                raise WATCHDOG.lost(problem or f"another process does not answer ({error})") from error

    def _awaited(self) -> str:
        return listed([str(peer) for peer in self.others])


def buckets(tensors: Sequence[Tensor], size_bytes: int) -> list[list[Tensor]]:
    """Tensors of one type and device each, in order, of at most `size_bytes` together unless one alone is larger."""
    found: list[list[Tensor]] = []
    room = 0
    for tensor in sorted(tensors, key=lambda tensor: (str(tensor.dtype), str(tensor.device))):
        alike = bool(found) and (found[-1][0].dtype, found[-1][0].device) == (tensor.dtype, tensor.device)
        if not alike or tensor.nbytes > room:
            found.append([])
            room = size_bytes
        found[-1].append(tensor)
        room -= tensor.nbytes
    return found


def _sum_together(gradients: Sequence[Tensor]) -> None:
    """Sum over processes in one message, in place."""
    parts = [gradient.flatten() for gradient in gradients]
    flat = torch.cat(parts) if len(parts) > 1 else parts[0]  # a large one alone is no copy
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([part.numel() for part in parts]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def torch_backend(*, use_cpu: bool = False) -> TorchBackend:
    """The backend for this process: joins the processes that torchrun (or accelerate launch) started, if it did."""
    on_gpu = torch.cuda.is_available() and not (use_cpu or cpu_is_asked_for(os.environ))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    end_with_launcher()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return TorchBackend(rank=0, world_size=1, device=device)
    joined = not dist.is_initialized()
    with waiting("other processes (the meeting at the start)", lambda: f"{os.environ['WORLD_SIZE']} must come"):
        if joined:
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=own_limit(on_gpu))
        rank, world_size = dist.get_rank(), dist.get_world_size()
        peers: list[Peer] = [Peer.here(rank)] * world_size
        dist.all_gather_object(peers, peers[rank])
    others = tuple(peer for peer in peers if peer.rank != rank)
    WATCHDOG.guard = partial(who_is_gone, others)
    WATCHDOG.last_acts.append(lambda error: end_stopped(others))
    backend = TorchBackend(rank, world_size, device, local_rank, joined, others)
    atexit.register(backend.close)
    return backend


def own_limit(on_gpu: bool) -> timedelta:
    """The limit that torch keeps. On a GPU a collective returns before it is done, so that ours would not see it."""
    seconds = WATCHDOG.limit_seconds
    return timedelta(seconds=seconds) if on_gpu and seconds is not None else NO_LIMIT
