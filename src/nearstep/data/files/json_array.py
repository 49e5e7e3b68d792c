"""How .json files are read: a list of objects, item by item, or an object whose 'data' is such a list."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from nearstep.common.errors import DataError, shorten
from nearstep.data.files.chunks import Entry, as_row
from nearstep.data.table import row_index

BLOCK_CHARACTERS = 1 << 20
NEAR_THE_END = 64  # characters: an error closer to the end of a block may be no more than the end of the block


def json_entries(path: Path, file: str, label: str) -> Iterator[Entry]:
    """The items of a file. Raises `DataError` with line and character where the file is no JSON.

    A list is read in blocks; anything else is read whole.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            text = _Text(stream, f"{label}, {file}")
            items = text.items() if text.next_character() == "[" else text.under_data()
            for number, item in enumerate(items):
                yield as_row(item, file + row_index(number))
    except UnicodeDecodeError as error:
        raise DataError(f"{label}, {file}{_no_utf8(path)} Save the file as UTF-8.") from error


class _Text:
    """A text of which only the part that is not read yet is held."""

    def __init__(self, stream: TextIO, where: str) -> None:
        self._stream, self._where = stream, where
        self._block, self._position, self._ended = "", 0, False
        self._line, self._column = 1, 1  # of the block's first character
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """The next one that is no white space, left where it is; empty at the end."""
        while True:
            while self._position < len(self._block) and self._block[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._block) or self._ended:
                return self._block[self._position : self._position + 1]
            self._read_on()

    def items(self) -> Iterator[Any]:
        """The items of a list."""
        self._position += 1
        if self.next_character() != "]":
            yield self._value()
            while self.next_character() == ",":
                self._position += 1
                self.next_character()
                yield self._value()
        if self.next_character() != "]":
            self._refuse("Expecting ',' delimiter", self._position)
        self._position += 1
        if self.next_character():
            self._refuse("Extra data", self._position)

    def under_data(self) -> list[Any]:
        """The items of a list that stands in an object under 'data'; none in an empty file."""
        if not self.next_character():
            return []
        whole = self._value()
        if self.next_character():
            self._refuse("Extra data", self._position)
        if isinstance(whole, dict) and isinstance(whole.get("data"), list):
            return list(whole["data"])
        raise DataError(
            f"{self._where}line 1: expected a list of objects, or an object whose 'data' is one, got {shorten(whole)}. "
            "A file with one object per line ends in .jsonl."
        )

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._block, self._position)
            except json.JSONDecodeError as error:
                within = error.pos + NEAR_THE_END < len(self._block) and not error.msg.startswith("Unterminated")
                if self._ended or within:
                    self._refuse(error.msg, error.pos)
            except (ValueError, RecursionError) as error:
                near = shorten(self._block[self._position : self._position + 60])
                raise DataError(f"{self._where}line {self._line_of(self._position)}: JSON that cannot be read "
                                f"({error}), at {near}.") from error  # fmt: skip
            else:
                if end < len(self._block) or self._ended:  # else a number may go on in the next block
                    self._position = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        """Let go of what was read and take in another block, larger than what is held, so that no time is wasted."""
        self._line, self._column = self._line_of(self._position), self._column_of(self._position)
        rest = self._block[self._position :]
        more = self._stream.read(max(BLOCK_CHARACTERS, len(rest)))
        self._block, self._position, self._ended = rest + more, 0, not more

    def _line_of(self, position: int) -> int:
        return self._line + self._block.count("\n", 0, position)

    def _column_of(self, position: int) -> int:
        line_end = self._block.rfind("\n", 0, position)
        return self._column + position if line_end < 0 else position - line_end

    def _refuse(self, message: str, position: int) -> NoReturn:
        where = f"{self._where}line {self._line_of(position)}, character {self._column_of(position)}"
        if self._ended and (position >= len(self._block.rstrip()) or message.startswith("Unterminated")):
            raise DataError(f"{where}: the file ends in the middle of a value, as if cut. Copy it again.")
        near = shorten(self._block[position : position + 60])
        hint = "A file with one object per line ends in .jsonl." if message == "Extra data" else "Correct the line."
        raise DataError(f"{where}: no valid JSON ({message}), at {near}. {hint}")


def _no_utf8(path: Path) -> str:
    """The line and the byte at which a file stops being UTF-8."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number}: byte {error.start + 1} (0x{error.object[error.start]:02x}) is no UTF-8."
    return "its end is no UTF-8."
