"""How a vLLM server is asked: rows side by side, a look at its core while they are awaited, silence told in seconds."""

import asyncio
import json
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from nearstep.common.errors import LostEngineError, TrainingError, shorten
from nearstep.common.places import is_loopback
from nearstep.common.secrets import without_secrets
from nearstep.rollout.vllm.requests import RowRequest, SampledRow
from nearstep.rollout.vllm.wire import completion_body, read_completion

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
Ask: TypeAlias = Callable[["httpx2.AsyncClient"], Awaitable[T]]

HEARTBEAT_SECONDS = 2.0  # between two looks at the server while rows are awaited
RPC = "/collective_rpc"  # by which weights are read
CORE = "/is_sleeping"  # answered by the engine's core itself, between two steps
FRONT = "/health"  # answered by what takes requests, while the core is busy
QUEUE_SECONDS = 0.25  # within which an interruption of this thread is heard


@dataclass(frozen=True)
class ServerClient:
    """A server by its address, and how long it may be silent."""

    url: str
    timeout_seconds: float

    @property
    def shown(self) -> str:
        """What messages call it."""
        return f"vLLM server {self.url}"

    def get(self, path: str) -> Any:
        """The answer to a GET. Raises LostEngineError or TrainingError, which say what was asked."""
        return self._answer(lambda client: self._ask(client, "GET", path, None, self.timeout_seconds))

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float | None = None) -> Any:
        """The answer to a POST, within `seconds` where the core is busy for longer than it may be silent otherwise."""
        if seconds is None:
            return self._answer(lambda client: self._ask(client, "POST", path, body, self.timeout_seconds))
        limit = max(self.timeout_seconds, seconds)
        return self._answer(
            lambda client: self._watched(client, self._ask(client, "POST", path, body, limit), sign=FRONT)
        )

    def play(self, requests: Mapping[int, RowRequest], at_a_time: int, model: str) -> Iterator[tuple[int, SampledRow]]:
        """The rows as they end, at most `at_a_time` asked for side by side. Raises as `get` does."""
        found: queue.SimpleQueue[tuple[int, SampledRow]] = queue.SimpleQueue()

        async def all_rows(client: "httpx2.AsyncClient") -> None:
            await self._rows(client, requests, at_a_time, model, found)

        with self._asking(all_rows) as future:
            ended = False
            while not ended:
                ended = future.done()  # before the queue is looked at: all rows lie in it then
                with suppress(queue.Empty):
                    while True:
                        yield found.get(timeout=0.0 if ended else QUEUE_SECONDS)
            future.result()

    async def _rows(
        self,
        client: "httpx2.AsyncClient",
        requests: Mapping[int, RowRequest],
        at_a_time: int,
        model: str,
        found: queue.SimpleQueue[tuple[int, SampledRow]],
    ) -> None:
        gate = asyncio.Semaphore(at_a_time)

        async def one(row: int, request: RowRequest) -> None:
            async with gate:
                answer = await self._ask(client, "POST", "/v1/completions", completion_body(request, model), None)
            found.put((row, read_completion(answer, request, f"{self.shown}, row {row}")))

        await self._watched(
            client, asyncio.gather(*(one(row, request) for row, request in requests.items())), sign=CORE
        )

    async def _watched(self, client: "httpx2.AsyncClient", act: Awaitable[T], *, sign: str) -> T:
        """What `act` gives; given up once the server shows no sign of life at this path. Raises as `_ask` does."""
        work = asyncio.ensure_future(act)
        heart = asyncio.ensure_future(self._heartbeat(client, sign))
        both: set[asyncio.Future[Any]] = {work, heart}
        try:
            for ended in (await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED))[0]:
                await ended
            return work.result()
        finally:
            work.cancel()
            heart.cancel()
            await asyncio.gather(work, heart, return_exceptions=True)

    async def _heartbeat(self, client: "httpx2.AsyncClient", sign: str) -> None:
        """What is asked may take long; the server answers in between, unless it hangs or is gone."""
        while True:
            await asyncio.sleep(min(HEARTBEAT_SECONDS, self.timeout_seconds / 4))
            await self._ask(client, "GET", sign, None, self.timeout_seconds)

    async def _ask(
        self, client: "httpx2.AsyncClient", method: str, path: str, body: Mapping[str, Any] | None, limit: float | None
    ) -> Any:
        import httpx2

        what = f"{self.shown}: {method} {path}"
        try:
            async with asyncio.timeout(limit):
                response = await client.request(method, path, json=body)
        except TimeoutError:
            raise LostEngineError(f"{what} had no answer within {limit:g} s (engine_timeout_seconds)") from None
        except httpx2.HTTPError as error:
            raise LostEngineError(f"{what} failed: {type(error).__name__}: {without_secrets(str(error))}") from None
        detail = str(without_secrets(shorten(response.text)))
        if response.status_code >= 500 and path == RPC:
            await self._ask(client, "GET", FRONT, None, self.timeout_seconds)  # a core that has died is lost
            raise TrainingError(
                f"{what} failed: {detail}. Does the server see the folder of engine_weights_dir under the same path, "
                "and was it started with the same model?"
            )
        if response.status_code >= 500:
            raise LostEngineError(f"{what} was answered by {response.status_code}: {detail}")
        if response.status_code >= 400:
            hint = _hint(path) if response.status_code in (404, 405) else ""
            raise TrainingError(f"{what} was refused with {response.status_code}: {detail}{hint}")
        try:
            return json.loads(response.text) if response.text else None
        except json.JSONDecodeError:
            raise TrainingError(f"{what} was answered by what is no JSON: {detail}") from None

    def _answer(self, ask: Ask[T]) -> T:
        with self._asking(ask) as future:
            while not wait([future], timeout=QUEUE_SECONDS).done:
                pass
            return future.result()

    @contextmanager
    def _asking(self, ask: Ask[T]) -> Iterator[Future[T]]:
        """Questions on an event loop of their own, in a thread: this one can be interrupted, and may have a loop."""

        async def asked() -> T:
            async with self._connections() as connections:
                return await ask(connections)

        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="vllm-server", daemon=True)
        thread.start()
        future = asyncio.run_coroutine_threadsafe(asked(), loop)
        try:
            yield future
        finally:
            future.cancel()  # what is not answered is given up
            loop.call_soon_threadsafe(lambda: asyncio.ensure_future(_end(loop)))
            thread.join(timeout=2.0)
            if not thread.is_alive():
                loop.close()

    def _connections(self) -> "httpx2.AsyncClient":
        """To be closed by the caller. asyncio keeps the limits, since httpx2's are of single reads."""
        import httpx2

        url = urlsplit(self.url)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx2.AsyncClient(
            base_url=self.url,
            timeout=None,
            limits=limits,
            trust_env=not is_loopback(url.hostname or ""),
            verify=url.scheme != "http",
        )


async def _end(loop: asyncio.AbstractEventLoop) -> None:
    """Let everything that was cancelled close what it holds, and stop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
    loop.stop()


def _hint(path: str) -> str:
    if path.startswith("/v1/"):
        return ". It is no vLLM server, or serves another model by now"
    return (
        ". Weights and versions go by vLLM's endpoints of development: start the server by nearstep serve-engine, or "
        "with VLLM_SERVER_DEV_MODE=1, on an address that only you can reach"
    )
