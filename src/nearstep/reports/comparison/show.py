"""What is printed of a comparison: tables for people, one object for scripts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nearstep.reports.comparison.curves import ComparedRuns, Figures, updates_done

NONE = "–"


def as_json(comparison: ComparedRuns) -> dict[str, Any]:
    """Groups, the settings in which they differ, and of every metric the numbers of each group."""
    return {
        "axis": comparison.axis,
        "groups": [
            {
                "label": group.label,
                "runs": [
                    {"name": name, "folder": str(run.path), "seed": seed, "updates": updates_done(run)}
                    for run, name, seed in zip(group.runs, group.names, group.seeds, strict=True)
                ],
            }
            for group in comparison.groups
        ],
        "settings": comparison.settings,
        "metrics": {
            metric: [_of_group(comparison, metric, number) for number in range(len(comparison.groups))]
            for metric in comparison.metrics
        },
    }


def print_tables(comparison: ComparedRuns, console: Console) -> None:
    """The runs, the settings in which they differ, the last and best values; nothing is cut at the right edge."""
    runs = _table("Runs", "group", "run", "seed", "updates")
    for group in comparison.groups:
        for run, name, seed in zip(group.runs, group.names, group.seeds, strict=True):
            runs.add_row(*map(_cell, (group.label, name, seed, updates_done(run))))
    console.print(runs)
    settings = _table("Settings that differ", "setting", "group", "value")
    for name, values in comparison.settings.items():
        for group, of_group in zip(comparison.groups, values, strict=True):
            settings.add_row(*map(_cell, (name, group.label, " / ".join(map(str, of_group)))))
    console.print(settings if comparison.settings else "The runs differ in no setting but the seed.")
    numbers = _table("Metrics: mean ± standard deviation over n runs", "metric", "group", "last", "best", "n")
    for metric in comparison.metrics:
        for number, group in enumerate(comparison.groups):
            last, best = comparison.last(metric, number), comparison.best(metric, number)
            n = len(comparison.curves[metric][number])
            numbers.add_row(*map(_cell, (metric, group.label, shown(last), shown(best), n)))
    console.print(numbers)


def shown(figures: Figures | None) -> str:
    """A number with its spread over runs."""
    if figures is None:
        return NONE
    spread = "" if figures.deviation is None else f" ± {figures.deviation:.2g}"
    return f"{figures.mean:.4g}{spread}"


def _of_group(comparison: ComparedRuns, metric: str, number: int) -> dict[str, Any]:
    spread, last, best = (
        comparison.spread(metric, number),
        comparison.last(metric, number),
        comparison.best(metric, number),
    )
    curve = None
    if spread is not None:
        curve = {
            "x": spread.x.tolist(),
            "mean": spread.mean.tolist(),
            "deviation": spread.deviation.tolist() if spread.runs > 1 else None,
        }
    return {
        "group": comparison.groups[number].label,
        "n": len(comparison.curves[metric][number]),
        "last": None if last is None else dataclasses.asdict(last),
        "best": None if best is None else dataclasses.asdict(best),
        "curve": curve,
    }


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cell(value: object) -> Text:
    return Text(NONE if value is None else str(value))


def group_rows(comparison: ComparedRuns) -> Sequence[tuple[str, str]]:
    """Label and runs of each group, for a page."""
    return [
        (
            group.label,
            "; ".join(
                f"{name}: seed {NONE if seed is None else seed}, to update {updates_done(run)}"
                for run, name, seed in zip(group.runs, group.names, group.seeds, strict=True)
            ),
        )
        for group in comparison.groups
    ]
