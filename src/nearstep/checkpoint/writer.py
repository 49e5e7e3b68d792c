"""How a checkpoint is written beside the training: by a thread, one at a time, and no error of it is lost."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType


class BackgroundWriter:
    """Runs one piece of work at a time in a thread of its own.

    The interpreter does not wait for the thread at its end: whoever needs the work done waits for it, within a limit.
    """

    def __init__(self) -> None:
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin the work once what runs has ended; raises what that raised."""
        self.wait()
        self._running = Future()
        threading.Thread(target=_run, args=(work, self._running), name="checkpoint", daemon=True).start()

    def wait(self) -> None:
        """Return once nothing runs; raises what the last work raised, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()


class _Outcome:
    """A context whose end, by an error or without one, goes to whoever waits."""

    def __init__(self, done: Future[None]) -> None:
        self._done = done

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
        return True


def _run(work: Callable[[], None], done: Future[None]) -> None:
    with _Outcome(done):
        work()
