"""A run that is being watched: what is new in its folder, and how it stands, whatever becomes of the folder."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearstep.common.errors import NearstepError
from nearstep.reports.page.content import Content
from nearstep.reports.page.render import script_json
from nearstep.reports.run_folder import INFO, METRICS, ROLLOUTS, SETTINGS

LOOK_AGAIN_SECONDS = 1.0


WAITING = "Waiting for the run to begin."


@dataclass
class Watched:
    """The newest data of a page, and its version. Several threads may ask at once."""

    folder: Path
    max_samples: int
    _began: int = field(default_factory=time.time_ns)  # of this server: the versions of another are not its own
    _looked: float = field(default=-LOOK_AGAIN_SECONDS, init=False)
    _count: int = field(default=0, init=False)
    _words: str = field(default="", init=False)
    _data: dict[str, Any] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._content = Content(self.folder, self.max_samples)

    def look(self) -> tuple[str, str]:
        """Read what is new, at most once a second; returns the version and how the run stands, in words."""
        with self._lock:
            if time.monotonic() - self._looked >= LOOK_AGAIN_SECONDS:
                self._read()
                self._looked = time.monotonic()
            return self._version, self._words

    def data(self) -> dict[str, Any]:
        """The page's data with its version."""
        with self._lock:
            return {**self._data, "live": {"version": self._version, "words": self._words}}

    def json(self) -> str:
        """The same as text."""
        return script_json(self.data())

    @property
    def _version(self) -> str:
        return f"{self._began}-{self._count}"

    def _read(self) -> None:
        was_there = self._words not in ("", WAITING)
        if not self.folder.is_dir() and was_there:
            self._words = f"The folder {self.folder} is gone; this is what was read last."
            return
        try:
            stands, changed = how_it_stands(self.folder), self._content.read()
            if changed or not self._data or (self._words == WAITING != stands):
                self._data = self._content.data()
                self._count += 1
            self._words = stands
        except NearstepError as error:  # a file that is being put in order; the next look reads it anew
            self._content = Content(self.folder, self.max_samples)
            self._words = f"The folder cannot be read: {error}"


def how_it_stands(folder: Path) -> str:
    """Whether the run is still to begin, goes on, or has ended, by the times of its files."""
    begun = max((_changed(folder / name) for name in (SETTINGS, INFO)), default=0.0)
    written = max(_changed(folder / name) for name in (METRICS, ROLLOUTS))
    if not begun and not written:
        return WAITING
    saved = _changed(folder / "policy" / "config.json")
    if saved > begun and saved + 60 > written:
        return "The run has ended."
    if not written:
        return "The run has begun; no update is done yet."
    return f"Last written {_ago(time.time() - written)} ago."


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _ago(seconds: float) -> str:
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
