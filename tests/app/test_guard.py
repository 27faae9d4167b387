"""Who is let in: Host, Origin and token, on HTTP and on web sockets; and the policy that every answer carries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.app.asgi import Heard, ask
from wsi_chat.app.guard import Guard, is_loopback

TOKEN = "t0ken-of-24-letters-or-so"


async def inner(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"inside"})


def get(path: str = "/", *, host_: str = "127.0.0.1", token: str | None = None, **more: Any) -> Heard:
    return asyncio.run(ask(Guard(inner, host=host_, port=8470, token=token), path, **more))


@pytest.mark.parametrize("host", ["127.0.0.1:8470", "localhost:8470", "[::1]:8470", "LOCALHOST:8470"])
def test_loopback_is_let_in(host: str) -> None:
    assert get(host=host).body == b"inside"


@pytest.mark.parametrize(
    "host",
    ["evil.example:8470", "127.0.0.1:9999", "127.0.0.1.evil.example:8470", "", "a@127.0.0.1:8470x", "10.0.0.5:8470"],
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(host: str) -> None:
    heard = get(host=host)
    assert heard.status == 421
    assert b"inside" not in heard.body


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:3000", "https://localhost:8470.evil.example", "file://"]
)
def test_another_pages_request_is_refused(origin: str, kind: str) -> None:
    heard = get(kind=kind, origin=origin)
    assert heard.closed or heard.status == 403


def test_the_pages_own_requests_are_let_in() -> None:
    assert get(origin="http://127.0.0.1:8470").body == b"inside"
    assert not get(kind="websocket", origin="http://127.0.0.1:8470").closed


def test_other_sites_get_no_pictures_but_may_link_here() -> None:
    assert get(sec_fetch_site="cross-site", sec_fetch_mode="no-cors").status == 403
    assert get(sec_fetch_site="cross-site", sec_fetch_mode="navigate").status == 200


def test_every_answer_forbids_requests_elsewhere() -> None:
    policy = get().headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self' ws://127.0.0.1:8470" in policy
    assert "object-src 'none'" in policy
    assert "http:" not in policy.replace("http://127.0.0.1:*", "").replace("http://localhost:*", "")
    assert get(host="evil.example").headers["content-security-policy"] == "default-src 'none'"


@pytest.mark.parametrize(
    "path", ["/", "/?token=", "/?token=wrong", "/s/x?token=" + TOKEN[:-1], "/slides/x/overview.jpg"]
)
def test_without_the_token_nothing_is_shown(path: str) -> None:
    heard = get(path, host_="0.0.0.0", token=TOKEN, host="192.168.1.5:8470")
    assert heard.status == 403
    assert b"inside" not in heard.body
    assert TOKEN not in str(heard.headers)


def test_the_token_moves_from_the_address_into_a_cookie() -> None:
    heard = get(f"/s/x?lang=zh&token={TOKEN}", host_="0.0.0.0", token=TOKEN, host="192.168.1.5:8470")
    assert heard.status == 303
    assert heard.headers["location"] == "/s/x?lang=zh"
    assert "HttpOnly" in heard.headers["set-cookie"]
    assert "SameSite=Strict" in heard.headers["set-cookie"]
    cookie = f"wsi-chat-token={TOKEN}"
    opened = get("/s/x", host_="0.0.0.0", token=TOKEN, host="192.168.1.5:8470", cookie=cookie)
    assert opened.body == b"inside"
    assert "frame-ancestors 'none'" in opened.headers["content-security-policy"]
    assert not get("/", kind="websocket", host_="0.0.0.0", token=TOKEN, host="192.168.1.5:8470", cookie=cookie).closed


def test_the_way_in_leads_to_no_other_machine() -> None:
    heard = get(f"//evil.example/x?token={TOKEN}", host_="0.0.0.0", token=TOKEN, host="192.168.1.5:8470")
    assert heard.status in (303, 403)
    assert not heard.headers.get("location", "/").startswith("//")


def test_a_web_socket_without_the_cookie_is_closed() -> None:
    assert get("/", kind="websocket", host_="0.0.0.0", token=TOKEN, host="192.168.1.5:8470").closed
    assert get(f"/?token={TOKEN}", kind="websocket", host_="0.0.0.0", token=TOKEN, host="192.168.1.5:8470").closed


def test_a_page_for_every_address_still_refuses_foreign_names() -> None:
    cookie = f"wsi-chat-token={TOKEN}"
    assert get(host_="0.0.0.0", token=TOKEN, host="evil.example:8470", cookie=cookie).status == 421


@pytest.mark.parametrize(
    ("host", "near"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.0.0.2", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("lab-pc", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(host: str, near: bool) -> None:
    assert is_loopback(host) == near
