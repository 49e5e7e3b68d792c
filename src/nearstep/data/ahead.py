"""How batches are read while others are played: one ahead, in a thread."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(batches: Iterator[T]) -> Generator[T, None, None]:
    """The same batches in the same order; each is read while the one before it is in use, and none further ahead.

    What reading raises is raised in place of the batch that it belongs to. The thread has ended when this iterator has,
    by its last batch, by an error or by being closed. `batches` yields no None.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts") as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
