"""What the scores of a file look like as a whole: means, spreads, quantiles, rows without a score."""

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from nearstep.evaluation.episodes import Episodes
from nearstep.reports.fitting import Column, fitting_tables
from nearstep.types import Scores

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LOG_WIDTH = 160  # where there is no terminal whose width counts


class ScoreSummary:
    """Collects the scores of all rows, those of `names` and their total."""

    def __init__(self, names: Sequence[str]) -> None:
        self.rows = 0
        self.values: dict[str, list[float]] = {name: [] for name in (*names, "total")}
        self.failed: dict[str, int] = dict.fromkeys((*names, "total"), 0)
        self.differences: list[float] = []  # from the totals that a run recorded

    def add(self, episodes: Episodes, scores: Scores) -> None:
        """Take in some rows."""
        totals = scores.with_dense(scores.total, episodes.rollout).tolist()
        self.rows += len(totals)
        for name, part in scores.parts.items():
            self.values[name] += [value for value in part.tolist() if not math.isnan(value)]
            self.failed[name] += len(scores.failures.get(name, {}))
        self.values["total"] += [total for total in totals if not math.isnan(total)]
        self.failed["total"] += sum(map(math.isnan, totals))
        pairs = zip(totals, episodes.logged, strict=True)
        self.differences += [abs(total - logged) for total, logged in pairs if logged is not None]

    def tables(self, width: int) -> list[Table]:
        """One column for each part of the reward, the total last; one line for each statistic. Several tables where the
        columns do not fit into `width` beside each other."""
        quantiles = ["min", *(f"{share:.0%}" for share in QUANTILES[1:-1]), "max"]
        statistics = Column(f"{self.rows} rows", ["scored", "failed", "mean", "std", *quantiles], "left")
        return fitting_tables(statistics, [Column(name, self._column(name)) for name in self.values], width)

    def _column(self, name: str) -> list[str]:
        values = self.values[name]
        numbers = [np.mean(values), np.std(values), *np.quantile(values, QUANTILES)] if values else []
        shown = [f"{number:.4g}" for number in numbers] or [""] * (2 + len(QUANTILES))
        return [str(len(values)), str(self.failed[name]), *shown]

    def print(self, output: str) -> None:
        """Show the table, how the scores compare with those of the run, and where they were written."""
        console = Console(highlight=False, markup=False)
        if not console.is_terminal:
            console.width = LOG_WIDTH
        console.print(*self.tables(console.width), sep="\n")
        if self.differences:
            equal = sum(difference == 0 for difference in self.differences)
            console.print(
                f"{equal} of {len(self.differences)} totals equal what the run recorded; "
                f"the largest difference is {max(self.differences):.3g}."
            )
        console.print(f"Scores: {output}")
