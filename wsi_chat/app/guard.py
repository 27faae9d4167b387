"""Who may ask: the Host and Origin of every request, the token where the page is offered to other machines.

Every answer carries a policy under which the browser sends no request to any other place.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COOKIE = "wsi-chat-token"
# Vue compiles templates in the browser and NiceGUI's start is an inline script: both stay within the page itself
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'{sockets}; object-src 'none';"
    " base-uri 'none'; form-action 'self'; frame-ancestors {ancestors}"
)


def is_loopback(host: str) -> bool:
    """Whether a host to listen at is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware around the whole application, web sockets included.

    Args:
        app: the application.
        host: where the page listens.
        port: the same.
        token: None on loopback; elsewhere what ``?token=`` must be. It moves into a cookie that scripts cannot read,
            and out of the address.
    """

    def __init__(self, app: App, *, host: str, port: int, token: str | None = None) -> None:
        self._app = app
        self._port = port
        self._token = token
        self._any = host in ("0.0.0.0", "::")
        names = {*LOOPBACK, host.strip("[]").casefold()}
        if self._any:
            names.update({socket.gethostname().casefold(), socket.getfqdn().casefold()})
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._is_ours(host):
            await self._refuse(scope, receive, send, 421, "This address is not served here.")
            return
        origin = headers.get("origin")
        if origin is not None and not self._same(origin, host):
            await self._refuse(scope, receive, send, 403, "Requests of other pages are refused.")
            return
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            await self._refuse(scope, receive, send, 403, "Requests of other pages are refused.")
            return
        if self._token is not None and not self._admits(headers):
            await self._at_the_door(scope, receive, send)
            return
        await self._app(scope, receive, self._with_policy(send, host))

    # ------------------------------------------------------------------------------------------ host and origin

    def _is_ours(self, host: str) -> bool:
        name, port = _split(host)
        if port is not None and port != self._port:
            return False
        if name in self._names:
            return True
        return self._any and _is_address(name)  # a name that was rebound to this machine is no address

    def _same(self, origin: str, host: str) -> bool:
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.casefold() == host.casefold()

    # ------------------------------------------------------------------------------------------ token

    def _admits(self, headers: MutableMapping[str, str]) -> bool:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except Exception:  # a broken cookie is no cookie
            return False
        given = cookies.get(COOKIE)
        return given is not None and self._equal(given.value)

    def _equal(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), (self._token or "").encode())

    async def _at_the_door(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The token in the address opens the page once; without it nothing is shown, not even that there is a page."""
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        given = query.pop("token", [""])[0]
        if scope["type"] == "websocket" or not self._equal(given):
            await self._refuse(
                scope, receive, send, 403, "Open the address that wsi-chat view printed, with its token."
            )
            return
        path = scope.get("path", "/") or "/"
        # one slash: `//elsewhere` would be another machine
        place = "/" + path.lstrip("/\\") + (f"?{urlencode(query, doseq=True)}" if query else "")
        cookie = f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", place.encode("ascii", "ignore")), (b"set-cookie", cookie.encode()),
                   (b"referrer-policy", b"no-referrer"), (b"content-length", b"0")]  # fmt: skip
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    # ------------------------------------------------------------------------------------------ answers

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: int, text: str) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": text})
            return
        body = (text + "\n").encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"content-security-policy", b"default-src 'none'"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _with_policy(self, send: Send, host: str) -> Send:
        ancestors = "'none'" if self._token is not None else "'self' http://127.0.0.1:* http://localhost:*"
        policy = POLICY.format(sockets=f" ws://{host} wss://{host}", ancestors=ancestors)
        added = [
            (b"content-security-policy", policy.encode("latin-1")),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
        ]

        async def sender(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message.get("headers", ())}
                message = {**message, "headers": [*message.get("headers", ()), *_missing(added, present)]}
            await send(message)

        return sender


def _missing(added: Iterable[tuple[bytes, bytes]], present: set[bytes]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in added if name not in present]


def _split(host: str) -> tuple[str, int | None]:
    """Name and port of a Host header; the port is None where it is left out, -1 where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "").casefold(), parts.port
    except ValueError:
        return "", -1


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
