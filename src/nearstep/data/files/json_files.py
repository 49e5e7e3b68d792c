"""How .jsonl files (one object per line) and .json files (a list of objects, or one under 'data') are read.

By the standard library: readers that look for one type per column turn texts like 2024-01-02 into dates and integers
into floats, and fill in keys that a row does not have.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path

from nearstep.common.errors import DataError, shorten
from nearstep.data.files.broken import broken_json, no_utf8
from nearstep.data.files.chunks import Entry, as_row
from nearstep.data.files.packed import open_bytes
from nearstep.data.table import row_index


def line_entries(path: Path, file: str) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank. Only b"\\n" ends one: JSON texts may hold U+2028 and its like."""
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, start=1):
            content = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).rstrip(b"\r\n")
            if content.strip():
                yield f"{file}line {number}", content


def json_entries(path: Path, file: str, label: str) -> Iterator[Entry]:
    """The items of a file, which is read whole; none in an empty file. Raises `DataError` where it is no JSON."""
    with open_bytes(path) as stream:
        content = stream.read().removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
        found = json.loads(text) if text.strip() else []
    except UnicodeDecodeError as error:
        raise DataError(f"{label}, {file}{no_utf8(content, error)}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{label}, {file}{broken_json(text, error)}") from error
    items = found.get("data") if isinstance(found, dict) else found
    if not isinstance(items, list):
        said = f"line 1: expected a list of objects, or an object whose 'data' is one, got {shorten(found)}."
        raise DataError(f"{label}, {file}{said} A file with one object per line ends in .jsonl.")
    for number, item in enumerate(items):
        yield as_row(item, file + row_index(number))
