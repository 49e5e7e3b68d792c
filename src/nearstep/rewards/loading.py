"""How a reward function named on the command line, as file.py:name, becomes a callable."""

import difflib
import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from nearstep.errors import RewardError, shorten
from nearstep.rewards.functions import RewardFunction


def load_function(spec: str) -> RewardFunction:
    """The callable called `name` in "path/to/file.py:name"; of a class, an instance made without arguments.

    The file runs as a module of its own; its folder does not become importable. Raises a RewardError where the
    file or the name is missing, the file fails, or what it names cannot be called.
    """
    path, _, name = spec.rpartition(":")
    if not path or not name:
        raise RewardError(f"reward function {spec!r}: write it as path/to/file.py:name.")
    file = Path(path).expanduser()
    if not file.is_file():
        raise RewardError(f"reward function {spec!r}: there is no file {file} (seen from {Path.cwd()}).")
    contents = vars(_load_module(file, spec))
    if name not in contents:
        hint = _suggestion(name, contents)
        raise RewardError(f"reward function {spec!r}: {file.name} defines no {name!r}. {hint}")
    found: object = contents[name]
    if inspect.isclass(found):
        found = _instance(found, spec)
    if not callable(found):
        hint = _suggestion(name, contents)
        raise RewardError(f"reward function {spec!r} is {shorten(found)}, which cannot be called. {hint}")
    return found


def _load_module(file: Path, spec: str) -> ModuleType:
    """Run the file, once for each of its contents, under a name by which pickle and dataclasses find it."""
    digest = hashlib.sha256(str(file.resolve()).encode() + b"\0" + file.read_bytes()).hexdigest()
    name = f"nearstep_rewards_{file.stem}_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise RewardError(f"reward function {spec!r}: {file.name} is no Python file (its name must end in .py).")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise RewardError(
            f"reward function {spec!r}: {file.name} failed while loading: {type(error).__name__}: {error}"
        ) from error
    return module


def _instance(found: type, spec: str) -> object:
    try:
        return found()
    except Exception as error:
        raise RewardError(
            f"reward function {spec!r} is a class and could not be made without arguments "
            f"({type(error).__name__}: {error}). Make the object in the file and name that."
        ) from error


def _suggestion(name: str, contents: dict[str, object]) -> str:
    known = sorted(key for key, value in contents.items() if callable(value) and not key.startswith("_"))
    near = difflib.get_close_matches(name, known, n=3) or known[:10]
    return f"Did you mean {', '.join(near)}?" if near else "The file defines nothing that can be called."
