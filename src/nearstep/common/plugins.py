"""How an object of the user's, named as file.py:name in a setting, is loaded; what a missing package's error says."""

import difflib
import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from nearstep.common.errors import NearstepError


def is_installed(package: str) -> bool:
    """Whether a package is there to be imported.

    A folder of its name without a package in it is none, though Python would import it: `wandb/` where it keeps runs,
    `unsloth/` with models of that owner.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def need_package(package: str, extra: str, wanted: str, error: type[NearstepError]) -> None:
    """Raise `error`, which names the extra that brings a package, if it is not installed; `wanted` is what needs it."""
    if not is_installed(package):
        raise error(f"{wanted} needs the package {package}, which is not installed: pip install 'nearstep[{extra}]'.")


def load_object(spec: str, *, kind: str, error: type[NearstepError]) -> object:
    """The object called `name` in "path/to/file.py:name"; of a class, an instance made without arguments.

    Raises `error`, in which `kind` says what was looked for, where `load_named` or `made` do.
    """
    return made(load_named(spec, kind=kind, error=error), f"{kind} {spec!r}", error)


def load_named(spec: str, *, kind: str, error: type[NearstepError]) -> object:
    """What is called `name` in "path/to/file.py:name", a class as it is.

    The file runs as a module of its own; its folder does not become importable. Raises `error`, in which `kind`
    says what was looked for, where the file or the name is missing, or the file fails.
    """
    path, _, name = spec.rpartition(":")
    if not path or not name:
        raise error(f"{kind} {spec!r}: write it as path/to/file.py:name.")
    file = Path(path).expanduser()
    if not file.is_file():
        raise error(f"{kind} {spec!r}: there is no file {file} (seen from {Path.cwd()}).")
    contents = vars(_load_module(file, f"{kind} {spec!r}", error))
    if name not in contents:
        raise error(f"{kind} {spec!r}: {file.name} defines no {name!r}. {_suggestion(name, contents)}")
    found: object = contents[name]
    return found


def made(found: object, what: str, error: type[NearstepError]) -> object:
    """An instance of a class, made without arguments; anything else as it is. Raises `error` where that fails."""
    if not inspect.isclass(found):
        return found
    try:
        instance: object = found()
    except Exception as cause:
        raise error(
            f"{what} is a class and could not be made without arguments ({type(cause).__name__}: {cause}). "
            "Make the object in the file and name that."
        ) from cause
    return instance


def _load_module(file: Path, what: str, error: type[NearstepError]) -> ModuleType:
    """Run the file, once for each of its contents, under a name by which pickle and dataclasses find it."""
    digest = hashlib.sha256(str(file.resolve()).encode() + b"\0" + file.read_bytes()).hexdigest()
    name = f"nearstep_user_{file.stem}_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise error(f"{what}: {file.name} is no Python file (its name must end in .py).")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as cause:
        del sys.modules[name]
        raise error(f"{what}: {file.name} failed while loading: {type(cause).__name__}: {cause}") from cause
    return module


def _suggestion(name: str, contents: dict[str, object]) -> str:
    known = sorted(key for key, value in contents.items() if callable(value) and not key.startswith("_"))
    near = difflib.get_close_matches(name, known, n=3) or known[:10]
    return f"Did you mean {', '.join(near)}?" if near else "The file defines nothing that can be called."
