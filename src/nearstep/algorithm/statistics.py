"""How rewards and advantages are whitened, with moments taken over all processes."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.precision import wide

AddUp: TypeAlias = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes; the identity where there is one."""

VARIANCE_FLOOR = 1e-8


def alone(values: Tensor) -> Tensor:
    """The sum over one process: `values` themselves."""
    return values


def whiten(
    values: Float[Tensor, " items"], *, shift_mean: bool = True, unbiased: bool = True, add_up: AddUp = alone
) -> Float[Tensor, " items"]:
    """Scale `values` to variance 1 and, if `shift_mean`, shift them to mean 0.

    Mean and variance are those of all processes together, so a split over processes changes nothing. One single
    value, or values that are all alike, stay finite. Source: N+ implementation details of RLHF with PPO
    (2403.17031), details 24, 25; TRL takes the unbiased variance, the study the biased one.
    """
    values = wide(values)
    exact = values.double()
    count, total = add_up(torch.stack([torch.ones_like(exact).sum(), exact.sum()]))
    mean = total / count.clamp(min=1)
    squares = add_up((exact - mean).square().sum())
    variance = squares / (count - int(unbiased)).clamp(min=1)
    whitened = (exact - mean) * torch.rsqrt(variance + VARIANCE_FLOOR)
    result: Tensor = whitened if shift_mean else whitened + mean
    return result.to(values.dtype)
