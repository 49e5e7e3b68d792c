"""Whether answers are equal by mathematics, asked of a process that can be ended when it takes too long."""

import json
import selectors
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

from nearstep.common.errors import RewardError

WORKER = Path(__file__).with_name("math_worker.py")
STARTUP_SECONDS = 120.0


class MathProcess:
    """math-verify in a process of its own, started at the first question and again after it had to be ended.

    In the trainer's process the library could not be stopped: its own limits need the main thread, and a signal does
    not interrupt arithmetic on huge numbers.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def is_right(self, text: str, answers: list[str], timeout_seconds: float) -> bool | None:
        """Whether a text ends on one of the answers; None where no answer is mathematics, False beyond the limit."""
        with self._lock:
            process = self._running()
            reply = self._ask(process, json.dumps({"answers": answers, "text": text}) + "\n", timeout_seconds)
        right: bool | None = json.loads(reply or "false")
        return right

    def start(self) -> None:
        """Start the process if it does not run. Raises a RewardError if it cannot."""
        with self._lock:
            self._running()

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            self._process = self._started()
        return self._process

    def _started(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            # -P: the folder of the worker must not come before the standard library.
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        weakref.finalize(self, process.kill)
        if not self._ask(process, "", STARTUP_SECONDS):
            raise RewardError(f"math_answer: its process does not start: {sys.executable} -P {WORKER}")
        return process

    def _ask(self, process: "subprocess.Popen[str]", request: str, timeout_seconds: float) -> str:
        """The line that the process says next; empty if it has ended, or is ended because of the time."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it ended before it could be asked
            process.stdin.write(request)
            process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            answer = process.stdout.readline() if selector.select(timeout_seconds) else ""
        if not answer:
            process.kill()
            process.wait()
            self._process = None
        return answer
