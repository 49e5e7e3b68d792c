"""Where a file is broken, looked for once reading has failed: the line, the byte or character, what to do."""

import json

from nearstep.common.errors import DataError, shorten
from nearstep.data.row_errors import BadRow, RowError

NEAR_CHARACTERS = 60  # shown of what stands at the broken place


def broken(place: str, said: str, remedy: str = "") -> BadRow:
    """A row that cannot be read from its file; `said` follows its place."""
    return BadRow(RowError.BROKEN, place, said, remedy)


def refused(label: str, row: BadRow) -> DataError:
    """The error of a row that cannot be read from its file."""
    return DataError(f"{label}, {row.place}{row.said} {row.remedy}".rstrip())


def broken_line(line: bytes, place: str, error: Exception) -> BadRow:
    """What is wrong with a line that is no JSON."""
    if isinstance(error, UnicodeDecodeError):
        return broken(place, f": {_byte(error)} is no UTF-8.", "Save the file as UTF-8.")
    text = line.decode("utf-8")
    if isinstance(error, json.JSONDecodeError):
        said = f", character {error.colno}: no valid JSON ({error.msg}), at {_near(text, error.pos)}."
        remedy = "A file has one object per line." if error.msg == "Extra data" else "Correct the line."
        return broken(place, said, remedy)
    # A number of thousands of digits, or a thousand brackets.
    return broken(place, f": JSON that cannot be read ({error}), at {_near(text, 0)}.")


def broken_json(text: str, error: Exception) -> str:
    """What is wrong with a text that should be one JSON value."""
    if not isinstance(error, json.JSONDecodeError):
        return f"JSON that cannot be read ({error})."
    place = f"line {error.lineno}, character {error.colno}"
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        return f"{place}: the file ends in the middle of a value, as if cut. Copy it again."
    remedy = "A file with one object per line ends in .jsonl." if error.msg == "Extra data" else "Correct the line."
    return f"{place}: no valid JSON ({error.msg}), at {_near(text, error.pos)}. {remedy}"


def no_utf8(content: bytes, error: UnicodeDecodeError) -> str:
    """The line and the byte at which the content of a file stops being UTF-8."""
    line_start = content.rfind(b"\n", 0, error.start) + 1
    number = content.count(b"\n", 0, error.start) + 1
    return f"line {number}: {_byte(error, line_start)} is no UTF-8. Save the file as UTF-8."


def undecoded(cell: str) -> str:
    """The first byte of a cell that is no UTF-8, read with `surrogateescape`; empty if there is none."""
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError as error:
        before = cell[: error.start].encode("utf-8")
        return f"byte {len(before) + 1} (0x{ord(cell[error.start]) - 0xDC00:02x}) is no UTF-8"
    return ""


def _byte(error: UnicodeDecodeError, line_start: int = 0) -> str:
    return f"byte {error.start - line_start + 1} (0x{error.object[error.start]:02x})"


def _near(text: str, position: int) -> str:
    return shorten(text[position : position + NEAR_CHARACTERS])
