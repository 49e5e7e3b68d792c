"""The reward server as an ASGI application: who is let in, how much is read, and what is answered with which status."""

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nearstep.common.errors import RewardError
from nearstep.rewards.batch import RewardBatch
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.remote.server.access import RequireToken
from nearstep.rewards.remote.wire import decode_request

HEALTH = "/health"
READING_SECONDS = 60.0

ScoreBatch = Callable[[RewardBatch, TokenizerIdentity], bytes]


def make_app(score_batch: ScoreBatch, names: list[str], *, token: str | None, max_body_bytes: int) -> Starlette:
    """POST /score and GET /health; with a token, everything but /health asks for it.

    `score_batch` gives the body of an answer. It is called in a thread, for one request at a time: models and functions
    need not be safe in several.
    """
    turn = asyncio.Lock()

    async def score(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _refusal(415, "content-type must be application/json")  # which no foreign web page can send unasked
        body = await _body(request, max_body_bytes)
        if isinstance(body, Response):
            return body
        try:
            batch, identity = decode_request(body)
            async with turn:
                answer = await run_in_threadpool(score_batch, batch, identity)
        except RewardError as error:
            return _refusal(422, str(error))
        return Response(answer, media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "rewards": names})

    return Starlette(
        routes=[Route("/score", score, methods=["POST"]), Route(HEALTH, health, methods=["GET"])],
        middleware=[] if token is None else [Middleware(RequireToken, token=token, open_to_all=(HEALTH,))],
    )


async def _body(request: Request, max_bytes: int) -> bytes | Response:
    """The body, or the refusal of one that is too long or too slow."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > max_bytes:
        return _refusal(413, f"a body may have {max_bytes} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(READING_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    return _refusal(413, f"a body may have {max_bytes} bytes")
    except TimeoutError:
        return _refusal(408, f"the body did not arrive within {READING_SECONDS:g} s")
    except ClientDisconnect:
        return _refusal(400, "the body broke off")
    return bytes(body)


def _refusal(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=status)
