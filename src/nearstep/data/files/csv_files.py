"""How .csv files are read: a header, then records of text, each named by the line on which it starts."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from nearstep.common.errors import DataError, shorten
from nearstep.data.files.broken import broken, refused, undecoded
from nearstep.data.files.chunks import Entry
from nearstep.data.files.packed import open_bytes
from nearstep.data.row_errors import BadRow


def csv_entries(path: Path, file: str, label: str) -> Iterator[Entry]:
    """The records of a file as rows of text. Raises `DataError` for a header that names no columns."""
    # Bytes that are no UTF-8 become surrogates, so that a record still ends where it should.
    with io.TextIOWrapper(
        cast(BinaryIO, open_bytes(path)), encoding="utf-8-sig", errors="surrogateescape", newline="\n"
    ) as stream:
        records = _records(stream, file)
        place, header = next(records, ("", []))
        if isinstance(header, BadRow):
            raise refused(label, header)
        if said := undecoded(",".join(header)):
            raise DataError(f"{label}, {place}: {said}. Save the file as UTF-8.")
        if len(set(header)) < len(header) or "" in header:
            raise DataError(f"{label}, {place}: every column needs a name of its own, got {shorten(header)}")
        for place, cells in records:
            yield cells if isinstance(cells, BadRow) else _row(cells, header, place)


def _records(stream: Iterator[str], file: str) -> Iterator[tuple[str, list[str] | BadRow]]:
    """Every record with the line on which it starts; blank lines are none."""
    reader = csv.reader(stream, strict=True)
    while True:
        place = f"{file}line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            remedy = "Check the quotes of this cell, or save the rows as .jsonl."
            yield place, broken(place, f": no valid CSV ({error}).", remedy)
            continue
        if cells is None:
            return
        if cells:
            yield place, cells


def _row(cells: Sequence[str], header: Sequence[str], place: str) -> Entry:
    for column, cell in zip(header, cells, strict=False):
        if said := undecoded(cell):
            return broken(place, f", column {column!r}: {said}.", "Save the file as UTF-8.")
    if len(cells) != len(header):
        columns = ", ".join(map(repr, header))
        said = f": {len(cells)} cells for {len(header)} columns ({columns}): {shorten(cells)}."
        return broken(place, said, "Put cells that hold commas, quotes or line ends into quotes.")
    return place, dict(zip(header, cells, strict=True))
