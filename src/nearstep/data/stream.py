"""Where rows come from that are read one after the other, from the beginning each time and never all at once."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from nearstep.common.errors import DataError
from nearstep.data.files.broken import refused
from nearstep.data.files.chunks import Chunk, Entry, dataset_chunks, in_chunks
from nearstep.data.files.read import columns_of, file_chunks
from nearstep.data.load import Files, Hub, load_from_hub, locate, saved_split, table_of
from nearstep.data.manifest import Manifest, read_manifest
from nearstep.data.row_errors import BadRow
from nearstep.data.slices import Slice, parted
from nearstep.data.table import Table, label, rename, row_index


@dataclass(frozen=True)
class RowStream:
    """One split of a data set, read in chunks; `chunks` starts a pass (from 0) over all its rows."""

    name: str
    split: str
    chunks: Callable[[int], Iterator[Chunk]]
    names: Mapping[str, str] = field(default_factory=dict)  # columns: ours → theirs
    manifest: Manifest | None = None  # where `nearstep prepare` has written the rows

    @property
    def label(self) -> str:
        """How messages name the stream."""
        return label(self.name, self.split)

    def entries(self, number: int = 0) -> Iterator[Entry]:
        """Every row of a pass with its place, or what is wrong with it; columns under our names."""
        for chunk in self.chunks(number):
            yield from renamed_entries(chunk, self.names)

    def head(self, rows: int, on_bad_row: Literal["raise", "drop"]) -> Table:
        """The first rows as a table. Raises `DataError` where there is none, or one that cannot be read."""
        entries = list(islice(self.entries(), rows))
        bad = [entry for entry in entries if isinstance(entry, BadRow)]
        if bad and on_bad_row == "raise":
            raise refused(self.label, bad[0])
        read = [entry for entry in entries if not isinstance(entry, BadRow)]
        found = [row for _, row in read]
        places = [place for place, _ in read]
        columns = columns_of(found)
        missing = [theirs for ours, theirs in self.names.items() if ours not in columns]
        if missing and found:
            raise DataError(
                f"{self.label}: columns asks for {', '.join(map(repr, missing))}, and its first rows have only "
                f"{list(columns)}."
            )
        renamed = {ours: theirs for ours, theirs in self.names.items() if ours != theirs}
        return Table(self.name, self.split, found, columns, places.__getitem__, renamed, tuple(bad))

    def part(self, part: Slice) -> "RowStream":
        """The stream of some of its rows."""

        def entries(number: int) -> Iterator[Entry]:
            return (entry for chunk in self.chunks(number) for entry in chunk.entries())

        return replace(self, chunks=lambda number: in_chunks(part.of_entries(entries(number), self.label)))

    def with_columns(self, names: Mapping[str, str]) -> "RowStream":
        """The stream with columns under our names, `names` going from ours to theirs."""
        return replace(self, names=names)


def renamed_entries(chunk: Chunk, names: Mapping[str, str]) -> Iterator[Entry]:
    """The rows of a chunk with columns under our names."""
    for entry in chunk.entries():
        if isinstance(entry, BadRow) or not names:
            yield entry
        else:
            yield entry[0], rename(entry[1], names)


def open_stream(name: str, *, split: str, config: str | None, from_hub_in_parts: bool = True) -> RowStream:
    """The rows of a local file, a local folder, or else of a hub data set, none of them read yet.

    A hub data set comes over the network while it is read, unless `from_hub_in_parts` is false: then it is downloaded
    first. Raises `DataError` where the name leads nowhere.
    """
    whole, part = parted(split)
    place = locate(name, split=whole, config=config)
    if isinstance(place, Hub):
        return stream_of(load_from_hub(name, split, config, streaming=from_hub_in_parts), name, split)
    if isinstance(place, Files):
        rows = RowStream(name, split, lambda number: file_chunks(place.paths, label(name, split)))
    else:
        manifest = read_manifest(place.path, label(name, split))
        rows = replace(stream_of(saved_split(place.path, name, whole), name, split), manifest=manifest)
    return rows if part is None else rows.part(part)


def stream_of(dataset: object, name: str, split: str) -> RowStream:
    """The rows of an object: a `datasets.IterableDataset`, or anything that can be read by number."""
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        return RowStream(name, split, lambda number: in_chunks(_entries(dataset, number)))
    rows = table_of(dataset, name, split).rows
    if isinstance(rows, datasets.Dataset):
        return RowStream(name, split, lambda number: dataset_chunks(rows))
    return RowStream(name, split, lambda number: in_chunks((row_index(n), row) for n, row in enumerate(rows)))


def _entries(dataset: Any, number: int) -> Iterator[Entry]:
    """The rows of an iterable data set, in the order of the pass if it shuffles itself."""
    dataset.set_epoch(number)
    for row, columns in enumerate(dataset):
        yield row_index(row), columns
