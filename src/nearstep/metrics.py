"""Values that carry their reduction, so that they add up exactly under any split over batches and processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import TypeAlias

import torch
from torch import Tensor

ROUNDING = 1e-14  # a variance below this share of the mean square is what float64 leaves of a constant


@dataclass(frozen=True)
class Mean:
    """A mean over all elements."""

    sum: Tensor
    count: Tensor

    @staticmethod
    def of(values: Tensor) -> "Mean":
        """The mean of a tensor of any shape; an empty one counts nothing."""
        return Mean(values.detach().double().sum(), torch.tensor(float(values.numel()), dtype=torch.float64))

    def cpu(self) -> "Mean":
        """The same on the CPU."""
        return Mean(self.sum.cpu(), self.count.cpu())

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.sum + other.sum, self.count + other.count)

    def number(self) -> float | None:
        """Σx / n; None where nothing was counted."""
        return float(self.sum) / float(self.count) if float(self.count) > 0 else None


@dataclass(frozen=True)
class Max:
    """A maximum over all elements."""

    value: Tensor

    @staticmethod
    def of(values: Tensor) -> "Max":
        """The largest element; −inf for an empty tensor."""
        lowest = torch.full((1,), -torch.inf, dtype=torch.float64, device=values.device)
        return Max(torch.cat([values.detach().double().flatten(), lowest]).max())

    def cpu(self) -> "Max":
        """The same on the CPU."""
        return Max(self.value.cpu())

    def __add__(self, other: "Max") -> "Max":
        return Max(torch.maximum(self.value, other.value))

    def number(self) -> float | None:
        """The maximum; None where nothing was counted."""
        return None if float(self.value) == -inf else float(self.value)


@dataclass(frozen=True)
class Variance:
    """A variance over all elements, by their first and second moment in float64."""

    sum: Tensor
    sum_of_squares: Tensor
    count: Tensor

    @staticmethod
    def of(values: Tensor) -> "Variance":
        """The variance of a tensor of any shape, with no correction for its mean."""
        wide = values.detach().double()
        return Variance(wide.sum(), wide.square().sum(), torch.tensor(float(wide.numel()), dtype=torch.float64))

    def cpu(self) -> "Variance":
        """The same on the CPU."""
        return Variance(self.sum.cpu(), self.sum_of_squares.cpu(), self.count.cpu())

    def __add__(self, other: "Variance") -> "Variance":
        return Variance(self.sum + other.sum, self.sum_of_squares + other.sum_of_squares, self.count + other.count)

    def number(self) -> float | None:
        """E[x²] − E[x]², at least 0 and exactly 0 for a constant; None where nothing was counted."""
        count = float(self.count)
        if count == 0:
            return None
        mean, mean_square = float(self.sum) / count, float(self.sum_of_squares) / count
        difference = mean_square - mean * mean
        # Written so that NaN stays NaN: a broken number must be seen.
        return 0.0 if difference <= ROUNDING * mean_square else difference


@dataclass(frozen=True)
class Std:
    """A standard deviation over all elements."""

    variance: Variance

    @staticmethod
    def of(values: Tensor) -> "Std":
        """The standard deviation of a tensor of any shape, with no correction for its mean."""
        return Std(Variance.of(values))

    def cpu(self) -> "Std":
        """The same on the CPU."""
        return Std(self.variance.cpu())

    def __add__(self, other: "Std") -> "Std":
        return Std(self.variance + other.variance)

    def number(self) -> float | None:
        """√(E[x²] − E[x]²); None where nothing was counted."""
        variance = self.variance.number()
        return None if variance is None else sqrt(variance)


@dataclass(frozen=True)
class StandardError:
    """How far a mean over all elements may be off by chance, were they independent."""

    variance: Variance

    @staticmethod
    def of(values: Tensor) -> "StandardError":
        """That of the mean of a tensor of any shape."""
        return StandardError(Variance.of(values))

    def cpu(self) -> "StandardError":
        """The same on the CPU."""
        return StandardError(self.variance.cpu())

    def __add__(self, other: "StandardError") -> "StandardError":
        return StandardError(self.variance + other.variance)

    def number(self) -> float | None:
        """√(variance / n); None where nothing was counted."""
        variance = self.variance.number()
        return None if variance is None else sqrt(variance / float(self.variance.count))


@dataclass(frozen=True)
class EffectiveSampleSize:
    """How much of a weighted sample is left (Kish): as a share of its size."""

    weights: Variance

    @staticmethod
    def of(weights: Tensor) -> "EffectiveSampleSize":
        """Of importance weights of any shape."""
        return EffectiveSampleSize(Variance.of(weights))

    def cpu(self) -> "EffectiveSampleSize":
        """The same on the CPU."""
        return EffectiveSampleSize(self.weights.cpu())

    def __add__(self, other: "EffectiveSampleSize") -> "EffectiveSampleSize":
        return EffectiveSampleSize(self.weights + other.weights)

    def number(self) -> float | None:
        """(Σw)² / (n Σw²), 1 where all weights are alike; None where nothing was counted or all weights are 0."""
        spread = float(self.weights.count) * float(self.weights.sum_of_squares)
        return None if spread == 0 else float(self.weights.sum) ** 2 / spread


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation of two quantities over all elements."""

    left: Variance
    right: Variance
    products: Tensor  # Σ of left times right

    @staticmethod
    def of(left: Tensor, right: Tensor) -> "Correlation":
        """Of two tensors of one shape."""
        wide = left.detach().double(), right.detach().double()
        return Correlation(Variance.of(left), Variance.of(right), (wide[0] * wide[1]).sum())

    def cpu(self) -> "Correlation":
        """The same on the CPU."""
        return Correlation(self.left.cpu(), self.right.cpu(), self.products.cpu())

    def __add__(self, other: "Correlation") -> "Correlation":
        return Correlation(self.left + other.left, self.right + other.right, self.products + other.products)

    def number(self) -> float | None:
        """Between −1 and 1; None where one of the two does not vary or nothing was counted."""
        variances = self.left.number(), self.right.number()
        if not variances[0] or not variances[1]:
            return None
        count = float(self.left.count)
        covariance = float(self.products) / count - float(self.left.sum) * float(self.right.sum) / count**2
        return covariance / sqrt(variances[0] * variances[1])


ROUNDING = 1e-12  # of returns that are alike, for they are sums in float32: its square, beside what values vary


@dataclass(frozen=True)
class ExplainedVariance:
    """How much of the variance of returns the critic explains."""

    residual: Variance
    returns: Variance

    @staticmethod
    def of(returns: Tensor, values: Tensor) -> "ExplainedVariance":
        """Of returns and the values that the critic gave, of one shape."""
        return ExplainedVariance(Variance.of(returns - values), Variance.of(returns))

    def cpu(self) -> "ExplainedVariance":
        """The same on the CPU."""
        return ExplainedVariance(self.residual.cpu(), self.returns.cpu())

    def __add__(self, other: "ExplainedVariance") -> "ExplainedVariance":
        return ExplainedVariance(self.residual + other.residual, self.returns + other.returns)

    def number(self) -> float | None:
        """1 − Var(R − V) / Var(R); None where returns do not vary but for rounding, or nothing was counted."""
        residual, returns = self.residual.number(), self.returns.number()
        if residual is None or returns is None or returns <= ROUNDING * residual:
            return None
        return 1 - residual / returns


@dataclass(frozen=True)
class MeanBy:
    """A mean for each group of elements. It has no one number, so it is never among those of an update."""

    sum: Tensor
    count: Tensor

    @staticmethod
    def of(values: Tensor, groups: Tensor, number_of_groups: int) -> "MeanBy":
        """Of values and the group that each belongs to, counted from 0."""
        wide = values.detach().double()
        zeros = torch.zeros(number_of_groups, dtype=torch.float64, device=wide.device)
        return MeanBy(zeros.index_add(0, groups, wide), zeros.index_add(0, groups, torch.ones_like(wide)))

    def cpu(self) -> "MeanBy":
        """The same on the CPU."""
        return MeanBy(self.sum.cpu(), self.count.cpu())

    def __add__(self, other: "MeanBy") -> "MeanBy":
        return MeanBy(self.sum + other.sum, self.count + other.count)

    def number(self) -> None:
        """None: there is a number for each group."""

    def means(self) -> list[float | None]:
        """Σx / n of each group; None where nothing was counted."""
        return [total / count if count > 0 else None for total, count in zip(*self._lists(), strict=True)]

    def counts(self) -> list[int]:
        """How many elements each group has."""
        return [int(count) for count in self._lists()[1]]

    def _lists(self) -> tuple[list[float], list[float]]:
        return self.sum.tolist(), self.count.tolist()


Metric: TypeAlias = (
    Mean | Max | Variance | Std | StandardError | EffectiveSampleSize | Correlation | ExplainedVariance | MeanBy
)


@dataclass(frozen=True)
class Metrics:
    """name → metric; `+` merges two collections, adding up what both have."""

    by_name: Mapping[str, Metric] = field(default_factory=dict)

    def __add__(self, other: "Metrics") -> "Metrics":
        merged = dict(self.by_name)
        for name, metric in other.by_name.items():
            merged[name] = merged[name] + metric if name in merged else metric  # type: ignore[operator]
        return replace(self, by_name=merged)

    def cpu(self) -> "Metrics":
        """The same metrics with their numbers on the CPU."""
        return replace(self, by_name={name: metric.cpu() for name, metric in self.by_name.items()})

    def numbers(self) -> dict[str, float]:
        """One number for each metric; what was never counted is absent."""
        found = {name: metric.number() for name, metric in self.by_name.items()}
        return {name: number for name, number in found.items() if number is not None}
