"""A slide read once, in pieces, on several threads: what of it the foreground mask is made from.

Of each cell of CELL_UM the darkest and the brightest spot of about FINE_UM µm/px, and its mean; of a stack over every
focal plane. A slide without smaller levels gives its overview on the way.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilers.reduce import UNREADABLE_RGB, Damage, Piece, cell_mean, level_for, pieces
from tilers.thread_pool import in_order
from wsi_chat.progress import Progress

if TYPE_CHECKING:
    from tilers.slide import Slide

FINE_UM = 2.0  # a lymphocyte's nucleus (7 µm) covers several such pixels, and noise is averaged
CELL_UM = 8.0  # about a small cell
ASSUMED_MPP = 0.5  # where a slide has none; it only sets how fine the mask is
MAX_CELLS = 16_000_000
PIECE_PX = 2048
OVERVIEW_PX = 2048  # what Slide.overview shows unless told otherwise
MAX_OVERVIEW_PIXELS = 40_000_000


@dataclass(slots=True)
class CellGrid:
    """Per cell and channel: the darkest, the brightest and the mean colour, uint8 (rows, columns, 3)."""

    low: NDArray[np.uint8]
    high: NDArray[np.uint8]
    mean: NDArray[np.uint8]
    scanned: NDArray[np.bool_]
    unreadable: NDArray[np.bool_]
    cell: float
    error: str = ""


def read_grid(slide: Slide, workers: int, progress: Progress) -> CellGrid:
    mpp = slide.mpp or ASSUMED_MPP
    level = level_for(slide, FINE_UM / mpp)
    scale = slide.level_downsamples[level]
    width, height = slide.level_sizes[level]
    average = max(1, int(FINE_UM / (mpp * scale)))
    pool = max(1, round(CELL_UM / (mpp * scale * average)))
    while -(-width // (average * pool)) * -(-height // (average * pool)) > MAX_CELLS:
        pool *= 2
    side = average * pool
    rows, columns = -(-height // side), -(-width // side)
    shape = (rows, columns, 3)
    planes = slide.candidate_planes
    grid = CellGrid(
        low=np.zeros(shape, np.uint8),
        high=np.zeros(shape, np.uint8),
        mean=np.zeros(shape, np.uint8),
        scanned=np.zeros((rows, columns), bool),
        unreadable=np.zeros((rows, columns), bool),
        cell=side * scale,
    )
    overview = _overview_to_fill(slide, level, side)
    step = side if overview is None else math.lcm(side, overview.cell)
    least = step * max(1, -(-256 // step))
    block = least * max(1, PIECE_PX // least)
    places = [(x, y) for y in range(0, height, block) for x in range(0, width, block)]
    jobs = [_Job(plane, x, y, min(block, width - x), min(block, height - y)) for plane in planes for x, y in places]
    cells = _Cells(level, average, pool, least, None if overview is None else overview.cell, slide.middle_plane)
    slide.expect(
        [(round(j.x * scale), round(j.y * scale), level, j.width, j.height)] for j in jobs if j.plane == planes[0]
    )
    progress("mask", 0, len(jobs))
    with closing(in_order(slide, cells.read, jobs, broken=_lost, workers=workers, ahead=workers + 1)) as results:
        for done, (job, parts) in enumerate(zip(jobs, results, strict=True), 1):
            for part in parts:
                _add(grid, overview, side, part, first=job.plane == planes[0], middle=job.plane == slide.middle_plane)
            progress("mask", done, len(jobs))
    if overview is not None:
        slide.keep_overview(overview.pixels, overview.cell * scale)
    return grid


@dataclass(frozen=True, slots=True)
class _Overview:
    """A picture of the whole slide that is filled while the mask is read; ``cell``: side of its pixel, level px."""

    pixels: NDArray[np.uint8]
    cell: int


def _overview_to_fill(slide: Slide, level: int, side: int) -> _Overview | None:
    """A canvas where an overview would have to read the mask's level again; None where a smaller level serves."""
    ratio = max(slide.size) / OVERVIEW_PX / slide.level_downsamples[level]
    if level_for(slide, max(1.0, max(slide.size) / OVERVIEW_PX)) != level:
        return None
    ratio = max(1.0, ratio)
    cell = side * int(ratio / side) if ratio >= side else max(n for n in range(1, int(ratio) + 1) if side % n == 0)
    width, height = slide.level_sizes[level]
    if -(-width // cell) * -(-height // cell) > MAX_OVERVIEW_PIXELS:
        return None
    return _Overview(np.zeros((-(-height // cell), -(-width // cell), 3), np.uint8), cell)


@dataclass(frozen=True, slots=True)
class _Job:
    """A part of one focal plane that a thread reads, level px."""

    plane: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What is kept of a piece: its place and size in level px, its cells, and its part of the overview.

    ``low``, ``high`` and ``mean`` are None where it cannot be read, ``scanned`` where all of it was scanned.
    """

    x: int
    y: int
    width: int
    height: int
    low: NDArray[np.uint8] | None = None
    high: NDArray[np.uint8] | None = None
    mean: NDArray[np.uint8] | None = None
    scanned: NDArray[np.bool_] | None = None
    overview: NDArray[np.uint8] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Cells:
    """How pieces of a level become cells: by threads, so that a piece is forgotten before the next one is read."""

    level: int
    average: int
    pool: int
    least: int
    overview: int | None
    middle: int
    damage: Damage = field(default_factory=Damage)

    def read(self, slide: Slide, job: _Job) -> list[_Part]:
        area = (job.x, job.y, job.width, job.height)
        side = max(job.width, job.height)
        found = pieces(slide, self.level, side=side, least=self.least, area=area, z=job.plane, damage=self.damage)
        return [self._part(piece, job) for piece in found]

    def _part(self, piece: Piece, job: _Job) -> _Part:
        x, y, side = job.x + piece.x, job.y + piece.y, self.average * self.pool
        if piece.rgb is None:
            return _Part(x, y, piece.width, piece.height, error=piece.error)
        fine = cell_mean(piece.rgb, self.average)
        overview = None
        if self.overview is not None and job.plane == self.middle:
            whole = self.overview % self.average == 0  # then the means of means are the same, to a grey level
            overview = cell_mean(fine, self.overview // self.average) if whole else cell_mean(piece.rgb, self.overview)
        scanned = None
        if piece.scanned is not None:
            scanned = _pool(piece.scanned[..., None].view(np.uint8), side, np.maximum)[..., 0] > 0
        low, high = _pool(fine, self.pool, np.minimum), _pool(fine, self.pool, np.maximum)
        mean = cell_mean(fine, self.pool)
        return _Part(x, y, piece.width, piece.height, low, high, mean, scanned, overview)


def _lost(job: _Job, error: Exception) -> list[_Part]:
    return [_Part(job.x, job.y, job.width, job.height, error=f"{type(error).__name__}: {error}")]


def _add(grid: CellGrid, overview: _Overview | None, side: int, part: _Part, *, first: bool, middle: bool) -> None:
    """Add a part of a focal plane to the grid: the darkest and brightest spots of all planes count."""
    if overview is not None and middle:
        overview.pixels[_place(part, overview.cell)] = UNREADABLE_RGB if part.overview is None else part.overview
    place = _place(part, side)
    if part.low is None or part.high is None or part.mean is None:
        grid.unreadable[place] = True
        grid.scanned[place] = True
        grid.error = part.error
        return
    grid.low[place] = part.low if first else np.minimum(grid.low[place], part.low)
    grid.high[place] = part.high if first else np.maximum(grid.high[place], part.high)
    if first or middle:
        grid.mean[place] = part.mean
    if part.scanned is None:
        grid.scanned[place] = True
    else:
        grid.scanned[place] |= part.scanned


def _place(part: _Part, cell: int) -> tuple[slice, slice]:
    top, left = part.y // cell, part.x // cell
    return np.s_[top : top + -(-part.height // cell), left : left + -(-part.width // cell)]


def _pool(pixels: NDArray[np.uint8], factor: int, choose: np.ufunc) -> NDArray[np.uint8]:
    h, w, channels = pixels.shape
    grown = pixels
    if h % factor or w % factor:
        grown = np.pad(pixels, ((0, -h % factor), (0, -w % factor), (0, 0)), mode="edge")
    rows = choose.reduce(grown.reshape(grown.shape[0] // factor, factor, -1), axis=1)  # whole rows first: long loops
    pooled: NDArray[np.uint8] = choose.reduce(rows.reshape(len(rows), -1, factor, channels), axis=2)
    return pooled
