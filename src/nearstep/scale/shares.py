"""What processes that have the same share of the rows take from the first of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nearstep.common.errors import NearstepError, TrainingError

Answer = TypeVar("Answer")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Told(Generic[Answer]):
    """What was answered, or the error in its place."""

    answers: tuple[Answer, ...] = ()
    error: Exception | None = None

    @staticmethod
    def failed(error: Exception) -> "Told[Answer]":
        """An error in words that every process can read: ours, or what another said."""
        kind = type(error) if isinstance(error, NearstepError) else TrainingError
        return Told(error=kind(str(error)))

    def result(self) -> Answer:
        """The answer. Raises the error where there is none."""
        if self.error is not None:
            raise self.error
        return self.answers[0]


def from_first(item: Item | None, group: dist.ProcessGroup) -> Item:
    """What the first process of a group has, on all of them; it is pickled."""
    told: list[Item | None] = [item]
    dist.broadcast_object_list(told, src=dist.get_global_rank(group, 0), group=group)
    assert told[0] is not None, "the first process tells something"
    return told[0]


def take_of_first(tensors: Sequence[Tensor], group: dist.ProcessGroup) -> None:
    """Replace tensors by those of the first process of a group, in one message for each type."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for alike in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in alike])
        dist.broadcast(flat, src=dist.get_global_rank(group, 0), group=group)
        for tensor, taken in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(taken.view_as(tensor))
