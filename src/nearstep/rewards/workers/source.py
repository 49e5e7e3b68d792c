"""A reward function as a source of rewards that runs in worker processes, called once per row."""

import pickle
from collections.abc import Collection
from concurrent.futures import Future

from nearstep.common.errors import RewardError
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.functions import FunctionReward, RewardFunction
from nearstep.rewards.workers.channel import Reply
from nearstep.rewards.workers.pool import WorkerPool
from nearstep.rewards.workers.process import FunctionSpec, Task


class WorkerReward:
    """Function number `number` of a pool's functions; a row that hangs or crashes fails alone."""

    def __init__(self, function: FunctionReward, number: int, pool: WorkerPool) -> None:
        self.name = function.name
        self._function = function
        self._number = number
        self._pool = pool

    def check(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the function requires what it is not given with these data set columns."""
        self._function.check(columns)

    def close(self) -> None:
        """End the processes; the next row starts new ones."""
        self._pool.close()

    def begin_early(self, rows: int) -> "WorkerHeadStart":
        """Take the rows of the next batch one by one; see StartsEarly."""
        return WorkerHeadStart(self._function, self._number, self._pool)

    def score(self, batch: RewardBatch) -> Answer:
        """One call for each row, as many at a time as there are workers, answers in the order of rows."""
        return self.begin_early(len(batch)).score(batch)


class WorkerHeadStart:
    """Rows of one batch: a worker gets each as soon as one is free; see HeadStart."""

    def __init__(self, function: FunctionReward, number: int, pool: WorkerPool) -> None:
        self._function = function
        self._number = number
        self._pool = pool
        self._begun: dict[int, tuple[RewardBatch, Future[Reply]]] = {}

    def add(self, row: RewardBatch) -> None:
        """Put a row into the workers' queue."""
        self._begun[row.number(0)] = row, self._pool.submit(Task(self._number, self._function.needed(row)))

    def cancel(self) -> None:
        """Kill workers that are in the middle of a row, and forget those that wait."""
        if not all(future.done() for _, future in self._begun.values()):
            self._pool.close()

    def score(self, batch: RewardBatch) -> Answer:
        """The answers of all rows; those that were not begun, or have changed since, are asked about now."""
        self._function.check_signature(batch.columns)
        needed = self._function.needed(batch)
        return self._answer(batch, self._pool.replies([self._reply(needed.select([row])) for row in range(len(batch))]))

    def _reply(self, row: RewardBatch) -> Future[Reply]:
        begun, future = self._begun.get(row.number(0), (None, None))
        if begun is not None and future is not None and row.has_the_ids_of(begun):
            return future
        return self._pool.submit(Task(self._number, row))

    def _answer(self, batch: RewardBatch, replies: list[Reply]) -> Answer:
        extras: dict[str, list[object]] = {}
        metrics: dict[str, list[float]] = {}
        for row, reply in enumerate(replies):
            if isinstance(reply, RewardError):
                continue
            for column, entries in reply.extras.items():
                if len(entries) != 1:
                    replies[row] = RewardError(
                        f"reward {self._function.name!r} logged {len(entries)} values as extra column {column!r} for "
                        f"{batch.place(row)}: in a worker it scores one row at a time, so log one."
                    )
                    break
                extras.setdefault(column, [None] * len(batch))[row] = entries[0]
            for name, numbers in reply.metrics.items():
                metrics.setdefault(name, []).extend(numbers)
        values = [reply if isinstance(reply, RewardError) else reply.value for reply in replies]
        return Answer(values, extras, metrics)


def function_spec(function: RewardFunction, name: str, spec: str | None) -> FunctionSpec:
    """How a function gets into a worker: by the text it was named with, else by pickle.

    Raises a RewardError for one that can be given neither way: a lambda, or a function inside another.
    """
    if spec is not None:
        return FunctionSpec(name, spec, None)
    try:
        return FunctionSpec(name, None, pickle.dumps(function))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RewardError(
            f"reward function {name!r} cannot be given to worker processes ({error}): define it at the top of a module "
            "that can be imported, or name it as file.py:name. Without reward_workers and reward_timeout_seconds it "
            "runs in the trainer's process."
        ) from error
