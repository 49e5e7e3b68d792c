"""Whether a model folder or hub name brings Python code of its own, and whether it may run.

Code runs for models that the user names, at a fixed commit where it comes from the hub, and its hash is told.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from nearstep.common.errors import ModelError
from nearstep.common.trust import NONE, Trust

FILES = ("config.json", "tokenizer_config.json")  # which point to code by their auto_map


def code_arguments(name: str, role: str, trust: Trust) -> dict[str, Any]:
    """What from_pretrained of transformers is told about code. Raises ModelError where the user has not allowed it."""
    commit = trust.commit_of(name)
    at: dict[str, Any] = {} if commit is None else {"revision": commit, "code_revision": commit}
    if NONE in (trust.code or ()):
        return {"trust_remote_code": False}
    references = sorted({found for file in FILES for found in _references(name, file, commit)})
    if not references:
        return {"trust_remote_code": False}
    elsewhere = sorted({found.split("--")[0] for found in references if "--" in found} - {name})
    for place in [name, *elsewhere]:
        if not trust.runs_code_of(place):
            raise ModelError(_refusal(name, role, place, references))
    if elsewhere:
        commits = {trust.commit_of(place) for place in elsewhere} - {None}
        at |= {"code_revision": commits.pop()} if len(commits) == 1 else {}
    for place in [name, *elsewhere]:
        _tell(place, role, trust.commit_of(place))
    return {"trust_remote_code": True, **at}


def _references(name: str, file: str, commit: str | None) -> list[str]:
    """The classes that a configuration takes from Python files: `module.Class`, or `repository--module.Class`."""
    if Path(name).is_dir():
        path = Path(name, file)
        found = str(path) if path.is_file() else None
    else:
        found = cached_file(
            name,
            file,
            revision=commit,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    try:
        read = {} if found is None else json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # which transformers says itself
    entries = read.get("auto_map") if isinstance(read, dict) else None
    values = entries.values() if isinstance(entries, dict) else [entries]
    flat = [part for value in values for part in (value if isinstance(value, list) else [value])]
    return [part for part in flat if isinstance(part, str)]


def _refusal(name: str, role: str, place: str, references: list[str]) -> str:
    files = ", ".join(references[:3])
    where = "" if place == name else f" in {place!r}"
    entry = place if Path(place).is_dir() else f"{place}@COMMIT (the 40 digits of the commit that you have read)"
    return (
        f"{role}: {name!r} points to Python code of its own{where} ({files}), which is not run unasked. Read it, then "
        f"allow it with trust_remote_code = {entry}; or trust_remote_code = false reads the model by transformers' own "
        "class, where it has one for the family."
    )


@functools.cache
def _tell(place: str, role: str, commit: str | None) -> None:
    """Say on standard error which code is run: each file with its hash, or the commit that fixes it."""
    said = [f"{file.name} sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in _files(place)]
    what = f"commit {commit}" if commit else "; ".join(said) or "no Python file"
    print(f"nearstep: {role}: runs the code of {place}: {what}", file=sys.stderr, flush=True)


def _files(place: str) -> list[Path]:
    return sorted(Path(place).rglob("*.py")) if Path(place).is_dir() else []
