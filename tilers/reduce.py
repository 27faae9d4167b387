"""Whole-slide reductions in bounded memory: a level is read in pieces, each shrunk by area averaging."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_chat.errors import SlideUnreadable

if TYPE_CHECKING:
    from tilers.slide import Slide

PIECE_PX = 2048  # 16 MiB of RGBA at a time
SMALLEST_PIECE_PX = 256  # a damaged piece is narrowed down to this
UNREADABLE_RGB = (255, 0, 255)  # no stain and no background has this colour


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


def pieces(slide: Slide, level: int, *, side: int, least: int) -> Iterator[Piece]:
    """Read a whole level piece by piece, row-major; a piece that fails is quartered down to ``least`` px.

    ``side`` should be a multiple of ``least``; pieces start at multiples of ``least``.
    """
    width, height = slide.level_sizes[level]
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield from _piece(slide, level, x, y, min(side, width - x), min(side, height - y), least)


def _piece(slide: Slide, level: int, x: int, y: int, w: int, h: int, least: int) -> Iterator[Piece]:
    scale = slide.level_downsamples[level]
    try:
        rgb, scanned = slide.read_with_mask(round(x * scale), round(y * scale), level, w, h)
    except SlideUnreadable as error:
        if w <= least and h <= least:
            yield Piece(x, y, w, h, None, None, error.message)
            return
        left = min(w, max(least, w // 2 // least * least))
        top = min(h, max(least, h // 2 // least * least))
        for dy, part_h in ((0, top), (top, h - top)):
            for dx, part_w in ((0, left), (left, w - left)):
                if part_w and part_h:
                    yield from _piece(slide, level, x + dx, y + dy, part_w, part_h, least)
        return
    yield Piece(x, y, w, h, rgb, scanned)


def cell_mean(rgb: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Area mean over ``factor`` x ``factor`` cells; cells cut by the edge average what they hold."""
    if factor == 1:
        return rgb
    import cv2

    h, w = rgb.shape[:2]
    grown = cv2.copyMakeBorder(rgb, 0, -h % factor, 0, -w % factor, cv2.BORDER_REPLICATE)
    size = (grown.shape[1] // factor, grown.shape[0] // factor)
    return np.asarray(cv2.resize(grown, size, interpolation=cv2.INTER_AREA), np.uint8)


def level_for(slide: Slide, downsample: float) -> int:
    """The coarsest level that is at least as fine as ``downsample``."""
    fine = [i for i, d in enumerate(slide.level_downsamples) if d <= downsample * 1.01]
    return max(fine, key=lambda i: slide.level_downsamples[i], default=0)


def shrink(slide: Slide, max_px: int) -> NDArray[np.uint8]:
    """The slide as (h, w, 3) RGB with its longer side ``max_px`` (never enlarged).

    Raises:
        SlideUnreadable: nothing could be read.
    """
    width, height = slide.size
    ratio = max(width, height) / max_px
    level = level_for(slide, max(ratio, 1.0))
    level_w, level_h = slide.level_sizes[level]
    factor = max(1, int(max(level_w, level_h) / max_px))
    canvas = np.empty((-(-level_h // factor), -(-level_w // factor), 3), np.uint8)
    least = factor * -(-SMALLEST_PIECE_PX // factor)
    side = least * max(1, PIECE_PX // least)
    readable, error = False, ""
    for piece in pieces(slide, level, side=side, least=least):
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
            f"Nothing of {slide.path.name} can be read: {error}",
            hint="Copy the file again from its source; it looks damaged.",
        )
    scale = min(1.0, 1.0 / ratio)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Cells at the right and bottom edge may reach beyond the level: the fractional box leaves that part out.
    box = (0.0, 0.0, level_w / factor, level_h / factor)
    return np.asarray(Image.fromarray(canvas).resize(target, Image.Resampling.BOX, box=box))
