"""How local files are read: as a table, or as chunks one after the other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from nearstep.data.files.broken import refused
from nearstep.data.files.chunks import Chunk, in_chunks
from nearstep.data.files.csv_files import csv_entries
from nearstep.data.files.json_files import json_entries, line_entries
from nearstep.data.files.packed import kind_of, readable
from nearstep.data.files.parquet import file_prefix, parquet_chunks, parquet_rows
from nearstep.data.row_errors import BadRow
from nearstep.data.table import Rows, Table, label


@dataclass(frozen=True)
class RowTexts:
    """Rows held as the JSON that they are, less than half of what Python objects take, and parsed when asked for."""

    texts: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int, /) -> Mapping[str, object]:
        found: dict[str, Any] = json.loads(self.texts[row])
        return found

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        return map(json.loads, self.texts)

    def select(self, numbers: range) -> "RowTexts":
        """The rows of these numbers, as `datasets.Dataset.select` gives them."""
        return RowTexts([self.texts[number] for number in numbers])


def read_files(paths: Sequence[Path], name: str, split: str, on_bad_row: Literal["raise", "drop"]) -> Table:
    """The rows of files of one kind, one file after the other.

    Raises `DataError` naming the file and its line (from 1), or the row's index (from 0) where the format has no lines.
    Rows that cannot be read are dropped where `on_bad_row` says so; a file that breaks as a whole never is.
    """
    where = label(name, split)
    if kind_of(paths[0]) == ".parquet":
        dataset, position = parquet_rows(paths, where)
        return Table(name, split, dataset, tuple(dataset.column_names), position)
    places: list[str] = []
    texts: list[bytes] = []
    columns: dict[str, None] = {}
    bad: list[BadRow] = []
    for entry in chain.from_iterable(chunk.entries() for chunk in file_chunks(paths, where)):
        if not isinstance(entry, BadRow):
            place, row = entry
            places.append(place)
            # Half a surrogate pair is text in JSON; whether it may stand in a column is not decided here.
            texts.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"))
            columns.update(dict.fromkeys(row))
        elif on_bad_row == "drop":
            bad.append(entry)
        else:
            raise refused(where, entry)
    return Table(name, split, RowTexts(texts), tuple(columns), places.__getitem__, broken=tuple(bad))


def file_chunks(paths: Sequence[Path], where: str) -> Iterator[Chunk]:
    """The rows of files of one kind, one file after the other. Raises `DataError` naming the file."""
    suffix = kind_of(paths[0])
    if suffix == ".parquet":
        yield from parquet_chunks(paths, where)
        return
    for path in paths:
        file = file_prefix(path, paths)
        with readable(path, where):
            if suffix == ".jsonl":
                yield from in_chunks(line_entries(path, file))
            else:
                read = json_entries if suffix == ".json" else csv_entries
                yield from in_chunks(read(path, file, where))


def columns_of(rows: Rows) -> tuple[str, ...]:
    """The columns of any row, in order of appearance."""
    return tuple(dict.fromkeys(column for row in rows for column in row))
