"""Where a report is written."""

import os
from pathlib import Path

from nearstep.common.errors import TrainingError
from nearstep.reports.page.content import Content
from nearstep.reports.page.render import bokeh_script, page
from nearstep.reports.page.rows import MOST_SAMPLES
from nearstep.reports.run_folder import RunFolder


def write_report(folder: Path, output: Path | None = None, *, max_samples: int = MOST_SAMPLES) -> Path:
    """Write the page of a run, into its folder if no other place is given; returns where it is.

    Raises DataError where the folder is none of a run, ConfigError where bokeh is not installed, TrainingError where
    the file cannot be written.
    """
    run = RunFolder(folder)
    bokeh_script()  # what is missing is told before a large run is read
    content = Content(run.path, max_samples)
    content.read()
    path = output or run.report
    _write(path, page(content.data()))
    return path


def _write(path: Path, text: str) -> None:
    """Write the file as a whole, or leave what was there."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(unfinished, path)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}. Give another --output.") from error
