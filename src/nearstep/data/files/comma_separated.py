"""How .csv files are read: a header, then records, each named by the line on which it starts."""

import codecs
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nearstep.common.errors import DataError, shorten
from nearstep.data.files.chunks import Entry, broken
from nearstep.data.row_errors import BadRow


class _Lines:
    """The lines of a file as text; remembers where a record began, and its first byte that is no text."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._number = 0
        self.start = 1
        self.row_error: str | None = None

    def begin_record(self) -> None:
        """Forget the record before."""
        self.start, self.row_error = self._number + 1, None

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            self._number += 1
            if self._number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                self.row_error = self.row_error or f"byte {error.start + 1} (0x{line[error.start]:02x}) is no UTF-8"
                yield line.decode("utf-8", "surrogateescape")  # so that the record ends where it should


def csv_entries(path: Path, file: str, label: str) -> Iterator[Entry]:
    """The records of a file as rows of text. Raises `DataError` for a header that names no columns."""
    with path.open("rb") as stream:
        lines = _Lines(stream)
        records = _records(lines, file)
        first = next(records, None)
        if isinstance(first, BadRow):
            raise DataError(f"{label}, {first.place}{first.said} {first.remedy}")
        place, header = first or ("", [])
        if len(set(header)) < len(header) or "" in header:
            raise DataError(f"{label}, {place}: every column needs a name of its own, got {shorten(header)}")
        for record in records:
            yield record if isinstance(record, BadRow) else _row(record[1], header, record[0])


def _row(cells: list[str], header: list[str], place: str) -> Entry:
    if len(cells) == len(header):
        return place, dict(zip(header, cells, strict=True))
    columns = ", ".join(map(repr, header))
    said = f": {len(cells)} cells for {len(header)} columns ({columns}): {shorten(cells)}."
    return broken(place, said, "Put cells that hold commas, quotes or line ends into quotes.")


def _records(lines: _Lines, file: str) -> Iterator[tuple[str, list[str]] | BadRow]:
    """Every record with the line on which it starts; blank lines are none."""
    reader = csv.reader(iter(lines), strict=True)
    while True:
        lines.begin_record()
        place = f"{file}line {lines.start}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            remedy = "Check the quotes of this cell, or save the rows as .jsonl."
            yield broken(place, f": no valid CSV ({error}).", remedy)
            continue
        if cells is None:
            return
        if lines.row_error is not None:
            yield broken(place, f": {lines.row_error}.", "Save the file as UTF-8.")
        elif cells:
            yield place, cells
