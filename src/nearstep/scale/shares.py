"""What processes that have the same share of the rows take from the first of them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nearstep.common.errors import NearstepError, TrainingError

Answer = TypeVar("Answer")


def told_by_first(ask: Callable[[], Answer], group: dist.ProcessGroup) -> Answer:
    """What the first process of a group is answered, or the error that it meets, on all of them."""
    first = dist.get_global_rank(group, 0)
    told: list[object] = [None, None]
    if dist.get_rank() != first:
        dist.broadcast_object_list(told, src=first, group=group)
        if told[1] is not None:
            raise told[1]  # type: ignore[misc]
        return told[0]  # type: ignore[return-value]
    try:
        told[0] = answer = ask()
    except Exception as error:
        kind = type(error) if isinstance(error, NearstepError) else TrainingError
        dist.broadcast_object_list([None, kind(str(error))], src=first, group=group)
        raise
    dist.broadcast_object_list(told, src=first, group=group)
    return answer


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
