"""How much each action's loss weighs where the engine that sampled is not quite the trainer: π_old against μ.

One form covers the schemes in use: a ratio by token or by row, and what becomes of it beyond its limits. Several may be
combined: their weights are multiplied.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.algorithm.kl import LOG_RATIO_LIMIT, log_ratios
from nearstep.algorithm.precision import wide
from nearstep.algorithm.ragged import row_numbers, sum_by_row
from nearstep.algorithm.trust_regions import ActionRows

RatioLevel: TypeAlias = Literal["token", "row", "row_mean"]
LimitAction: TypeAlias = Literal["truncate", "mask", "reject"]
Measure: TypeAlias = Literal["ratio", "k2", "k3", "largest"]


@runtime_checkable
class CorrectionRule(Protocol):
    """A weight for the loss of every action. Any frozen dataclass with this member is one."""

    def importance(
        self, trainer: Float[Tensor, " actions"], engine: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """The weights, from 0 on, of the log-probs π_old that the trainer has and μ that the engine recorded."""


@dataclass(frozen=True)
class Correction:
    """The ratio π_old / μ within limits.

    `level` says what has a ratio: a token, a row (the product of its tokens' ratios), or a row by its geometric mean.
    `measure` is what is held against the limits: that ratio; k2 = ½ (log ratio)² or k3 = ratio − 1 − log ratio of the
    tokens (summed over a row, or its mean); or every token's ratio of the row, the `largest` as well as the smallest.
    `action` says what follows: `truncate` holds the ratio at its limits (with both it is a clamp), `mask` keeps it
    inside and gives 0 outside, `reject` gives 1 inside and 0 outside. A limit that is None does not bind. Log-ratios
    are held within ±20, those of tokens as well as their sums. Raises ValueError for a combination that means nothing.
    """

    level: RatioLevel = "token"
    action: LimitAction = "truncate"
    measure: Measure = "ratio"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        problem = form_problem(self.level, self.action, self.measure, self.low, self.high)
        if problem is not None:
            raise ValueError(f"Correction: {problem}")

    def importance(
        self, trainer: Float[Tensor, " actions"], engine: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """The weight of every action; that of a row depends on the row alone."""
        gaps, counts = log_ratios(trainer, engine), rows.action_counts
        logs = self._of_level(gaps, counts)
        ratio = logs.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        if self.action == "truncate":
            return ratio.clamp(*self._limits).to(gaps.dtype)
        weight = ratio if self.action == "mask" else torch.ones_like(ratio)
        return torch.where(self._inside(gaps, ratio, counts), weight, 0).to(gaps.dtype)

    def without_limits(self) -> "Correction":
        """The same ratio where nothing is beyond a limit; 1 for `reject`."""
        return replace(self, measure="ratio", low=None, high=None)

    @property
    def _limits(self) -> tuple[float, float]:
        return 0.0 if self.low is None else self.low, torch.inf if self.high is None else self.high

    def _inside(
        self, gaps: Float[Tensor, " actions"], ratio: Float[Tensor, " actions"], counts: Int[Tensor, " rows"]
    ) -> Bool[Tensor, " actions"]:
        """Which actions are within the limits, all of a row or none where the level is the row."""
        low, high = self._limits
        match self.measure:
            case "ratio":
                measured = ratio
            case "k2":
                measured = self._of_level(gaps.square() / 2, counts)
            case "k3":
                measured = self._of_level(gaps.expm1() - gaps, counts)
            case "largest":
                tokens = gaps.exp()
                beyond = sum_by_row(((tokens < low) | (tokens > high)).long(), counts)
                return beyond[row_numbers(counts)] == 0
        return (measured >= low) & (measured <= high)

    def _of_level(self, values: Float[Tensor, " actions"], counts: Int[Tensor, " rows"]) -> Float[Tensor, " actions"]:
        """What stands at tokens, or its sum or mean over their row, in float64: limits close to 1 are usual there."""
        if self.level == "token":
            return values
        sums = sum_by_row(values.double(), counts)
        return (sums if self.level == "row" else sums / counts.clamp(min=1))[row_numbers(counts)]


@dataclass(frozen=True)
class Corrections:
    """The product of the weights of several corrections; 1 without any."""

    parts: tuple[CorrectionRule, ...] = ()

    def importance(
        self, trainer: Float[Tensor, " actions"], engine: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """The product for every action."""
        weight = torch.ones_like(wide(engine))
        for part in self.parts:
            weight = weight * part.importance(trainer, engine, rows)
        return weight


UNCORRECTED = Corrections()


def unlimited(rule: CorrectionRule) -> CorrectionRule:
    """What a rule would give if no limit did anything; for a rule of another kind the ratio of each token."""
    match rule:
        case Correction():
            return rule.without_limits()
        case Corrections():
            return Corrections(tuple(map(unlimited, rule.parts)))
    return Correction()


def form_problem(level: str, action: str, measure: str, low: float | None, high: float | None) -> str | None:
    """Why a combination means nothing, in words; None where it does mean something."""
    for name, value, known in (
        ("level", level, get_args(RatioLevel)),
        ("action", action, get_args(LimitAction)),
        ("measure", measure, get_args(Measure)),
    ):
        if value not in known:
            return f"{name} = {value!r} is none of {', '.join(known)}"
    if action == "truncate" and measure != "ratio":
        return f"action = truncate holds the ratio at its limits, and measure = {measure} is another quantity: use mask"
    if measure == "largest" and level == "token":
        return "measure = largest looks at the tokens of a row: use level = row or row_mean"
    if measure in ("k2", "k3") and low is not None:
        return f"measure = {measure} is 0 where engine and trainer agree: it has an upper limit alone"
    if low is not None and high is not None and low > high:
        return f"low = {low:g} is above high = {high:g}"
    return None
