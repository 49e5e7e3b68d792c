"""Whether a name that a user gives is a place on this machine, and whether it is there."""

import os
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from nearstep.config.settings import Problem

DATA_FILES = (".jsonl", ".json", ".csv", ".parquet")


def is_local(place: str) -> bool:
    """Whether a name can only mean a place on this machine; a hub name is `name` or `owner/name`."""
    return place.startswith((".", "/", "~", "$")) or place.endswith(DATA_FILES) or place.count("/") > 1


def absent_places(places: Mapping[str, str | None]) -> Iterator[Problem]:
    """Settings, by name, whose value can only be a place on this machine and is not there."""
    for name, place in places.items():
        if place is not None and is_local(place) and not Path(place).exists():
            yield Problem(f"{name} = {place}: no such file or folder{_meant(place)}", (name,))


def absent_reward_files(reward_funcs: Iterable[str], setting: str = "reward_funcs") -> Iterator[Problem]:
    """Reward functions whose file is not there."""
    for source in reward_funcs:
        file = source.rpartition(":")[0] or source
        if (file.endswith(".py") or is_local(file)) and not Path(file).exists():
            yield Problem(f"{setting} = {source}: no such file or folder {file}{_meant(file)}", (setting,))


def _meant(place: str) -> str:
    """What lies in the same folder under a name like it."""
    path = Path(place)
    readable = path.parent.is_dir() and os.access(path.parent, os.R_OK)
    near = get_close_matches(path.name, os.listdir(path.parent) if readable else [], n=1, cutoff=0.8)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""
