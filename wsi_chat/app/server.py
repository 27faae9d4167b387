"""The page's server: NiceGUI behind the guard and the pictures, in one process that listens at one place."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request
from nicegui import ui
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp

from wsi_chat.analysis.result import SlideResult
from wsi_chat.app.cohort_page import cohort_page
from wsi_chat.app.guard import Guard, is_loopback
from wsi_chat.app.head import language_script
from wsi_chat.app.page import SlidePage, style
from wsi_chat.app.pictures import Pictures
from wsi_chat.app.slides import Shelf
from wsi_chat.app.source import Collection
from wsi_chat.app.squares import KEPT_BYTES, Workshop
from wsi_chat.app.words import PageWords, language_of
from wsi_chat.errors import OutputError, SettingError, WsiChatError
from wsi_chat.schema import Language

if TYPE_CHECKING:
    from wsi_chat.chat.conversation import Conversation

LANGUAGE_COOKIE = "wsi-chat-language"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the page is served. ``url`` is what to open, with the token where one is needed."""

    host: str
    port: int
    token: str | None

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host == "localhost" else self.host
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.port}/" + (f"?token={self.token}" if self.token else "")


def bind(host: str, port: int) -> tuple[socket.socket, Place]:
    """Listen at a place; a port of 0 takes a free one. Other places than loopback get a token.

    Raises:
        SettingError: nothing can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise SettingError(
            f"--host {host} --port {port}: cannot be listened at ({error.strerror or error}).",
            hint="Choose another --port (0 takes a free one).",
        ) from error
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    return listening, Place(host, int(listening.getsockname()[1]), token)


def make_app(shelf: Shelf, workshop: Workshop, place: Place, *, language: Language = "en") -> ASGIApp:
    """The whole application; one per process, since NiceGUI has one."""
    inner = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _pages(shelf, language)
    ui.run_with(inner, title="wsi-chat", dark=None, tailwind=False, show_welcome_message=False, reconnect_timeout=10.0)
    return Guard(Pictures(inner, shelf, workshop), host=place.host, port=place.port, token=place.token)


def _pages(shelf: Shelf, default: Language) -> None:
    def words_for(request: Request, **more: Any) -> PageWords:
        wanted = request.query_params.get("lang") or request.cookies.get(LANGUAGE_COOKIE)
        return PageWords(language_of(wanted, default), **more)

    def dress(words: PageWords, title: str) -> None:
        ui.add_css(style())
        ui.page_title(title)
        ui.add_head_html(language_script(words))

    @ui.page("/")
    def start(request: Request) -> Response | None:
        only = shelf.collection.only
        if only is not None:
            return RedirectResponse(f"/s/{only.id}")
        words = words_for(request)
        dress(words, words("cohort_title", n=len(shelf.collection.entries)))
        cohort_page(shelf, words)
        return None

    @ui.page("/s/{name}", response_timeout=60)
    async def slide(request: Request, name: str) -> Response | None:
        words = words_for(request)
        try:
            shown = await asyncio.to_thread(shelf.get, name)
        except WsiChatError as error:
            return PlainTextResponse(words("states.damaged", error=error) + "\n", 500)
        if shown is None:
            return PlainTextResponse(words("states.missing", name=name[:80]) + "\n", 404)
        words = words_for(request, system=shown.system)
        await asyncio.to_thread(lambda: (shown.grid, shown.mask, shown.tiles))
        dress(words, words("title", slide=shown.entry.id))
        SlidePage(shelf, shown, words)
        return None


def serve(
    collection: Collection,
    converse: Callable[[SlideResult | Path], Conversation],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    language: Language = "en",
    workers: int | None = None,
    kept_bytes: int = KEPT_BYTES,
    started: Callable[[Place], None] = lambda place: None,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        converse: opens a conversation about a run's result or a slide file.
        workers: threads that read pictures.
        kept_bytes: pictures that are kept in memory.
        started: called when the page can be opened.

    Raises:
        SettingError: the place cannot be listened at. OutputError: a review is damaged.
    """
    listening, place = bind(host, port)
    shelf, workshop = Shelf(collection, converse), Workshop(workers=workers, capacity=kept_bytes)
    try:
        app = make_app(shelf, workshop, place, language=language)
        config = uvicorn.Config(
            app, log_level="warning", ws="wsproto", server_header=False, timeout_graceful_shutdown=2
        )
        server = _Server(config, lambda: started(place))
        server.run(sockets=[listening])
        if not server.started:
            raise OutputError("The page could not be started.", hint="See the messages above.")
    finally:
        workshop.close()
        shelf.close()
        listening.close()


class _Server(uvicorn.Server):
    """A server that says when it can be asked."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()
