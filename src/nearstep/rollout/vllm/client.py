"""How a vLLM server is asked: rows side by side, a look at its core while they are awaited, silence told in seconds."""

import asyncio
import json
import queue
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nearstep.common.errors import TrainingError, shorten
from nearstep.common.places import is_loopback
from nearstep.common.secrets import without_secrets
from nearstep.rollout.vllm.requests import RowAnswer, RowRequest
from nearstep.rollout.vllm.wire import completion_body, read_completion

if TYPE_CHECKING:
    import httpx2

HEARTBEAT_SECONDS = 2.0  # between two looks at the server while rows are awaited
RPC = "/collective_rpc"  # by which weights are read
CORE = "/is_sleeping"  # answered by the engine's core itself, between two steps
QUEUE_SECONDS = 0.25  # within which an interruption of this thread is heard


class ServerLost(TrainingError):
    """The server does not answer, or answers that it cannot go on; it may come back."""


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
        """The answer to a GET. Raises ServerLost or TrainingError, which say what was asked."""
        return self._in_thread(lambda client: self._ask(client, "GET", path, None, self.timeout_seconds))

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float | None = None) -> Any:
        """The answer to a POST, within `seconds` where that is more than the server may be silent otherwise."""
        limit = max(self.timeout_seconds, seconds or 0.0)
        return self._in_thread(lambda client: self._ask(client, "POST", path, body, limit))

    def play(self, requests: Mapping[int, RowRequest], at_a_time: int, model: str) -> Iterator[tuple[int, RowAnswer]]:
        """The rows as they end, at most `at_a_time` asked for side by side. Raises as `get` does."""
        found: queue.SimpleQueue[tuple[int, RowAnswer]] = queue.SimpleQueue()

        async def all_rows(client: "httpx2.AsyncClient") -> None:
            await self._rows(client, requests, at_a_time, model, found)

        worker = _Worker(self, all_rows)
        try:
            while True:
                ended = worker.done.is_set()  # before the queue is looked at: all rows lie in it then
                with suppress(queue.Empty):
                    while True:
                        yield found.get(timeout=0.0 if ended else QUEUE_SECONDS)
                if ended:
                    break
        finally:
            worker.stop()
        worker.result()

    async def _rows(
        self,
        client: "httpx2.AsyncClient",
        requests: Mapping[int, RowRequest],
        at_a_time: int,
        model: str,
        found: queue.SimpleQueue[tuple[int, RowAnswer]],
    ) -> None:
        gate = asyncio.Semaphore(at_a_time)

        async def one(row: int, request: RowRequest) -> None:
            async with gate:
                answer = await self._ask(client, "POST", "/v1/completions", completion_body(request, model), None)
            found.put((row, read_completion(answer, request, f"{self.shown}, row {row}")))

        async with asyncio.TaskGroup() as group:
            heart = group.create_task(self._heartbeat(client))
            rows = [group.create_task(one(row, request)) for row, request in requests.items()]
            await asyncio.gather(*rows)
            heart.cancel()

    async def _heartbeat(self, client: "httpx2.AsyncClient") -> None:
        """Rows may take long; the core that computes them answers in between, unless it hangs or is gone."""
        while True:
            await asyncio.sleep(min(HEARTBEAT_SECONDS, self.timeout_seconds / 4))
            await self._ask(client, "GET", CORE, None, self.timeout_seconds)

    async def _ask(
        self, client: "httpx2.AsyncClient", method: str, path: str, body: Mapping[str, Any] | None, limit: float | None
    ) -> Any:
        import httpx2

        what = f"{self.shown}: {method} {path}"
        try:
            async with asyncio.timeout(limit):
                response = await client.request(method, path, json=body)
        except TimeoutError:
            raise ServerLost(f"{what} had no answer within {limit:g} s (engine_timeout_seconds)") from None
        except httpx2.HTTPError as error:
            raise ServerLost(f"{what} failed: {type(error).__name__}: {without_secrets(str(error))}") from None
        detail = str(without_secrets(shorten(response.text)))
        if response.status_code >= 500 and path == RPC:
            raise TrainingError(
                f"{what} failed: {detail}. Does the server see the folder of engine_weights_dir under the same path, "
                "and was it started with the same model?"
            )
        if response.status_code >= 500:
            raise ServerLost(f"{what} was answered by {response.status_code}: {detail}")
        if response.status_code >= 400:
            hint = _hint(path) if response.status_code in (404, 405) else ""
            raise TrainingError(f"{what} was refused with {response.status_code}: {detail}{hint}")
        try:
            return json.loads(response.text) if response.text else None
        except json.JSONDecodeError:
            raise TrainingError(f"{what} was answered by what is no JSON: {detail}") from None

    def _in_thread(self, ask: Any) -> Any:
        worker = _Worker(self, ask)
        try:
            while not worker.done.wait(QUEUE_SECONDS):
                pass
        finally:
            worker.stop()
        return worker.result()

    def connections(self) -> "httpx2.AsyncClient":
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


@dataclass
class _Worker:
    """A coroutine on an event loop of its own, in a thread: this thread can be interrupted while it waits."""

    client: ServerClient
    ask: Any  # of connections: the coroutine
    done: threading.Event = field(default_factory=threading.Event)
    _found: list[Any] = field(default_factory=list)
    _error: list[BaseException] = field(default_factory=list)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _task: list["asyncio.Task[Any]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="vllm-client", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give up what is not answered."""
        if not self.done.is_set():
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._task])
        self._thread.join(timeout=2.0)

    def result(self) -> Any:
        """What was answered. Raises what was raised."""
        if self._error:
            raise _only(self._error[0])
        return self._found[0] if self._found else None

    def _run(self) -> None:
        try:
            self._task.append(self._loop.create_task(self._main()))
            self._found.append(self._loop.run_until_complete(self._task[0]))
        except BaseException as error:
            self._error.append(error)
        finally:
            self._loop.close()
            self.done.set()

    async def _main(self) -> Any:
        async with self.client.connections() as connections:
            coroutine: Coroutine[Any, Any, Any] = self.ask(connections)
            return await coroutine


def _only(error: BaseException) -> BaseException:
    """The first of the errors that a group holds: of rows that were asked for side by side."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _hint(path: str) -> str:
    if path.startswith("/v1/"):
        return ". It is no vLLM server, or serves another model by now"
    return (
        ". Weights and versions go by vLLM's endpoints of development: start the server by nearstep serve-engine, or "
        "with VLLM_SERVER_DEV_MODE=1, on an address that only you can reach"
    )
