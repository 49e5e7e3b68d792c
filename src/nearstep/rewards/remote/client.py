"""Rewards from a server: one request for some rows, retried within bounds; secrets go to the server alone."""

import asyncio
import email.utils
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
import torch

from nearstep.common.errors import RewardError, shorten
from nearstep.common.random_streams import stream
from nearstep.common.secrets import secret_parts, without_secrets
from nearstep.config.rewards import is_loopback
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.remote.event_loop import EventLoop
from nearstep.rewards.remote.wire import LARGEST_BODY_BYTES, decode_answer, encode_request

FIRST_PAUSE_SECONDS = 0.5  # doubled after every try
LONGEST_PAUSE_SECONDS = 60.0  # of backoff, and of what a server may ask for by Retry-After
REQUESTS_AT_A_TIME = 4
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)  # the server may do better in a moment


@dataclass(frozen=True)
class Server:
    """Where rewards are asked for, and how patiently; `token` is sent as a bearer token and shown nowhere."""

    url: str
    token: "Secret | None" = None
    timeout_seconds: float = 60.0
    retries: int = 5
    batch_size: int = 64
    seed: int = 0  # of the jitter in the pauses

    @property
    def shown(self) -> str:
        """The server by scheme, host and port alone: a path may be a secret too."""
        url = urlsplit(self.url)
        return f"reward server {url.scheme}://{url.hostname}" + (f":{url.port}" if url.port else "")


class Secret:
    """A text that does not show in any representation."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"


class RemoteReward:
    """A reward server as a source of rewards."""

    name = "reward_url"

    def __init__(self, server: Server, policy: TokenizerIdentity) -> None:
        """`policy` is the tokenizer that wrote the ids of the rollout."""
        self._server = server
        self._policy = policy
        self._event_loop = EventLoop()

    def begin_early(self, rows: int) -> "RemoteHeadStart":
        """Take the rows of the next batch one by one; see StartsEarly."""
        requests = [range(start, min(start + self.batch_size, rows)) for start in range(0, rows, self.batch_size)]
        return RemoteHeadStart(self, requests, self._event_loop)

    async def score(self, batch: RewardBatch) -> Answer:
        """Ask about all rows, some at a time; rows about which nothing could be learnt are failed rows."""
        return await self.begin_early(len(batch)).score(batch)

    @property
    def batch_size(self) -> int:
        """Most rows in one request."""
        return self._server.batch_size

    def client(self) -> httpx2.AsyncClient:
        """Connections to the server, to be closed by the caller."""
        # The time limit is for a whole request, and asyncio keeps it: a server that drips would never overrun httpx2's.
        trust_env = not is_loopback(urlsplit(self._server.url).hostname or "")  # no proxy leads to this machine
        return httpx2.AsyncClient(timeout=None, follow_redirects=False, trust_env=trust_env)

    async def ask(self, part: RewardBatch, client: httpx2.AsyncClient) -> Answer:
        """The server's answer; after the last try, or where another makes no sense, an error in place of every row."""
        body, tries = encode_request(part, self._policy), 0
        while True:
            tries += 1
            reply = await self._try(body, part, client)
            if isinstance(reply, Answer):
                return reply
            if not reply.may_pass or tries > self._server.retries:
                counted = "1 try" if tries == 1 else f"{tries} tries"
                error = RewardError(
                    f"{self._server.shown} gave no rewards for {part.span()} after {counted}: {reply.what}"
                )
                return Answer([error] * len(part))
            await asyncio.sleep(self._pause(part, tries, reply.after_seconds))

    async def _try(self, body: bytes, part: RewardBatch, client: httpx2.AsyncClient) -> "Answer | _Failure":
        try:
            async with (
                asyncio.timeout(self._server.timeout_seconds),
                client.stream("POST", self._server.url, content=body, headers=self._headers()) as response,
            ):
                if response.status_code != 200:
                    return await self._refusal(response)
                return decode_answer(await _limited_body(response), part, self._server.shown, self._without_secrets)
        except TimeoutError:
            return _Failure(f"no answer within {self._server.timeout_seconds:g} s", may_pass=True)
        except httpx2.HTTPError as error:  # no connection, or a broken one
            return _Failure(self._without_secrets(f"{type(error).__name__}: {error}"), may_pass=True)
        except RewardError as error:  # an answer that is not of the protocol
            return _Failure(self._without_secrets(str(error)), may_pass=True)

    async def _refusal(self, response: httpx2.Response) -> "_Failure":
        status = f"status {response.status_code}"
        if response.is_redirect:
            return _Failure(
                f"{status}, a redirect to {self._target(response)}, which is not followed: give the address itself"
            )
        after_seconds = _retry_after(response.headers.get("retry-after"))
        # Secrets go before the text is cut: half of one at the cut would not be recognised.
        detail = self._without_secrets((await _limited_body(response)).decode("utf-8", "replace"))
        what = status + (f", {shorten(detail)}" if detail else "")
        return _Failure(what, may_pass=response.status_code in PASSING_STATUS, after_seconds=after_seconds)

    def _target(self, response: httpx2.Response) -> str:
        """The host of a redirect; a relative one stays where it is."""
        try:
            host = urlsplit(response.headers.get("location", "")).hostname
        except ValueError:
            return "an address that is none"
        return host or urlsplit(self._server.url).hostname or ""

    def _headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        return (
            headers
            if self._server.token is None
            else {**headers, "authorization": f"Bearer {self._server.token.reveal()}"}
        )

    def _without_secrets(self, text: str) -> str:
        """The message of a server or a library without the token and the address, which it may repeat."""
        text = text.replace(self._server.url, self._server.shown)
        token = [] if self._server.token is None else [self._server.token.reveal()]
        for part in [*token, *secret_parts(self._server.url)]:
            text = text.replace(part, "…")
        return str(without_secrets(text))

    def _pause(self, part: RewardBatch, tries: int, after_seconds: float | None) -> float:
        """Twice as long after each try, half of it by chance, and at least what the server asked for."""
        generator = stream(self._server.seed, "reward_url", part.episodes[0], tries)
        chance = float(torch.rand((), generator=generator))
        backoff = FIRST_PAUSE_SECONDS * 2.0 ** (tries - 1) * (0.5 + 0.5 * chance)
        return min(max(backoff, after_seconds or 0.0), LONGEST_PAUSE_SECONDS)


class RemoteHeadStart:
    """Requests about one batch: each is sent once all of its rows have ended; see HeadStart.

    The rows of a request are neighbours, as they are without a head start: a server that scores them together must not
    see others, and a run must not depend on which row ends first.
    """

    def __init__(self, remote: RemoteReward, requests: Sequence[range], event_loop: EventLoop) -> None:
        self._remote = remote
        self._requests = requests
        self._event_loop = event_loop
        self._rows: dict[int, RewardBatch] = {}
        self._begun: dict[int, tuple[RewardBatch, Future[Answer]]] = {}  # by the first row
        self._gate = asyncio.Semaphore(REQUESTS_AT_A_TIME)
        self._client: httpx2.AsyncClient | None = None

    def add(self, row: RewardBatch) -> None:
        """Note that a row has ended, and send the request that it completes."""
        number = row.number(0)
        self._rows[number] = row
        rows = self._requests[number // self._remote.batch_size]
        if all(other in self._rows for other in rows):
            self._ask(RewardBatch.joined([self._rows[other] for other in rows]))

    async def score(self, batch: RewardBatch) -> Answer:
        """The answers to all requests; those that were not sent, or whose rows have changed since, are sent now."""
        parts = [batch.select(rows) for rows in self._requests]
        try:
            futures = [self._answer(part) for part in parts]
            answers = await asyncio.gather(*map(asyncio.wrap_future, futures))
        finally:
            self.cancel()
        return _joined(parts, answers)

    def cancel(self) -> None:
        """Give up requests that are not answered, and close the connections."""
        begun, self._begun = self._begun, {}
        for _, future in begun.values():
            future.cancel()
        if begun:
            self._event_loop.submit(self._close())

    def _answer(self, part: RewardBatch) -> Future[Answer]:
        begun, future = self._begun.get(part.number(0), (None, None))
        if begun is not None and future is not None:
            if part.has_the_ids_of(begun):
                return future
            future.cancel()
        return self._ask(part)

    def _ask(self, part: RewardBatch) -> Future[Answer]:
        future = self._event_loop.submit(self._within_the_gate(part))
        self._begun[part.number(0)] = part, future
        return future

    async def _within_the_gate(self, part: RewardBatch) -> Answer:
        async with self._gate:
            if self._client is None:
                self._client = self._remote.client()
            return await self._remote.ask(part, self._client)

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


@dataclass(frozen=True)
class _Failure:
    """Why a try gave no answer, whether another may, and how many seconds the server asks to wait."""

    what: str
    may_pass: bool = False
    after_seconds: float | None = None


async def _limited_body(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > LARGEST_BODY_BYTES:
            raise RewardError(f"its answer is longer than {LARGEST_BODY_BYTES >> 20} MiB")
    return bytes(body)


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait, from a number or from a date; None where the header is missing or makes no sense."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _joined(parts: Sequence[RewardBatch], answers: Sequence[Answer]) -> Answer:
    """The answers to consecutive parts of a batch as one."""
    values: list[object] = []
    extras: dict[str, list[object]] = {}
    metrics: dict[str, list[float]] = {}
    rows = sum(map(len, parts))
    for part, answer in zip(parts, answers, strict=True):
        for column, logged in answer.extras.items():
            extras.setdefault(column, [None] * rows)[len(values) : len(values) + len(part)] = logged
        for name, numbers in answer.metrics.items():
            metrics.setdefault(name, []).extend(numbers)
        assert isinstance(answer.values, list)
        values += answer.values
    return Answer(values, extras, metrics)
