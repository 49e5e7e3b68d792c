"""One worker process as the trainer sees it, from its start to its end, and the task that it has."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from nearstep.common.waiting import WATCHDOG, Wait
from nearstep.rewards.workers.channel import Channel, Reply
from nearstep.rewards.workers.process import Task, WorkerConfig

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from nearstep.rewards.workers.process import main; main(int(sys.argv[2]))"
)


@dataclass
class Job:
    """A task and where its reply is awaited; without a task it waits for no more than a worker that is up."""

    task: Task | None
    future: Future[Reply] = field(default_factory=Future)


@dataclass
class Worker:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    channel: Channel
    deadline: float = float("inf")
    is_ready: bool = False
    job: Job | None = None
    number: int = 0  # of its task; no two tasks share one, and 0 is its start
    has_begun: bool = False  # with its task
    wait: Wait | None = None  # for its next message, where that has a limit

    @staticmethod
    def started(config: WorkerConfig, limit_seconds: float) -> "Worker":
        """A new process, which is told what to load."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", START, json.dumps(sys.path), str(theirs.fileno())]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
        worker = Worker(process, Channel(ours))
        worker.expect("a worker process (it starts)", limit_seconds)
        worker.channel.send(pickle.dumps(config))
        return worker

    @property
    def is_engaged(self) -> bool:
        """Whether a message of it is awaited."""
        return self.job is not None or not self.is_ready

    def expect(self, what: str, limit_seconds: float | None) -> None:
        """A message is awaited from here on; its pool keeps the limit, if there is one."""
        self.expect_nothing()
        self.deadline = float("inf") if limit_seconds is None else time.monotonic() + limit_seconds
        if limit_seconds is not None:
            place = "" if self.job is None or self.job.task is None else self.job.task.batch.place(0)
            self.wait = Wait(what, limit_seconds, lambda: place, keeps_own_limit=True)
            WATCHDOG.begin(self.wait)

    def expect_nothing(self) -> None:
        """The message has come, or will not."""
        wait, self.wait = self.wait, None
        if wait is not None:
            WATCHDOG.end(wait)

    def lives_on(self, seconds: float) -> bool:
        """Whether it is there after so many seconds: a pipe closes a little before its process has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is None

    def end(self) -> int:
        """Kill it with all that it started; take its exit code, so that no zombie stays."""
        self.expect_nothing()
        with suppress(ProcessLookupError):  # nothing is left of the group
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # it may have left its group
        self.channel.end.close()
        return self.process.wait()
