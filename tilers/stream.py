"""A plan turned into patches: in order, on several threads, in bounded memory, each ``ok`` or ``unreadable``.

Where the reader keeps decoded pieces (``Slide.shares_pieces``), tiles are put together from them, a run of tiles at a
time, and each piece is decoded once. Of other readers, tiles that lie together are read as one block, so that overlaps
are decoded once. What a run or a block cannot give is read tile by tile, so that only the damaged tiles are lost. The
pixels are the same as from one read per tile (in blocks, on levels with a fractional downsample, where OpenSlide
interpolates, the same to a quarter of that level's pixel).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from tilers.focus import focus_score
from tilers.opening import open_slide
from tilers.plan import BLOCK, TilePlan
from tilers.readers import Region
from tilers.thread_pool import in_order
from wsi_chat.errors import SettingError, SlideUnreadable
from wsi_chat.schema import Tile

if TYPE_CHECKING:
    from tilers.slide import Slide

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 2**20
RUN_BYTES = 3 * 2**20  # pixels of the tiles that a thread reads before it hands them over
RUNS_PER_WORKER = 4  # at least, where there are so many tiles: what few there are is shared among the threads
BLOCK_BYTES = 48 * 2**20  # what one block may need; it does not depend on the number of workers
READ_BYTES_PER_PX = 11  # the reader's RGBA, its copy as an array, and the RGB made of it
OUT_BYTES_PER_PX = 3
# Reading a block may cost no more pixels than its tiles one by one; a little more is still faster than
# many small reads (each has a fixed cost).
WASTE = 1.1
# Level-0 starts are whole pixels, so on levels with fractional downsamples tiles lie between the level's pixels.
OFF_GRID = 0.26  # px of the read level


@dataclass(frozen=True, slots=True)
class Patch:
    """One tile's pixels, or why there are none.

    ``pixels``: (out_px, out_px, 3) uint8 RGB, or None where ``status`` is ``unreadable``. ``focus``: see
    ``tilers.focus_score``; None where it was not asked for. ``z``: the focal plane shown, counted from 0; None where
    the slide has only one, or several are fused.
    """

    tile: Tile
    pixels: NDArray[np.uint8] | None
    status: Literal["ok", "unreadable"]
    focus: float | None = None
    error: str = ""
    z: int | None = None


class TileStream:
    """Iterate over the patches of a plan, in its order. A context manager; ``close`` releases its threads.

    Args:
        slide: an open slide (it stays open) or a path.
        plan: what to read.
        workers: reading threads, each with its own handle.
        max_bytes: limit on the memory for pixels at any time, whatever the slide's size.
        block: side, in tiles, of the largest block read at once.
        tiles: read these instead of the plan's tiles, in this order.
        focus: score how sharp each patch is; that takes a sixth of the reading time.

    Raises:
        SettingError: one tile alone needs more than ``max_bytes``, or a number is out of range.
    """

    def __init__(
        self,
        slide: Slide | str | Path,
        plan: TilePlan,
        *,
        workers: int = 2,
        max_bytes: int = MAX_BYTES,
        block: int = BLOCK,
        tiles: Sequence[Tile] | None = None,
        focus: bool = True,
    ) -> None:
        if workers < 1 or block < 1:
            raise SettingError(f"workers is {workers} and block is {block}.", hint="Give at least 1 for each.")
        self.plan = plan
        self.tiles = tuple(plan.tiles if tiles is None else tiles)
        self.workers = workers
        self._owns_slide = isinstance(slide, str | Path)
        self._slide = open_slide(slide) if isinstance(slide, str | Path) else slide
        self._running: Iterator[Patch] | None = None
        self._focus = focus or len(self._slide.candidate_planes) > 1
        self._block_bytes, self._ahead = self._budget(max_bytes)
        if self._slide.shares_pieces or self._slide.fields:  # decoded once in any case
            self._blocks = self._runs(max_bytes)
        else:
            self._blocks = _group(self.tiles, self._slide.level_downsamples, most=block * block, fits=self._fits)

    def _budget(self, max_bytes: int) -> tuple[int, int]:
        """Bytes that one block may need, and how many blocks may be begun and not yet taken."""
        need = max((_cost(t.read_px[0], t.read_px[1], 1, t.out_px) for t in self.tiles), default=0)
        if need * 2 > max_bytes:  # one is being read while the consumer holds another
            raise SettingError(
                f"One tile needs {need / 2**20:.0f} MiB, over half of max_bytes ({max_bytes / 2**20:.0f} MiB).",
                hint="Raise max_bytes or use smaller tiles.",
            )
        share = max(need, min(BLOCK_BYTES, max_bytes // (self.workers + 2)))
        ahead = min(self.workers + 1, max_bytes // share - 1) if share else 1
        self.workers = min(self.workers, ahead)
        return share, ahead

    def _fits(self, width: int, height: int, tiles: int, out_px: int) -> bool:
        return _cost(width, height, tiles, out_px) <= self._block_bytes

    def _runs(self, max_bytes: int) -> list[_Block]:
        """Tiles that a thread reads together: each run costs the threads one turn at what they share."""
        largest = max((max(t.out_px**2, t.read_px[0] * t.read_px[1]) for t in self.tiles), default=1) * OUT_BYTES_PER_PX
        most = max(1, min(RUN_BYTES // largest, len(self.tiles) // (RUNS_PER_WORKER * self.workers)))
        self._ahead = max(self._ahead, min(2 * self.workers, max_bytes // (4 * most * largest)))
        return [_Block(self.tiles[i : i + most]) for i in range(0, len(self.tiles), most)]

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[Patch]:
        self._stop()
        self._running = self._patches()
        return self._running

    def _patches(self) -> Iterator[Patch]:
        self._slide.expect(self._announced())
        read = partial(_read_block, focus=self._focus)
        blocks = in_order(self._slide, read, self._blocks, broken=_lost, workers=self.workers, ahead=self._ahead)
        for patches in blocks:
            while patches:
                yield patches.pop(0)

    def _announced(self) -> Iterator[list[Region]]:
        """The regions that will be read, those that are read together in one list."""
        for block in self._blocks:
            regions = [_region(tile) for tile in block.tiles]
            yield from ([region] for region in regions) if self._slide.fused else [regions]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.close()  # type: ignore[attr-defined]  # it is a generator

    def close(self) -> None:
        """Stop reading and release the threads; calling it twice is harmless."""
        self._stop()
        if self._owns_slide:
            self._slide.close()


# ------------------------------------------------------------------------------------------ blocks


@dataclass(frozen=True, slots=True)
class _Block:
    """Tiles read by one thread: at once, with the region that holds them all and their places in it; or one by one.

    ``region``: x, y at level 0, level, width and height there; None where each is read by itself.
    """

    tiles: tuple[Tile, ...]
    region: Region | None = None
    offsets: tuple[tuple[int, int], ...] = ()


def _cost(width: int, height: int, tiles: int, out_px: int) -> int:
    return width * height * READ_BYTES_PER_PX + tiles * out_px * out_px * OUT_BYTES_PER_PX


def _group(
    tiles: Sequence[Tile],
    downsamples: Sequence[float],
    *,
    most: int,
    fits: Callable[[int, int, int, int], bool],
) -> list[_Block]:
    """Cut a sequence of tiles into runs that are read together; the order stays the same."""
    xs, ys = np.array([t.x for t in tiles], float), np.array([t.y for t in tiles], float)
    blocks = []
    start = 0
    while start < len(tiles):
        first = tiles[start]
        scale = downsamples[first.level]
        stop = start + 1
        alike = (first.level, first.read_px, first.out_px)
        while stop < min(start + most, len(tiles)) and alike == _kind(tiles[stop]):
            stop += 1
        count = _longest(xs[start:stop] / scale, ys[start:stop] / scale, first, fits)
        blocks.append(_block(tiles[start : start + count], scale))
        start += count
    return blocks


def _kind(tile: Tile) -> tuple[int, tuple[int, int], int]:
    return tile.level, tile.read_px, tile.out_px


def _longest(
    xs: NDArray[np.float64], ys: NDArray[np.float64], first: Tile, fits: Callable[[int, int, int, int], bool]
) -> int:
    """How many of the tiles that start at ``xs, ys`` (level pixels) are worth one read with the first one."""
    width, height = first.read_px
    off = np.maximum(*(np.abs((a - a[0]) - np.round(a - a[0])) for a in (xs, ys)))
    off_grid = np.flatnonzero(off > OFF_GRID)  # a tile shifted in at the edge may lie between the level's pixels
    count = int(off_grid[0]) if off_grid.size else len(xs)
    w = np.maximum.accumulate(xs[:count]) - np.minimum.accumulate(xs[:count]) + width
    h = np.maximum.accumulate(ys[:count]) - np.minimum.accumulate(ys[:count]) + height
    numbers = np.arange(1, count + 1)
    worth = np.flatnonzero(w * h <= WASTE * numbers * width * height)
    for i in worth[::-1]:
        if fits(math.ceil(w[i]), math.ceil(h[i]), int(i) + 1, first.out_px):
            return int(i) + 1
    return 1


def _block(tiles: Sequence[Tile], scale: float) -> _Block:
    x, y = min(t.x for t in tiles), min(t.y for t in tiles)
    offsets = tuple((round((t.x - x) / scale), round((t.y - y) / scale)) for t in tiles)
    width = max(dx + t.read_px[0] for (dx, _), t in zip(offsets, tiles, strict=True))
    height = max(dy + t.read_px[1] for (_, dy), t in zip(offsets, tiles, strict=True))
    return _Block(tuple(tiles), (x, y, tiles[0].level, width, height), offsets)


def _read_block(slide: Slide, block: _Block, *, focus: bool) -> list[Patch]:
    """The block's patches; of a stack whose plane is not fixed, each tile's sharpest plane, or all of them fused."""
    if slide.fused:  # tile by tile: what a tile shows must not depend on which others are read with it
        return [_read_tile(slide, tile, None, focus) for tile in block.tiles]
    patches = _read_plane(slide, block, slide.candidate_planes[0], focus)
    for plane in slide.candidate_planes[1:]:
        patches = [_sharper(a, b) for a, b in zip(patches, _read_plane(slide, block, plane, focus), strict=True)]
    return patches


def _sharper(one: Patch, other: Patch) -> Patch:
    """The sharper of two patches of a tile; an unreadable plane gives way to one that can be read."""
    if one.focus is None or other.focus is None:
        return other if one.focus is None else one
    return other if other.focus > one.focus else one


def _read_plane(slide: Slide, block: _Block, plane: int, focus: bool) -> list[Patch]:
    if block.region is None:
        together = slide.read_run([_region(tile) for tile in block.tiles], z=plane)
        return [
            _read_tile(slide, tile, plane, focus) if pixels is None else _own_patch(slide, tile, pixels, plane, focus)
            for tile, pixels in zip(block.tiles, together, strict=True)
        ]
    try:
        pixels = slide.read_region(*block.region, z=plane)
    except SlideUnreadable as error:
        log.info("%s; reading its %d tiles one by one", error.message, len(block.tiles))
        return [_read_tile(slide, tile, plane, focus) for tile in block.tiles]
    shown = plane if slide.planes > 1 else None
    patches = []
    for tile, (dx, dy) in zip(block.tiles, block.offsets, strict=True):
        w, h = tile.read_px
        patches.append(_patch(tile, resample(pixels[dy : dy + h, dx : dx + w], tile.out_px), shown, focus))
    return patches


def _read_tile(slide: Slide, tile: Tile, plane: int | None, focus: bool) -> Patch:
    try:
        pixels = slide.read_tile(tile, z=plane)
    except SlideUnreadable as error:
        return Patch(tile, None, "unreadable", error=error.message)
    return _own_patch(slide, tile, pixels, plane, focus)


def _own_patch(slide: Slide, tile: Tile, pixels: NDArray[np.uint8], plane: int | None, focus: bool) -> Patch:
    """The patch of a tile that was read by itself or in a run."""
    if not (slide.shares_pieces and pixels.shape[:2] == (tile.out_px, tile.out_px)):
        pixels = resample(pixels, tile.out_px)
    return _patch(tile, pixels, plane if slide.planes > 1 else None, focus)


def _region(tile: Tile) -> Region:
    return (tile.x, tile.y, tile.level, *tile.read_px)


def _lost(block: _Block, error: Exception) -> list[Patch]:
    log.warning("a block of %d tiles is lost: %s", len(block.tiles), error)
    return [Patch(tile, None, "unreadable", error=f"{type(error).__name__}: {error}") for tile in block.tiles]


def _patch(tile: Tile, pixels: NDArray[np.uint8], plane: int | None, focus: bool) -> Patch:
    return Patch(tile, pixels, "ok", focus=focus_score(pixels) if focus else None, z=plane)


def resample(read: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A read region as a contiguous (side, side, 3) array: area averaging down, bilinear up.

    Where the factor is no whole number, the region is first enlarged to the next multiple of ``side`` (bilinear), and
    that is averaged: within 3 grey levels of OpenCV's averaging over fractions of pixels, in under half of its time.
    """
    if read.shape[:2] == (side, side):
        return np.array(read, order="C")  # a copy: a view would keep its whole block in memory
    least = min(read.shape[:2])
    if least < side:
        return np.asarray(cv2.resize(read, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
    height, width = (side * -(-length // side) for length in read.shape[:2])
    if (height, width) != read.shape[:2]:
        read = np.asarray(cv2.resize(read, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return np.asarray(cv2.resize(read, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
