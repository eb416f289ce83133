"""What stands before every request: who asks, from where, how much is sent, and what a browser may do with the answer.

A page on this machine is reached by every page that its user visits. So a request must name this server (against names
that are made to lead here), must not come from another site, and must be JSON if it changes something. On an address
that others reach it must also bring the token.
"""

import hmac
import ipaddress
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Most bytes of a request: a configuration has at most 1 MiB.
MOST_BYTES = 2**20
# Where files are sent to, and how large they may be.
UPLOADS = ("/data/upload", "/data/mask")
MOST_UPLOAD = 64 * 2**20
_SAFE = ("GET", "HEAD")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """ASGI middleware that lets through what the page itself may ask.

    Args:
        app: the page.
        hosts: names that the server answers to, without ports; numbers of addresses are always taken where there is a
            token, for no page can have both a foreign name and the token's cookie.
        token: what a browser must bring once, as `?token=`; None where none is needed.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], token: str | None) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no web sockets
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers) or self._unknown(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await _Limited(self._app, _most(scope))(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return PlainTextResponse("This server has another name. Open the address that `fera web` printed.", 421)
        site = headers.get("sec-fetch-site", "same-origin")
        origin = headers.get("origin")
        if scope["method"] in _SAFE:
            # A link from elsewhere may open the page; nothing else from elsewhere may read from it.
            if site in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
                return PlainTextResponse("Another site may not ask this.", 403)
            return None
        if site not in ("same-origin", "none") or (origin is not None and urlsplit(origin).netloc != host):
            return PlainTextResponse("Another site may not ask this.", 403)
        # Neither kind is sent by a form of another site, nor by its script without asking first.
        kind = "application/octet-stream" if scope["path"] in UPLOADS else "application/json"
        if headers.get("content-type", "").partition(";")[0].strip() != kind:
            return PlainTextResponse(f"Send {kind}.", 415)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > (most := _most(scope)):
            return PlainTextResponse(_too_much(most), 413)
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or (self._token is not None and _is_address(name))

    def _unknown(self, scope: Scope, headers: Headers) -> PlainTextResponse | RedirectResponse | None:
        """The answer to who has not shown the token; None for who has, or where there is none."""
        if self._token is None or _matches(_cookie(headers, _cookie_name(scope)), self._token):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["method"] in _SAFE and _matches(given, self._token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(_cookie_name(scope), self._token, httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("Open the address that `fera web` printed, with its token.", 401)


class _Limited:
    """Breaks off a request that sends more than it may, whatever length it told."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise _TooMuch
            return message

        try:
            await self._app(scope, counted, send)
        except _TooMuch:
            await PlainTextResponse(_too_much(self._most), 413)(scope, receive, send)


class _TooMuch(Exception):
    """More was sent than is taken."""


def _most(scope: Scope) -> int:
    """Most bytes that a request may send."""
    return MOST_UPLOAD if scope["path"] in UPLOADS else MOST_BYTES


def _too_much(most: int) -> str:
    return f"That is more than {most:,} bytes."


def own_names(host: str) -> set[str]:
    """Names by which a server on an address is asked.

    Args:
        host: the address that it binds to.
    """
    local = {"localhost", "127.0.0.1", "::1"}
    if is_loopback(host):
        return local
    return local | {host, socket.gethostname().lower(), socket.getfqdn().lower()}


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _cookie_name(scope: Scope) -> str:
    # Cookies know no ports: two servers on a machine would overwrite each other's.
    return f"fera-{(scope.get('server') or ('', 0))[1]}"


def _cookie(headers: Headers, name: str) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def _matches(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _with_headers(send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return answer
