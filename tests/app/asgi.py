"""Asks an ASGI application without a server, and hears everything that it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

App = Callable[..., Awaitable[None]]


@dataclass
class Heard:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    closed: bool = False


async def ask(app: App, path: str, *, kind: str = "http", leaves: float | None = None, **headers: str) -> Heard:
    """Ask for a path; with ``leaves`` the client goes away after so many seconds. ``host`` is 127.0.0.1:8470."""
    parts = urlsplit(path)
    names = {"host": "127.0.0.1:8470", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope: dict[str, Any] = {
        "type": kind, "method": "GET", "path": parts.path, "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(), "root_path": "", "scheme": "http", "http_version": "1.1",
        "server": ("127.0.0.1", 8470), "client": ("127.0.0.1", 5000), "subprotocols": [],
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in names.items()],
    }  # fmt: skip
    heard = Heard()
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if kind == "websocket":
            return {"type": "websocket.connect"}
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(3600 if leaves is None else leaves)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            heard.status = message["status"]
            heard.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
        elif message["type"] == "http.response.body":
            heard.body += message.get("body", b"")
        elif message["type"] == "websocket.close":
            heard.closed = True

    await app(scope, receive, send)
    return heard
