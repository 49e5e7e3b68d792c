"""How a run is stopped from outside: the first signal saves and ends after the update, the second ends at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_SECONDS = 1.5  # that closing may take after the second signal
SAME_SECONDS = 1.0  # in which a launcher passes on a signal that a scheduler has sent to the ranks as well


class Interruption:
    """A context in which SIGINT and SIGTERM are taken down instead of ending the process.

    Handlers can be set in the main thread alone; a run in another thread leaves signals as they are.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._taken_at = 0.0

    @property
    def asked(self) -> bool:
        """Whether the run should save and end."""
        return self.signal is not None

    def __enter__(self) -> "Interruption":
        self.signal = None
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def is_of(self, signals: Sequence[signal.Signals | None]) -> bool:
        """Whether the signals of all processes hold one, which then is that of each that had none."""
        self.signal = self.signal or next((each for each in signals if each is not None), None)
        return self.asked

    def leave(self) -> None:
        """End the process as the signal asked, now that all is saved. Does nothing if there was none."""
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(exit_code(self.signal))

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, signal.Signals(number)
        passed, self._taken_at = time.monotonic() - self._taken_at, time.monotonic()
        if again and passed < SAME_SECONDS and "TORCHELASTIC_RUN_ID" in os.environ:
            return
        if again:
            # Closing waits for what is being written and for workers; whoever asks twice does not want to.
            threading.Timer(LAST_SECONDS, os._exit, [exit_code(self.signal)]).start()
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(exit_code(self.signal))
        print(
            f"{self.signal.name}: the run saves a checkpoint and ends after this update; once more ends it at once",
            file=sys.stderr,
            flush=True,
        )


def exit_code(number: signal.Signals) -> int:
    """The exit code of a process that a signal ended: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number
