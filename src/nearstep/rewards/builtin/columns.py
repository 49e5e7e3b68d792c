"""How built-in rewards find and read the data set columns that they need."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from nearstep.common.errors import RewardError, shorten

# The prompt's own columns are not handed over to reward functions (TRL's rule).
_NOT_HANDED_OVER = ("prompt", "completion", "completion_ids")

Cell: TypeAlias = list[str] | None
Values: TypeAlias = list[float | None]


def where_given(texts: Sequence[str], cells: Sequence[Cell], value: Callable[[str, list[str]], float | None]) -> Values:
    """The value of every text beside its cell; None where the cell is empty."""
    return [None if cell is None else value(text, cell) for text, cell in zip(texts, cells, strict=True)]


def need_column(reward: str, parameter: str, name: str, columns: Collection[str]) -> None:
    """Raise a RewardError if the data set lacks the column that the parameter of a reward names."""
    if name in columns and name not in _NOT_HANDED_OVER:
        return
    given = sorted(column for column in columns if column not in _NOT_HANDED_OVER)
    problem = f"the data set has no column {name!r}"
    if name in columns:
        problem = f"the column {name!r} belongs to the prompts and is not handed over to rewards: rename it"
    raise RewardError(
        f"reward {reward!r} needs a column: {problem}. Columns handed over: {', '.join(given) or 'none'}. "
        f"Add the column, or name another: {reward}:{parameter}=COLUMN."
    )


def read_texts(reward: str, name: str, columns: Mapping[str, object]) -> list[Cell]:
    """The texts in a column, one list per row; None for a row without any.

    A cell is a text, a number, or a list of these. Raises a RewardError naming the row for anything else, and for a
    column that was not handed over.
    """
    values = columns.get(name)
    if not isinstance(values, Sequence):
        raise RewardError(f"reward {reward!r} needs the column {name!r}, which it was not given.")
    return [_cell(value, f"reward {reward!r}: column {name!r}, row {row}") for row, value in enumerate(values)]


def _cell(value: object, place: str) -> Cell:
    entries = value if isinstance(value, list | tuple) else [value]
    found = [_entry(entry, place) for entry in entries if not _is_missing(entry)]
    return found or None


def _is_missing(value: object) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _entry(value: object, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise RewardError(f"{place}: {shorten(value)} is neither text nor a number nor a list of these.")
