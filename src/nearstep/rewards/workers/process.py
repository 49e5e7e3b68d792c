"""What a worker process does: loads reward functions once, then scores one row at a time until its pipe closes.

Rows come in as pickles of the trainer, over a pipe that nobody else holds. Answers go back as lines of JSON with the
number of the task and of this process, so that whatever a reward function does to its own process, the trainer only
ever reads text, and takes none for the answer to another row.
"""

import asyncio
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

from nearstep.common.errors import NearstepError, RewardError
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.functions import FunctionReward, Prepares
from nearstep.rewards.loading import load_function
from nearstep.rewards.values import PerSpan, PerToken, Value, read_entries
from nearstep.rewards.workers.channel import LENGTH_BYTES
from nearstep.rewards.workers.imports import import_ahead

TRAINER_SECONDS = 1.0  # between two looks whether the trainer is there
GRACE_SECONDS = 5.0  # beyond the time limit: the kernel ends the worker, should the trainer no longer be there to do so
PlainData: TypeAlias = dict[str, object]
BEGUN: PlainData = {"begun": True}


@dataclass(frozen=True)
class FunctionSpec:
    """How a function reaches a worker: as file.py:name or a built-in one, or as a pickle that names its module."""

    name: str
    spec: str | None
    pickled: bytes | None

    def load(self) -> FunctionReward:
        """The function, in the process that this is called in, with what it needs to score."""
        if self.spec is not None:
            function = load_function(self.spec)
        else:
            assert self.pickled is not None
            function = pickle.loads(self.pickled)
        if isinstance(function, Prepares):
            function.prepare()
        import_ahead(function)
        return FunctionReward(function, self.name)


@dataclass(frozen=True)
class WorkerConfig:
    """The first message to a worker."""

    functions: tuple[FunctionSpec, ...]
    timeout_seconds: float | None


@dataclass(frozen=True)
class Task:
    """One row for one function: a batch of one."""

    function: int
    batch: RewardBatch


def main(fd: int) -> None:
    """Serve the pipe `fd` until it closes."""
    home = os.getpid()
    threading.Thread(target=_end_with_trainer, args=[os.getppid()], daemon=True).start()
    os.set_inheritable(fd, False)
    os.register_at_fork(after_in_child=lambda: os.close(fd))

    def send(task: int, reply: PlainData) -> None:
        if os.getpid() != home:  # a function has forked, and its child has come back from it
            os._exit(1)
        line = memoryview(json.dumps({"task": task, "process": home, **reply}).encode() + b"\n")
        while line:
            line = line[os.write(fd, line) :]

    with asyncio.Runner() as runner, open(fd, "rb", closefd=False) as reader:
        # One loop for all rows: clients that functions keep are bound to it.
        try:
            config: WorkerConfig = _receive(reader)
            functions, failure = _load(config.functions)
            send(0, {"error": failure} if failure else BEGUN)
            while True:
                number, task = _receive(reader)
                send(number, BEGUN)
                _set_alarm(config.timeout_seconds)
                reply = _score(functions[task.function], task.batch, runner.run)
                signal.setitimer(signal.ITIMER_REAL, 0)
                send(number, reply)
        except (EOFError, BrokenPipeError):  # the trainer is done with us
            return


def _end_with_trainer(trainer: int) -> None:
    """End this process and what it has started once the trainer is gone, however that ended."""
    while os.getppid() == trainer:
        time.sleep(TRAINER_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _receive(reader: BinaryIO) -> Any:
    """The next message of the trainer. Raises EOFError at the end."""
    length = int.from_bytes(_exactly(reader, LENGTH_BYTES))
    return pickle.loads(_exactly(reader, length))


def _exactly(reader: BinaryIO, size: int) -> bytes:
    content = reader.read(size)
    if len(content) < size:
        raise EOFError
    return content


def _load(specs: tuple[FunctionSpec, ...]) -> tuple[list[FunctionReward], str | None]:
    """The functions, or why one cannot be had here."""
    functions = []
    for spec in specs:
        try:
            functions.append(spec.load())
        except NearstepError as error:
            return [], str(error)
        except (pickle.UnpicklingError, AttributeError, ImportError, TypeError) as error:
            return [], (
                f"reward function {spec.name!r} is not to be found from a worker process ({error}): it must stand "
                "in a module that can be imported, or be named as file.py:name"
            )
    return functions, None


def _set_alarm(timeout_seconds: float | None) -> None:
    if timeout_seconds is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default is to end, whatever holds the interpreter
        signal.setitimer(signal.ITIMER_REAL, timeout_seconds + GRACE_SECONDS)


def _score(function: FunctionReward, batch: RewardBatch, run: Callable[..., Answer]) -> PlainData:
    """The row's value and what was logged by the way, or the error."""
    try:
        returned = function.score(batch)
        answer = run(_awaited(returned)) if isinstance(returned, Awaitable) else returned
        (value,) = read_entries(answer.values, batch, function.name)
    except RewardError as error:
        return {"error": str(error)}
    if isinstance(value, RewardError):
        return {"error": str(value)}
    extras = {name: [_plain(entry) for entry in entries] for name, entries in answer.extras.items()}
    return {"value": as_json(value), "extras": extras, "metrics": answer.metrics}


async def _awaited(answer: Awaitable[Answer]) -> Answer:
    return await answer


def as_json(value: Value) -> object:
    """A value as JSON can hold it, in a form that `read_entries` reads."""
    match value:
        case PerToken():
            return list(value.values)
        case PerSpan():
            return [list(span) for span in value.values]
        case _:
            return value


def _plain(entry: object) -> object:
    """What the record of a rollout keeps of a logged value."""
    return entry if entry is None or isinstance(entry, bool | int | float | str) else str(entry)
