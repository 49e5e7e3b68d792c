"""Several processes that work on pieces of a whole and hand them back in order.

Light to import: the server of processes is started before anything heavy, so that both import at the same time.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import TypeVar

from nearstep.common.errors import DataError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

PIECES_AHEAD = 3  # given out for each process: one in hand, one waiting, one done
ONE_CORE = "TOKENIZERS_PARALLELISM"


def usable_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_server(preload: str) -> None:
    """Start the process that others are forked from, and let it import a module meanwhile, unless it runs already."""
    if _method() == "forkserver":
        multiprocessing.get_context("forkserver").set_forkserver_preload([preload])
        forkserver.ensure_running()


def in_order(work: Callable[[Piece], Result], pieces: Iterable[Piece], workers: int) -> Iterator[Result]:
    """What `work` makes of each piece, in the order of the pieces; `work` must be a function that can be pickled.

    One worker is this process itself. Only a few pieces are in hand at a time, whatever their number. Raises
    `DataError` where a process dies.
    """
    if workers == 1:
        with _one_core():
            yield from map(work, pieces)
        return
    start_server(preload=work.__module__)
    context = multiprocessing.get_context(_method())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as executor:
        waiting: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                waiting.append(executor.submit(work, piece))
                if len(waiting) >= PIECES_AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process died, as when memory runs out. Give fewer workers, or look into the system's log."
            ) from error
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _method() -> str:
    """Forked from a server that has no threads where that is possible; else started anew."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _begin() -> None:
    """What a worker does first: keep to one core, leave Ctrl-C to its parent, and end when the parent does.

    Its variables are those of the server that it was forked from, not those that its parent has now.
    """
    os.environ[ONE_CORE] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_core() -> Iterator[None]:
    """A tokenizer would otherwise use all cores, in each process."""
    before = os.environ.get(ONE_CORE)
    os.environ[ONE_CORE] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ONE_CORE]
        else:
            os.environ[ONE_CORE] = before
