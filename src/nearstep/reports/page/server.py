"""`nearstep watch`: the page of a run that goes on, served to whoever may see it."""

import sys
from collections.abc import Mapping
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nearstep.reports.page.render import bokeh_script, page
from nearstep.reports.page.watched import Watched
from nearstep.rewards.remote.server.access import address, listen, same_secret

COOKIE = "nearstep_token"
HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def serve(watched: Watched, host: str, port: int, token: str | None) -> None:
    """Serve until interrupted. Raises ConfigError where the port is taken, or bokeh is missing."""
    bokeh_script()
    listener = listen(host, port)
    shown, port = address(listener)
    watched.look()
    app = make_app(watched, hosts=host_names(shown, port), token=token)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, proxy_headers=False, server_header=False, lifespan="off", ws="none",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    how = "" if token is None else "/?token=… with the token, once; after that the browser knows it"
    print(f"Watching {watched.folder} at http://{shown}:{port}{how} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    with listener:
        uvicorn.Server(config).run(sockets=[listener])


def host_names(host: str, port: int) -> frozenset[str] | None:
    """The values of Host that mean this server; None for an address that stands for all of a machine's."""
    if host in ("0.0.0.0", "[::]"):
        return None
    names = (host, "127.0.0.1", "localhost", "[::1]") if host in ("127.0.0.1", "[::1]") else (host,)
    return frozenset(name if port == 80 else f"{name}:{port}" for name in names)


def make_app(watched: Watched, *, hosts: frozenset[str] | None, token: str | None) -> Starlette:
    """GET / is the page, GET /data?after=VERSION its newer data, or 204."""

    def whole_page(request: Request) -> Response:
        watched.look()
        return HTMLResponse(page(watched.data(), live=True), headers=HEADERS)

    def newer_data(request: Request) -> Response:
        version, words = watched.look()
        if request.query_params.get("after") == version:
            return Response(status_code=204, headers={**HEADERS, "x-live": quote(words)})
        return Response(watched.json(), media_type="application/json", headers=HEADERS)

    asked = [Middleware(KnownHost, hosts=hosts)]
    if token is not None:
        asked.append(Middleware(TokenOrCookie, token=token))
    return Starlette(routes=[Route("/", whole_page), Route("/data", newer_data)], middleware=asked)


class KnownHost:
    """Lets a request through whose Host is exactly one of ours, and whose Origin, where it has one, is the same.

    So no page of another site can read a run through the reader's browser, by a name that leads here either.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or (self._hosts is not None and hosts[0] not in self._hosts):
            asked = ", ".join(hosts)[:200] or "no host"
            known = ", ".join(sorted(self._hosts or ()))
            refused = PlainTextResponse(f"This server answers to {known}, not to {asked}.\n", 421, headers=HEADERS)
            await refused(scope, receive, send)
        elif origins not in ([], [f"http://{hosts[0]}"]):
            await PlainTextResponse("Another site may not ask.\n", 403, headers=HEADERS)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class TokenOrCookie:
    """Lets a request through that carries the token as a header, or as the cookie that `/?token=…` gives."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if same_secret(request.headers.get("authorization", ""), f"Bearer {self._token}") or same_secret(
            request.cookies.get(COOKIE, ""), self._token
        ):
            await self._app(scope, receive, send)
        elif request.url.path == "/" and same_secret(request.query_params.get("token", ""), self._token):
            known = RedirectResponse("/", 303, headers=HEADERS)
            known.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            await known(scope, receive, send)
        else:
            refused = PlainTextResponse(
                "A token is needed: open /?token=…\n", 401, headers={**HEADERS, "www-authenticate": "Bearer"}
            )
            await refused(scope, receive, send)
