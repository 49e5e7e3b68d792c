"""What a page shows of a run, as plain data: read once for a report, line by line for a run that goes on."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nearstep
from nearstep.common.errors import DataError
from nearstep.reports.page.choice import RowChoice
from nearstep.reports.page.curves import curves, rounded
from nearstep.reports.page.growing import GrowingFile
from nearstep.reports.page.health import health
from nearstep.reports.page.rows import MOST_SAMPLES, QUANTITIES, FixedPrompts, PagePrompts, TokenRows, episode_row
from nearstep.reports.run_folder import (
    ALERTS,
    EVAL_ROLLOUTS,
    INFO,
    METRICS,
    PROFILES,
    RECORDS,
    ROLLOUTS,
    SAMPLES,
    TOKENS,
    Line,
    RunFolder,
)

PROFILES_SHOWN = 60
# What a page cannot show without a file.
ABSENT = {
    METRICS: "there are no curves",
    ROLLOUTS: "there are no episodes; log_rollouts writes them",
    SAMPLES: "there are no sample completions; num_sample_generations asks for them",
    TOKENS: "no row can be seen token by token",
    PROFILES: "no calibration of the critic, nothing along the row",
    INFO: "command, versions and commit are not known",
}
ALERTS_SHOWN = 200


class Content:
    """Everything a page shows of the run in `folder`, at most `max_samples` episodes; little where there is none yet.

    Reading raises DataError for a line that is no record of its file.
    """

    def __init__(self, folder: Path, max_samples: int = MOST_SAMPLES) -> None:
        self.folder = folder
        self._max_samples = max_samples
        self._begin()

    def read(self) -> bool:
        """Read what is new; returns whether anything is. A run that began again is read anew."""
        if any(file.has_begun_again() for file in self._files.values()):
            self._begin()
            self._read_all()
            return True
        return self._read_all()

    def data(self) -> dict[str, Any]:
        """The page's data: what JSON can hold, and nothing that is not finite."""
        run = _run_folder(self.folder)
        settings: Mapping[str, Any] = {} if run is None else run.settings
        episodes, prompts = self._episodes.chosen(), PagePrompts()
        return {
            "schema": 1,
            "made": time.strftime("%Y-%m-%d %H:%M:%S%z"),
            "nearstep": nearstep.__version__,
            "run": self._run(run, settings),
            "alerts": self._alerts[-ALERTS_SHOWN:],
            "health": health([*self._metrics, *self._evaluations], settings, self._alerts),
            "curves": curves(self._metrics, self._evaluations),
            "samples": {
                "rows": prompts.named(episodes),
                "rule": self._episodes.rule(QUANTITIES.__getitem__),
                "count": self._episodes.count,
                "quantities": QUANTITIES,
            },
            "fixed": prompts.named(self._fixed.rows()),
            "tokens": {"rows": prompts.named(self._tokens.rows()), "rule": self._tokens.rule()},
            "prompts": prompts.texts,
            "profiles": _spread(self._profiles, PROFILES_SHOWN),
            "absent": self._absent(),
        }

    def _begin(self) -> None:
        self._files = {name: GrowingFile(self.folder / name) for name in RECORDS}
        self._metrics: list[Line] = []
        self._evaluations: list[Line] = []
        self._alerts: list[Line] = []
        self._profiles: list[Line] = []
        self._fixed, self._tokens = FixedPrompts(), TokenRows()
        self._episodes = RowChoice(self._max_samples, tuple(QUANTITIES))

    def _read_all(self) -> bool:
        take = {
            TOKENS: self._tokens.add,
            METRICS: self._add_metrics,
            SAMPLES: self._fixed.add_sample,
            EVAL_ROLLOUTS: self._fixed.add_evaluated,
            ALERTS: self._alerts.append,
            PROFILES: self._profiles.append,
        }
        count = 0
        for name, add in take.items():
            for line in self._files[name].new_lines():
                add(line)
                count += 1
        self._episodes.want(self._tokens.keys())
        for line in self._files[ROLLOUTS].new_lines():
            self._episodes.add(episode_row(line))
            count += 1
        return count > 0

    def _add_metrics(self, line: Line) -> None:
        is_evaluation = any(name.startswith("eval/") for name in line)
        (self._evaluations if is_evaluation else self._metrics).append(line)

    def _run(self, run: RunFolder | None, settings: Mapping[str, Any]) -> dict[str, Any]:
        changed = {} if run is None else run.changed
        last: Line = self._metrics[-1] if self._metrics else {}
        return {
            "name": self.folder.resolve().name if run is None else run.name,
            "folder": str(self.folder),
            "info": {} if run is None else run.info,
            "settings": {name: _shown(value) for name, value in settings.items()},
            "changed": {name: {key: _shown(value) for key, value in both.items()} for name, both in changed.items()},
            "updates": last.get("update", 0),
            "episodes": last.get("episode", 0),
            "seconds": rounded(sum(line.get("seconds") or 0.0 for line in self._metrics)),
        }

    def _absent(self) -> list[str]:
        """What the folder does not have, a sentence each."""
        missing = [name for name in ABSENT if not _has(self.folder / name)]
        return [f"{name} is missing or empty: {ABSENT[name]}." for name in missing]


def _has(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _run_folder(path: Path) -> RunFolder | None:
    """The run in a folder; None as long as there is none."""
    try:
        return RunFolder(path)
    except DataError:
        return None


def _shown(value: object) -> str:
    """A setting as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _spread(lines: list[Line], most: int) -> list[Line]:
    """At most `most` of them, evenly spread, the last one in."""
    step = -(-len(lines) // most) or 1
    return lines[::-1][::step][::-1]
