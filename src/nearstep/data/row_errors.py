"""What can be wrong with a row, how such rows are counted, and how the error names them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from nearstep.common.errors import DataError, cut, shorten

NAMED_BAD_ROWS = 5
MOST_OF_A_PROBLEM = 400  # characters: a sentence that quotes a value of the row
LEAVE_OUT = "To leave such rows out and go on, set on_bad_row to drop."


class RowError(Enum):
    """The kinds of bad rows, each in the words that follow its count: `3 empty`."""

    BROKEN = "unreadable in the file"
    NO_COLUMN = "without the column"
    NO_VALUE = "without a value"
    TYPE = "of the wrong type"
    EMPTY = "empty"
    TEXT = "with characters that are no text"
    ROLE = "with unknown or misplaced roles"
    TOOL = "with an unknown tool"
    TEMPLATE = "refused by the chat template"
    VOCABULARY = "with ids outside the vocabulary"
    PADDING = "with padding that no mask explains"
    LONG = "too long"
    ALIKE = "with both answers alike"
    NUMBER = "with a number that is none"
    THREAD = "in a broken thread"


class BadValueError(Exception):
    """A value that cannot be used. Never leaves the room: becomes part of a `DataError` that names the row."""

    def __init__(self, row_error: RowError, column: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.row_error, self.column, self.value, self.problem, self.remedy = row_error, column, value, problem, remedy


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be used: where it stands and what is wrong with it, ready for a message."""

    row_error: RowError
    place: str
    said: str
    remedy: str

    @staticmethod
    def of(error: BadValueError, place: str) -> "BadRow":
        """What `error` says of the row at `place`; the value itself is let go, for it may be large."""
        return BadRow(
            error.row_error,
            place,
            f", column {shorten(error.column)}: {cut(error.problem, MOST_OF_A_PROBLEM)}: {shorten(error.value)}",
            error.remedy,
        )


def bad_rows(label: str, bad: Sequence[BadRow], rows: int | None) -> DataError:
    """The error that names the first bad rows of a data set and says what to do about them.

    `rows` is how many there are in all, None where reading stopped at the bad ones.
    """
    named = bad[:NAMED_BAD_ROWS]
    count = f"{len(bad)} row{'s' * (len(bad) > 1)}" if rows is None else f"{len(bad)} of {rows} rows"
    lines = [f"{count} of {label}, cannot be used:"]
    lines += [f"  {row.place}{row.said}" for row in named]
    if len(bad) > len(named):
        lines.append(f"  … and {len(bad) - len(named)} more")
    return DataError("\n".join([*lines, *dict.fromkeys(row.remedy for row in named), LEAVE_OUT]))


def counted(row_errors: Iterable[RowError]) -> str:
    """How many there are of each kind, most frequent first: `3 empty, 1 of the wrong type`."""
    return ", ".join(f"{count} {row_error.value}" for row_error, count in Counter(row_errors).most_common())
