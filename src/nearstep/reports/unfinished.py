"""The file by which the folder of a run that is not over says so: what happened, when, and how to go on."""

import fcntl
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from nearstep.common.errors import ConfigError, LostProcessError, NearstepError, cut
from nearstep.common.waiting import WATCHDOG

NAME = "unfinished.json"
GO_ON = (
    "The same command with --resume auto (in Python resume='auto') goes on from the newest checkpoint of this folder, "
    "or begins again where there is none."
)
HOW_FAR = "the last line of metrics.jsonl says how far it came"  # the file is written once, as the run begins


def not_over(folder: Path) -> str | None:
    """What the folder of a run that is not over says of it, in one line; None of one that is over."""
    with suppress(OSError, ValueError):
        content: dict[str, object] = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return f"Not over: {content.get('what')} ({content.get('where')})"
    return None


@dataclass
class Unfinished:
    """The file lies in the folder from the begin of the run, and goes away once it is over.

    A process that is killed without a word leaves it as it was at the begin.
    """

    folder: Path
    main: bool
    _is_open: bool = False
    _claim: int | None = None  # descriptor of the folder, which is locked
    _made: str = field(default_factory=lambda: _now(), init=False)  # what was written before is of another run

    def claim(self) -> None:
        """Keep other runs out of the folder until this one leaves it; the kernel lets it go with the process.

        Raises ConfigError where another run is in it. A file system without locks keeps nobody out.
        """
        if not self.main or self._claim is not None:
            return
        with suppress(OSError):
            self._claim = os.open(self.folder, os.O_RDONLY)
        if self._claim is None:
            return  # it is made by the run; `begin` comes back to it
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._let_go()
            raise ConfigError(
                f"output_dir = {self.folder}: another run is writing there now ({self._content().get('what', '')}). "
                "Give another output_dir, or end that one"
            ) from error
        except OSError:
            self._let_go()

    def begin(self) -> None:
        """The run begins, or goes on."""
        if not self._is_open:
            WATCHDOG.last_acts.append(self.failed)
        self._is_open = True
        if self.main:
            with suppress(OSError):  # who writes first tells of it
                self.folder.mkdir(parents=True, exist_ok=True)
            self.claim()
            if self._says_why() and str(self._content().get("when")) >= self._made:
                return  # another process of this run has begun, and failed, before
            self._write(
                f"It runs, or was killed without a word: process {os.getpid()} on {socket.gethostname()}.",
                where=HOW_FAR,
            )

    def failed(self, error: BaseException) -> None:
        """What ended the run. A process that only lost another one does not write over what that says."""
        if not (isinstance(error, LostProcessError) and self._says_why()):
            text = str(error) if isinstance(error, NearstepError) else cut(str(error), 2_000)
            self._write(f"{type(error).__name__}: {text}", is_cause=not isinstance(error, LostProcessError))

    def end(self) -> None:
        """The run has come to its end."""
        if self.main and self._is_open:
            with suppress(OSError):
                (self.folder / NAME).unlink(missing_ok=True)
        self._close()

    def leave(self, error: BaseException | None) -> None:
        """The run ends here, by an error if there is one; nothing if it has ended already."""
        if self._is_open and error is not None:
            self.failed(error)
        self._close()

    def _close(self) -> None:
        if self._is_open:
            WATCHDOG.last_acts.remove(self.failed)
        self._is_open = False
        self._made = _now()
        self._let_go()

    def _let_go(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            os.close(claim)

    def _says_why(self) -> bool:
        return bool(self._content().get("is_cause"))

    def _content(self) -> dict[str, object]:
        with suppress(OSError, ValueError):
            content: dict[str, object] = json.loads((self.folder / NAME).read_text(encoding="utf-8"))
            return content
        return {}

    def _write(self, what: str, *, where: str | None = None, is_cause: bool = False) -> None:
        """Nothing where it cannot be written: the run has its own error, or none."""
        content = {
            "what": what,
            "when": _now(),
            "where": where or WATCHDOG.place,
            "go_on": GO_ON,
            "is_cause": is_cause,
        }
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
