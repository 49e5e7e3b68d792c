"""Which part of a split is meant by `train[:1000]` or `train[90%:]`, as the `datasets` library writes it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from nearstep.common.errors import DataError
from nearstep.data.files.chunks import Entry
from nearstep.data.files.read import RowTexts
from nearstep.data.table import Table

_SPLIT = re.compile(r"(?P<name>[^\[\]]+)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]")


@dataclass(frozen=True)
class Slice:
    """From where to where a split is taken: numbers of rows or percentages, negative ones counted from the end."""

    start: str | None
    stop: str | None

    def rows(self, count: int) -> range:
        """The rows of a split that has `count` of them."""
        return range(count)[_number(self.start, count) : _number(self.stop, count)]

    def of_table(self, table: Table) -> Table:
        """The part of a table. Raises `DataError` where nothing is left."""
        import datasets

        numbers = self.rows(len(table))
        if not numbers:
            raise DataError(f"{table.label}: the split has {len(table)} rows, and none of them is in this part of it")
        assert isinstance(table.rows, RowTexts | datasets.Dataset)  # as files and folders are read
        rows = table.rows.select(numbers)
        prepared = table.prepared and replace(table.prepared, dataset=rows)
        return replace(table, rows=rows, position=lambda row: table.position(numbers[row]), prepared=prepared)

    def of_entries(self, entries: Iterator[Entry], label: str) -> Iterator[Entry]:
        """The part of a stream. Raises `DataError` for one that needs to know how long the stream is."""
        for end in (self.start, self.stop):
            if end is not None and (end.startswith("-") or end.endswith("%")):
                raise DataError(f"{label}: nobody knows where {end} of a stream is; give a number of rows")
        return islice(entries, int(self.start or 0), None if self.stop is None else int(self.stop))


def parted(split: str) -> tuple[str, Slice | None]:
    """The name of a split, and the part of it that is meant if it is not the whole.

    Raises `DataError` for ends in different units and for percentages beyond 100.
    """
    found = _SPLIT.fullmatch(split)
    if found is None:
        return split, None
    ends = [end for end in (found["start"], found["stop"]) if end is not None]
    if len({end.endswith("%") for end in ends}) > 1:
        raise DataError(f"split {split!r}: give both ends as numbers of rows, or both as percentages")
    if any(end.endswith("%") and abs(int(end[:-1])) > 100 for end in ends):
        raise DataError(f"split {split!r}: there is nothing beyond 100 % of a split")
    return found["name"], Slice(found["start"], found["stop"])


def _number(end: str | None, count: int) -> int | None:
    """The row at which a slice starts or stops; of percentages the nearest."""
    if end is None:
        return None
    return round(int(end[:-1]) * count / 100) if end.endswith("%") else int(end)
