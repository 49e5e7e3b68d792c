"""Rows with their places, and pieces of many rows that one process can hand to another."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from nearstep.common.errors import shorten
from nearstep.data.files.broken import broken, broken_line
from nearstep.data.row_errors import BadRow
from nearstep.data.table import row_index

CHUNK_ROWS = 256

# A row with its place, as its owner counts, or what is wrong with the row that should have stood there.
Entry: TypeAlias = tuple[str, Mapping[str, object]] | BadRow
# A row that may still be a line of JSON as it stands in the file: it is parsed wherever it is wanted.
RawEntry: TypeAlias = tuple[str, Mapping[str, object] | bytes] | BadRow


@dataclass(frozen=True)
class ReadChunk:
    """Rows that stand one after the other."""

    read: tuple[RawEntry, ...]

    def __len__(self) -> int:
        return len(self.read)

    def entries(self) -> Iterator[Entry]:
        """The rows in order, each with its place."""
        return map(_parsed, self.read)


@dataclass(frozen=True)
class DatasetChunk:
    """Rows of a `datasets.Dataset`, which travels as a reference to its file where it has one."""

    file: str  # what comes before the place of a row
    first: int
    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def entries(self) -> Iterator[Entry]:
        """The rows in order, each with its place."""
        for number, row in enumerate(self.dataset, start=self.first):
            yield self.file + row_index(number), row


Chunk: TypeAlias = ReadChunk | DatasetChunk


def dataset_chunks(dataset: Any) -> Iterator[DatasetChunk]:
    """The rows of a `datasets.Dataset`."""
    for first in range(0, len(dataset), CHUNK_ROWS):
        yield DatasetChunk("", first, dataset.select(range(first, min(first + CHUNK_ROWS, len(dataset)))))


def in_chunks(entries: Iterable[RawEntry]) -> Iterator[ReadChunk]:
    """Rows that come one by one."""
    rows = iter(entries)
    while read := tuple(islice(rows, CHUNK_ROWS)):
        yield ReadChunk(read)


def _parsed(entry: RawEntry) -> Entry:
    if isinstance(entry, BadRow):
        return entry
    place, row = entry
    if not isinstance(row, bytes):
        return place, row
    try:
        found = json.loads(row.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return broken_line(row, place, error)
    return as_row(found, place)


def as_row(item: object, place: str) -> Entry:
    """What JSON holds as a row, if it has columns."""
    if isinstance(item, dict):
        return place, item
    return broken(place, f': expected an object with columns, such as {{"prompt": "…"}}, got {shorten(item)}')
