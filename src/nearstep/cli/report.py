"""`nearstep report`: a run as one HTML file, which opens from disk and asks nobody for anything."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearstep.config.settings import Problem, Settings, accepts_old_names, option


@dataclass(frozen=True, kw_only=True)
class PageSettings(Settings):
    """Of which run a page is, and how much it shows."""

    run: str | None = option(None, "folder of the run: its output_dir", is_place=True)
    max_samples: int = option(
        2000,
        "most episodes that the page shows: the extreme ones, whole histories of some prompts, the rest at random",
        at_least=1,
    )


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class ReportOptions(PageSettings):
    """Settings of a report."""

    output: str | None = option(None, "file to write; report.html in the run's folder if not given", is_place=True)

    def problems(self) -> Iterator[Problem]:
        """What is missing or cannot be written."""
        if self.run is None:
            yield Problem("say of which run: nearstep report RUN", ("run",))
        if self.output is not None and Path(self.output).is_dir():
            yield Problem(f"output = {self.output} is a folder; give a file", ("output",))


SECTIONS = (("Report", "run"),)


def run_report(options: ReportOptions) -> None:
    """Write the page and say where. Raises DataError where the folder is none of a run."""
    from nearstep.reports.page.write import write_report

    assert options.run is not None
    output = None if options.output is None else Path(options.output)
    path = write_report(Path(options.run), output, max_samples=options.max_samples)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser; it needs no network.")
