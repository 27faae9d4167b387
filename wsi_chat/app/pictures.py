"""The pictures and files that the page asks for, as an ASGI application in front of the page's own.

    /slides/<id>/squares/<z>/<x>_<y>.jpg     a square of the pyramid; ?plane=n of a focal stack
    /slides/<id>/overview.jpg                the whole slide, small
    /slides/<id>/region.jpg?box=x0,y0,x1,y1  a region as a model was shown it
    /slides/<id>/heat.png, mask.png          layers, one pixel for each grid cell
    /slides/<id>/glass.png                   the foreground mask
    /fonts/chinese                           a font with Chinese characters, where this machine has one
    /slides/<id>/files/<name>                a document of the report (`source.DOCUMENTS`), nothing else

Answers carry an ETag made of the slide's fingerprint, so that a browser that has a picture gets 304 without reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import mimetypes
from collections.abc import Callable, Coroutine, Hashable
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from reports.fonts import chinese_font
from wsi_chat.app.layers import glass_png, heat_png, mask_png
from wsi_chat.app.slides import Shelf, ShownSlide
from wsi_chat.app.source import DOCUMENTS
from wsi_chat.app.squares import SlideReader, Workshop
from wsi_chat.errors import WsiChatError
from wsi_chat.schema import Box

FRESH = "private, max-age=600"
FONT = "/fonts/chinese"
OURS = ("/slides/", FONT)
REGION_PX = 768
OVERVIEW_PX = 512


class Pictures:
    """Answers what begins with ``/slides/``; all else goes to ``app``."""

    def __init__(self, app: ASGIApp, shelf: Shelf, workshop: Workshop) -> None:
        self._app = app
        self._shelf = shelf
        self._workshop = workshop
        self._router = Router(
            [
                Route("/slides/{name}/squares/{z:int}/{x:int}_{y:int}.jpg", self._square),
                Route("/slides/{name}/overview.jpg", self._overview),
                Route("/slides/{name}/region.jpg", self._region),
                Route("/slides/{name}/heat.png", self._heat),
                Route("/slides/{name}/mask.png", self._mask),
                Route("/slides/{name}/glass.png", self._glass),
                Route("/slides/{name}/files/{file}", self._file),
                Route(FONT, self._font),
            ],
            default=_nothing,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(OURS):
            await self._router(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    # ------------------------------------------------------------------------------------------ pictures

    async def _square(self, request: Request) -> Response:
        z, x, y = (int(request.path_params[name]) for name in ("z", "x", "y"))

        given = request.query_params.get("plane", "")
        plane = int(given) if given.isascii() and given.isdigit() else None

        def make(reader: SlideReader) -> Callable[[], bytes] | None:
            there = reader.pyramid.holds(z, x, y) and (plane is None or plane < reader.planes)
            return (lambda: reader.square(z, x, y, plane)) if there else None

        return await self._of_reader(request, ("square", z, x, y, plane), make)

    async def _overview(self, request: Request) -> Response:
        return await self._of_reader(request, ("overview",), lambda reader: lambda: reader.overview(OVERVIEW_PX))

    async def _region(self, request: Request) -> Response:
        try:
            x0, y0, x1, y1 = (float(part) for part in request.query_params.get("box", "").split(","))
            box = Box(x0, y0, x1, y1)
            px = min(REGION_PX, max(16, int(request.query_params.get("px", "384"))))
        except (ValueError, OverflowError):
            return PlainTextResponse("box=x0,y0,x1,y1 in level-0 pixels is needed.\n", 400)
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or box.area <= 0:
            return PlainTextResponse("The box is empty.\n", 400)

        def make(reader: SlideReader) -> Callable[[], bytes] | None:
            whole = Box(0, 0, *reader.slide.size)
            # a region reaches beyond the slide by no more than it is wide: nothing huge is ever made
            near = box.clipped(whole) is not None and max(box.width, box.height) <= 4 * max(reader.slide.size)
            return (lambda: reader.region(box, px)) if near else None

        return await self._of_reader(request, ("region", x0, y0, x1, y1, px), make)

    async def _of_reader(
        self, request: Request, key: tuple[Hashable, ...], make: Callable[[SlideReader], Callable[[], bytes] | None]
    ) -> Response:
        slide = await self._slide(request)
        if slide is None or slide.reader is None:
            return _nothing_here()
        work = make(slide.reader)
        if work is None:
            return _nothing_here()
        tag = f'"{slide.reader.version}-{"-".join(map(str, key))}"'
        return await self._answer(request, (slide.entry.id, slide.reader.version, *key), tag, work, "image/jpeg")

    async def _heat(self, request: Request) -> Response:
        return await self._layer(request, "heat", heat_png)

    async def _mask(self, request: Request) -> Response:
        return await self._layer(request, "mask", mask_png)

    async def _glass(self, request: Request) -> Response:
        slide = await self._slide(request)
        mask = None if slide is None else await asyncio.to_thread(lambda: slide.mask)
        if slide is None or mask is None:
            return _nothing_here()
        digest = hashlib.sha256(mask.kinds.tobytes()).hexdigest()[:16]
        key = (slide.entry.id, "glass", digest)
        return await self._answer(request, key, f'"glass-{digest}"', lambda: glass_png(mask), "image/png")

    async def _layer(self, request: Request, kind: str, draw: Callable[[Any], bytes]) -> Response:
        slide = await self._slide(request)
        if slide is None:
            return _nothing_here()
        grid = await asyncio.to_thread(lambda: slide.grid)
        if grid is None:
            return _nothing_here()
        digest = hashlib.sha256(grid.p_screen.tobytes() + grid.status.tobytes()).hexdigest()[:16]
        key = (slide.entry.id, kind, digest)
        return await self._answer(request, key, f'"{kind}-{digest}"', lambda: draw(grid), "image/png")

    async def _answer(
        self, request: Request, key: Hashable, tag: str, make: Callable[[], bytes], media_type: str
    ) -> Response:
        headers = {"etag": tag, "cache-control": FRESH}
        if tag in [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        try:
            picture = await _while_heard(request, self._workshop.picture(key, make))
        except WsiChatError as error:
            return PlainTextResponse(f"{error.message}\n", 422)
        if picture is None:
            return Response(status_code=499)  # nobody is there to read it
        return Response(picture, media_type=media_type, headers=headers)

    # ------------------------------------------------------------------------------------------ files

    async def _file(self, request: Request) -> Response:
        name = request.path_params["file"]
        entry = self._shelf.collection.entries.get(request.path_params["name"])
        if entry is None or name not in DOCUMENTS:
            return _nothing_here()
        path = entry.folder / name
        # a link out of the folder is not followed
        if not path.is_file() or path.resolve().parent != entry.folder.resolve():
            return _nothing_here()
        headers = {"cache-control": "private, no-cache", "content-security-policy": _policy_of(name)}
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return FileResponse(path, media_type=kind, headers=headers)

    async def _font(self, request: Request) -> Response:
        """A font with Chinese characters, for machines whose browser has none: the one that the PDF is set in."""
        try:
            path = await asyncio.to_thread(chinese_font)
        except WsiChatError:
            return _nothing_here()
        return FileResponse(path, media_type="font/otf", headers={"cache-control": "private, max-age=86400"})

    async def _slide(self, request: Request) -> ShownSlide | None:
        name = request.path_params["name"]
        try:
            return self._shelf.opened(name) or await asyncio.to_thread(self._shelf.get, name)
        except WsiChatError:
            return None


async def _while_heard(request: Request, work: Coroutine[Any, Any, bytes]) -> bytes | None:
    """The picture, or None where the browser went away before it was there; then it is no longer wanted."""
    making = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if making.done():
            return making.result()
        return None
    finally:
        for task in (making, leaving):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await _nothing_here()(scope, receive, send)


def _nothing_here() -> Response:
    return PlainTextResponse("There is nothing here.\n", 404)


def _policy_of(name: str) -> str:
    """report.html brings its own, stricter policy and is sandboxed besides; the others show nothing by themselves."""
    if name.endswith(".html"):
        return "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox allow-popups"
    return "default-src 'none'; style-src 'unsafe-inline'; object-src 'self'; plugin-types application/pdf"
