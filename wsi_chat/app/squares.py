"""Pictures of a slide for many browsers at once: read in a few threads, kept up to a number of bytes.

A picture that several ask for is read once; one that nobody waits for any more is not read at all. What is held in
memory is bounded: the kept pictures by their bytes, open slides by their number, readings by the number of threads.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilers import Slide, open_slide
from wsi_chat.app.pyramid import SQUARE_PX, Pyramid
from wsi_chat.schema import Box

KEPT_BYTES = 256 * 2**20
QUALITY = 88
OVERVIEW_PX = 2048
FAR = 2.0
"""A square that shows this many times less than the nearest level of the file is cut from the overview."""


class Kept:
    """The pictures used last, up to ``capacity`` bytes. Not thread-safe: it lives on the event loop."""

    def __init__(self, capacity: int = KEPT_BYTES) -> None:
        self.capacity = capacity
        self.held = 0
        self._pictures: OrderedDict[Hashable, bytes] = OrderedDict()

    def get(self, key: Hashable) -> bytes | None:
        found = self._pictures.get(key)
        if found is not None:
            self._pictures.move_to_end(key)
        return found

    def put(self, key: Hashable, picture: bytes) -> None:
        old = self._pictures.pop(key, None)
        if old is not None:
            self.held -= len(old)
        if len(picture) > self.capacity:
            return
        self._pictures[key] = picture
        self.held += len(picture)
        while self.held > self.capacity:
            _, gone = self._pictures.popitem(last=False)
            self.held -= len(gone)

    def __len__(self) -> int:
        return len(self._pictures)


@dataclass(slots=True)
class _Work:
    """A picture under way and how many wait for it."""

    future: Future[bytes]
    shared: asyncio.Future[bytes]
    waiting: int = 0


class Workshop:
    """Makes pictures in ``workers`` threads. Its coroutine belongs to one event loop."""

    def __init__(self, *, workers: int | None = None, capacity: int = KEPT_BYTES) -> None:
        self.kept = Kept(capacity)
        self.made = 0
        self.dropped = 0
        self._pool = ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), thread_name_prefix="wsi-chat-square")
        self._under_way: dict[Hashable, _Work] = {}

    async def picture(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The picture under ``key``, made by ``make`` on a thread unless it is kept or under way already.

        Cancelling the last coroutine that waits for a picture takes it out of the queue. What ``make`` raises is
        raised here.
        """
        found = self.kept.get(key)
        if found is not None:
            return found
        work = self._under_way.get(key)
        if work is None:
            future = self._pool.submit(make)
            work = _Work(future, asyncio.wrap_future(future))
            self._under_way[key] = work
            work.shared.add_done_callback(lambda done: self._finished(key, done))
        work.waiting += 1
        try:
            return await asyncio.shield(work.shared)
        finally:
            work.waiting -= 1
            if work.waiting == 0 and not work.shared.done() and work.future.cancel():
                self.dropped += 1
                self._under_way.pop(key, None)

    def _finished(self, key: Hashable, done: asyncio.Future[bytes]) -> None:
        self._under_way.pop(key, None)
        if not done.cancelled() and done.exception() is None:
            self.made += 1
            self.kept.put(key, done.result())

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class SlideReader:
    """Reads one open slide from several threads, each on a handle of its own.

    Only the scan is read, through `tilers`; label and macro are never opened.
    """

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self.pyramid = Pyramid(*slide.size)
        self.planes = int(getattr(slide, "planes", 1))
        self.version = slide.fingerprint[:16]
        self._local = threading.local()
        self._clones: list[Slide] = []
        self._lock = threading.Lock()
        self._overview: NDArray[np.uint8] | None = None

    def square(self, z: int, x: int, y: int, plane: int | None = None) -> bytes:
        """A square of the pyramid as JPEG, 256 x 256 px; beyond the slide it has the background's colour.

        Args:
            plane: of a focal stack, counted from 0; None shows what the slide was opened for, the sharpest one.

        Raises:
            SlideUnreadable: nothing of it could be read.
        """
        box = self.pyramid.box(z, x, y)
        scale = float(1 << z)
        overview_scale = max(self.slide.size) / OVERVIEW_PX
        if plane is None and scale >= overview_scale and scale > FAR * self._nearest(scale):
            return jpeg(self._from_overview(box))
        return jpeg(self._handle(plane).crop(box, SQUARE_PX))

    def region(self, box: Box, px: int) -> bytes:
        """A rectangle (level-0 px) as JPEG, its longer side ``px``. Raises SlideUnreadable."""
        return jpeg(self._handle().crop(box, px))

    def overview(self, px: int) -> bytes:
        """The whole slide as JPEG, its longer side at most ``px``."""
        picture = Image.fromarray(self._whole())
        picture.thumbnail((px, px), Image.Resampling.LANCZOS)
        return jpeg(np.asarray(picture))

    def _nearest(self, scale: float) -> float:
        fitting = [d for d in self.slide.level_downsamples if d <= scale * 1.01]
        return max(fitting, default=1.0)

    def _whole(self) -> NDArray[np.uint8]:
        with self._lock:
            if self._overview is None:
                self._overview = self.slide.overview(OVERVIEW_PX)
            return self._overview

    def _from_overview(self, box: Box) -> NDArray[np.uint8]:
        whole = self._whole()
        height, width = whole.shape[:2]
        fx, fy = width / self.slide.size[0], height / self.slide.size[1]
        canvas = Image.new("RGB", (SQUARE_PX, SQUARE_PX), tuple(self.slide.background_rgb))
        inside = box.clipped(Box(0, 0, *self.slide.size))
        if inside is not None:
            share = SQUARE_PX / box.width
            size = (max(1, round(inside.width * share)), max(1, round(inside.height * share)))
            part = (inside.x0 * fx, inside.y0 * fy, min(inside.x1 * fx, width), min(inside.y1 * fy, height))
            canvas.paste(Image.fromarray(whole).resize(size, Image.Resampling.BOX, box=part), (0, 0))
        return np.asarray(canvas)

    def _handle(self, plane: int | None = None) -> Slide:
        """This thread's own handle, of a focal plane or as the slide was opened."""
        handles: dict[int | None, Slide] = self._local.__dict__.setdefault("handles", {})
        if plane not in handles:
            with self._lock:
                handles[plane] = self.slide.clone() if plane is None else self._of_plane(plane)
                self._clones.append(handles[plane])
        return handles[plane]

    def _of_plane(self, plane: int) -> Slide:
        slide = self.slide
        options: dict[str, Any] = {"z": plane}
        return open_slide(slide.path, mpp=slide.mpp, reader=slide.reader, **options)

    def close(self) -> None:
        with self._lock:
            for clone in self._clones:
                clone.close()
            self._clones.clear()
        self.slide.close()


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """(h, w, 3) RGB as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
