"""Where asynchronous rewards run: in one event loop that lives as long as the rewards do."""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class EventLoop:
    """An event loop in a thread of its own, started at the first use.

    A thread of its own, because the caller may be inside a running loop already (a notebook is). Kept between
    batches, because clients that users keep, such as HTTP sessions, are bound to the loop they began in.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, coroutine: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:
        """Begin with a coroutine and return at once; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._started())

    def gather(self, awaitables: Sequence[Awaitable[ResultT]]) -> list[ResultT]:
        """Await all concurrently, results in their order; the first error cancels the rest and is raised."""
        if not awaitables:
            return []
        future = self.submit(_gather(awaitables))
        try:
            return future.result()
        finally:
            future.cancel()  # of effect only where the wait itself was interrupted (Ctrl-C)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(self._loop,), name="async rewards", daemon=True).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _gather(awaitables: Sequence[Awaitable[ResultT]]) -> list[ResultT]:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
