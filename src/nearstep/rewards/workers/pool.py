"""Worker processes for reward functions: a hang or a crash costs one row and one process, never the trainer.

Own processes on the standard library's pipes, rather than a ready pool, for three reasons: each worker has a pipe of
its own, so none can take a lock of the others along when it dies; it is killed at once, with all that it started (pools
ask politely first, which code that holds the interpreter lock does not hear, and leave its children alone); and the
main module of the user's script is not run again in it.
"""

import itertools
import pickle
import selectors
import signal
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from nearstep.common.errors import RewardError, shorten
from nearstep.common.waiting import listed, waiting
from nearstep.rewards.workers.channel import Begun, OddReplyError, Reply, RowAnswer, read_message
from nearstep.rewards.workers.process import FunctionSpec, Task, WorkerConfig
from nearstep.rewards.workers.worker import Job, Worker

READY = RowAnswer(None, {}, {})  # the answer to no task
STARTUP_SECONDS = 120.0  # of a worker, and of what reading a row imports
POLL_SECONDS = 0.1  # a crash is seen this late where a child of the worker keeps its pipe open


class WorkerPool:
    """Processes that have loaded the same functions, started on demand and replaced when they die.

    A thread drives them while there is something to do, so that rows are scored while the trainer generates others.
    """

    def __init__(self, functions: Sequence[FunctionSpec], workers: int, timeout_seconds: float | None) -> None:
        """At most `workers` processes; each row has `timeout_seconds`, None for no limit."""
        self._config = WorkerConfig(tuple(functions), timeout_seconds)
        self._size = workers
        self._workers: list[Worker] = []
        self._waiting: deque[Job] = deque()
        self._lock = threading.Lock()  # around what the driver and its callers both change
        self._driver: threading.Thread | None = None
        self._is_closing = False
        self._numbers = itertools.count(1)
        self._heard, self._bell = socket.socketpair()  # wakes the driver
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
            with waiting(self._names, lambda: _open_rows(futures)) as wait:
                for future in futures:
                    future.add_done_callback(lambda _: wait.alive())
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
        job = Job(task)
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
            self._bell.send(b"!")

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
    def _busy(self) -> list[Job]:
        return [worker.job for worker in self._workers if worker.job is not None]

    def _staff(self) -> None:
        for worker in [w for w in self._workers if not (w.is_engaged or w.channel.is_quiet())]:
            self._workers.remove(worker)  # it has died between two rows, or what it says belongs to none
            worker.end()
        while len(self._workers) < min(self._size, len(self._waiting) + len(self._busy)):
            self._workers.append(Worker.started(self._config, STARTUP_SECONDS))

    def _assign(self) -> None:
        """Give every worker that is free a task."""
        for worker in self._workers:
            while self._waiting and not worker.is_engaged:
                job = self._waiting.popleft()
                if job.task is None:
                    job.future.set_result(READY)
                    continue
                number = next(self._numbers)
                try:
                    message = _pickled(number, job.task)
                except RewardError as error:
                    job.future.set_result(error)
                    continue
                worker.job, worker.number, worker.has_begun = job, number, False
                worker.expect("a worker process (it takes a row)", STARTUP_SECONDS)
                worker.channel.send(message)

    @property
    def _names(self) -> str:
        return "reward functions in workers: " + ", ".join(function.name for function in self._config.functions)

    def _collect(self) -> None:
        """Wait for something to happen, and take note of it."""
        engaged = [worker for worker in self._workers if worker.is_engaged]
        nearest = min((worker.deadline for worker in engaged), default=float("inf")) - time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._heard, selectors.EVENT_READ)
            for worker in engaged:
                sending = selectors.EVENT_WRITE if worker.channel.is_sending else 0
                selector.register(worker.channel, selectors.EVENT_READ | sending)
            selector.select(max(0.0, min(POLL_SECONDS, nearest)))
        with self._lock:
            if self._has_rung:
                self._heard.recv(1)
                self._has_rung = False
        for worker in engaged:
            worker.channel.push()
            has_ended = worker.process.poll() is not None
            try:
                while worker.is_engaged and (line := worker.channel.line()) is not None:
                    self._take(worker, read_message(line, worker.number, worker.process.pid))
            except (EOFError, ConnectionError):
                self._lose(worker, "closed the pipe of its worker" if worker.lives_on(POLL_SECONDS) else None)
            except OddReplyError as offence:
                self._lose(worker, str(offence))
            else:
                if worker.is_engaged and has_ended:
                    self._lose(worker, None)
                elif worker.is_engaged and time.monotonic() >= worker.deadline:
                    self._lose(worker, self._too_late(worker))

    def _take(self, worker: Worker, message: Begun | Reply) -> None:
        if not worker.is_ready:
            if isinstance(message, RewardError):
                raise message
            worker.is_ready = True
            worker.expect_nothing()
        elif isinstance(message, Begun):
            task = None if worker.job is None else worker.job.task
            name = "" if task is None else self._config.functions[task.function].name
            worker.has_begun = True
            worker.expect(f"reward function {name!r}", self._config.timeout_seconds)
        else:
            assert worker.job is not None
            job, worker.job = worker.job, None
            worker.expect_nothing()
            job.future.set_result(message)

    def _too_late(self, worker: Worker) -> str:
        if not worker.is_ready:
            return f"not within {STARTUP_SECONDS:g} s"
        if worker.has_begun:
            return f"did not answer within reward_timeout_seconds = {self._config.timeout_seconds:g}"
        return f"had not been given its row within {STARTUP_SECONDS:g} s"

    def _lose(self, worker: Worker, offence: str | None) -> None:
        """End a worker that has died or committed an offence; its task, if it had one, has failed."""
        self._workers.remove(worker)
        how = _how(worker.end())
        if worker.job is None or worker.job.task is None:
            names = ", ".join(repr(function.name) for function in self._config.functions)
            raise RewardError(
                f"a worker process for reward functions {names} did not come up ({offence or how}). Do their files "
                "load in a process of their own?"
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


def _pickled(number: int, task: Task) -> bytes:
    try:
        return pickle.dumps((number, task))
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise RewardError(
            f"{task.batch.place(0)} cannot be given to a worker process: one of {', '.join(task.batch.columns)} "
            f"holds what cannot be pickled ({shorten(str(error))})"
        ) from error


def _open_rows(futures: Sequence[Future[Reply]]) -> str:
    rows = [row for row, future in enumerate(futures) if not future.done()]
    return f"{len(rows)} of {len(futures)} rows are to come: {listed(rows)}"


def _how(exit_code: int) -> str:
    return f"exit code {exit_code}" if exit_code >= 0 else f"signal {signal.Signals(-exit_code).name}"


def _end_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().end()
