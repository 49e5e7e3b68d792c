"""How a reward's answer is read: what is converted and what is refused, before anything learns from it."""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
from torch import Tensor

from nearstep.errors import RewardError, shorten
from nearstep.rewards.batch import RewardBatch

# Far above any sane reward, and small enough that its square, summed over a batch, stays finite in float32.
LARGEST_REWARD = 1e12


def read_values(values: object, batch: RewardBatch, source: str) -> list[float]:
    """The rewards in `values` as floats, NaN where the source said None.

    Taken are a list, a tuple, or a tensor or array of one dimension, with one entry per row. An entry is a real
    number, True and False counting as 1 and 0, or a tensor or array of one element. All else is a RewardError.
    """
    entries = _entries(values, source)
    if len(entries) != len(batch):
        raise RewardError(
            f"reward {source!r} returned {len(entries)} values for {len(batch)} completions ({batch.span()}): "
            f"{shorten(entries)}. Return one per completion, in the same order, None where it does not apply."
        )
    return [_reward(entry, row, batch, source) for row, entry in enumerate(entries)]


def as_number(entry: object) -> float | None:
    """`entry` as a float (±inf where it is too large for one), or None if it is no real number."""
    if (isinstance(entry, Tensor) and entry.numel() == 1) or (isinstance(entry, np.ndarray) and entry.size == 1):
        return as_number(entry.item())
    if not isinstance(entry, Real | np.bool_):
        return None
    try:
        return float(entry)
    except OverflowError:  # an int of hundreds of digits
        return math.inf


def _entries(values: object, source: str) -> Sequence[object]:
    if isinstance(values, list | tuple):
        return values
    if isinstance(values, Tensor | np.ndarray):
        if values.ndim == 1:
            return list(values.tolist())
        raise RewardError(
            f"reward {source!r} returned a {type(values).__name__} of shape {list(values.shape)}: "
            "return one dimension, with one entry per completion."
        )
    raise RewardError(
        f"reward {source!r} returned a {type(values).__name__}: {shorten(values)}. "
        "Return a list with one number per completion, None where it does not apply."
    )


def _reward(entry: object, row: int, batch: RewardBatch, source: str) -> float:
    if entry is None:
        return math.nan
    number = as_number(entry)
    if number is None:
        problem = f"a {type(entry).__name__} is no number. Return a number, or None where the reward does not apply"
    elif not math.isfinite(number):
        problem = "a reward must be finite. Return None where the reward does not apply"
    elif abs(number) > LARGEST_REWARD:
        problem = f"beyond ±{LARGEST_REWARD:g} the value loss would overflow. Scale the reward down"
    else:
        return number
    raise RewardError(
        f"reward {source!r} returned {shorten(entry)} for {batch.place(row)}, "
        f"completion {shorten(batch.completions[row])}: {problem}."
    )
