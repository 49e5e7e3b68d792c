"""What rules look at: the metrics of a run as series over its updates, and its settings."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

MetricsLine: TypeAlias = Mapping[str, object]
"""One line of metrics.jsonl, or the same as the trainer has it."""

TREND_POINTS = 64  # that a trend is judged by; longer series are averaged in blocks
ENDS = 5  # updates at the most that stand for the beginning or the end of a run
EVALUATION = "eval/"


@dataclass(frozen=True)
class Series:
    """The finite values of one metric, and the updates that they belong to."""

    updates: NDArray[np.int64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def ends(self) -> int:
        """How many values stand for the beginning, and how many for the end: a quarter, one to five."""
        return max(1, min(ENDS, len(self) // 4))

    @property
    def last(self) -> str:
        """What the end is taken over, in words."""
        return "the last update" if self.ends == 1 else f"the last {self.ends} updates"

    @property
    def start(self) -> float:
        """Median of the first values; NaN where there are none."""
        return float(np.median(self.values[: self.ends])) if len(self) else math.nan

    @property
    def end(self) -> float:
        """Median of the last values; NaN where there are none."""
        return float(np.median(self.values[-self.ends :])) if len(self) else math.nan

    def trend(self) -> float:
        """Mann and Kendall's statistic in standard deviations: above 0 where later values tend to be larger.

        It takes no shape of the course for granted and no outlier moves it. Between −∞ and ∞; 0 for fewer than 5
        values. Source: Kendall, Rank Correlation Methods, 1975.
        """
        values = self.values
        if len(values) > TREND_POINTS:
            values = np.array([block.mean() for block in np.array_split(values, TREND_POINTS)])
        count = len(values)
        if count < ENDS:
            return 0.0
        later = np.sign(values[None, :] - values[:, None])[np.triu_indices(count, 1)].sum()
        _, ties = np.unique(values, return_counts=True)
        variance = (count * (count - 1) * (2 * count + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
        return 0.0 if variance <= 0 else float((later - np.sign(later)) / math.sqrt(variance))

    def first_where(self, is_so: NDArray[np.bool_]) -> int:
        """The first update of which it is so."""
        return int(self.updates[int(np.argmax(is_so))])


NOTHING = Series(np.zeros(0, dtype=np.int64), np.zeros(0))


def chance_of(z: float) -> float:
    """How likely chance alone gives a statistic as far from 0 as `z`, to either side."""
    return 2 * (1 - NormalDist().cdf(abs(z)))


@dataclass
class RunEvidence:
    """The metrics so far; grows by one line at a time. `settings` are those of run.yaml."""

    settings: Mapping[str, object] = field(default_factory=dict)
    update: int = 0  # the last one that was logged
    not_finite: dict[int, list[str]] = field(default_factory=dict)  # by update, which metrics were no numbers
    _columns: dict[str, tuple[list[int], list[float]]] = field(default_factory=lambda: defaultdict(lambda: ([], [])))

    @staticmethod
    def of(lines: Iterable[MetricsLine], settings: Mapping[str, object] | None = None) -> "RunEvidence":
        """That of a whole history."""
        evidence = RunEvidence(settings or {})
        for line in lines:
            evidence.add(line)
        return evidence

    def add(self, line: MetricsLine) -> None:
        """Take in the line of an update or of an evaluation."""
        update = line.get("update")
        if not isinstance(update, int):
            return
        self.update = max(self.update, update)
        broken = line.get("not_finite")
        names = list(broken) if isinstance(broken, Mapping) else []
        for name, value in line.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if not math.isfinite(value):
                names.append(name)
                continue
            updates, values = self._columns[name]
            updates.append(update)
            values.append(float(value))
        if names:
            self.not_finite[update] = names

    def series(self, name: str) -> Series:
        """All values of a metric; empty where it was never logged."""
        if name not in self._columns:
            return NOTHING
        updates, values = self._columns[name]
        return Series(np.array(updates, dtype=np.int64), np.array(values))

    def names(self, beginning: str) -> list[str]:
        """The metrics whose names begin so."""
        return [name for name in self._columns if name.startswith(beginning)]

    @property
    def rows(self) -> int:
        """Episodes of one update."""
        updates, episodes = self._columns.get("episode", ([], []))
        return max(1, round(episodes[-1] / updates[-1])) if updates and updates[-1] else 1

    def number(self, name: str, otherwise: int | float = 0.0) -> float:
        """A setting that is a number; `otherwise` where it is not set."""
        value = self.settings.get(name)
        return float(value if isinstance(value, int | float) else otherwise)

    def per_token(self, name: str) -> Series:
        """A metric of whole responses, divided by their mean length."""
        whole, lengths = self.series(name), self.series("response/length_mean")
        if len(whole) != len(lengths):
            return NOTHING
        return Series(whole.updates, whole.values / np.maximum(lengths.values, 1))


def has_no_stop(evidence: RunEvidence) -> bool:
    """Whether the run has no stop token on purpose."""
    settings = evidence.settings
    return bool(settings) and settings.get("stop_token") is None and not settings.get("stop_token_id")
