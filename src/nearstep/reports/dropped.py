"""Where episodes are recorded that a gate dropped and others replaced: dropped.jsonl, there once there is something."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nearstep.common.errors import TrainingError
from nearstep.reports.records import JsonLines, Record


@dataclass
class DroppedRecords:
    """The file of the main process. One that cannot be written, or is full, ends there; the run goes on without it."""

    path: Path
    largest_mib: float | None
    note: Callable[[str], None]  # tells the user
    _file: JsonLines | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)

    def write(self, records: Sequence[Record]) -> None:
        """Append records, if there are any."""
        if self._ended or not records:
            return
        try:
            self._file = self._file or JsonLines(self.path, self.largest_mib)
            if not self._file.is_full:
                self._file.write(records)
        except TrainingError as error:
            self._end(f"{error}: it ends here, and the run goes on without it")
            return
        if self._file.is_full:
            self._end(f"{self.path.name} has reached rollouts_max_mib and ends here")

    def close(self) -> None:
        """Close the file; more may be written later."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end(self, why: str) -> None:
        self._ended = True
        self.note(why)
