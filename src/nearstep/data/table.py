"""What a data set is to us: rows read by number, each with a place that its owner can find again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from nearstep.common.errors import DataError
from nearstep.data.manifest import Prepared
from nearstep.data.row_errors import BadRow, BadValueError


@runtime_checkable
class Rows(Protocol):
    """What a list of dicts and a `datasets.Dataset` have in common."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Mapping[str, object]: ...

    def __iter__(self) -> Iterator[Mapping[str, object]]: ...


@dataclass(frozen=True)
class Table:
    """One split of a data set: at least one row, `DataError` otherwise.

    `renamed` is what the user calls a column that has one of our names here; `broken` are the rows of its files that
    could not be read and were left out; `prepared` is what is known where `nearstep prepare` has written it.
    """

    name: str
    split: str
    rows: Rows
    columns: tuple[str, ...]  # of any row, in order of appearance
    position: Callable[[int], str]  # of row number i, as its owner counts: "line 12"
    renamed: Mapping[str, str] = field(default_factory=dict)
    broken: tuple[BadRow, ...] = ()
    prepared: Prepared | None = None

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise DataError(f"{self.label} has no rows: give it at least one prompt")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def label(self) -> str:
        """How messages name the table."""
        return label(self.name, self.split)

    def bad_row(self, row: int, error: BadValueError) -> BadRow:
        """What is wrong with a row, with its place and the name that its owner gave to the column."""
        error.column = self.renamed.get(error.column, error.column)
        return BadRow.of(error, self.position(row))

    def of_rows(self, rows: Sequence[Mapping[str, object]], positions: Sequence[str]) -> "Table":
        """A table of other rows that were made of these, each with the place that belongs to it."""
        return replace(self, rows=rows, position=positions.__getitem__)


@dataclass(frozen=True)
class RenamedRows:
    """Rows under other column names, renamed as they are read."""

    rows: Rows
    names: Mapping[str, str]  # ours → theirs

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int, /) -> Mapping[str, object]:
        return rename(self.rows[row], self.names)

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        return (rename(row, self.names) for row in self.rows)


def rename(row: Mapping[str, object], names: Mapping[str, str]) -> Mapping[str, object]:
    """The row with some columns under our names; one that had our name already gives way."""
    kept = {name: value for name, value in row.items() if name not in names and name not in names.values()}
    return {**{ours: row[theirs] for ours, theirs in names.items() if theirs in row}, **kept}


def with_columns(table: Table, names: Mapping[str, str]) -> Table:
    """The table with columns under our names, `names` going from ours to theirs.

    Raises `DataError` for a column that the table does not have.
    """
    if not names:
        return table
    missing = [theirs for theirs in names.values() if theirs not in table.columns]
    if missing:
        raise DataError(
            f"{table.label}: columns asks for {', '.join(map(repr, missing))}, and it has only {list(table.columns)}."
        )
    return replace(
        table,
        rows=RenamedRows(table.rows, names),
        columns=tuple(rename(dict.fromkeys(table.columns), names)),
        renamed={ours: theirs for ours, theirs in names.items() if ours != theirs},
    )


def label(name: str, split: str) -> str:
    """How messages name a data set."""
    return f"data set {name!r}, split {split!r}"


def row_index(row: int) -> str:
    """The place of a row that has no line: its index in Python, from 0."""
    return f"row index {row}"
