"""Which files a run leaves, and what they say: the one class that knows them. Loads no heavy library."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from nearstep.common.errors import DataError, shorten
from nearstep.common.places import expanded
from nearstep.config.plain import changed_settings
from nearstep.config.ppo import PPOConfig
from nearstep.config.reward_model import RewardConfig
from nearstep.config.settings import Settings

SETTINGS, INFO = "run.yaml", "run_info.json"
METRICS, ROLLOUTS, SAMPLES, TOKENS = "metrics.jsonl", "rollouts.jsonl", "samples.jsonl", "tokens.jsonl"
PROFILES, ALERTS, EVAL_ROLLOUTS = "profiles.jsonl", "alerts.jsonl", "eval_rollouts.jsonl"
DROPPED = "dropped.jsonl"
# Every file whose lines belong to an update. A run that goes on cuts them back, a new one sets them aside.
RECORDS = (METRICS, ROLLOUTS, SAMPLES, TOKENS, PROFILES, ALERTS, EVAL_ROLLOUTS, DROPPED)
# What every line has beside its update, where something cannot be shown without it.
NEEDED = {
    ROLLOUTS: ("episode", "prompt", "completion"),
    TOKENS: ("episode", "prompt", "tokens", "token_ids"),
    SAMPLES: ("query", "response"),
    EVAL_ROLLOUTS: ("prompt", "completion"),
    ALERTS: ("rule",),
}
REPORT, TRACKER = "report.html", "runs"
CHECKPOINT = "checkpoint-"
UPDATE = re.compile(rb'\{"update": (\d+),')  # every line of a record begins with it

Line: TypeAlias = Mapping[str, Any]
"""One object of a file of JSON lines."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, going on or over. A missing file is empty; a line that is being written is passed over.

    Everything is read when it is first asked for, and kept: for later lines make another RunFolder. Raises DataError
    where the folder is none of a run, and for a line that is no JSON object.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(expanded(os.fspath(self.path))))
        if not self.path.is_dir():
            raise DataError(f"{self.path} is no folder: give the output_dir of a run")
        if not any((self.path / name).is_file() for name in (SETTINGS, INFO, METRICS)):
            runs = sorted({path.parent.name for path in self.path.glob(f"*/{SETTINGS}")})
            inside = f"; it holds the runs {shorten(', '.join(runs))}" if runs else ""
            raise DataError(f"{self.path} is no folder of a run: it has no {SETTINGS} and no {METRICS}{inside}")

    @property
    def name(self) -> str:
        """`run_name`, or the folder's name."""
        given = self.settings.get("run_name")
        return str(given) if given else self.path.resolve().name

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Every setting by name as run.yaml has it; nothing where there is none."""
        import yaml

        try:
            found = yaml.safe_load((self.path / SETTINGS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{self.path / SETTINGS} cannot be read: {shorten(str(error))}") from error
        if not isinstance(found, dict):
            raise DataError(f"{self.path / SETTINGS} holds no settings: {shorten(found)}")
        return found

    @cached_property
    def changed(self) -> Mapping[str, Mapping[str, Any]]:
        """The settings that are not the defaults: value and default of each."""
        written: Mapping[str, Mapping[str, Any]] | None = self.info.get("changed")
        if written is not None:
            return written
        kinds: tuple[type[Settings], ...] = (PPOConfig, RewardConfig)
        return changed_settings(self.settings, max(kinds, key=lambda kind: len(self.settings.keys() & kind.types)))

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """How the run was started, and on what: run_info.json; nothing where there is none."""
        try:
            found = json.loads((self.path / INFO).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / INFO} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise DataError(f"{self.path / INFO} holds no JSON object: {shorten(found)}")
        return found

    @cached_property
    def metrics(self) -> Sequence[Line]:
        """The metrics of every logged update: `update`, `episode`, `epoch`, and each metric by name."""
        return [line for line in self._metrics if not _is_evaluation(line)]

    @cached_property
    def evaluations(self) -> Sequence[Line]:
        """The metrics of every evaluation; their names begin with `eval/`."""
        return [line for line in self._metrics if _is_evaluation(line)]

    @cached_property
    def _metrics(self) -> Sequence[Line]:
        return list(self.lines(METRICS))

    @cached_property
    def rollouts(self) -> Sequence[Line]:
        """Every episode. These may be many: `lines` reads them one after another."""
        return list(self.lines(ROLLOUTS))

    @cached_property
    def samples(self) -> Sequence[Line]:
        """The sample completions: `update`, `query`, `response`, `score`, and those of the start."""
        return list(self.lines(SAMPLES))

    @cached_property
    def tokens(self) -> Sequence[Line]:
        """A few rows of logged updates with the numbers of every token."""
        return list(self.lines(TOKENS))

    @cached_property
    def profiles(self) -> Sequence[Line]:
        """Of logged updates: value against return, numbers along the row, what the trust region masked."""
        return list(self.lines(PROFILES))

    @cached_property
    def alerts(self) -> Sequence[Line]:
        """What the rules of health said."""
        return list(self.lines(ALERTS))

    @cached_property
    def eval_rollouts(self) -> Sequence[Line]:
        """Every row of every evaluation."""
        return list(self.lines(EVAL_ROLLOUTS))

    def require_updates(self) -> None:
        """Raise DataError where metrics were logged, but of no update of a policy."""
        for number, line in enumerate(self._metrics, start=1):
            _require_update(line, self.path / METRICS, number)

    @property
    def checkpoints(self) -> Sequence[Path]:
        """The folders `checkpoint-N`, oldest first; whether they are whole is not looked at."""
        return checkpoints(self.path)

    @property
    def policy(self) -> Path | None:
        """The policy as a model folder: that of the end, else of the newest checkpoint."""
        return self._model("policy")

    @property
    def value(self) -> Path | None:
        """The critic as a model folder, in the same way; a folder of such folders where there are several."""
        return self._model("value")

    @property
    def report(self) -> Path:
        """Where `nearstep report` writes its page."""
        return self.path / REPORT

    def lines(self, name: str, wanted: Callable[[int], bool] | None = None) -> Iterator[Line]:
        """The lines of one of the files in RECORDS, one after another; of the updates that are wanted alone."""
        path = self.path / name
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            for number, line in enumerate(file, start=1):
                found = UPDATE.match(line)
                if not line.endswith(b"\n") or (wanted and found and not wanted(int(found[1]))):
                    continue  # only the last line can be torn, and then it is being written, or its writer died
                yield json_object(line, path, number)

    def _model(self, role: str) -> Path | None:
        folders = [self.path / role, *(folder / role for folder in reversed(self.checkpoints))]
        files = ("config.json", "critic_1/config.json")  # there may be several critics
        return next((folder for folder in folders if any((folder / file).is_file() for file in files)), None)


def checkpoints(folder: Path) -> list[Path]:
    """The folders `checkpoint-N` of a run, oldest first; other names are not ours."""
    found = [
        path for path in folder.glob(f"{CHECKPOINT}*") if path.is_dir() and path.name[len(CHECKPOINT) :].isdecimal()
    ]
    return sorted(found, key=update_of)


def update_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was written, by its name."""
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def record_object(line: bytes, path: Path, number: int) -> Line:
    """A line of one of the files in RECORDS, with the update that it belongs to.

    Raises DataError for what is no JSON object, for lines that belong to none, such as those of a reward model, and
    for lines without what every line of that file has.
    """
    found = json_object(line, path, number)
    _require_update(found, path, number)
    missing = [name for name in NEEDED.get(path.name, ()) if name not in found]
    if missing:
        raise DataError(f"{path}, line {number}: it has no {missing[0]!r}, so it is no line of {path.name} of a run")
    return found


def _require_update(line: Line, path: Path, number: int) -> None:
    if not isinstance(line.get("update"), int):
        trained = ", but to a step in the training of a reward model: nearstep compare draws its curves"
        raise DataError(f"{path}, line {number}: it belongs to no update of a policy{trained * ('step' in line)}")


def json_object(line: bytes, path: Path, number: int) -> Line:
    """A line of records, `number` in its file from 1; None for what strict JSON lacks.

    Raises DataError for what is no JSON object.
    """
    try:
        found = json.loads(line, parse_constant=lambda _: None)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: no JSON: {error}: {shorten(line[:200])}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}, line {number}: no JSON object: {shorten(found)}")
    return found


def _is_evaluation(line: Line) -> bool:
    return any(name.startswith("eval/") for name in line)
