"""Rewards from a server: one request for some rows; see common/http_post for tries, pauses and secrets."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import httpx2

from nearstep.common.access_tokens import Secret
from nearstep.common.errors import RewardError
from nearstep.common.http_post import Endpoint
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.remote.event_loop import EventLoop
from nearstep.rewards.remote.wire import LARGEST_BODY_BYTES, decode_answer, encode_request

REQUESTS_AT_A_TIME = 4


@dataclass(frozen=True)
class Server:
    """Where rewards are asked for, and how patiently; `token` is sent as a bearer token and shown nowhere."""

    url: str
    token: Secret | None = None
    timeout_seconds: float = 60.0
    retries: int = 5
    batch_size: int = 64
    seed: int = 0  # of the jitter in the pauses

    @property
    def endpoint(self) -> Endpoint:
        """How it is asked."""
        return Endpoint(
            self.url,
            kind="reward server",
            name=RemoteReward.name,
            largest_body_bytes=LARGEST_BODY_BYTES,
            token=self.token,
            timeout_seconds=self.timeout_seconds,
            retries=self.retries,
            seed=self.seed,
        )


class RemoteReward:
    """A reward server as a source of rewards."""

    name = "reward_url"

    def __init__(self, server: Server, policy: TokenizerIdentity) -> None:
        """`policy` is the tokenizer that wrote the ids of the rollout."""
        self.batch_size = server.batch_size  # most rows in one request
        self.endpoint = server.endpoint
        self._policy = policy
        self._event_loop = EventLoop()

    def begin_early(self, rows: int) -> "RemoteHeadStart":
        """Take the rows of the next batch one by one; see StartsEarly."""
        requests = [range(start, min(start + self.batch_size, rows)) for start in range(0, rows, self.batch_size)]
        return RemoteHeadStart(self, requests, self._event_loop)

    async def score(self, batch: RewardBatch) -> Answer:
        """Ask about all rows, some at a time; rows about which nothing could be learnt are failed rows."""
        return await self.begin_early(len(batch)).score(batch)

    async def ask(self, part: RewardBatch, client: httpx2.AsyncClient) -> Answer:
        """The server's answer; after the last try, or where another makes no sense, an error in place of every row."""
        server = self.endpoint

        def read(body: bytes) -> Answer:
            return decode_answer(body, part, server.shown, server.without_secrets)

        reply = await server.ask(encode_request(part, self._policy), read, client, part.episodes[0], awaited=part.span)
        if isinstance(reply, Answer):
            return reply
        error = RewardError(f"{server.shown} gave no rewards for {part.span()} after {reply.counted}: {reply.what}")
        return Answer([error] * len(part))


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
                self._client = self._remote.endpoint.client()
            return await self._remote.ask(part, self._client)

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


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
