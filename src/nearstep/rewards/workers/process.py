"""What a worker process does: loads reward functions once, then scores one row at a time until its pipe closes.

Rows come in as pickles of the trainer, over a pipe that nobody else holds. Answers go back as JSON, so that whatever a
reward function does to its own process, the trainer only ever reads text.
"""

import asyncio
import json
import pickle
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeAlias

from nearstep.common.errors import NearstepError, RewardError
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.functions import FunctionReward, Prepares
from nearstep.rewards.loading import load_function
from nearstep.rewards.values import PerSpan, PerToken, Value, read_entries

GRACE_SECONDS = 5.0  # beyond the time limit: the kernel ends the worker, should the trainer no longer be there to do so
PlainData: TypeAlias = dict[str, object]


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
    connection = Connection(fd)
    with asyncio.Runner() as runner:  # one loop for all rows: clients that functions keep are bound to it
        try:
            config: WorkerConfig = pickle.loads(connection.recv_bytes())
            functions, failure = _load(config.functions)
            _send(connection, {"error": failure} if failure else {"ready": True})
            while True:
                task: Task = pickle.loads(connection.recv_bytes())
                _set_alarm(config.timeout_seconds)
                reply = _score(functions[task.function], task.batch, runner.run)
                signal.setitimer(signal.ITIMER_REAL, 0)
                _send(connection, reply)
        except (EOFError, BrokenPipeError):  # the trainer is done with us
            return


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


def _send(connection: Connection, reply: PlainData) -> None:
    connection.send_bytes(json.dumps(reply).encode())
