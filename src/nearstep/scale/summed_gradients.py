"""A weight that several processes use on different things: its gradient is the sum over them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def summed_gradient(weight: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The weight, whose gradient will be the sum of those of all processes of the group; all run the backward pass."""
    found: Tensor = _Summed.apply(weight, group)  # type: ignore[no-untyped-call]
    return found
