"""How long anything may be awaited: every wait has a name and a limit, a line at half of it and an error at its end."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol, runtime_checkable

from nearstep.common.errors import LostProcessError, WaitError
from nearstep.common.telling import LOST_PEER, tell_launcher

SIGNAL = signal.SIGURG  # ignored by default, and used by hardly anyone
LONGEST_TICK_SECONDS = 0.25
CHECK_SECONDS = 1.0  # between two looks at what else a run depends on
LAST_SECONDS = 10.0  # that a process has to end by itself once another is gone
MOST_SHOWN = 8


@dataclass(eq=False)
class Wait:
    """Something that is awaited, and how long it has given no sign of life while this process was running."""

    what: str
    limit_seconds: float
    awaited: Callable[[], str]
    keeps_own_limit: bool
    thread: int = field(default_factory=threading.get_ident)
    seconds: float = 0.0
    told: bool = False

    def alive(self) -> None:
        """Something has come: the limit counts from now."""
        self.seconds, self.told = 0.0, False

    @property
    def overdue(self) -> bool:
        """Whether it was awaited for longer than it may be."""
        return not self.keeps_own_limit and self.seconds >= self.limit_seconds

    @property
    def grace_seconds(self) -> float:
        """How long after its limit a wait may still end by itself: code that is not Python's cannot be interrupted."""
        return min(max(0.1 * self.limit_seconds, 0.2), 5.0)


@dataclass(repr=False)  # signal.getsignal shows the handler on its way, and with it all that is awaited: whole models
class Watchdog:
    """One thread that looks at all waits of this process, and at what the run depends on beside them.

    At the limit the thread that waits is interrupted by an exception. Where it does not hear, in code that is no
    Python, the process ends a little later, with the same sentence. Time in which the process was stopped or asleep
    does not count, and of waits inside each other only the innermost does.
    """

    limit_seconds: float | None = 1800.0
    in_run: bool = False  # a run has begun, and stands here, for messages
    update: int = 0
    phase: str = ""
    guard: Callable[[], str | None] | None = None  # says why the run cannot go on, if it cannot
    last_acts: list[Callable[[Exception], None]] = field(default_factory=list)  # before the process is ended
    _waits: list[Wait] = field(default_factory=list)
    _guarded: int | None = None  # the thread of the run that is guarded
    _problem: str | None = None  # what the guard has said
    _ends_at: float = 0.0
    _tick: float = LONGEST_TICK_SECONDS
    _thread: threading.Thread | None = None

    @contextmanager
    def waiting(
        self,
        what: str,
        awaited: Callable[[], str] = lambda: "",
        *,
        limit_seconds: float | None = None,
        more_seconds: float = 0.0,
    ) -> Iterator[Wait]:
        """While something is awaited in this thread. `awaited` says which parts of it are still to come.

        With `limit_seconds` the caller keeps that limit itself, and is only told of; else it is wait_timeout_seconds
        and `more_seconds`. Raises WaitError when it is over.
        """
        own = limit_seconds is not None
        limit = limit_seconds if own else self.limit_seconds
        if limit is None:
            yield Wait(what, float("inf"), awaited, keeps_own_limit=True)
            return
        wait = Wait(what, limit + more_seconds, awaited, own)
        self.begin(wait)
        try:
            yield wait
        except Exception as error:
            if not wait.overdue:
                raise
            raise self._wait_error(wait) from (None if isinstance(error, WaitError) else error)
        finally:
            self.end(wait)
        if wait.overdue:
            raise self._wait_error(wait)

    def begin_run(self, limit_seconds: float | None) -> None:
        """A run is put together, which sets the limit."""
        self.limit_seconds, self.in_run, self.update, self.phase = limit_seconds, True, 0, ""

    def begin_update(self, update: int) -> None:
        """An update begins; its phases say so themselves."""
        self.update, self.phase = update, "begin"

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """While the run depends on what the guard looks at."""
        self._start()
        self._guarded, self._problem = threading.get_ident(), None
        try:
            yield
        except Exception as error:  # what was interrupted may have made it an error of its own
            if isinstance(error, RuntimeError) and any(word in str(error) for word in LOST_PEER):
                self._ask_again()
            if self._problem is None or isinstance(error, LostProcessError):
                raise
            raise self.lost() from error
        finally:
            self._guarded = None

    def begin(self, wait: Wait) -> None:
        """Look at a wait from now on."""
        self._waits.append(wait)
        self._tick = min(LONGEST_TICK_SECONDS, *(each.limit_seconds / 20 for each in [*self._waits]))
        self._start()

    def end(self, wait: Wait) -> None:
        """Look at it no more. That one inside it has ended is a sign of life of the wait around it."""
        self._waits.remove(wait)
        if self._waits:
            self._waits[-1].alive()

    @property
    def place(self) -> str:
        """Which process, and where in the run it is; empty where there is one process and no run."""
        rank = f"rank {os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        where = f"update {self.update} ({self.phase})" if self.update else "before the first update" * self.in_run
        return ", ".join(filter(None, (rank, where)))

    @property
    def _placed(self) -> str:
        return f"{self.place}: " if self.place else ""

    def _start(self) -> None:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(SIGNAL) != self._deliver:
            signal.signal(SIGNAL, self._deliver)
        if self._thread is None or not self._thread.is_alive():  # a child that was forked has none
            self._thread = threading.Thread(target=self._watch, name="waits", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        before = checked = time.monotonic()
        while True:
            time.sleep(self._tick)
            now = time.monotonic()
            passed, before = min(now - before, 2 * LONGEST_TICK_SECONDS), now
            self._look(passed)
            if now - checked >= CHECK_SECONDS:
                checked = now
                self._ask_guard(now)

    def _look(self, passed: float) -> None:
        waits = [*self._waits]
        # Whoever keeps a limit of its own comes to an end, unless what should keep it hangs.
        counting = [wait for wait in waits if wait.keeps_own_limit and wait.seconds < 2 * wait.limit_seconds]
        for wait in counting or [wait for wait in waits if not wait.keeps_own_limit][-1:]:
            wait.seconds += passed
            if wait.seconds >= wait.limit_seconds / 2 and not wait.told:
                for each in waits:  # of many requests to one server one line is enough
                    each.told |= each.what == wait.what and each.seconds >= each.limit_seconds / 4
                say(f"{self._sentence(wait)}; the limit is {_shown(wait.limit_seconds)}")
            if wait.overdue and wait in self._waits:
                late = wait.seconds - wait.limit_seconds
                if late >= wait.grace_seconds:
                    self._end_process(self._wait_error(wait))
                elif late < passed:
                    self._interrupt(wait.thread, WaitError)

    def _ask_guard(self, now: float) -> None:
        if self._guarded is None or self.guard is None:
            return
        if self._problem is None:
            self._problem, self._ends_at = self.guard(), now + LAST_SECONDS
            if self._problem is not None and self._guarded is not None:
                self._interrupt(self._guarded, LostProcessError)
        elif now >= self._ends_at:
            self._end_process(self.lost())

    def _ask_again(self) -> None:
        """A connection ends a moment before the process that held it, and before the guard has looked."""
        self._guarded, until = None, time.monotonic() + CHECK_SECONDS
        while self._problem is None and self.guard is not None and time.monotonic() < until:
            self._problem = self.guard()
            time.sleep(0.05)

    def lost(self, problem: str | None = None) -> LostProcessError:
        """The error of a run that has lost a process."""
        return LostProcessError(f"{self._placed}{problem or self._problem}. What it said last says why")

    def _interrupt(self, thread: int, error: type[Exception]) -> None:
        if thread == threading.main_thread().ident:
            signal.pthread_kill(thread, SIGNAL)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))

    def _deliver(self, number: int, frame: FrameType | None) -> None:
        if self._guarded is not None and self._problem is not None:
            raise self.lost()
        if any(wait.overdue and wait.thread == threading.get_ident() for wait in self._waits):
            raise WaitError

    def _wait_error(self, wait: Wait) -> WaitError:
        return WaitError(
            f"{self._sentence(wait)}, which is the limit (wait_timeout_seconds). Look at what did not answer; if it "
            "may take that long, give more seconds. A run goes on from its last checkpoint with --resume auto"
        )

    def _sentence(self, wait: Wait) -> str:
        awaited = wait.awaited()
        said = f"{self._placed}{_shown(wait.seconds)} without a sign of {wait.what}"
        return said + (f": {awaited}" if awaited else "")

    def _end_process(self, error: Exception) -> None:
        """End at once, with all processes that this one has started: its main thread does not hear any more."""
        tell_launcher(str(error), error)
        say(str(error))
        for act in self.last_acts:
            act(error)
        end_children()
        os._exit(1)


@runtime_checkable
class Closes(Protocol):
    """What is closed at the end of a run."""

    def close(self) -> None:
        """Leave nothing running."""


@contextmanager
def closing_soon(thing: Closes, name: str) -> Iterator[None]:
    """Close at the end, and do not wait for that for ever."""
    try:
        yield
    finally:
        with waiting(f"{name} (it is closed)"):
            thing.close()


def say(text: str) -> None:
    """A line of this process on standard error."""
    with suppress(OSError, ValueError):  # it may be closed
        print(f"nearstep: {text}", file=sys.stderr, flush=True)


def end_children() -> None:
    """Kill what this process has started and not awaited: reward workers, servers. Nothing on systems but Linux."""
    for tasks in Path("/proc/self/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            with suppress(OSError):
                os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(child, signal.SIGKILL)


def end_soon() -> None:
    """End the process within seconds, whatever threads a hung library has left; for commands, whose work is over."""

    def end() -> None:
        end_children()
        os._exit(1)

    timer = threading.Timer(LAST_SECONDS, end)
    timer.daemon = True
    timer.start()


def listed(names: list[str] | list[int]) -> str:
    """Some names and how many there are: `3, 7, 9 and 12 more`."""
    shown = ", ".join(map(str, names[:MOST_SHOWN]))
    return shown + (f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else "")


def _shown(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


WATCHDOG = Watchdog()  # of this process
waiting = WATCHDOG.waiting
