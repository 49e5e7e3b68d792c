"""Worker processes for reward functions: a hang or a crash costs one row and one process, never the trainer.

Own processes on the standard library's pipes, rather than a ready pool, for three reasons: each worker has a pipe of
its own, so none can take a lock of the others along when it dies; it is killed at once, with all that it started (pools
ask politely first, which code that holds the interpreter lock does not hear, and leave its children alone); and the
main module of the user's script is not run again in it.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

from nearstep.errors import RewardError
from nearstep.rewards.worker import Delivery, Orders, Task

Reply: TypeAlias = dict[str, Any] | RewardError

STARTUP_SECONDS = 120.0
POLL_SECONDS = 0.1  # a crash is seen this late where a child of the worker keeps its pipe open
LARGEST_REPLY_BYTES = 16 << 20
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nearstep.rewards.worker import main; main(int(sys.argv[2]))"
)


@dataclass
class _Worker:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    connection: Connection
    deadline: float
    is_ready: bool = False
    task: int | None = None

    def end(self) -> int:
        """Kill it with all that it started; take its exit code, so that no zombie stays."""
        with suppress(ProcessLookupError):  # nothing is left of the group
            os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        return self.process.wait()


class WorkerPool:
    """Processes that have loaded the same functions, started on demand and replaced when they die."""

    def __init__(self, functions: Sequence[Delivery], workers: int, timeout_seconds: float | None) -> None:
        """At most `workers` processes; each row has `timeout_seconds`, None for no limit."""
        self._orders = Orders(tuple(functions), timeout_seconds)
        self._size = workers
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _end_all, self._workers)

    def check(self) -> None:
        """Raise a RewardError if the functions cannot be loaded in a worker."""
        with self._lock:
            self._staff(1)
            while not self._workers[0].is_ready:
                self._collect([], [])

    def run(self, tasks: Sequence[Task]) -> list[Reply]:
        """The reply to every task, in their order; a task that failed has an error in place of its reply."""
        replies: list[Reply] = [RewardError("not done")] * len(tasks)
        waiting = deque(range(len(tasks)))
        with self._lock:
            try:
                while waiting or any(worker.task is not None for worker in self._workers):
                    self._staff(min(self._size, len(tasks)))
                    self._assign(waiting, tasks, replies)
                    self._collect(tasks, replies)
            except BaseException:  # Ctrl-C among them: workers in the middle of a row are of no use any more
                _end_all(self._workers)
                raise
        return replies

    def close(self) -> None:
        """End all workers; the next task starts new ones."""
        with self._lock:
            _end_all(self._workers)

    def _staff(self, size: int) -> None:
        while len(self._workers) < size:
            ours, theirs = Pipe()
            command = [sys.executable, "-c", START, json.dumps(sys.path), str(theirs.fileno())]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
            theirs.close()
            self._workers.append(_Worker(process, ours, time.monotonic() + STARTUP_SECONDS))
            with suppress(BrokenPipeError):  # it has died already, which collecting will tell
                ours.send_bytes(pickle.dumps(self._orders))

    def _assign(self, waiting: deque[int], tasks: Sequence[Task], replies: list[Reply]) -> None:
        """Give every worker that is free a task."""
        for worker in self._workers:
            while waiting and worker.is_ready and worker.task is None:
                number = waiting.popleft()
                try:
                    message = _pickled(tasks[number])
                except RewardError as error:
                    replies[number] = error
                    continue
                worker.task, worker.deadline = number, self._deadline()
                with suppress(BrokenPipeError):
                    worker.connection.send_bytes(message)

    def _deadline(self) -> float:
        limit = self._orders.timeout_seconds
        return float("inf") if limit is None else time.monotonic() + limit

    def _collect(self, tasks: Sequence[Task], replies: list[Reply]) -> None:
        """Wait for something to happen, and take note of it."""
        engaged = [worker for worker in self._workers if worker.task is not None or not worker.is_ready]
        nearest = min((worker.deadline for worker in engaged), default=0.0) - time.monotonic()
        wait([worker.connection for worker in engaged], timeout=max(0.0, min(POLL_SECONDS, nearest)))
        for worker in engaged:
            has_ended = worker.process.poll() is not None
            if worker.connection.poll():
                self._receive(worker, tasks, replies)
            elif has_ended:
                self._lose(worker, tasks, replies, None)
            elif time.monotonic() >= worker.deadline:
                limit = f"reward_timeout_seconds = {self._orders.timeout_seconds:g}" if worker.is_ready else "its time"
                self._lose(worker, tasks, replies, f"did not answer within {limit}")

    def _receive(self, worker: _Worker, tasks: Sequence[Task], replies: list[Reply]) -> None:
        try:
            reply: dict[str, Any] = json.loads(worker.connection.recv_bytes(LARGEST_REPLY_BYTES))
        except (EOFError, ConnectionError):
            self._lose(worker, tasks, replies, None)
            return
        except OSError:  # what the connection says of a message that is too long
            self._lose(worker, tasks, replies, f"answered with more than {LARGEST_REPLY_BYTES >> 20} MiB")
            return
        error = RewardError(str(reply["error"])) if "error" in reply else None
        if worker.is_ready:
            assert worker.task is not None
            replies[worker.task] = error or reply
            worker.task = None
        elif error is not None:
            raise error
        worker.is_ready = True

    def _lose(self, worker: _Worker, tasks: Sequence[Task], replies: list[Reply], offence: str | None) -> None:
        """End a worker that has died or committed an offence; its task, if it had one, has failed."""
        self._workers.remove(worker)
        how = _how(worker.end())
        if worker.task is None:
            names = ", ".join(repr(function.name) for function in self._orders.functions)
            reason = how if offence is None else f"not within {STARTUP_SECONDS:g} s"
            raise RewardError(
                f"a worker process for reward functions {names} did not come up ({reason}). Do their files load in a "
                "process of their own?"
            )
        task = tasks[worker.task]
        name, place = self._orders.functions[task.function].name, task.batch.place(0)
        replies[worker.task] = RewardError(
            f"reward function {name!r} ended its worker process ({how}) on {place}."
            if offence is None
            else f"reward function {name!r} {offence} on {place}: its worker process was killed."
        )


def _pickled(task: Task) -> bytes:
    try:
        return pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RewardError(
            f"{task.batch.place(0)} cannot be given to a worker process: one of {', '.join(task.batch.columns)} "
            f"holds what cannot be pickled ({error})"
        ) from error


def _how(exit_code: int) -> str:
    return f"exit code {exit_code}" if exit_code >= 0 else f"signal {signal.Signals(-exit_code).name}"


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()
