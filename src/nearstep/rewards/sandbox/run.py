"""How code that a model wrote is run: never in the trainer's process, and shut in or not at all.

`isolation="namespaces"` is a sandbox made by bubblewrap (`bwrap`), which needs no privilege. The code sees the
interpreter's folders and /usr read only and a small /tmp that vanishes with it, an empty environment, no other process,
no network (not even loopback), no capability, no open file but its own; system calls for keys, mounts, namespaces and
the kernel's machinery are refused (`system_calls.py`); time, memory, processes, files and output are limited; its end
takes all its processes along. What is left is the kernel itself: a hole in it is a way out. Without bubblewrap, or
where a container forbids namespaces, nothing is run.

`isolation="process"` is no sandbox: the same limits of time, memory and output in a process of its own with an empty
environment, but the code can read and write what the user can, and reach the network.

Under both the tests of the code run in a second process, where nothing of the code runs, and which alone holds the
socket that the result of the tests comes from. See `launcher.py`, and docs/rewards.md for what this does not promise.
"""

import contextlib
import functools
import itertools
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeAlias

from nearstep.common.errors import RewardError, shorten
from nearstep.rewards.sandbox.memory_group import limited
from nearstep.rewards.sandbox.system_calls import call_filter

Isolation: TypeAlias = Literal["namespaces", "process"]
Ending: TypeAlias = Literal["done", "error", "timeout", "killed"]

LAUNCHER = Path(__file__).with_name("launcher.py")
SYSTEM_FOLDERS = ("/usr", "/bin", "/lib", "/lib32", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
DISK_BYTES = 16 << 20  # of /tmp, of any file, and of what is printed
PROCESSES = 16  # threads count as well
OPEN_FILES = 64
SHOWN_BYTES = 1 << 16
DONE = 77  # exit code of a side that came to its end
ENVIRONMENT = ("LANG=C.UTF-8", "HOME=/tmp", "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1")
STARTUP_SECONDS = 60.0  # beyond the time limit, for a machine that is busy
# What root starts runs under a user id of its own, by which its processes are counted (systemd's DynamicUser range).
_USERS = itertools.count(random.SystemRandom().randrange(4096))


@dataclass(frozen=True)
class ProgramOutcome:
    """How a program ended and which of its tests passed.

    `ending` is "done" if the code ran to its end (whatever the tests said), "error" if it raised or exited with an
    error, "timeout" at the limit, "killed" if a signal ended it (a crash, or a limit of the kernel). `passed` has one
    entry for each test, False where it was not reached. Texts are the first 64 KiB of what was printed.
    """

    ending: Ending
    passed: tuple[bool, ...]
    stdout: str
    stderr: str


def run_python(
    code: str,
    tests: Sequence[str] = (),
    *,
    timeout_seconds: float,
    memory_bytes: int,
    setup: str = "",
    stdin: str = "",
    isolation: Isolation = "namespaces",
) -> ProgramOutcome:
    """Run `setup` and `code` as a main program, then each of `tests`; a test that raises has failed.

    A test runs in another process, after `setup` there, and asks the code for the names that it lacks. Every test meets
    the state after the code, so none disturbs another. `timeout_seconds` covers all of it, `memory_bytes` each process,
    and all of a side together where there are memory groups (see `memory_group.py`). May be called from several
    threads. Raises RewardError where it cannot be isolated.
    """
    orders: list[dict[str, object]] = [{"side": "code_side", "code": f"{setup}\n{code}" if setup else code}]
    if tests:
        orders.append({"side": "tests_side", "setup": setup, "tests": list(tests)})
    limits = {"timeout_seconds": timeout_seconds, "memory_bytes": memory_bytes}
    with ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin.encode("utf-8", "surrogateescape"))
        given.seek(0)
        ends = socket.socketpair()
        with ends[0], ends[1]:  # closed here, so that each side sees the other's end
            sides = [
                stack.enter_context(_running(order | limits, end, (given, out, err), isolation, memory_bytes))
                for order, end in zip(orders, ends, strict=False)
            ]
        if not all(side.read(time.monotonic() + STARTUP_SECONDS) for side in sides):
            raise RewardError(_refusal(isolation, shorten(_shown(err).strip()[-200:] or "it did not start")))
        deadline = time.monotonic() + timeout_seconds
        lines = set(iter(lambda: sides[1].read(deadline), b"")) if tests else set()
        passed = tuple(b"passed %d\n" % number in lines for number in range(len(tests)))
        return ProgramOutcome(sides[0].ending(deadline), passed, _shown(out), _shown(err))


@functools.cache
def check_isolation(isolation: Isolation) -> None:
    """Raise a RewardError, which says why and what to do, if code cannot be run under this isolation here."""
    outcome = run_python("", ["pass"], timeout_seconds=STARTUP_SECONDS, memory_bytes=1 << 30, isolation=isolation)
    if outcome.ending != "done" or outcome.passed != (True,):
        raise RewardError(f"code isolation {isolation!r}: an empty program ended with {shorten(outcome)}")


@dataclass(frozen=True)
class _Side:
    """A process with the code or its tests, and the socket on which it reports."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    report: IO[bytes]

    def read(self, deadline: float) -> bytes:
        """The next line of its report, empty if it has ended or says nothing before the deadline."""
        self.control.settimeout(max(1e-3, deadline - time.monotonic()))
        with contextlib.suppress(OSError):  # the deadline, now or before, or an end without a goodbye
            return self.report.readline()
        return b""

    def ending(self, deadline: float) -> Ending:
        """Wait for its end."""
        try:
            status = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "timeout"
        if status == DONE:
            return "done"
        return "killed" if status < 0 or 128 < status <= 192 else "error"  # bwrap says 128 + signal


@contextlib.contextmanager
def _running(
    order: dict[str, object],
    other: socket.socket,
    streams: tuple[IO[bytes], ...],
    isolation: Isolation,
    memory_bytes: int,
) -> Iterator[_Side]:
    """Start a side and give it its order; at the end it is killed with all its processes."""
    shut_in = isolation == "namespaces"
    packages = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    order |= {
        "disk_bytes": DISK_BYTES,
        "open_files": OPEN_FILES,
        "path": sorted(packages),
        "done": DONE,
        "processes": PROCESSES if shut_in else None,  # elsewhere all processes of the user would count
        "user": 61184 + next(_USERS) % 4096 if shut_in and os.geteuid() == 0 else None,
    }
    mark = f"NEARSTEP_SANDBOX={secrets.token_hex(8)}"
    control, inside = socket.socketpair()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nearstep-sandbox-"))
        stack.enter_context(control)
        with inside, ExitStack() as closed_after_start:
            inherited = [inside.fileno(), other.fileno()]
            command = [os.path.realpath(sys.executable), "-I", str(LAUNCHER), *map(str, inherited)]
            if shut_in:
                filter_file = closed_after_start.enter_context(tempfile.TemporaryFile())
                command = stack.enter_context(limited([*_bubblewrap(filter_file), *command], memory_bytes))
                inherited.append(filter_file.fileno())
            process = subprocess.Popen(
                command,
                env=dict(pair.split("=") for pair in (mark, *ENVIRONMENT)),
                cwd="/" if shut_in else folder,
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                pass_fds=inherited,
                start_new_session=True,
            )
        try:
            control.settimeout(STARTUP_SECONDS)
            with contextlib.suppress(OSError):  # it did not start, and says nothing
                control.sendall(json.dumps(order).encode())
                control.shutdown(socket.SHUT_WR)
            yield _Side(process, control, control.makefile("rb"))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if not shut_in:
                _kill_marked(mark.encode())


def _bubblewrap(filter_file: IO[bytes]) -> list[str]:
    """The command in front of the launcher, and the filter of system calls that it reads, put into an open file.

    Raises RewardError if bubblewrap is not installed, and for a machine without a filter.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise RewardError(_refusal("namespaces", "bubblewrap is not installed: apt install bubblewrap"))
    try:
        filter_file.write(call_filter())
    except RewardError as error:
        raise RewardError(_refusal("namespaces", str(error))) from None
    filter_file.seek(0)
    apart = "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --hostname sandbox"
    room = ["--perms", "1777", "--size", str(DISK_BYTES), "--tmpfs", "/tmp"]
    for folder in SYSTEM_FOLDERS:
        if os.path.islink(folder):
            room += ["--symlink", os.readlink(folder), folder]
    shown = [*_readable(), str(LAUNCHER.parent)]  # which may lie below /tmp
    for folder in sorted({str(parent) for path in (*shown, *DEVICES) for parent in Path(path).parents} - {"/", "/tmp"}):
        room += ["--perms", "0755", "--dir", folder]
    for path in shown:
        room += ["--ro-bind", path, path]
    for device in DEVICES:
        room += ["--dev-bind", device, device]
    drop = ["--cap-drop", "ALL"]
    if os.geteuid() == 0:  # the launcher becomes another user first
        drop += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    end = f"--seccomp {filter_file.fileno()} --remount-ro / --chdir /tmp --die-with-parent --new-session --"
    return [bwrap, *apart.split(), *drop, *room, *end.split()]


@functools.cache
def _readable() -> list[str]:
    """What the interpreter needs to run and import, outer folders first, none inside another."""
    known = sysconfig.get_paths()
    library = sysconfig.get_config_var("LIBDIR")
    folders = [*SYSTEM_FOLDERS, *(known[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")), library]
    kept: list[str] = []
    for path in sorted({os.path.realpath(p) for p in (*folders, sys.executable) if p and os.path.exists(p)}):
        if not any(Path(path).is_relative_to(outer) for outer in kept):
            kept.append(path)
    return kept


def _refusal(isolation: Isolation, reason: str) -> str:
    return (
        f"code of a model is not run, for the isolation {isolation!r} cannot be had here ({reason}). Install "
        "bubblewrap 0.7 or newer (apt install bubblewrap; Linux only) and run where user namespaces are allowed, or, "
        "only if you trust the code as your own, say isolation='process', which lets it read your files and use the "
        "network."
    )


def _shown(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(SHOWN_BYTES).decode("utf-8", "replace")


def _kill_marked(mark: bytes) -> None:
    """Without a process namespace: end what the code left running in sessions of its own."""
    looks = 0
    while looks < 3:  # one may start another and end in the middle of a look
        found = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if _holds(path, mark)]
        looks = 0 if found else looks + 1
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _holds(path: Path, mark: bytes) -> bool:
    try:
        return mark in path.read_bytes()
    except OSError:  # it has ended since, or is another user's
        return False
