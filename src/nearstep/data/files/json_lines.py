"""How .jsonl files are read: one JSON object per line; lines are parsed wherever their chunk goes."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearstep.common.errors import shorten
from nearstep.data.files.chunks import CHUNK_ROWS, Entry, as_row, broken

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class LineChunk:
    """Lines as they stand in the file, blank ones among them."""

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
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        said = f": byte {error.start + 1} (0x{line[error.start]:02x}) is no UTF-8."
        return broken(place, said, "Save the file as UTF-8.")
    try:
        return as_row(json.loads(text), place)
    except json.JSONDecodeError as error:
        near = shorten(text[error.pos : error.pos + 60])
        said = f", character {error.colno}: no valid JSON ({error.msg}), at {near}."
        remedy = "A file has one object per line." if error.msg == "Extra data" else "Correct the line."
        return broken(place, said, remedy)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        return broken(place, f": JSON that cannot be read ({error}), at {shorten(text[:60])}.")
