"""Pieces of a file: many rows at a time, so that a process can hand them to another and none holds the whole file."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias, runtime_checkable

from nearstep.data.row_errors import BadRow
from nearstep.data.table import row_index

CHUNK_ROWS = 1000

# A row with its place, as its owner counts, or what is wrong with the row that should have stood there.
Entry: TypeAlias = tuple[str, Mapping[str, object]] | BadRow


@runtime_checkable
class Chunk(Protocol):
    """Rows that stand one after the other. Reading them may be the larger part of the work."""

    def __len__(self) -> int: ...

    def entries(self) -> Iterator[Entry]:
        """The rows in order, each with its place."""


@dataclass(frozen=True)
class ReadChunk:
    """Rows that were read already."""

    read: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.read)

    def entries(self) -> Iterator[Entry]:
        """The rows in order, each with its place."""
        return iter(self.read)


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


def dataset_chunks(dataset: Any) -> Iterator[DatasetChunk]:
    """The rows of a `datasets.Dataset`."""
    for first in range(0, len(dataset), CHUNK_ROWS):
        yield DatasetChunk("", first, dataset.select(range(first, min(first + CHUNK_ROWS, len(dataset)))))


def in_chunks(entries: Iterable[Entry]) -> Iterator[ReadChunk]:
    """Rows that come one by one."""
    rows = iter(entries)
    while read := tuple(islice(rows, CHUNK_ROWS)):
        yield ReadChunk(read)
