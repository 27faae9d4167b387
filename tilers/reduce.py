"""Views of a slide in bounded memory: a level is read in pieces, each shrunk by area averaging."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_chat.errors import SettingError, SlideUnreadable
from wsi_chat.schema import Box, FieldRecord

PIECE_PX = 2048  # 16 MiB of RGBA at a time
SMALLEST_PIECE_PX = 256  # a damaged piece is narrowed down to this
# So many smallest pieces are looked for; beyond, damaged pieces count as a whole: on a slide that is lost altogether
# the search would take hours.
MAX_NARROWED = 1024
UNREADABLE_RGB = (255, 0, 255)  # no stain and no background has this colour


class Pyramid(Protocol):
    """What is needed to view a slide: its levels and pixels by region. ``tilers.Slide`` is one."""

    @property
    def name(self) -> str: ...

    size: tuple[int, int]
    level_sizes: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]

    def read_with_mask(
        self, x: int, y: int, level: int, w: int, h: int, *, z: int | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a level: its place in level pixels, and its pixels or None where it cannot be read."""

    x: int
    y: int
    width: int
    height: int
    rgb: NDArray[np.uint8] | None
    scanned: NDArray[np.bool_] | None
    error: str = ""


@dataclass(slots=True)
class Damage:
    """How many smallest pieces of a level could not be read so far; threads that read it together share one."""

    lost: int = 0


def pieces(
    slide: Pyramid,
    level: int,
    *,
    side: int,
    least: int,
    area: tuple[int, int, int, int] | None = None,
    z: int | None = None,
    damage: Damage | None = None,
) -> Iterator[Piece]:
    """Read a level piece by piece, row-major; a piece that fails is quartered down to ``least`` px.

    Args:
        side: of a piece, a multiple of ``least``.
        area: x, y, width, height in level pixels (may reach beyond the slide); the whole level by default.
            Pieces start at multiples of ``least`` from its origin, and their places count from there.
        z: the focal plane; None leaves it to the slide.
        damage: what was lost before, where the level is read in several calls.
    """
    x0, y0, width, height = area or (0, 0, *slide.level_sizes[level])
    scale = slide.level_downsamples[level]
    damage = damage or Damage()
    for y in range(0, height, side):
        for x in range(0, width, side):
            w, h = min(side, width - x), min(side, height - y)
            whole = damage.lost >= MAX_NARROWED
            for piece in _piece(slide, level, (x0, y0), scale, x, y, w, h, max(w, h) if whole else least, z):
                damage.lost += piece.rgb is None
                yield piece


def _piece(
    slide: Pyramid,
    level: int,
    start: tuple[int, int],
    scale: float,
    x: int,
    y: int,
    w: int,
    h: int,
    least: int,
    z: int | None,
) -> Iterator[Piece]:
    try:
        at = round((start[0] + x) * scale), round((start[1] + y) * scale)
        rgb, scanned = slide.read_with_mask(*at, level, w, h, z=z)
    except SlideUnreadable as error:
        around = _around_missing(slide, *at, w, h)
        if around is not None:
            yield Piece(x, y, w, h, around, None)
            return
        if w <= least and h <= least:
            yield Piece(x, y, w, h, None, None, error.message)
            return
        left = min(w, max(least, w // 2 // least * least))
        top = min(h, max(least, h // 2 // least * least))
        for dy, part_h in ((0, top), (top, h - top)):
            for dx, part_w in ((0, left), (left, w - left)):
                if part_w and part_h:
                    yield from _piece(slide, level, start, scale, x + dx, y + dy, part_w, part_h, least, z)
        return
    yield Piece(x, y, w, h, rgb, scanned)


def _around_missing(slide: Pyramid, x: int, y: int, w: int, h: int) -> NDArray[np.uint8] | None:
    """A part of level 0 that shows several fields, those that cannot be read marked; None where it shows one or none.

    A field is read or missing as a whole, so that nothing is gained by trying smaller parts.
    """
    area = Box(x, y, x + w, y + h)
    fields: Sequence[FieldRecord] = getattr(slide, "fields", ())
    shown = [box for field in fields if (box := area.clipped(field.box)) is not None]
    if len(shown) < 2:
        return None
    out = np.empty((h, w, 3), np.uint8)
    out[:] = getattr(slide, "background_rgb", (255, 255, 255))
    for box in shown:
        left, top, right, bottom = (round(value) for value in (box.x0 - x, box.y0 - y, box.x1 - x, box.y1 - y))
        try:
            out[top:bottom, left:right] = slide.read_with_mask(x + left, y + top, 0, right - left, bottom - top)[0]
        except SlideUnreadable:
            out[top:bottom, left:right] = UNREADABLE_RGB
    return out


def cell_mean(rgb: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Area mean over ``factor`` x ``factor`` cells; cells cut by the edge average what they hold."""
    if factor == 1:
        return rgb
    h, w = rgb.shape[:2]
    if h % factor or w % factor:
        rgb = np.asarray(cv2.copyMakeBorder(rgb, 0, -h % factor, 0, -w % factor, cv2.BORDER_REPLICATE), np.uint8)
    size = (rgb.shape[1] // factor, rgb.shape[0] // factor)
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def shrink(picture: NDArray[np.uint8], extent: tuple[float, float], px: int) -> NDArray[np.uint8]:
    """A picture with its longer side ``px``, averaged down.

    ``extent``: (width, height) of what it shows, in its own px; its last column and row may reach beyond.
    """
    width, height = extent
    ratio = max(width, height) / px
    size = (max(1, round(width / ratio)), max(1, round(height / ratio)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX, box=(0, 0, width, height)))


def level_for(slide: Pyramid, downsample: float) -> int:
    """The coarsest level that is at least as fine as ``downsample``."""
    fine = [i for i, d in enumerate(slide.level_downsamples) if d <= downsample * 1.01]
    return max(fine, key=lambda i: slide.level_downsamples[i], default=0)


def view(slide: Pyramid, box: Box, px: int, *, z: int | None = None) -> NDArray[np.uint8]:
    """A box of the slide as (h, w, 3) RGB with its longer side ``px``: averaged down, or enlarged smoothly.

    Args:
        z: the focal plane; None leaves it to the slide.

    Raises:
        SettingError: the box is empty or ``px`` below 1.
        SlideUnreadable: nothing of it could be read.
    """
    if box.area <= 0 or px < 1:
        raise SettingError(f"A view of {box} at {px} px is empty.", hint="Give a box with an area and px >= 1.")
    ratio = max(box.width, box.height) / px
    level = level_for(slide, max(ratio, 1.0))
    scale = slide.level_downsamples[level]
    x0, y0 = math.floor(box.x0 / scale), math.floor(box.y0 / scale)
    width, height = math.ceil(box.x1 / scale) - x0, math.ceil(box.y1 / scale) - y0
    if box == Box(0, 0, *slide.size):  # level sizes are rounded: the whole slide is the whole level
        width, height = slide.level_sizes[level]
    factor = max(1, int(ratio / scale))
    canvas = _canvas(slide, level, factor, (x0, y0, width, height), z)
    target = (max(1, round(box.width / ratio)), max(1, round(box.height / ratio)))
    # The fractional box leaves out what was read beyond the asked one, and cells that reach over the edge.
    left, top = (box.x0 / scale - x0) / factor, (box.y0 / scale - y0) / factor
    right = min(left + box.width / scale / factor, width / factor)
    bottom = min(top + box.height / scale / factor, height / factor)
    method = Image.Resampling.BOX if ratio >= 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(canvas).resize(target, method, box=(left, top, right, bottom)))


def _canvas(
    slide: Pyramid, level: int, factor: int, area: tuple[int, int, int, int], z: int | None
) -> NDArray[np.uint8]:
    canvas = np.empty((-(-area[3] // factor), -(-area[2] // factor), 3), np.uint8)
    least = factor * -(-SMALLEST_PIECE_PX // factor)
    side = least * max(1, PIECE_PX // least)
    readable, error = False, ""
    for piece in pieces(slide, level, side=side, least=least, area=area, z=z):
        top, left = piece.y // factor, piece.x // factor
        bottom, right = top + -(-piece.height // factor), left + -(-piece.width // factor)
        if piece.rgb is None:
            canvas[top:bottom, left:right] = UNREADABLE_RGB
            error = piece.error
        else:
            canvas[top:bottom, left:right] = cell_mean(piece.rgb, factor)
            readable = True
    if not readable:
        raise SlideUnreadable(
            f"Nothing of that part of {slide.name} can be read: {error}",
            hint="Copy the file again from its source; it looks damaged.",
        )
    return canvas
