"""`nearstep compare`: several runs over each other, their seeds as a mean with a band."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nearstep.config.settings import Problem, Settings, accepts_old_names, option

ENDINGS = (".html", ".png", ".svg", ".pdf")


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class CompareOptions(Settings):
    """Which runs are compared, by what, and where the figure goes."""

    runs: tuple[str, ...] = option(
        (), "folders of runs; those that differ in their seed alone are one group", is_place=True
    )
    metrics: tuple[str, ...] = option(
        (), "metrics of the figure: names, patterns such as 'reward/*', or all; those of TRL's figure if not given"
    )
    axis: Literal["update", "episode"] = option("episode", "what the figure has from left to right")
    output: tuple[str, ...] = option(
        ("compare.html",),
        "files for the figure, by their ending .html, .png, .svg or .pdf; 'none' for none",
        is_place=True,
    )
    json: bool = option(False, "print one JSON object instead of tables")

    def problems(self) -> Iterator[Problem]:
        """What is missing or cannot be written."""
        if not self.runs:
            yield Problem("say which runs: nearstep compare RUN RUN …", ("runs",))
        for path in map(Path, self.output):
            if path.suffix.lower() not in ENDINGS:
                yield Problem(f"output = {path} must end with {', '.join(ENDINGS)}", ("output",))
            elif path.is_dir():
                yield Problem(f"output = {path} is a folder; give a file", ("output",))


SECTIONS = (("Comparison", "runs"),)


def run_compare(options: CompareOptions) -> None:
    """Print tables and write the figure. Raises DataError where a folder is none of a run."""
    from rich.console import Console

    from nearstep.reports.comparison.curves import compare
    from nearstep.reports.comparison.show import as_json, print_tables

    comparison = compare(options.runs, options.metrics, options.axis)
    if options.json:
        print(json.dumps(as_json(comparison), allow_nan=False))
    else:
        print_tables(comparison, Console(highlight=False))
    if options.output:
        from nearstep.reports.comparison.figure import write_figure

        for path in map(Path, options.output):
            write_figure(comparison, path)
            if not options.json:
                print(f"figure {path}")
