"""The generation process as the trainer sees it: started, listened to, and ended whatever has become of it."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty

from nearstep.common.errors import LostProcessError, TrainingError
from nearstep.common.waiting import WATCHDOG, Wait
from nearstep.rollout.ahead.messages import Closed, MessageLine, ProcessFailed, ProcessMessage, Setup
from nearstep.rollout.ahead.process import start_arguments, start_command
from nearstep.rollout.ahead.shared_weights import SharedWeights

LOOK_SECONDS = 0.2  # between two looks at a process that says nothing
END_SECONDS = 2.0  # that it has to end by itself


@dataclass
class GenerationProcess:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    line: MessageLine

    @staticmethod
    def started(setup: Setup, weights: SharedWeights) -> "GenerationProcess":
        """A new process, which is told what it is made of."""
        ours, theirs = socket.socketpair()
        with theirs:
            passed = [theirs.fileno(), weights.descriptor]
            command = [sys.executable, "-c", start_command(), *start_arguments(sys.path, *passed)]
            # A session of its own: Ctrl-C is for the trainer, which ends the run in order.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=passed, start_new_session=True)
        started = GenerationProcess(process, MessageLine(ours))
        started.send(setup)
        return started

    def send(self, message: ProcessMessage) -> None:
        """Send a message. Raises the error of `lost` where nobody listens."""
        try:
            self.line.send(message)
        except OSError:
            self._raise_last_words()

    def messages(self, wait: Wait | None = None) -> list[ProcessMessage]:
        """What it has said; with `wait` at least one message, however long that takes.

        Raises TrainingError with what it says of its failure, or LostProcessError where it is gone without a word.
        """
        found: list[ProcessMessage] = []
        while True:
            try:
                found.append(self.line.coming.get(timeout=LOOK_SECONDS) if wait and not found else self._next())
            except Empty:
                if found or wait is None:
                    return found
                continue
            if wait is not None:
                wait.alive()
            if isinstance(found[-1], ProcessFailed):
                raise TrainingError(f"the generation process (max_staleness) failed: {found[-1].problem}")
            if isinstance(found[-1], Closed):
                raise self.lost()

    @property
    def state(self) -> str:
        """What it does now, in words."""
        name = f"process {self.process.pid}"
        if self.process.poll() is not None:
            return f"{name} ended with {_how(self.process.returncode)}"
        with suppress(OSError):
            letter = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return f"{name} is stopped" if letter in "Tt" else f"{name} runs"
        return name

    @property
    def problem(self) -> str | None:
        """A sentence where it has ended, for a watchdog; None while it is there."""
        gone = self.process.poll() is not None
        return f"the generation process (max_staleness) is gone: {self.state}" if gone else None

    def lost(self) -> LostProcessError:
        """The error of a run whose process has closed its line."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        return WATCHDOG.lost(f"the generation process (max_staleness) is gone: {self.state}")

    def end(self) -> None:
        """Close the line, and kill what has not ended by then, with all that it started."""
        self.line.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def _next(self) -> ProcessMessage:
        return self.line.coming.get_nowait()

    def _raise_last_words(self) -> None:
        """It does not listen any more: what it said before has the reason."""
        self.messages()
        raise self.lost()


def _how(exit_code: int) -> str:
    return f"exit code {exit_code}" if exit_code >= 0 else f"signal {signal.Signals(-exit_code).name}"
