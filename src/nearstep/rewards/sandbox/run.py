"""How code that a model wrote is run: never in the trainer's process, and shut in or not at all.

`isolation="namespaces"` is a sandbox by the means of the Linux kernel, without any privilege: user, mount, process,
network, IPC and host name namespaces. The code sees the interpreter's folders and /usr read only and a small /tmp that
vanishes with it, an empty environment, no other process, no network (not even loopback), no capability, no open file
but its own; time, memory, processes, files and output are limited; its end takes all its processes along. What is left
is the kernel itself: a hole in it is a way out. Some containers forbid namespaces; then nothing is run.

`isolation="process"` is no sandbox: the same limits of time, memory and output in a process of its own with an empty
environment, but the code can read and write what the user can, and reach the network.

Tests run in the same interpreter as the code, so code that sets out to cheat its tests can; see docs/rewards.md.
"""

import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeAlias

from nearstep.common.errors import RewardError, shorten

Isolation: TypeAlias = Literal["namespaces", "process"]
Ending: TypeAlias = Literal["done", "error", "timeout", "killed"]

LAUNCHER = Path(__file__).with_name("sandbox_launcher.py")
SYSTEM_FOLDERS = ("/usr", "/bin", "/lib", "/lib32", "/lib64")
DISK_BYTES = 16 << 20  # of /tmp, of any file, and of what is printed
PROCESSES = 16  # threads count as well
OPEN_FILES = 64
SHOWN_BYTES = 1 << 16
STARTUP_SECONDS = 60.0  # beyond the time limit, for a machine that is busy


@dataclass(frozen=True)
class Outcome:
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
    stdin: str = "",
    isolation: Isolation = "namespaces",
) -> Outcome:
    """Run `code` as a main program, then each of `tests` where the code left off; a test that raises has failed.

    Every test gets a copy of the state after the code, so none disturbs another. `timeout_seconds` covers all of it,
    `memory_bytes` each process. May be called from several threads. Raises RewardError where it cannot be isolated.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nearstep-sandbox-"))
        given, report, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(4))
        given.write(stdin.encode("utf-8", "surrogateescape"))
        given.seek(0)
        key = secrets.token_hex(16)
        order = {
            "code": code, "tests": list(tests), "key": key, "isolation": isolation, "readable": _readable(),
            "folder": folder, "stdin_fd": given.fileno(), "report_fd": report.fileno(), "memory_bytes": memory_bytes,
            "timeout_seconds": timeout_seconds, "disk_bytes": DISK_BYTES, "processes": PROCESSES,
            "open_files": OPEN_FILES,
        }  # fmt: skip
        exit_code = _launch(order, (given.fileno(), report.fileno()), out, err, timeout_seconds)
        return _outcome(_lines(report, key), len(tests), _shown(out), _shown(err), isolation, exit_code)


@functools.cache
def check_isolation(isolation: Isolation) -> None:
    """Raise a RewardError, which says why and what to do, if code cannot be run under this isolation here."""
    outcome = run_python("", timeout_seconds=STARTUP_SECONDS, memory_bytes=1 << 30, isolation=isolation)
    if outcome.ending != "done":
        raise RewardError(f"code isolation {isolation!r}: an empty program ended with {shorten(outcome)}")


def _launch(
    order: dict[str, object], inherited: Sequence[int], out: IO[bytes], err: IO[bytes], timeout_seconds: float
) -> int:
    """Run the launcher to its end, or end it and all its group; returns its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-I", str(LAUNCHER)],
        stdin=subprocess.PIPE, stdout=out, stderr=err, pass_fds=inherited, cwd="/", start_new_session=True,
        env={"LANG": "C.UTF-8", "HOME": "/tmp", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        process.communicate(json.dumps(order).encode(), timeout=timeout_seconds + STARTUP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RewardError(
            f"the sandbox did not end within {STARTUP_SECONDS:g} s of its time limit: the machine is overloaded"
        ) from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode


@functools.cache
def _readable() -> list[str]:
    """What the interpreter needs to run and import, outer folders first, none inside another."""
    known = sysconfig.get_paths()
    library = sysconfig.get_config_var("LIBDIR")
    wanted = [*SYSTEM_FOLDERS, *(known[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")), library]
    return _outermost(path for path in wanted if path and os.path.isdir(path))


def _outermost(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted({os.path.abspath(path) for path in paths}):
        if not any(Path(path).is_relative_to(outer) and not os.path.islink(outer) for outer in kept):
            kept.append(path)
    return kept


def _lines(report: IO[bytes], key: str) -> list[str]:
    """The lines of the launcher; foreign code may have written others."""
    report.seek(0)
    text = report.read(DISK_BYTES).decode("utf-8", "replace")
    return [line.removeprefix(key + " ") for line in text.splitlines() if line.startswith(key + " ")]


def _shown(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(SHOWN_BYTES).decode("utf-8", "replace")


def _outcome(lines: list[str], tests: int, stdout: str, stderr: str, isolation: Isolation, exit_code: int) -> Outcome:
    refused = next((line.removeprefix("refused ") for line in lines if line.startswith("refused ")), None)
    if refused is not None or "started" not in lines:
        reason = refused or shorten(stderr.strip()[-200:] or f"exit code {exit_code}")
        raise RewardError(
            f"code of a model is not run, for the isolation {isolation!r} cannot be had here ({reason}). Run where "
            "unprivileged user namespaces are allowed, or, only if you trust the code as your own, say "
            "isolation='process', which lets it read your files and use the network."
        )
    passed = tuple(f"passed {number}" in lines for number in range(tests))
    return Outcome(_ending(lines), passed, stdout, stderr)


def _ending(lines: list[str]) -> Ending:
    if "timeout" in lines:
        return "timeout"
    if "ran" in lines:
        return "done"
    return "error" if any(line.startswith("exit ") and not line.startswith("exit -") for line in lines) else "killed"
