"""What the stability benchmark found, in numbers, in words and as a picture."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.drift.play import Moment

PARTS = 5  # a run is scored by fifths: some updates together, for one alone is noisy


@dataclass(frozen=True)
class Run:
    """One method with one seed in one regime; fewer moments than `updates` where a gradient was not finite."""

    regime: str
    method: str
    seed: int
    updates: int
    moments: tuple[Moment, ...]

    @property
    def fifth(self) -> int:
        """Updates in a fifth of the run, at least one."""
        return max(1, self.updates // PARTS)

    @property
    def final(self) -> float:
        """Mean reward of the last fifth; 0 for a run that ended early, for its weights are lost."""
        if len(self.moments) < self.updates:
            return 0.0
        return statistics.fmean(moment.reward for moment in self.moments[-self.fifth :])

    @property
    def first(self) -> float:
        """Mean reward of the first fifth."""
        return _mean([moment.reward for moment in self.moments[: self.fifth]])

    @property
    def best(self) -> float:
        """The highest mean reward of as many updates in a row; 0 if there were not that many."""
        rewards = [moment.reward for moment in self.moments]
        windows = [rewards[place : place + self.fifth] for place in range(len(rewards) - self.fifth + 1)]
        return max((statistics.fmean(window) for window in windows), default=0.0)

    @property
    def collapsed(self) -> bool:
        """Whether it ends below where it began."""
        return self.final < self.first


@dataclass(frozen=True)
class Row:
    """One method in one regime, over its seeds. The mismatch is that between trainer and engine before an update."""

    method: str
    finals: tuple[float, ...]
    best: float
    collapsed: int
    gap_first: float  # mean |π − μ|, over the second fifth: in the first a stale engine is not stale yet
    gap_last: float
    kl_last: float
    dropped: float

    @property
    def final(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.finals)

    @property
    def spread(self) -> float:
        """Half the distance between the best and the worst seed."""
        return (max(self.finals) - min(self.finals)) / 2


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row for each method, in the order of the runs."""
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    return [_row(method, of_method) for method, of_method in by_method.items()]


def _row(method: str, runs: Sequence[Run]) -> Row:
    early = [moment for run in runs for moment in run.moments[run.fifth : 2 * run.fifth]]
    late = [moment for run in runs for moment in run.moments[-run.fifth :]]
    every = [moment for run in runs for moment in run.moments]
    return Row(
        method=method,
        finals=tuple(run.final for run in runs),
        best=statistics.fmean(run.best for run in runs),
        collapsed=sum(run.collapsed for run in runs),
        gap_first=_mean([moment.gap for moment in early]),
        gap_last=_mean([moment.gap for moment in late]),
        kl_last=_mean([moment.kl for moment in late]),
        dropped=_mean([moment.dropped for moment in every]),
    )


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


MISMATCH_SHOWN = (1e-3, 0.5)  # rounding of float32 alone, about 1e-7, lies below

COLUMNS = (
    "method", "reward at the end", "each seed", "best", "collapsed", "abs(π − μ) early", "abs(π − μ) at the end",
    "KL(μ, π) at the end", "tokens dropped",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row as text."""
    return [
        row.method, f"{row.final:.3f}", " ".join(f"{final:.2f}" for final in row.finals), f"{row.best:.3f}",
        f"{row.collapsed} of {len(row.finals)}", f"{row.gap_first:.4f}", f"{row.gap_last:.4f}", f"{row.kl_last:.4f}",
        f"{row.dropped:.3f}",
    ]  # fmt: skip


def table(found: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(row) for row in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Claim:
    """What the paper found in its sanity test: the methods of a group hold or collapse."""

    text: str
    methods: tuple[str, ...]
    collapses: bool

    def fits(self, row: Row) -> bool:
        """To collapse means that half of the seeds do, to hold that none does."""
        return 2 * row.collapsed >= len(row.finals) if self.collapses else row.collapsed == 0


def facts(found: Sequence[Row], claims: Sequence[Claim]) -> str:
    """One paragraph of measured facts: order, collapses, and each claim against them."""
    ordered = sorted(found, key=lambda row: -row.final)
    ranking = ", ".join(f"{row.method} {row.final:.2f} ± {row.spread:.2f}" for row in ordered)
    fallen = ", ".join(f"{row.method} ({row.collapsed} of {len(row.finals)} seeds)" for row in found if row.collapsed)
    widest, narrowest = max(found, key=lambda row: row.gap_last), min(found, key=lambda row: row.gap_last)
    sentences = [
        f"Reward at the end, best first: {ranking}.",
        f"Collapsed: {fallen or 'none'}.",
        f"Mean |π − μ| at the end is largest with {widest.method} ({widest.gap_last:.2g}) and smallest with "
        f"{narrowest.method} ({narrowest.gap_last:.2g}).",
    ]
    for claim in claims:
        there = {row.method: row for row in found if row.method in claim.methods}
        against = [name for name, row in there.items() if not claim.fits(row)]
        if there:
            verdict = f"not so for {', '.join(against)}" if against else "so here"
            sentences.append(f"The paper: {claim.text}; {verdict}.")
    return " ".join(sentences)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Two panels for each regime: training reward and mismatch over the updates, a line for each method."""
    from matplotlib.figure import Figure

    regimes = list(dict.fromkeys(run.regime for run in runs))
    methods = list(dict.fromkeys(run.method for run in runs))
    figure = Figure(figsize=(15, 5 * len(regimes)), layout="constrained")
    panels = figure.subplots(len(regimes), 2, squeeze=False)
    for (left, right), regime in zip(panels, regimes, strict=True):
        for number, method in enumerate(methods):
            of_method = [run for run in runs if (run.regime, run.method) == (regime, method)]
            style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--", "label": method}
            left.plot(_smooth(_over_seeds(of_method, "reward")), **style)
            right.semilogy(_smooth(_over_seeds(of_method, "gap")), **style)
        left.set(title=f"{regime}: training reward", xlabel="update", ylim=(0, 1))
        right.set(title=f"{regime}: mean |π − μ| before the update", xlabel="update", ylim=MISMATCH_SHOWN)
    panels[0][0].legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=80)


def _over_seeds(runs: Sequence[Run], quantity: str) -> list[float]:
    """Mean over the seeds, update by update, as long as every seed goes on."""
    return [
        statistics.fmean(vars(moment)[quantity] for moment in moments)
        for moments in zip(*(run.moments for run in runs), strict=False)
    ]


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Mean of the last few values."""
    return [statistics.fmean(values[max(0, place - width + 1) : place + 1]) for place in range(len(values))]
