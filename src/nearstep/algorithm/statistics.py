"""How rewards and advantages are whitened, with moments taken over all processes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.algorithm.precision import wide

AddUp: TypeAlias = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes; the identity where there is one."""

VARIANCE_FLOOR = 1e-8
SMALLEST_STD = 1e-4  # scores that vary less are not scaled: there is nothing but noise to magnify


@dataclass(frozen=True)
class Moments:
    """Mean and variance of everything seen so far; `+` merges two sets (Chan et al. 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    @staticmethod
    def of(values: Float[Tensor, " items"], add_up: "AddUp") -> "Moments":
        """Moments of the values of all processes."""
        exact = values.double()
        count, total = add_up(torch.stack([torch.ones_like(exact).sum(), exact.sum()])).tolist()
        mean = total / max(count, 1)
        return Moments(count, mean, float(add_up((exact - mean).square().sum())))

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * other.count / count
        return Moments(count, mean, self.squares + other.squares + gap**2 * self.count * other.count / count)

    def normalize(self, values: Float[Tensor, " items"], *, shift: bool) -> Float[Tensor, " items"]:
        """`values` divided by the standard deviation, after the mean is taken away if `shift`."""
        std = math.sqrt(self.squares / self.count) if self.count else 0.0
        shifted = values - self.mean if shift else values
        return shifted / std if std > SMALLEST_STD else shifted


def alone(values: Tensor) -> Tensor:
    """The sum over one process: `values` themselves."""
    return values


def whiten(
    values: Float[Tensor, " items"],
    *,
    shift_mean: bool = True,
    unbiased: bool = True,
    counted: Bool[Tensor, " items"] | None = None,
    add_up: AddUp = alone,
) -> Float[Tensor, " items"]:
    """Scale `values` to variance 1 and, if `shift_mean`, shift them to mean 0.

    Mean and variance are those of all processes together, so a split over processes changes nothing, and of the items
    that are `counted`, if given: the others become 0. One single
    value, or values that are all alike, stay finite. Source: N+ implementation details of RLHF with PPO
    (2403.17031), details 24, 25; TRL takes the unbiased variance, the study the biased one.
    """
    values = wide(values)
    exact = values.double()
    weights = torch.ones_like(exact) if counted is None else counted.double()
    count, total = add_up(torch.stack([weights.sum(), (exact * weights).sum()]))
    mean = total / count.clamp(min=1)
    squares = add_up(((exact - mean).square() * weights).sum())
    variance = squares / (count - int(unbiased)).clamp(min=1)
    whitened = (exact - mean) * torch.rsqrt(variance + VARIANCE_FLOOR)
    result: Tensor = (whitened if shift_mean else whitened + mean) * weights
    return result.to(values.dtype)
