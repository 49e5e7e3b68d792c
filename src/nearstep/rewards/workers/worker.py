"""One worker process as the trainer sees it, from its start to its end, and the task that it has."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

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
    deadline: float
    is_ready: bool = False
    job: Job | None = None
    number: int = 0  # of its task; no two tasks share one, and 0 is its start
    has_begun: bool = False  # with its task

    @staticmethod
    def started(config: WorkerConfig, deadline: float) -> "Worker":
        """A new process, which is told what to load."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", START, json.dumps(sys.path), str(theirs.fileno())]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
        worker = Worker(process, Channel(ours), deadline)
        worker.channel.send(pickle.dumps(config))
        return worker

    @property
    def is_engaged(self) -> bool:
        """Whether a message of it is awaited."""
        return self.job is not None or not self.is_ready

    def lives_on(self, seconds: float) -> bool:
        """Whether it is there after so many seconds: a pipe closes a little before its process has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is None

    def end(self) -> int:
        """Kill it with all that it started; take its exit code, so that no zombie stays."""
        with suppress(ProcessLookupError):  # nothing is left of the group
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # it may have left its group
        self.channel.end.close()
        return self.process.wait()
