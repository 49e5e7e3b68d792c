"""Bounds the memory of all processes of a sandbox together, by a control group (cgroup v2), where one may be made."""

import contextlib
import functools
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

MOUNT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
ENTER = 'echo $$ > "$0" && exec "$@"'  # for sh: become a member, then the program


@functools.cache
def parent_group() -> Path | None:
    """The group in which limited ones can be made: that of this process, or the one around it; None if there is none.

    A service manager delegates one to each user; containers mostly have it read only.
    """
    with contextlib.suppress(OSError):
        for line in OWN.read_text().splitlines():
            if line.startswith("0::"):
                own = MOUNT / line[4:]
                return next((folder for folder in (own, own.parent) if _works(folder)), None)
    return None


def _works(folder: Path) -> bool:
    if not folder.is_relative_to(MOUNT):
        return False
    try:
        with _group(folder, 1 << 30) as group:
            return subprocess.run(["sh", "-c", ENTER, _members(group), "true"], check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


@contextlib.contextmanager
def limited(command: Sequence[str], memory_bytes: int) -> Iterator[list[str]]:
    """The command, begun in a group of its own that holds at most so much memory where there are such groups."""
    parent = parent_group()
    if parent is None:
        yield list(command)
        return
    with _group(parent, memory_bytes) as group:
        yield ["sh", "-c", ENTER, _members(group), *command]


@contextlib.contextmanager
def _group(parent: Path, memory_bytes: int) -> Iterator[Path]:
    folder = parent / f"nearstep-sandbox-{secrets.token_hex(8)}"
    folder.mkdir()
    try:
        for name, value in (("memory.max", memory_bytes), ("memory.swap.max", 0), ("memory.oom.group", 1)):
            with open(folder / name, "r+", encoding="ascii") as file:  # never made: the kernel's, or none
                file.write(str(value))
        yield folder
    finally:
        for _ in range(100):  # it ends after its last process
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.01)


def _members(group: Path) -> str:
    return str(group / "cgroup.procs")
