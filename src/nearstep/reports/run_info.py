"""What must be known of how a run was started, to judge it later: run_info.json."""

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nearstep.common.secrets import public_settings, shown_words
from nearstep.config.plain import changed_settings, plain_settings
from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import recipe_of
from nearstep.reports.run_folder import CHECKPOINT, INFO
from nearstep.reports.settings_file import write_whole

SCHEMA = 1
PACKAGES = ("nearstep", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "numpy")
GIT_SECONDS = 5


@dataclass(frozen=True)
class RunStart:
    """What a run is started with; the same for every attempt."""

    config: PPOConfig
    named: Mapping[str, object] = field(default_factory=dict)  # settings that Python's arguments gave
    devices: Sequence[str] = ()  # of each process, in the order of ranks

    def write(self, run: Path, batch: Sequence[tuple[str, object, str]], after: int) -> None:
        """Write how the run was started, beside how it was before. Raises TrainingError where it cannot be written."""
        path = run / INFO
        info = self.info(read_info(path), batch, after)
        write_whole(path, json.dumps(info, indent=1, ensure_ascii=False, default=str) + "\n")

    def info(self, before: Mapping[str, Any], batch: Sequence[tuple[str, object, str]], after: int) -> dict[str, Any]:
        """The content of the file: what it was before, and this attempt, which goes on after an update."""
        config = self.config
        return {
            "schema": SCHEMA,
            "attempts": [*before.get("attempts", []), self._attempt(after)],
            "seed": config.seed,
            "recipe": recipe_of(config),
            "batch": [{"name": name, "value": value, "how": how} for name, value, how in batch],
            "changed": changed_settings(public_settings(plain_settings(config, self.named)), PPOConfig),
            "parent": None if config.fork_from is None else _parent(Path(config.fork_from)),
        }

    def _attempt(self, after: int) -> dict[str, Any]:
        commit, changes = _commit(Path.cwd())
        return {
            "command": _command(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "after_update": after,
            "versions": _versions(),
            "commit": commit,
            "uncommitted_changes": changes,
            "python": platform.python_version(),
            "machine": f"{platform.platform()}, {os.cpu_count()} CPUs",
            "devices": list(self.devices),
            "processes": len(self.devices),
        }


def device_name(device: torch.device) -> str:
    """What a process computes on, in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def read_info(path: Path) -> Mapping[str, Any]:
    """What stands in the file; nothing where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else {}


def _command() -> list[str]:
    program = Path(sys.argv[0] or "python")
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shown_words([name, *sys.argv[1:]])


@functools.cache
def _versions() -> dict[str, str]:
    """Of this process: what is imported does not change, and each costs the reading of a file of its package."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the repository around a folder, and whether files that it tracks are not as committed."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = None if commit is None else _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else changes != ""


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}, timeout=GIT_SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _parent(checkpoint: Path) -> dict[str, Any]:
    """The run that a checkpoint belongs to, and its update."""
    number = checkpoint.name.removeprefix(CHECKPOINT)
    return {"run": str(checkpoint.parent), "update": int(number) if number.isdecimal() else None}
