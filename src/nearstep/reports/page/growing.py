"""What is new in a file of JSON lines that a run is writing: only the bytes that came since the last look."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nearstep.reports.run_folder import Line, record_object


@dataclass
class GrowingFile:
    """A file of records, read from where the last look ended."""

    path: Path
    _read: int = field(default=0, init=False)  # bytes of whole lines
    _number: int = field(default=0, init=False)  # of them
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

        Raises DataError for a line that is no record of this file.
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
                self._read, self._last, self._number = self._read + len(line), line, self._number + 1
                yield record_object(line, self.path, self._number)
