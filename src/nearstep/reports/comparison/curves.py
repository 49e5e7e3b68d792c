"""What runs did, metric by metric: the curve of each, mean and spread over seeds, the last and the best values."""

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nearstep.common.errors import DataError, shorten
from nearstep.common.spelling import nearest
from nearstep.reports.comparison.groups import SeedGroup, differing_settings, grouped
from nearstep.reports.run_folder import Line, RunFolder

Axis: TypeAlias = Literal["update", "episode"]
FloatArray: TypeAlias = NDArray[np.float64]
"""Numbers of one kind, in order."""

# Those of TRL's page on PPOv2, in its order; evaluations and length where there are any.
FIGURE = (
    "objective/rlhf_reward", "objective/scores", "objective/kl", "objective/non_score_reward", "objective/entropy",
    "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg",
    "policy/entropy_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "eps",
    "response/length_mean", "eval/objective/scores",
)  # fmt: skip
ALL = "all"
PLACES = ("update", "episode", "epoch", "step")
HIGHER = ("objective/rlhf_reward", "objective/scores", "objective/scores_raw", "val/explained_variance",
          "val/num_eos_tokens", "eps", "tokens_per_second", "accuracy", "margin", "reward/*", "win_rate*")  # fmt: skip
LOWER = ("loss/value_avg", "loss", "eval_loss", "reward/*_failed", "reward/*_none")


@dataclass(frozen=True)
class Curve:
    """A metric of one run; `x` rises."""

    x: FloatArray
    y: FloatArray


@dataclass(frozen=True)
class Spread:
    """Mean over the runs of a group where all of them are, and their standard deviation (n − 1; 0 for one run)."""

    x: FloatArray
    mean: FloatArray
    deviation: FloatArray
    runs: int


@dataclass(frozen=True)
class Figures:
    """One number of a group: mean over its runs, standard deviation over them (None for one), and the runs' own."""

    mean: float
    deviation: float | None
    of_runs: tuple[float, ...]
    x: float | None = None  # where it was taken, if for all runs at one place


@dataclass(frozen=True)
class ComparedRuns:
    """Everything that is shown of several runs."""

    axis: Axis
    groups: Sequence[SeedGroup]
    settings: dict[str, list[list[Any]]]  # by name, the values of each group
    metrics: Sequence[str]
    curves: dict[str, list[list[Curve]]]  # by metric, of each group, of each of its runs that has it

    def spread(self, metric: str, group: int) -> Spread | None:
        """Mean and deviation over the seeds of a group; None where they are at no place together."""
        curves = self.curves[metric][group]
        if not curves:
            return None
        first, last = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
        x = np.unique(np.concatenate([curve.x for curve in curves]))
        x = x[(x >= first) & (x <= last)]
        if len(x) == 0:
            return None
        every = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
        deviation = every.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(x))
        return Spread(x, every.mean(axis=0), deviation, len(curves))

    def last(self, metric: str, group: int) -> Figures | None:
        """The value at the last place that all runs of the group have reached."""
        spread = self.spread(metric, group)
        if spread is None:
            return None
        x = spread.x[-1]
        return _figures([float(np.interp(x, curve.x, curve.y)) for curve in self.curves[metric][group]], float(x))

    def best(self, metric: str, group: int) -> Figures | None:
        """Mean over the runs of each one's best value; None where more is neither better nor worse."""
        curves, highest = self.curves[metric][group], higher_is_better(metric)
        if not curves or highest is None:
            return None
        return _figures([float(curve.y.max() if highest else curve.y.min()) for curve in curves])


def compare(places: Sequence[str], metrics: Sequence[str] = (), axis: Axis = "episode") -> ComparedRuns:
    """Read runs and put them beside one another. `metrics` may hold patterns such as `reward/*`, or `all`.

    Raises DataError where a folder is none of a run, or no run has a metric that is asked for.
    """
    groups = grouped(places)
    lines = [[[*run.metrics, *run.evaluations] for run in group.runs] for group in groups]
    there = _unique(name for group in lines for run in group for line in run for name in line)
    shown = _chosen([name for name in there if name not in (*PLACES, "not_finite")], metrics)
    curves = {
        name: [[curve for run in group if (curve := _curve(run, name, axis)) is not None] for group in lines]
        for name in shown
    }
    return ComparedRuns(axis, groups, differing_settings(groups), [name for name in shown if any(curves[name])], curves)


def higher_is_better(metric: str) -> bool | None:
    """Whether more of a metric is better; None for those of which neither is."""
    name = metric.removeprefix("eval/")
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in LOWER):
        return False
    return True if any(fnmatch.fnmatchcase(name, pattern) for pattern in HIGHER) and not name.endswith("_std") else None


def updates_done(run: RunFolder) -> int | None:
    """The last update, or optimizer step of a reward model, that a run has logged."""
    lines = [line.get("update", line.get("step")) for line in (*run.metrics, *run.evaluations)]
    return max((number for number in lines if number is not None), default=None)


def _chosen(there: Sequence[str], asked: Sequence[str]) -> list[str]:
    if not asked:
        return [name for name in FIGURE if name in there] or list(there)
    if ALL in asked:
        return list(there)
    shown = []
    for pattern in asked:
        found = [name for name in there if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            near = nearest(pattern, there)
            meant = f"did you mean {near}?" if near else f"there are {shorten(', '.join(there), 400)}"
            raise DataError(f"metrics: no run has {shorten(pattern)}; {meant}")
        shown += found
    return _unique(shown)


def _curve(lines: Sequence[Line], name: str, axis: Axis) -> Curve | None:
    points = {}
    for line in lines:
        x, y = line.get(axis, line.get("step")), line.get(name)
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(y):
            points[float(x)] = float(y)
    if not points:
        return None
    x, y = zip(*sorted(points.items()), strict=True)
    return Curve(np.array(x), np.array(y))


def _figures(of_runs: list[float], x: float | None = None) -> Figures:
    deviation = float(np.std(of_runs, ddof=1)) if len(of_runs) > 1 else None
    return Figures(float(np.mean(of_runs)), deviation, tuple(of_runs), x)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
