"""What is new in a file of JSON lines that a run is writing: only the bytes that came since the last look."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nearstep.common.errors import DataError, shorten
from nearstep.reports.run_folder import Line


@dataclass
class GrowingFile:
    """A file of records, read from where the last look ended."""

    path: Path
    _read: int = field(default=0, init=False)  # bytes of whole lines
    _last: bytes = field(default=b"", init=False)  # the last of them: another one there means another file

    def has_begun_again(self) -> bool:
        """Whether what was read is no longer there: the run was resumed, begun anew, or its folder removed."""
        if self._read == 0:
            return False
        try:
            with self.path.open("rb") as file:
                file.seek(self._read - len(self._last))
                return file.read(len(self._last)) != self._last
        except OSError:
            return True

    def new_lines(self) -> Iterator[Line]:
        """The whole lines since the last look; a file that is missing has none.

        Raises DataError for a line that is no JSON object.
        """
        try:
            file = self.path.open("rb")
        except OSError:
            return
        with file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is being written
                self._read, self._last = self._read + len(line), line
                yield _object(line, self.path)


def _object(line: bytes, path: Path) -> Line:
    try:
        found = json.loads(line, parse_constant=lambda _: None)  # NaN, which none of our files has
    except ValueError as error:
        raise DataError(f"{path}: a line is no JSON ({error}): {shorten(line[:200])}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: a line is no JSON object: {shorten(found)}")
    return found
