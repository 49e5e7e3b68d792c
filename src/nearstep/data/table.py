"""What a data set is to us: rows read by number, each with a place that its owner can find again."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nearstep.errors import DataError


@runtime_checkable
class Rows(Protocol):
    """What a list of dicts and a `datasets.Dataset` have in common."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Mapping[str, object]: ...

    def __iter__(self) -> Iterator[Mapping[str, object]]: ...


@dataclass(frozen=True)
class Table:
    """One split of a data set: at least one row, `DataError` otherwise."""

    name: str
    split: str
    rows: Rows
    columns: tuple[str, ...]  # of any row, in order of appearance
    position: Callable[[int], str]  # of row number i, as its owner counts: "line 12"

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise DataError(f"{self.label} has no rows: give it at least one prompt")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def label(self) -> str:
        """How messages name the table."""
        return label(self.name, self.split)


def label(name: str, split: str) -> str:
    """How messages name a data set."""
    return f"data set {name!r}, split {split!r}"


def row_index(row: int) -> str:
    """The place of a row that has no line: its index in Python, from 0."""
    return f"row index {row}"
