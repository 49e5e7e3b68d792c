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
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

from nearstep.common.errors import RewardError
from nearstep.rewards.workers.process import FunctionSpec, Task, WorkerConfig

Reply: TypeAlias = dict[str, Any] | RewardError

STARTUP_SECONDS = 120.0
POLL_SECONDS = 0.1  # a crash is seen this late where a child of the worker keeps its pipe open
LARGEST_REPLY_BYTES = 16 << 20
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nearstep.rewards.workers.process import main; main(int(sys.argv[2]))"
)


@dataclass
class _Job:
    """A task and where its reply is awaited; without a task it waits for no more than a worker that is up."""

    task: Task | None
    future: Future[Reply] = field(default_factory=Future)


@dataclass
class _Worker:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    connection: Connection
    deadline: float
    is_ready: bool = False
    job: _Job | None = None

    def end(self) -> int:
        """Kill it with all that it started; take its exit code, so that no zombie stays."""
        with suppress(ProcessLookupError):  # nothing is left of the group
            os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        return self.process.wait()


class WorkerPool:
    """Processes that have loaded the same functions, started on demand and replaced when they die.

    A thread drives them while there is something to do, so that rows are scored while the trainer generates others.
    """

    def __init__(self, functions: Sequence[FunctionSpec], workers: int, timeout_seconds: float | None) -> None:
        """At most `workers` processes; each row has `timeout_seconds`, None for no limit."""
        self._config = WorkerConfig(tuple(functions), timeout_seconds)
        self._size = workers
        self._workers: list[_Worker] = []
        self._waiting: deque[_Job] = deque()
        self._lock = threading.Lock()  # around what the driver and its callers both change
        self._driver: threading.Thread | None = None
        self._is_closing = False
        self._heard, self._bell = Pipe(duplex=False)  # wakes the driver
        self._has_rung = False
        weakref.finalize(self, _end_all, self._workers)

    def check(self) -> None:
        """Raise a RewardError if the functions cannot be loaded in a worker."""
        self.replies([self._submit(None)])

    def submit(self, task: Task) -> Future[Reply]:
        """Begin with a task as soon as a worker is free; returns at once."""
        return self._submit(task)

    def replies(self, futures: Sequence[Future[Reply]]) -> list[Reply]:
        """Wait for the replies to tasks, in the given order; a task that failed has an error in place of its reply.

        Raises RewardError if no worker comes up. Whatever is raised meanwhile ends all workers.
        """
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C among them: workers in the middle of a row are of no use any more
            self.close()
            raise

    def close(self) -> None:
        """Give up what is not done and end all workers; the next task starts new ones."""
        with self._lock:
            driver = self._driver
            self._is_closing = driver is not None
            self._ring()
        if driver is not None:
            driver.join()
        _end_all(self._workers)

    def _submit(self, task: Task | None) -> Future[Reply]:
        job = _Job(task)
        with self._lock:
            self._waiting.append(job)
            if self._driver is None:
                self._driver = threading.Thread(target=self._drive, name="reward workers", daemon=True)
                self._driver.start()
            self._ring()
        return job.future

    def _ring(self) -> None:
        if not self._has_rung:
            self._has_rung = True
            self._bell.send_bytes(b"!")

    def _drive(self) -> None:
        """Run jobs until none is left; an error that ends it sooner is passed to all that wait."""
        try:
            while self._has_jobs():
                self._staff()
                self._assign()
                self._collect()
        except RewardError as error:
            self._abandon(error)
        except BaseException as error:
            self._abandon(error)
            raise

    def _has_jobs(self) -> bool:
        with self._lock:
            if self._is_closing:
                raise RewardError("the worker processes were ended before they had scored every row")
            if not self._waiting and not self._busy:
                self._driver = None
            return self._driver is not None

    def _abandon(self, error: BaseException) -> None:
        with self._lock:
            jobs = [*self._busy, *self._waiting]
            self._waiting.clear()
            _end_all(self._workers)
            self._driver, self._is_closing = None, False
        for job in jobs:
            job.future.set_exception(error)

    @property
    def _busy(self) -> list[_Job]:
        return [worker.job for worker in self._workers if worker.job is not None]

    def _staff(self) -> None:
        while len(self._workers) < min(self._size, len(self._waiting) + len(self._busy)):
            ours, theirs = Pipe()
            command = [sys.executable, "-c", START, json.dumps(sys.path), str(theirs.fileno())]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
            theirs.close()
            self._workers.append(_Worker(process, ours, time.monotonic() + STARTUP_SECONDS))
            with suppress(BrokenPipeError):  # it has died already; collecting notices
                ours.send_bytes(pickle.dumps(self._config))

    def _assign(self) -> None:
        """Give every worker that is free a task."""
        for worker in self._workers:
            while self._waiting and worker.is_ready and worker.job is None:
                job = self._waiting.popleft()
                if job.task is None:
                    job.future.set_result({})
                    continue
                try:
                    message = _pickled(job.task)
                except RewardError as error:
                    job.future.set_result(error)
                    continue
                worker.job, worker.deadline = job, self._deadline()
                with suppress(BrokenPipeError):
                    worker.connection.send_bytes(message)

    def _deadline(self) -> float:
        limit = self._config.timeout_seconds
        return float("inf") if limit is None else time.monotonic() + limit

    def _collect(self) -> None:
        """Wait for something to happen, and take note of it."""
        engaged = [worker for worker in self._workers if worker.job is not None or not worker.is_ready]
        nearest = min((worker.deadline for worker in engaged), default=float("inf")) - time.monotonic()
        wait(
            [self._heard, *(worker.connection for worker in engaged)],
            timeout=max(0.0, min(POLL_SECONDS, nearest)),
        )
        with self._lock:
            if self._has_rung:
                self._heard.recv_bytes()
                self._has_rung = False
        for worker in engaged:
            has_ended = worker.process.poll() is not None
            if worker.connection.poll():
                self._receive(worker)
            elif has_ended:
                self._lose(worker, None)
            elif time.monotonic() >= worker.deadline:
                limit = f"reward_timeout_seconds = {self._config.timeout_seconds:g}" if worker.is_ready else "its time"
                self._lose(worker, f"did not answer within {limit}")

    def _receive(self, worker: _Worker) -> None:
        try:
            reply: dict[str, Any] = json.loads(worker.connection.recv_bytes(LARGEST_REPLY_BYTES))
        except (EOFError, ConnectionError):
            self._lose(worker, None)
            return
        except OSError:  # what the connection says of a message that is too long
            self._lose(worker, f"answered with more than {LARGEST_REPLY_BYTES >> 20} MiB")
            return
        error = RewardError(str(reply["error"])) if "error" in reply else None
        if worker.is_ready:
            assert worker.job is not None
            job, worker.job = worker.job, None
            job.future.set_result(error or reply)
        elif error is not None:
            raise error
        worker.is_ready = True

    def _lose(self, worker: _Worker, offence: str | None) -> None:
        """End a worker that has died or committed an offence; its task, if it had one, has failed."""
        self._workers.remove(worker)
        how = _how(worker.end())
        if worker.job is None or worker.job.task is None:
            names = ", ".join(repr(function.name) for function in self._config.functions)
            reason = how if offence is None else f"not within {STARTUP_SECONDS:g} s"
            raise RewardError(
                f"a worker process for reward functions {names} did not come up ({reason}). Do their files load in a "
                "process of their own?"
            )
        task = worker.job.task
        name, place = self._config.functions[task.function].name, task.batch.place(0)
        worker.job.future.set_result(
            RewardError(
                f"reward function {name!r} ended its worker process ({how}) on {place}."
                if offence is None
                else f"reward function {name!r} {offence} on {place}: its worker process was killed."
            )
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
