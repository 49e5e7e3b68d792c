"""What a figure is: a number with what it counts, and an interval over prompts, for a prompt is what was drawn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nearstep.common.intervals import wilson
from nearstep.common.random_streams import stream_seed

Floats: TypeAlias = NDArray[np.float64]
DrawnPrompts: TypeAlias = NDArray[np.int64]

AT_A_TIME = 2**22  # draws × prompts that are held in memory


@dataclass(frozen=True)
class Figure:
    """A number over `n` things (rows, pairs, tokens: as its metric says) of so many prompts, with its interval of 95 %.

    The value is None where there is nothing to count, and `why` says why. `left_out` things could not be counted.
    """

    value: float | None
    n: int = 0
    prompts: int = 0
    low: float | None = None
    high: float | None = None
    interval: Literal["bootstrap", "Wilson", "jackknife", "combined", "normal"] | None = None
    left_out: int = 0
    why: str | None = None

    @staticmethod
    def none(why: str, left_out: int = 0) -> "Figure":
        """There is nothing to count."""
        return Figure(None, why=why, left_out=left_out)


@dataclass(frozen=True)
class Bootstrap:
    """Resampling of whole prompts (Efron 1979), percentile interval; the same draws for every figure."""

    seed: int = 42
    draws: int = 1000

    def ratio(self, numerators: Floats, denominators: Floats) -> Floats:
        """Σ numerators / Σ denominators of each draw of prompts; draws without a denominator are left out."""
        prompts = len(numerators)
        generator = np.random.default_rng(stream_seed(self.seed, "bootstrap"))
        found = []
        step = max(1, AT_A_TIME // prompts)
        for start in range(0, self.draws, step):
            drawn = generator.integers(prompts, size=(min(step, self.draws - start), prompts))
            below = denominators[drawn].sum(1)
            found.append(numerators[drawn].sum(1)[below > 0] / below[below > 0])
        drawn_ratios: Floats = np.concatenate(found)
        return drawn_ratios

    def statistic(self, of: Callable[[DrawnPrompts], float], prompts: int) -> Floats:
        """Any statistic of the numbers of the prompts in each draw; what is not finite is left out."""
        generator = np.random.default_rng(stream_seed(self.seed, "bootstrap"))
        found = np.array([of(generator.integers(prompts, size=prompts)) for _ in range(self.draws)])
        finite: Floats = found[np.isfinite(found)]
        return finite


def ratio(
    numerators: Sequence[int | float],
    denominators: Sequence[int | float],
    prompts: Sequence[int],
    bootstrap: Bootstrap,
    *,
    after: Callable[[Any], Any] = lambda value: value,
    left_out: int = 0,
    why: str = "there is nothing to count",
) -> Figure:
    """after(Σ numerators / Σ denominators) over all rows; `prompts` is the prompt of each row, n is Σ denominators."""
    over, under = _by_prompt(numerators, prompts), _by_prompt(denominators, prompts)
    if under.sum() == 0:
        return Figure.none(why, left_out)
    value = float(after(over.sum() / under.sum()))
    low, high = percentiles(after(bootstrap.ratio(over, under))) if len(over) > 1 else (None, None)
    return Figure(
        value, round(float(under.sum())), len(over), low, high, None if low is None else "bootstrap", left_out
    )


def mean(
    values: Sequence[int | float | None],
    prompts: Sequence[int],
    bootstrap: Bootstrap,
    *,
    why: str = "no row has a value",
) -> Figure:
    """The mean over rows. Rows whose value is None or NaN are left out and counted."""
    kept = [(value, prompt) for value, prompt in zip(values, prompts, strict=True) if is_number(value)]
    return ratio(
        [float(value) for value, _ in kept if value is not None],
        [1.0] * len(kept),
        [prompt for _, prompt in kept],
        bootstrap,
        left_out=len(values) - len(kept),
        why=why,
    )


def share(
    values: Sequence[int | float | None],
    prompts: Sequence[int],
    bootstrap: Bootstrap,
    *,
    why: str = "no row has a value",
) -> Figure:
    """A mean of values 0, ½ and 1: Wilson's interval where every prompt has one of them, else as `mean`."""
    figure = mean(values, prompts, bootstrap, why=why)
    halves = all(value in (0.0, 0.5, 1.0) for value in values if value is not None and is_number(value))
    if figure.value is None or figure.n != figure.prompts or not halves:
        return figure
    low, high = wilson(figure.value, figure.n)
    return Figure(figure.value, figure.n, figure.prompts, low, high, "Wilson", figure.left_out)


def statistic(
    of: Callable[[Floats], float], values: Sequence[int | float | None], prompts: Sequence[int], bootstrap: Bootstrap,
    *, why: str = "no row has a value",
) -> Figure:  # fmt: skip
    """Any statistic of the values of all rows; its interval draws whole prompts."""
    kept = [
        (float(value), p) for value, p in zip(values, prompts, strict=True) if value is not None and is_number(value)
    ]
    left_out = len(values) - len(kept)
    if not kept:
        return Figure.none(why, left_out)
    groups = grouped([value for value, _ in kept], [prompt for _, prompt in kept])
    value = of(np.array([value for value, _ in kept]))
    if len(groups) == 1 or not math.isfinite(value):
        return Figure(value if math.isfinite(value) else None, len(kept), len(groups), left_out=left_out)
    arrays = [np.array(group) for group in groups]
    found = bootstrap.statistic(lambda drawn: of(np.concatenate([arrays[each] for each in drawn])), len(arrays))
    low, high = percentiles(found)
    return Figure(value, len(kept), len(groups), low, high, "bootstrap", left_out)


def percentiles(values: Floats) -> tuple[float, float]:
    """The middle 95 % of values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def grouped(values: Sequence[Any], prompts: Sequence[int]) -> list[list[Any]]:
    """The values of each prompt, in order of appearance."""
    groups: dict[int, list[Any]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        groups.setdefault(prompt, []).append(value)
    return list(groups.values())


def is_number(value: int | float | None) -> bool:
    """Whether there is a value, and it is finite."""
    return value is not None and math.isfinite(value)


def _by_prompt(values: Sequence[int | float], prompts: Sequence[int]) -> Floats:
    return np.array([math.fsum(group) for group in grouped(values, prompts)], dtype=np.float64)
