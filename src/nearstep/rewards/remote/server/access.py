"""Who may ask a server of ours, and where it listens."""

import hmac
import socket

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from nearstep.common.errors import ConfigError


class RequireToken:
    """Lets a request through if it carries the token; compared in constant time, and written nowhere.

    The paths in `open_to_all` ask for none.
    """

    def __init__(self, app: ASGIApp, token: str, open_to_all: tuple[str, ...]) -> None:
        self._app = app
        self._token = token
        self._open = open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open:
            given = Headers(scope=scope).get("authorization", "")
            if not same_secret(given, f"Bearer {self._token}"):
                refused = JSONResponse(
                    {"error": "a token is needed"}, status_code=401, headers={"www-authenticate": "Bearer"}
                )
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


def same_secret(given: str, expected: str) -> bool:
    """Whether two texts are the same, in a time that does not say where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any that is free. Raises ConfigError where it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


def address(listener: socket.socket) -> tuple[str, int]:
    """Host, as it stands in a URL, and port of a listening socket."""
    host, port = listener.getsockname()[:2]
    return (f"[{host}]" if ":" in host else host), port
