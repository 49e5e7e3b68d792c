"""Which runs are one and the same but for their seed, what they are called, and in which settings the others differ."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearstep.common.errors import DataError
from nearstep.config.plain import plain_defaults
from nearstep.config.ppo import PPOConfig
from nearstep.config.reward_model import RewardConfig
from nearstep.config.saving import SavingSettings
from nearstep.config.sections import EpisodeReportSettings
from nearstep.config.settings import Settings
from nearstep.config.shared import ReportSettings, RunSettings
from nearstep.reports.run_folder import RunFolder

LONGEST_LABEL = 48  # characters
OF_PLACE = ("output_dir", "run_name", "resume", "seed")  # what runs always differ in, or is shown apart
# Where a run is, what it shows and saves: it moves no weight, so runs that differ in it alone are seeds of one another.
NEUTRAL = frozenset(
    setting.name
    for part in (RunSettings, ReportSettings, EpisodeReportSettings, SavingSettings)
    for setting in dataclasses.fields(part)
)


@dataclass(frozen=True)
class SeedGroup:
    """Runs of the same settings but for the seed."""

    label: str
    runs: tuple[RunFolder, ...]
    names: tuple[str, ...]  # of the runs, no two alike

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run; None where its settings are not known."""
        return [run.settings.get("seed") for run in self.runs]


def grouped(places: Sequence[str]) -> list[SeedGroup]:
    """Groups of the runs in these folders, in the order in which they are named; a folder that is named twice counts
    once. Raises DataError where one is none of a run, or has no metrics yet."""
    runs = list({run.path.resolve(): run for run in map(RunFolder, map(Path, places))}.values())
    for run in runs:
        if not (run.metrics or run.evaluations):
            raise DataError(f"{run.path} has no metrics yet: metrics.jsonl is missing or empty")
    found: dict[str, list[tuple[RunFolder, str]]] = {}
    for run, name in zip(runs, _names(runs), strict=True):
        found.setdefault(_key(run), []).append((run, name))
    return [_group(*zip(*members, strict=True)) for members in found.values()]


def differing_settings(groups: Sequence[SeedGroup]) -> dict[str, list[list[Any]]]:
    """By setting, the values that each group has; only settings in which not all runs are alike."""
    known = [[_settings(run) for run in group.runs] for group in groups]
    names = dict.fromkeys(name for group in known for settings in group for name in settings)
    values = {
        name: [_unique([settings.get(name) for settings in group]) for group in known]
        for name in names
        if name not in OF_PLACE
    }
    return {name: each for name, each in values.items() if len(_unique([v for group in each for v in group])) > 1}


def _settings(run: RunFolder) -> Mapping[str, Any]:
    """Every setting, also those that were not there when the run was made: they had today's default."""
    kinds: tuple[type[Settings], ...] = (PPOConfig, RewardConfig)
    kind = max(kinds, key=lambda kind: len(run.settings.keys() & kind.types))
    return {**plain_defaults(kind), **run.settings} if run.settings else {}


def _key(run: RunFolder) -> str:
    """Equal for runs that are seeds of one another. A run whose settings are not known is like no other."""
    if not run.settings:
        return str(run.path.resolve())
    return repr(sorted((name, value) for name, value in _settings(run).items() if name not in NEUTRAL))


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """The names of the runs, with as much of the path before them as tells equal ones apart."""
    names = [run.name for run in runs]
    depth = 1
    while max(Counter(names).values()) > 1:
        counts = Counter(names)
        paths = [run.path.resolve().parts for run in runs]
        names = [
            name if counts[name] == 1 else "/".join(parts[-depth:]) for name, parts in zip(names, paths, strict=True)
        ]
        depth += 1
    return names


def _group(runs: tuple[RunFolder, ...], names: tuple[str, ...]) -> SeedGroup:
    together = ", ".join(names)
    label = together if len(together) <= LONGEST_LABEL else f"{names[0]} … {names[-1]}"
    return SeedGroup(f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label, runs, names)


def _unique(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
