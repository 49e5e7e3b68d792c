"""How .jsonl files (one object per line) and .json files (a list of objects, or one under 'data') are read.

By the standard library: readers that look for one type per column turn texts like 2024-01-02 into dates and integers
into floats, and fill in keys that a row does not have.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearstep.common.errors import shorten
from nearstep.data.files.broken import broken, broken_file, broken_json, broken_line, no_utf8
from nearstep.data.files.chunks import CHUNK_ROWS, Entry
from nearstep.data.table import row_index

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class LineChunk:
    """Lines as they stand in the file, blank ones among them; they are parsed wherever the chunk goes."""

    file: str  # what comes before the place of a row
    first_line: int  # from 1
    lines: tuple[bytes, ...]

    def __len__(self) -> int:
        return sum(1 for line in self.lines if line.strip())

    def entries(self) -> Iterator[Entry]:
        """The rows in order, each with its line."""
        for number, line in enumerate(self.lines, start=self.first_line):
            if line.strip():
                yield _parsed(line.rstrip(b"\r\n"), f"{self.file}line {number}")


def line_chunks(path: Path, file: str) -> Iterator[LineChunk]:
    """The lines of a file. Only b"\\n" ends one: JSON texts may hold U+2028 and its like."""
    with path.open("rb") as stream:
        lines: list[bytes] = []
        first, size = 1, 0
        for number, line in enumerate(stream, start=1):
            lines.append(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            size += len(line)
            if len(lines) == CHUNK_ROWS or size >= CHUNK_BYTES:
                yield LineChunk(file, first, tuple(lines))
                lines, first, size = [], number + 1, 0
        if lines:
            yield LineChunk(file, first, tuple(lines))


def _parsed(line: bytes, place: str) -> Entry:
    try:
        return _as_row(json.loads(line.decode("utf-8")), place)
    except (ValueError, RecursionError) as error:
        return broken_line(line, place, error)


def json_entries(path: Path, file: str, label: str) -> Iterator[Entry]:
    """The items of a file, which is read whole; none in an empty file. Raises `DataError` where it is no JSON."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
        found = json.loads(text) if text.strip() else []
    except UnicodeDecodeError as error:
        raise broken_file(label, file, no_utf8(content, error)) from error
    except (ValueError, RecursionError) as error:
        raise broken_file(label, file, broken_json(text, error)) from error
    items = found.get("data") if isinstance(found, dict) else found
    if not isinstance(items, list):
        said = f"line 1: expected a list of objects, or an object whose 'data' is one, got {shorten(found)}."
        raise broken_file(label, file, f"{said} A file with one object per line ends in .jsonl.")
    for number, item in enumerate(items):
        yield _as_row(item, file + row_index(number))


def _as_row(item: object, place: str) -> Entry:
    """An item as a row, if it has columns."""
    if isinstance(item, dict):
        return place, item
    return broken(place, f': expected an object with columns, such as {{"prompt": "…"}}, got {shorten(item)}')
