"""Which files of a model folder weights are read from: safetensors, whole, and no pickles unless they are allowed."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nearstep.common.errors import ModelError
from nearstep.common.trust import Trust

# What loading raises for files that are damaged, or hold something else.
UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, SafetensorError)
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
INDEX = "model.safetensors.index.json"
CONVERT_MODEL = (
    'python -c "from transformers import {kind} as M; '
    'M.from_pretrained({name!r}, use_safetensors=False).save_pretrained({name!r})"'
)
CONVERT_ADAPTERS = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "w = torch.load('{name}/adapter_model.bin', map_location='cpu', weights_only=True); "
    "save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{name}/adapter_model.safetensors')\""
)


def weight_arguments(name: str, role: str, trust: Trust, kind: str) -> dict[str, Any]:
    """What from_pretrained of transformers is told about the files; `kind` is its class.

    Raises ModelError, which names the file, for pickled weights that are not allowed, and for safetensors that are cut,
    damaged or missing.
    """
    folder = Path(name)
    if not folder.is_dir():  # of the hub
        return {"use_safetensors": None if trust.pickled_weights else True}
    if _tensor_files(folder, role):
        return {"use_safetensors": True}
    pickled = sorted(
        file.name for pattern in ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern)
    )
    if pickled and not trust.pickled_weights:
        raise ModelError(_refusal(role, folder, pickled[0], CONVERT_MODEL.format(kind=kind, name=name)))
    return {"use_safetensors": not pickled}


def check_adapter_weights(name: str, role: str, trust: Trust) -> None:
    """Raises ModelError for adapters that are pickles, and not allowed, and for a damaged file."""
    safe, pickled = Path(name, "adapter_model.safetensors"), Path(name, "adapter_model.bin")
    if safe.is_file():
        _open(safe, role)
    elif pickled.is_file() and not trust.pickled_weights:
        raise ModelError(_refusal(role, Path(name), pickled.name, CONVERT_ADAPTERS.format(name=name)))


@contextmanager
def reading(what: str, name: str, role: str) -> Iterator[None]:
    """Raise ModelError in place of what the libraries raise for files that cannot be read."""
    try:
        yield
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        said = f"weights in {name!r} hold more than tensors, which would be run, and are not read"
        raise ModelError(f"{role}: {said}. Take a folder with safetensors.") from error
    except UNREADABLE as error:
        raise ModelError(f"{role}: no {what} could be read from {name!r}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says first; the rest is for developers of the library."""
    return str(error).strip().split("\n")[0][:300].rstrip(".") or type(error).__name__


def _refusal(role: str, folder: Path, file: str, command: str) -> str:
    return (
        f"{role}: the weights in {str(folder / file)!r} are a pickle, which can run code, and are not read. Convert "
        f"them once: {command} ; or, if you trust where they came from, allow_pickled_weights = true reads the tensors "
        "alone."
    )


def _tensor_files(folder: Path, role: str) -> bool:
    """Whether the folder has safetensors; all that an index names must be there, and each be whole."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        _open(single, role)
        return True
    if not index.is_file():
        return False
    expected: dict[str, set[str]] = {}
    for tensor, name in _weight_map(index, role).items():
        expected.setdefault(str(name), set()).add(tensor)
    for name, tensors in sorted(expected.items()):
        if not (folder / name).is_file():
            raise ModelError(f"{role}: {str(index)!r} names {name}, and there is no such file: copy the folder again.")
        if lacking := sorted(tensors - _open(folder / name, role)):
            raise ModelError(f"{role}: {str(index)!r} says that {name} holds {lacking[0]}, and it does not.")
    return True


def _weight_map(index: Path, role: str) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{role}: the index {str(index)!r} is damaged ({type(error).__name__}: {error}).") from error


def _open(file: Path, role: str) -> set[str]:
    """The names of its tensors; a file that is cut or damaged is found by its header."""
    try:
        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{role}: the weights in {str(file)!r} are damaged or cut short: {first_line(error)}."
        ) from error
