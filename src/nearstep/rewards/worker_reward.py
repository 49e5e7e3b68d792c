"""A reward function as a source of rewards that runs in worker processes, called once per row."""

import pickle
from collections.abc import Collection

from nearstep.errors import RewardError
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.functions import FunctionReward, RewardFunction
from nearstep.rewards.worker import Delivery, Task
from nearstep.rewards.workers import WorkerPool


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

    def score(self, batch: RewardBatch) -> Answer:
        """One call for each row, as many at a time as there are workers, answers in the order of rows."""
        self.check(batch.columns)
        needed = self._function.needed(batch)
        replies = self._pool.run([Task(self._number, needed.select([row])) for row in range(len(batch))])
        extras: dict[str, list[object]] = {}
        metrics: dict[str, list[float]] = {}
        for row, reply in enumerate(replies):
            if isinstance(reply, RewardError):
                continue
            for column, entries in reply["extras"].items():
                if len(entries) != 1:
                    replies[row] = RewardError(
                        f"reward {self.name!r} logged {len(entries)} values as extra column {column!r} for "
                        f"{batch.place(row)}: in a worker it judges one row at a time, so log one."
                    )
                    break
                extras.setdefault(column, [None] * len(batch))[row] = entries[0]
            for name, numbers in reply["metrics"].items():
                metrics.setdefault(name, []).extend(numbers)
        values = [reply if isinstance(reply, RewardError) else reply["value"] for reply in replies]
        return Answer(values, extras, metrics)


def deliver(function: RewardFunction, name: str, file: str | None) -> Delivery:
    """How a function gets into a worker: by the file it was named with, else by pickle.

    Raises a RewardError for one that can be given neither way: a lambda, or a function inside another.
    """
    if file is not None:
        return Delivery(name, file, None)
    try:
        return Delivery(name, None, pickle.dumps(function))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RewardError(
            f"reward function {name!r} cannot be given to worker processes ({error}): define it at the top of a module "
            "that can be imported, or name it as file.py:name. Without reward_workers and reward_timeout_seconds it "
            "runs in the trainer's process."
        ) from error
