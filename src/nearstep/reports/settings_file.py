"""The run.yaml of a run folder: every setting of the run, for `--config` to repeat it."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import nearstep
from nearstep.common.errors import TrainingError
from nearstep.common.secrets import public_settings
from nearstep.config.plain import plain_settings
from nearstep.config.settings import Settings
from nearstep.reports.records import set_aside
from nearstep.reports.run_folder import SETTINGS as NAME


@dataclasses.dataclass(frozen=True)
class GivenInPython:
    """What a trainer was given beside its settings: names, which settings can hold, and objects, which none can."""

    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    objects: Sequence[str] = ()


def settings_text(config: Settings, command: str, given: GivenInPython, *, processes: int) -> str:
    """The settings as YAML, with what else must be known to repeat the run as comments."""
    import yaml

    values = public_settings(plain_settings(config, given.settings))
    if "resume" in values:
        values["resume"] = None  # the file repeats the run from its beginning, and stays the same when it goes on
    comments = [
        f"Every setting of a run of nearstep {nearstep.__version__}. To repeat it: nearstep {command} --config {NAME}",
        f"Places that do not begin with / are seen from {Path.cwd()}.",
        *([f"It ran in {processes} processes (torchrun --nproc_per_node)."] if processes > 1 else []),
    ]
    if given.objects:
        comments.append("These were objects in Python, which no file can hold. Pass them again, or name them below:")
        comments += [f"  {each}" for each in given.objects]
    head = "".join(f"# {line}\n" for comment in comments for line in comment.splitlines())
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=2**20)


def holds_settings(folder: Path, text: str) -> bool:
    """Whether the folder is that of a run with these very settings."""
    path = folder / NAME
    return path.is_file() and path.read_text(encoding="utf-8") == text


def write_settings(folder: Path, text: str) -> Path | None:
    """Write the file as a whole; the one of another run is kept, and returned, under another name.

    Raises TrainingError where it cannot be written.
    """
    path = folder / NAME
    kept = set_aside(path) if path.exists() and not holds_settings(folder, text) else None
    write_whole(path, text)
    return kept


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: a reader finds the old one or the new one. Raises TrainingError where it cannot be."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error}. Give another output_dir.") from error
