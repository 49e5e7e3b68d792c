"""Rewards from a server: one request for some rows, repeated within bounds, and no secret told to anybody else."""

import asyncio
import email.utils
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
import torch

from nearstep.config_rewards import is_loopback
from nearstep.errors import RewardError, shorten
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.wire import LARGEST_BODY_BYTES, decode_answer, encode_question
from nearstep.streams import stream

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

    async def score(self, batch: RewardBatch) -> Answer:
        """Ask about all rows, some at a time; rows about which nothing could be learnt are failed rows."""
        size, gate = self._server.batch_size, asyncio.Semaphore(REQUESTS_AT_A_TIME)
        parts = [batch.select(range(start, min(start + size, len(batch)))) for start in range(0, len(batch), size)]
        # The time limit is for a whole request, and asyncio keeps it: a server that drips would never overrun httpx2's.
        trust_env = not is_loopback(urlsplit(self._server.url).hostname or "")  # no proxy leads to this machine
        async with httpx2.AsyncClient(timeout=None, follow_redirects=False, trust_env=trust_env) as client:

            async def ask(part: RewardBatch) -> Answer:
                async with gate:
                    return await self._ask(part, client)

            return _joined(parts, await asyncio.gather(*(ask(part) for part in parts)))

    async def _ask(self, part: RewardBatch, client: httpx2.AsyncClient) -> Answer:
        """The server's answer; after the last try, or where another makes no sense, an error in place of every row."""
        body, tries = encode_question(part, self._policy), 0
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
            host = urlsplit(response.headers.get("location", "")).hostname or urlsplit(self._server.url).hostname
            return _Failure(f"{status}, a redirect to {host}, which is not followed: give the address itself")
        after_seconds = _retry_after(response.headers.get("retry-after"))
        # Secrets go before the text is cut: half of one at the cut would not be known again.
        detail = self._without_secrets((await _limited_body(response)).decode("utf-8", "replace"))
        what = status + (f", {shorten(detail)}" if detail else "")
        return _Failure(what, may_pass=response.status_code in PASSING_STATUS, after_seconds=after_seconds)

    def _headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        return (
            headers
            if self._server.token is None
            else {**headers, "authorization": f"Bearer {self._server.token.reveal()}"}
        )

    def _without_secrets(self, text: str) -> str:
        """What a server or a library said, less the token and the address, which it may have repeated."""
        text = text.replace(self._server.url, self._server.shown)
        return text if self._server.token is None else text.replace(self._server.token.reveal(), "…")

    def _pause(self, part: RewardBatch, tries: int, after_seconds: float | None) -> float:
        """Twice as long after each try, half of it by chance, and at least what the server asked for."""
        generator = stream(self._server.seed, "reward_url", part.episodes[0], tries)
        chance = float(torch.rand((), generator=generator))
        backoff = FIRST_PAUSE_SECONDS * 2.0 ** (tries - 1) * (0.5 + 0.5 * chance)
        return min(max(backoff, after_seconds or 0.0), LONGEST_PAUSE_SECONDS)


@dataclass(frozen=True)
class _Failure:
    """Why a try gave no answer, whether another may, and after how many seconds the server wants it."""

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
    except ValueError:
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
