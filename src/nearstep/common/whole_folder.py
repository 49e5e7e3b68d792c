"""How a folder is written as a whole or not at all."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes the place of `folder` once the work in it has ended well, and is removed otherwise.

    At every moment the old folder or the new one stands under the name. A link stays, and the folder behind it is
    replaced. Raises NotADirectoryError where a file has the name.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, and a folder is to be written there")
    folder = folder.resolve()
    unfinished, former = (folder.with_name(f".{folder.name}.{state}") for state in ("unfinished", "former"))
    if former.exists() and not folder.exists():
        former.rename(folder)  # where the system has no exchange, a death may come between the two names
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if not folder.exists():
            unfinished.rename(folder)
        elif not _exchanged(unfinished, folder):
            shutil.rmtree(former, ignore_errors=True)
            folder.rename(former)
            unfinished.rename(folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders take each other's names in one step; false where system or disk cannot (only Linux can)."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(exchange(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)
