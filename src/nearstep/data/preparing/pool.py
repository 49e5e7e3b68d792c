"""Several processes that work on pieces of a whole and hand them back in order."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from nearstep.common.errors import DataError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

PIECES_AHEAD = 3  # given out for each process: one in hand, one waiting, one done
_work: Callable[[Any], Any]  # in a worker: what it does, sent to it once


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def in_order(work: Callable[[Piece], Result], pieces: Iterable[Piece], workers: int) -> Generator[Result, None, None]:
    """What `work`, which can be pickled, makes of each piece, in the order of the pieces, only a few of them in hand.

    One worker is this process itself. Raises `DataError` where a process dies.
    """
    if workers == 1:
        yield from map(work, pieces)
        return
    # Started anew: a process that has used torch or a tokenizer has threads, and must not be forked.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(work,)) as executor:
        waiting: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                waiting.append(executor.submit(_do, piece))
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


def _begin(work: Callable[[Any], Any]) -> None:
    """What a worker does first: leave Ctrl-C to its parent, and end when the parent does."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(piece: Any) -> Any:
    return _work(piece)
