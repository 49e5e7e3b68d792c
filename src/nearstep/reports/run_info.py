"""What must be known of how a run was started, to judge it later: run_info.json."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nearstep.config.plain import changed_settings, plain_settings
from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import recipe_of
from nearstep.reports.run_folder import CHECKPOINT

SCHEMA = 1
PACKAGES = ("nearstep", "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "numpy")
GIT_SECONDS = 5
HIDDEN = "***"
SECRET_FLAG = re.compile(r"^--?[\w-]*(token|password|passwd|secret|api_?-?key|credential)s?$", re.IGNORECASE)
SECRET_WORD = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|xox[bp]-)[\w-]{16,}")
USER_IN_URL, QUERY_IN_URL = re.compile(r"(\w+://)[^/\s@]+@"), re.compile(r"(\w+://[^\s?]+\?)\S+")


@dataclass(frozen=True)
class RunStart:
    """What a run is started with; the same for every attempt."""

    config: PPOConfig
    named: Mapping[str, object] = field(default_factory=dict)  # settings that Python's arguments gave
    devices: Sequence[str] = ()  # of each process, in the order of ranks

    def info(self, before: Mapping[str, Any], batch: Sequence[tuple[str, object, str]], after: int) -> dict[str, Any]:
        """The content of the file: what it was before, and this attempt, which goes on after an update."""
        config = self.config
        return {
            "schema": SCHEMA,
            "attempts": [*before.get("attempts", []), self._attempt(after)],
            "seed": config.seed,
            "recipe": recipe_of(config),
            "batch": [{"name": name, "value": value, "how": how} for name, value, how in batch],
            "changed": without_secrets(changed_settings(plain_settings(config, self.named), PPOConfig)),
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


def without_secrets(value: Any) -> Any:
    """Plain values with what logs in removed from every text: user and query of addresses, and access tokens."""
    if isinstance(value, str):
        value = QUERY_IN_URL.sub(rf"\1{HIDDEN}", USER_IN_URL.sub(rf"\1{HIDDEN}@", value))
        return SECRET_WORD.sub(HIDDEN, value)
    if isinstance(value, Mapping):
        return {name: without_secrets(each) for name, each in value.items()}
    return [without_secrets(each) for each in value] if isinstance(value, list | tuple) else value


def shown_words(words: Sequence[str]) -> list[str]:
    """The words of a command without secrets; those that follow a flag such as --hub_token are hidden too.

    >>> shown_words(["train.py", "--hub_token", "abc", "--stop_token", "eos", "--reward_url=http://me:pw@host/?key=1"])
    ['train.py', '--hub_token', '***', '--stop_token', 'eos', '--reward_url=http://***@host/?***']
    """
    shown: list[str] = []
    follows = False
    for word in words:
        flag, equals, _ = word.partition("=")
        is_secret = SECRET_FLAG.match(flag) is not None and flag.lstrip("-").replace("-", "_") not in PPOConfig.types
        shown.append(HIDDEN if follows else f"{flag}={HIDDEN}" if is_secret and equals else without_secrets(word))
        follows = is_secret and not equals
    return shown


def _command() -> list[str]:
    program = Path(sys.argv[0] or "python")
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shown_words([name, *sys.argv[1:]])


def _versions() -> dict[str, str]:
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
