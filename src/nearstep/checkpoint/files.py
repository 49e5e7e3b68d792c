"""Every file operation of a checkpoint, in one place: tests count them, and let each fail or be the last."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nearstep.common.errors import CheckpointError

BLOCK_BYTES = 1 << 20


def make_folder(folder: Path) -> None:
    """Make a folder and those above it."""
    folder.mkdir(parents=True, exist_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name, as safetensors. Raises OSError like the other operations; the library has an error of its
    own for a full disk."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    path.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Return once a file, or the entries of a folder, lie on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Give a folder another name on the same disk, in one step."""
    source.rename(target)


def remove(folder: Path) -> None:
    """Remove a folder. It goes under a hidden name first: what is being removed is no checkpoint any more."""
    hidden = folder if folder.name.startswith(".") else folder.with_name(f".{folder.name}.removed")
    if hidden != folder:
        shutil.rmtree(hidden, ignore_errors=True)
        move(folder, hidden)
    shutil.rmtree(hidden)


def sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU. Raises CheckpointError where it holds something else."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def read_text(path: Path) -> str:
    """The content of a text file."""
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError where it holds something else."""
    try:
        found = json.loads(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return found


def as_json(content: object) -> str:
    """Plain values as JSON. Floats come back as the same bits."""
    return json.dumps(content, indent=1) + "\n"
