"""What the records of a run's folder are to a run that goes on there: cut back to its update, and known again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearstep.reports.records import PLACE, set_aside
from nearstep.reports.run_folder import INFO, METRICS, RECORDS, UPDATE, json_object


def make_ready(folder: Path, after: int, *, goes_on: bool) -> dict[str, Path]:
    """Cut the records of a run that goes on after an update back to it, or set those of an earlier run aside.

    Returns what was set aside, and where it lies now.
    """
    if goes_on:
        for name in RECORDS:
            cut_after(folder / name, after or -1)  # −1: an evaluation of the start is made anew, too
        return {}
    moved = {name: set_aside(folder / name) for name in (*RECORDS, INFO)}
    return {name: place for name, place in moved.items() if place is not None}


def cut_after(path: Path, update: int) -> None:
    """End a file of records with the last one of `update`: what came later is played again."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            found = UPDATE.match(line)
            if found is None or int(found[1]) > update or not line.endswith(b"\n"):
                break
            end += len(line)
        file.truncate(end)


def numbers_of(line: Mapping[str, Any]) -> dict[str, int | float]:
    """The metrics of a line as they were, without their place in the run.

    >>> numbers_of({'update': 1, 'episode': 8, 'epoch': 0.5, 'lr': 0.1, 'eps': None, 'not_finite': {'eps': 'nan'}})
    {'lr': 0.1, 'eps': nan}
    """
    broken = line.get("not_finite", {})
    return {
        name: float(broken[name]) if name in broken else value
        for name, value in line.items()
        if name not in (*PLACE, "not_finite")
    }


def logged_before(folder: Path, last: int) -> list[dict[str, int | float]]:
    """What a run has logged up to its update `last`: place and metrics of every update and evaluation."""
    path, found = folder / METRICS, []
    if not path.exists():
        return []
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            update = UPDATE.match(text)
            if update is None or int(update[1]) > last:
                break
            line = json_object(text, path, number)
            found.append({**{name: line[name] for name in PLACE}, **numbers_of(line)})
    return found
