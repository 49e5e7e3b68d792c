"""How something is asked over HTTP: one POST, retried within bounds; secrets go to the server alone."""

import asyncio
import email.utils
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2
import torch

from nearstep.common.access_tokens import Secret
from nearstep.common.errors import NearstepError, shorten
from nearstep.common.places import is_loopback
from nearstep.common.random_streams import stream
from nearstep.common.secrets import secret_parts, without_secrets
from nearstep.common.waiting import waiting

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.5  # doubled after every try
LONGEST_PAUSE_SECONDS = 60.0  # of backoff, and of what a server may ask for by Retry-After
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)  # the server may do better in a moment


@dataclass(frozen=True)
class Unanswered:
    """What became of the last try, after how many of them."""

    what: str
    tries: int

    @property
    def counted(self) -> str:
        """The tries in words."""
        return "1 try" if self.tries == 1 else f"{self.tries} tries"


class Turnstile(Protocol):
    """What stands before every single try, such as a limit of requests a minute."""

    async def enter(self) -> None:
        """Wait until a try may be made. A NearstepError that it raises ends the asking."""

    def leave(self, *, answered: bool) -> None:
        """The try is over. Not `answered`: by a time limit, a broken connection, or with what is no answer."""


class OpenTurnstile:
    """Every try may be made at once."""

    async def enter(self) -> None:
        """Nothing to wait for."""

    def leave(self, *, answered: bool) -> None:
        """Nothing to note."""


@dataclass(frozen=True)
class Endpoint:
    """Where something is asked for, and how patiently; `token` is sent as a bearer token and shown nowhere.

    `kind` is what messages call it, `name` the stream of the jitter in its pauses; a longer answer than
    `largest_body_bytes` is refused.
    """

    url: str
    kind: str
    name: str
    largest_body_bytes: int
    token: Secret | None = None
    timeout_seconds: float = 60.0
    retries: int = 5
    seed: int = 0

    @property
    def shown(self) -> str:
        """The server by scheme, host and port alone: a path may be a secret too."""
        url = urlsplit(self.url)
        return f"{self.kind} {url.scheme}://{url.hostname}" + (f":{url.port}" if url.port else "")

    def client(self) -> httpx2.AsyncClient:
        """Connections to the server, to be closed by the caller."""
        # The time limit is for a whole request, and asyncio keeps it: a server that drips would never overrun httpx2's.
        url = urlsplit(self.url)
        trust_env = not is_loopback(url.hostname or "")  # no proxy leads to this machine
        needs_certificates = url.scheme != "http"  # to load those of all authorities takes a moment
        return httpx2.AsyncClient(timeout=None, follow_redirects=False, trust_env=trust_env, verify=needs_certificates)

    async def ask(
        self,
        body: bytes,
        read: Callable[[bytes], T],
        client: httpx2.AsyncClient,
        position: int,
        gate: Turnstile | None = None,
        awaited: Callable[[], str] = lambda: "",
    ) -> T | Unanswered:
        """What `read` makes of the server's answer; or what was wrong after the last try, or where another makes no
        sense. A NearstepError of `read` says that an answer is none. `position` tells pauses of questions apart,
        `awaited` says what is asked about.
        """
        gate, tries = gate or OpenTurnstile(), 0
        while True:
            tries += 1
            await gate.enter()
            try:
                with waiting(self.shown, awaited, limit_seconds=self.timeout_seconds):  # asyncio keeps its limit
                    reply = await self._try(body, read, client)
            except BaseException:  # it was interrupted, and the server may bill it
                gate.leave(answered=False)
                raise
            gate.leave(answered=not isinstance(reply, _Failure) or reply.answered)
            if not isinstance(reply, _Failure):
                return reply
            if not reply.may_pass or tries > self.retries:
                return Unanswered(reply.what, tries)
            await asyncio.sleep(self.pause_seconds(position, tries, reply.after_seconds))

    async def _try(self, body: bytes, read: Callable[[bytes], T], client: httpx2.AsyncClient) -> "T | _Failure":
        try:
            async with (
                asyncio.timeout(self.timeout_seconds),
                client.stream("POST", self.url, content=body, headers=self._headers()) as response,
            ):
                if response.status_code != 200:
                    return await self._refusal(response)
                return read(await self._limited_body(response))
        except TimeoutError:
            return _Failure(f"no answer within {self.timeout_seconds:g} s", may_pass=True, answered=False)
        except httpx2.HTTPError as error:  # no connection, or a broken one
            what = self.without_secrets(f"{type(error).__name__}: {error}")
            return _Failure(what, may_pass=True, answered=False)
        except NearstepError as error:  # an answer that is not of the protocol
            return _Failure(self.without_secrets(str(error)), may_pass=True, answered=False)

    async def _refusal(self, response: httpx2.Response) -> "_Failure":
        status = f"status {response.status_code}"
        if response.is_redirect:
            return _Failure(
                f"{status}, a redirect to {self._target(response)}, which is not followed: give the address itself"
            )
        after_seconds = _retry_after(response.headers.get("retry-after"))
        # Secrets go before the text is cut: half of one at the cut would not be recognised.
        detail = self.without_secrets((await self._limited_body(response)).decode("utf-8", "replace"))
        what = status + (f", {shorten(detail)}" if detail else "")
        return _Failure(what, may_pass=response.status_code in PASSING_STATUS, after_seconds=after_seconds)

    def _target(self, response: httpx2.Response) -> str:
        """The host of a redirect; a relative one stays where it is."""
        try:
            host = urlsplit(response.headers.get("location", "")).hostname
        except ValueError:
            return "an address that is none"
        return host or urlsplit(self.url).hostname or ""

    def _headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        return headers if self.token is None else {**headers, "authorization": f"Bearer {self.token.reveal()}"}

    async def _limited_body(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > self.largest_body_bytes:
                raise NearstepError(f"its answer is longer than {self.largest_body_bytes >> 20} MiB")
        return bytes(body)

    def without_secrets(self, text: str) -> str:
        """The message of a server or a library without the token and the address, which it may repeat."""
        text = text.replace(self.url, self.shown)
        token = [] if self.token is None else [self.token.reveal()]
        for part in [*token, *secret_parts(self.url)]:
            text = text.replace(part, "…")
        return str(without_secrets(text))

    def pause_seconds(self, position: int, tries: int, after_seconds: float | None) -> float:
        """Twice as long after each try, half of it by chance, and at least what the server asked for."""
        chance = float(torch.rand((), generator=stream(self.seed, self.name, position, tries)))
        backoff = FIRST_PAUSE_SECONDS * 2.0 ** (tries - 1) * (0.5 + 0.5 * chance)
        return min(max(backoff, after_seconds or 0.0), LONGEST_PAUSE_SECONDS)


@dataclass(frozen=True)
class _Failure:
    """Why a try gave no answer, whether another may, and how many seconds the server asks to wait."""

    what: str
    may_pass: bool = False
    after_seconds: float | None = None
    answered: bool = True


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
