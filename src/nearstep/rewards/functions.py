"""How plain Python functions become rewards: called with keywords as TRL 1.16 calls them, plain or async."""

import functools
import inspect
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from inspect import Parameter
from typing import Protocol, TypeAlias, runtime_checkable

from nearstep.common.errors import NearstepError, RewardError, shorten
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.values import as_number

RewardFunction: TypeAlias = Callable[..., object]

ALWAYS_GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
# Every column of the data set is handed over but these: TRL's rule.
LEFT_OUT = ("prompt", "completion", "completion_ids")


@runtime_checkable
class ChecksColumns(Protocol):
    """A reward function whose needs are not all in its signature, such as columns named by parameters.

    `check_columns` is called before any weight is loaded; it raises an error for the user where the function cannot
    work with these data set columns, or not on this machine.
    """

    def check_columns(self, columns: Collection[str]) -> None: ...


@runtime_checkable
class Prepares(Protocol):
    """A reward function that loads something, such as a model: `prepare` does so before the first row comes."""

    def prepare(self) -> None: ...


class FunctionReward:
    """A function `f(prompts, completions, completion_ids, **columns, trainer_state, log_extra, log_metric)`.

    It is called once per batch, with keywords. One that takes **kwargs is given everything, any other what its
    signature names. It returns one value per completion (see `read_values`), or an awaitable of that.
    """

    def __init__(self, function: RewardFunction, name: str | None = None) -> None:
        """Raises a RewardError where `function` cannot be called with keywords."""
        self.name = function_name(function) if name is None else name
        self._function = function
        parameters = _signature(function, self.name)
        self._takes_all = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
        self._accepted = {p.name for p in named}
        self._required = [p.name for p in named if p.default is Parameter.empty]

    def check(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the function requires what it is not given with these data set columns.

        A function that checks columns by itself raises what it finds wrong.
        """
        self.check_signature(columns)
        if isinstance(self._function, ChecksColumns):
            self._function.check_columns(columns)

    def check_signature(self, columns: Collection[str]) -> None:
        """The same by the signature alone: what is checked again with every batch."""
        clashes = [column for column in columns if column in ALWAYS_GIVEN and column not in LEFT_OUT]
        if clashes:
            raise RewardError(
                f"the data set has a column {clashes[0]!r}, which is also the name of an argument that every "
                "reward function is given: rename the column."
            )
        handed_over = [column for column in columns if column not in LEFT_OUT]
        missing = [name for name in self._required if name not in (*ALWAYS_GIVEN, *handed_over)]
        if missing:
            renamed = " (its column of that name is not handed over: rename it)" if missing[0] in columns else ""
            raise RewardError(
                f"reward function {self.name!r} requires {missing[0]!r}, which the data set does not give{renamed}. "
                f"Columns handed over: {', '.join(sorted(handed_over)) or 'none'}; "
                f"always given: {', '.join(ALWAYS_GIVEN)}. Rename the parameter, give it a default, or add the column."
            )

    def needed(self, batch: RewardBatch) -> RewardBatch:
        """The batch with no more than the function takes; the trainer's state only if its signature names it."""
        columns = {name: values for name, values in batch.columns.items() if self._takes_all or name in self._accepted}
        state = batch.trainer_state if "trainer_state" in self._accepted else None
        return replace(batch, columns=columns, trainer_state=state)

    def score(self, batch: RewardBatch) -> Answer | Awaitable[Answer]:
        """Call the function; raises a RewardError, caused by the original error, where it fails."""
        self.check_signature(batch.columns)
        log = _Log()
        arguments = self._arguments(batch, log)
        try:
            returned = self._function(**arguments)
        except (Exception, SystemExit) as error:
            raise self._failure(error, batch) from error
        if inspect.isawaitable(returned):
            return self._wait(returned, log, batch)
        return Answer(returned, log.extras, log.metrics)

    async def _wait(self, returned: Awaitable[object], log: "_Log", batch: RewardBatch) -> Answer:
        try:
            values = await returned
        except (Exception, SystemExit) as error:
            raise self._failure(error, batch) from error
        return Answer(values, log.extras, log.metrics)

    def _arguments(self, batch: RewardBatch, log: "_Log") -> dict[str, object]:
        columns = {name: values for name, values in batch.columns.items() if name not in LEFT_OUT}
        given: dict[str, object] = {
            "prompts": batch.prompts,
            "completions": batch.completions,
            "completion_ids": batch.completion_ids,
            **columns,
            "trainer_state": batch.trainer_state,
            "log_extra": log.extra,
            "log_metric": log.metric,
        }
        return {name: value for name, value in given.items() if self._takes_all or name in self._accepted}

    def _failure(self, error: BaseException, batch: RewardBatch) -> RewardError:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in frames if frame.filename != __file__), frames[-1])  # the user's own line
        detail = str(error) if isinstance(error, NearstepError) else shorten(str(error))
        return RewardError(
            f"reward function {self.name!r} raised {type(error).__name__}: {detail} "
            f"({place.filename}, line {place.lineno}) on {batch.span()}."
        )


class _Log:
    """What one function logs during one call."""

    def __init__(self) -> None:
        self.extras: dict[str, list[object]] = {}
        self.metrics: dict[str, list[float]] = {}

    def extra(self, column: str, values: Iterable[object]) -> None:
        """Add a column to the recorded rollouts, one value per completion; several calls append."""
        self.extras.setdefault(column, []).extend(values)

    def metric(self, name: str, value: object) -> None:
        """Report a number; several calls are averaged. Raises a TypeError where it is none."""
        number = as_number(value)
        if number is None:
            raise TypeError(f"metric {name!r} must be a number, not {shorten(value)}")
        self.metrics.setdefault(name, []).append(number)


@runtime_checkable
class _Named(Protocol):
    __name__: str


def function_name(function: RewardFunction) -> str:
    """The function's `__name__`, which an object may carry as well; else the name of its class."""
    if isinstance(function, functools.partial):
        return function_name(function.func)
    return function.__name__ if isinstance(function, _Named) else type(function).__name__


def _signature(function: RewardFunction, name: str) -> list[Parameter]:
    if inspect.isclass(function):
        raise RewardError(f"reward function {name!r} is a class: give an instance of it.")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError) as error:
        raise RewardError(
            f"reward function {name!r} ({shorten(function)}) has no readable signature: wrap it in a function of yours."
        ) from error
    for parameter in parameters:
        if parameter.kind is Parameter.POSITIONAL_ONLY and parameter.default is Parameter.empty:
            raise RewardError(
                f"reward function {name!r} takes {parameter.name!r} by position only: rewards are called with keywords."
            )
    return parameters
