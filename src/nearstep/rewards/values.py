"""How a reward's answer is read: what is converted and what is refused, before training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral, Real
from typing import Any, Protocol, TypeAlias, runtime_checkable

from nearstep.common.errors import RewardError, shorten
from nearstep.rewards.batch import RewardBatch

# Far above any sane reward, and small enough that its square, summed over a batch, stays finite in float32.
LARGEST_REWARD = 1e12


@dataclass(frozen=True)
class PerToken:
    """One value for each token of the response, its stop token included."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class PerSpan:
    """Values for pieces of the response's text, as (start, end, value): characters from `start` up to `end`."""

    values: tuple[tuple[int, int, float], ...]


Value: TypeAlias = float | PerToken | PerSpan | None  # None: the reward does not apply


@runtime_checkable
class Array(Protocol):
    """A tensor of torch, an array or number of NumPy, …: this file imports none of them."""

    ndim: Any
    shape: Any

    def tolist(self) -> Any:
        """The same as Python lists and numbers."""


def read_values(values: object, batch: RewardBatch, source: str) -> list[float]:
    """One float per row: the sum where a row has several values, NaN where it has None.

    Raises the RewardError of the first row that has no reward (see `read_entries`).
    """
    read: list[float] = []
    for value in read_entries(values, batch, source):
        if isinstance(value, RewardError):
            raise value
        read.append(total(value))
    return read


def read_entries(values: object, batch: RewardBatch, source: str) -> list[Value | RewardError]:
    """The value of each row, or the error that names what is wrong with it.

    Taken are a list, a tuple, or a tensor or array of one dimension, with one entry per row. An entry is None, a real
    number (True and False count as 1 and 0), a tensor or array of one element; or, for a reward that is spread over
    the response, a list with one number per token of `completion_ids`, or a list of spans (start, end, value).
    Raises RewardError where the rows cannot be told apart.
    """
    entries = _entries(values, source)
    if len(entries) != len(batch):
        raise RewardError(
            f"reward {source!r} returned {len(entries)} values for {len(batch)} completions ({batch.span()}): "
            f"{shorten(entries)}. Return one per completion, in the same order, None where it does not apply."
        )
    return [_checked(entry, row, batch, source) for row, entry in enumerate(entries)]


def total(value: Value) -> float:
    """The reward of a row as one number; NaN for None."""
    match value:
        case None:
            return math.nan
        case PerToken():
            return math.fsum(value.values)
        case PerSpan():
            return math.fsum(worth for _, _, worth in value.values)
        case _:
            return value


def as_number(entry: object) -> float | None:
    """`entry` as a float (±inf where it is too large for one), or None if it is no real number."""
    if isinstance(entry, Array):
        plain = entry.tolist()
        while isinstance(plain, list) and len(plain) == 1:
            plain = plain[0]
        entry = plain
    if not isinstance(entry, Real):
        return None
    try:
        return float(entry)
    except OverflowError:  # an int of hundreds of digits
        return math.inf


def _entries(values: object, source: str) -> Sequence[object]:
    if isinstance(values, list | tuple):
        return values
    if isinstance(values, Array):
        if values.ndim == 1:
            return list(values.tolist())
        raise RewardError(
            f"reward {source!r} returned a {type(values).__name__} of shape {list(values.shape)}: "
            "return one dimension, with one entry per completion (for values per token, a list of lists)."
        )
    raise RewardError(
        f"reward {source!r} returned a {type(values).__name__}: {shorten(values)}. "
        "Return a list with one number per completion, None where it does not apply."
    )


def _checked(entry: object, row: int, batch: RewardBatch, source: str) -> Value | RewardError:
    if isinstance(entry, RewardError) or entry is None:
        return entry
    value = _value(entry)
    problem = _wrong_with_value(entry) if value is None else _wrong_with(value, batch, row)
    if problem is None:
        return value
    return RewardError(
        f"reward {source!r} returned {shorten(entry)} for {batch.place(row)}, "
        f"completion {shorten(batch.completions[row])}: {problem}."
    )


def _value(entry: object) -> Value:
    """The entry in one of the forms that are taken; None if it has none of them."""
    number = as_number(entry)
    if number is not None:
        return number
    items = entry.tolist() if isinstance(entry, Array) else entry
    if not isinstance(items, list | tuple):
        return None
    if all(_is_span(item) for item in items):
        return PerSpan(tuple((int(start), int(end), as_number(worth) or 0.0) for start, end, worth in items))
    numbers = [number for item in items if (number := as_number(item)) is not None]
    return PerToken(tuple(numbers)) if len(numbers) == len(items) else None


def _is_span(item: object) -> bool:
    if not isinstance(item, list | tuple) or len(item) != 3:
        return False
    start, end, worth = item
    return isinstance(start, Integral) and isinstance(end, Integral) and as_number(worth) is not None


def _wrong_with_value(entry: object) -> str:
    if isinstance(entry, list | tuple):
        return "a list holds one number per token, or spans (start, end, value)"
    return f"a {type(entry).__name__} is no number. Return a number, or None where the reward does not apply"


def _wrong_with(value: Value, batch: RewardBatch, row: int) -> str | None:
    tokens, characters = len(batch.completion_ids[row]), len(batch.text(row))
    match value:
        case PerToken() if len(value.values) != tokens:
            return f"{len(value.values)} values for the {tokens} tokens of its completion_ids"
        case PerSpan() if any(not 0 <= start < end <= characters for start, end, _ in value.values):
            return f"a span (start, end, value) needs 0 <= start < end <= {characters}, the length of the text"
    if not all(math.isfinite(number) for number in _numbers(value)):
        return "a reward must be finite. Return None where the reward does not apply"
    if any(abs(number) > LARGEST_REWARD for number in chain(_numbers(value), [total(value)])):
        return f"beyond ±{LARGEST_REWARD:g} the value loss would overflow. Scale the reward down"
    return None


def _numbers(value: Value) -> Sequence[float]:
    match value:
        case PerToken():
            return value.values
        case PerSpan():
            return [worth for _, _, worth in value.values]
        case _:
            return [] if value is None else [value]
