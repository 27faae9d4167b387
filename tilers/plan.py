"""Which tiles of a slide are looked at: geometry only, no pixels.

The grid covers the whole slide with full-size tiles; those at the right and bottom edge are shifted inward.
Over a specimen of several photographs, each field has a grid of its own, and no tile shows two fields.
Tiles come row-major over blocks of BLOCK x BLOCK grid cells, and row-major inside a block, so that neighbours
can be read together. ``Tile.index`` is row * columns + column of the full grid: the same place keeps its name
whatever the mask or the limit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tilers.cards import plan_card
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, Remark, Tile

if TYPE_CHECKING:
    from tilers.foreground import Foreground
    from tilers.slide import Slide

BLOCK = 8
FINER_BY = 0.05  # a target up to this much finer than level 0 is met with level 0 as it is
SAME_BY = 0.02  # a level this close to the target, or to a whole fraction of it, is used as if it were there
MAX_TILE_PX = 16_384
MAX_GRID = 20_000_000
GOLDEN = (5**0.5 - 1) / 2  # its multiples, less their whole numbers, fill an interval evenly


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The tiles to look at, in reading order, and how many were left out at each step.

    Attributes:
        tiles: in plan order (see the module's docstring).
        grid: tiles of the full grid; ``grid_shape`` is (rows, columns).
        foreground: tiles that hold foreground or may hold it; ``selected``: those left after ``limit``.
        unsure: those of them that hold nothing but cells of the mask that are neither foreground nor certainly empty.
        empty: tiles left out as empty glass: every cell differs from the background by less than `tilers.foreground`
            allows for. ``outside``: tiles left out because the scanner did not scan there.
        stride: level-0 px between neighbouring tiles.
        tile_px, mpp, overlap: as asked; each tile has its effective mpp.
        upsampled: the slide is coarser than asked and the tiles are enlarged.
        sha256: over all of the above and every tile's geometry.
        notes: what the report should say of the plan.
        left_out: tiles of empty glass were left out, as far as there were any.
        glass: names of the photographs that hold nothing but empty glass and were left out whole.
    """

    tiles: tuple[Tile, ...]
    grid: int
    foreground: int
    grid_shape: tuple[int, int]
    stride: float
    tile_px: int
    mpp: float
    overlap: float
    upsampled: bool
    sha256: str
    notes: tuple[Remark, ...] = ()
    unsure: int = 0
    empty: int = 0
    outside: int = 0
    left_out: bool = True
    glass: tuple[str, ...] = ()

    @property
    def selected(self) -> int:
        return len(self.tiles)

    def __len__(self) -> int:
        return len(self.tiles)

    def _repr_html_(self) -> str:

        return plan_card(self)

    def position(self, tile: Tile) -> tuple[int, int]:
        """(row, column) of a tile in the full grid."""
        return divmod(tile.index, self.grid_shape[1])


@dataclass(frozen=True, slots=True)
class _Geometry:
    level: int
    read_px: int
    side: int  # level-0 px
    mpp: float


def plan_tiles(
    slide: Slide,
    foreground: Foreground | None,
    *,
    tile_px: int,
    mpp: float,
    overlap: float = 0.25,
    limit: int | None = None,
    allow_upsample: bool = False,
    leave_out: bool = True,
) -> TilePlan:
    """Lay a grid over the slide and keep the tiles that hold foreground.

    Reads come from the coarsest level that is at least as fine as ``mpp`` and are shrunk to ``tile_px``. A slide
    smaller than one tile gets one tile that reaches beyond its right and bottom edge (there it shows background);
    boxes are to be clipped to the slide.

    Args:
        foreground: None keeps every tile.
        tile_px: side of the square that the model sees, pixels.
        mpp: its resolution, µm/px.
        overlap: fraction of the side shared by neighbours, 0 to 0.9.
        limit: keep at most this many tiles, spread evenly over the slide (see `spread`): a systematic sample, so
            that counts can be extrapolated (the densest tiles would bias them).
        leave_out: leave out tiles of empty glass; False keeps them, with a cellularity of 0, but for photographs that
            hold nothing but empty glass among others that hold something.
        allow_upsample: enlarge when the slide is coarser than asked, and mark the plan.

    Raises:
        SettingError: a value out of range, or the slide is coarser than ``mpp`` and may not be enlarged.
        ResolutionUnknown: the slide has no mpp.
    """
    base = slide.require_mpp()
    _check(tile_px, mpp, overlap, limit)
    upsampled = mpp < base * (1 - FINER_BY)
    if upsampled and not allow_upsample:
        raise SettingError(
            f"Tiles are wanted at {mpp:g} µm/px, but the finest level of {slide.name} has {base:.4g} µm/px.",
            hint=f"Ask for {base:.4g} µm/px or more: --tile-mpp {_rounded_up(base):.4g}. If the slide's own "
            "resolution is wrong, give the right one with --mpp.",
        )
    shape = _geometry(slide, base, tile_px, mpp)
    scale = slide.level_downsamples[shape.level]
    step = max(1, round(shape.read_px * (1 - overlap)))
    grids = _grids(slide, shape.side, step, scale)
    rows, columns = max(grid.row + len(grid.ys) for grid in grids), max(grid.column + len(grid.xs) for grid in grids)
    number = sum(len(grid.xs) * len(grid.ys) for grid in grids)
    if number > MAX_GRID:
        raise SettingError(
            f"The grid over {slide.name} would have {number:,} tiles.",
            hint="Use larger tiles, a coarser mpp or less overlap.",
        )
    planned = []
    blank = [grid for grid, field in zip(grids, slide.fields, strict=False) if _is_glass(foreground, field.box)]
    unsure = empty = outside = 0
    for grid, row, column in ((g, *at) for g in grids for at in _order(len(g.ys), len(g.xs))):
        tile = Tile(
            index=(grid.row + row) * columns + grid.column + column,
            x=grid.xs[column],
            y=grid.ys[row],
            width=shape.side,
            height=shape.side,
            level=shape.level,
            read_px=(shape.read_px, shape.read_px),
            out_px=tile_px,
            mpp=shape.mpp,
        )
        if foreground is None:
            planned.append(tile)
            continue
        share = foreground.fraction(tile.box)
        if share > 0:
            planned.append(_with_cellularity(tile, share))
        elif foreground.is_unsure(tile.box):
            planned.append(_with_cellularity(tile, 0.0))
            unsure += 1
        elif not leave_out and foreground.is_scanned(tile.box) and grid not in blank:
            planned.append(_with_cellularity(tile, 0.0))
        elif foreground.is_scanned(tile.box):
            empty += 1
        else:
            outside += 1
    tiles = spread(planned, limit)
    settings = (rows, columns, step * scale, tile_px, mpp, overlap, upsampled, len(planned))
    return TilePlan(
        tiles=tiles,
        grid=number,
        foreground=len(planned),
        grid_shape=(rows, columns),
        stride=step * scale,
        tile_px=tile_px,
        mpp=mpp,
        overlap=overlap,
        upsampled=upsampled,
        sha256=_digest(settings, tiles),
        notes=_notes(slide, base, mpp, shape, upsampled),
        unsure=unsure,
        empty=empty,
        outside=outside,
        left_out=foreground is not None and leave_out,
        glass=tuple(field.name for grid, field in zip(grids, slide.fields, strict=False) if grid in blank),
    )


def _notes(slide: Slide, base: float, mpp: float, shape: _Geometry, upsampled: bool) -> tuple[Remark, ...]:
    notes = []
    if upsampled:
        notes.append(Remark("plan.enlarged", mpp=mpp, scan=base))
    coarse = [] if upsampled else [field for field in slide.fields if mpp < base * field.scale * (1 - FINER_BY)]
    if coarse:
        notes.append(Remark("plan.enlarged_fields", n=len(coarse), all=len(slide.fields), mpp=mpp))
    small = [field for field in slide.fields if min(field.width, field.height) < shape.side]
    if small:
        notes.append(Remark("plan.small_fields", n=len(small), all=len(slide.fields), side=shape.side))
    elif not slide.fields and min(slide.size) < shape.side:
        notes.append(Remark("plan.small_slide", width=slide.size[0], height=slide.size[1], side=shape.side))
    return tuple(notes)


@dataclass(frozen=True, slots=True)
class _Grid:
    """The tiles' starts over one picture, level-0 px, and its first row and column in the full grid."""

    xs: tuple[int, ...]
    ys: tuple[int, ...]
    row: int = 0
    column: int = 0


def _grids(slide: Slide, side: int, step: int, scale: float) -> list[_Grid]:
    """One grid over a slide; one over each field where there are several, on a common grid of equal slots."""
    if not slide.fields:
        xs, ys = (tuple(_starts(length, side, step, scale)) for length in slide.size)
        return [_Grid(xs, ys)]
    own = [
        (
            tuple(field.x + x for x in _starts(field.width, side, step, scale)),
            tuple(field.y + y for y in _starts(field.height, side, step, scale)),
        )
        for field in slide.fields
    ]
    wide, high = max(len(xs) for xs, _ in own), max(len(ys) for _, ys in own)
    lefts, tops = sorted({field.x for field in slide.fields}), sorted({field.y for field in slide.fields})
    return [
        _Grid(xs, ys, row=tops.index(field.y) * high, column=lefts.index(field.x) * wide)
        for field, (xs, ys) in zip(slide.fields, own, strict=True)
    ]


def _is_glass(foreground: Foreground | None, box: Box) -> bool:
    """Whether the mask finds nothing in a whole field: neither cells nor anything that it is not sure of."""
    return foreground is not None and foreground.fraction(box) == 0 and not foreground.is_unsure(box)


def _rounded_up(mpp: float) -> float:
    """With four digits, and not below the value itself."""
    scale = 10.0 ** (3 - math.floor(math.log10(mpp)))
    return math.ceil(mpp * scale) / scale


def _check(tile_px: int, mpp: float, overlap: float, limit: int | None) -> None:
    if not 16 <= tile_px <= MAX_TILE_PX:
        raise SettingError(f"tile_px is {tile_px}.", hint=f"Choose 16 to {MAX_TILE_PX} pixels, for instance 512.")
    if not (math.isfinite(mpp) and mpp > 0):
        raise SettingError(f"The tiles' mpp is {mpp}.", hint="Give µm/px above 0, for instance 0.5.")
    if not 0 <= overlap <= 0.9:
        raise SettingError(f"overlap is {overlap:g}.", hint="Choose a fraction from 0 to 0.9, for instance 0.25.")
    if limit is not None and limit < 1:
        raise SettingError(f"limit is {limit}.", hint="Give at least 1, or leave it out.")


def _geometry(slide: Slide, base: float, tile_px: int, mpp: float) -> _Geometry:
    fine = [i for i, d in enumerate(slide.level_downsamples) if base * d <= mpp * (1 + SAME_BY)]
    level = max(fine, key=lambda i: slide.level_downsamples[i], default=0)
    scale = slide.level_downsamples[level]
    at_level = base * scale
    ratio = mpp / at_level
    whole = max(1, round(ratio))
    # Whole pixels are averaged: sharper, and at a sixth of the cost of fractions of them.
    near = 1 - (FINER_BY if whole == 1 else SAME_BY) <= ratio / whole <= 1 + SAME_BY
    read_px = tile_px * whole if near else max(1, round(tile_px * ratio))
    # Rounded down, tiles without overlap would leave a pixel between them.
    side = max(1, math.ceil(read_px * scale - 1e-6))
    return _Geometry(level, read_px, side, base * side / tile_px)


def _starts(length: int, side: int, step: int, scale: float) -> list[int]:
    """Level-0 starts of the tiles along one axis: on whole pixels of the read level, the last one shifted in."""
    if length <= side:
        return [0]
    last = length - side
    starts = []
    k = 0
    while (start := round(k * step * scale)) < last:
        starts.append(start)
        k += 1
    return [*starts, last]


def _order(rows: int, columns: int) -> list[tuple[int, int]]:
    return [
        (row, column)
        for top in range(0, rows, BLOCK)
        for left in range(0, columns, BLOCK)
        for row in range(top, min(top + BLOCK, rows))
        for column in range(left, min(left + BLOCK, columns))
    ]


def _with_cellularity(tile: Tile, share: float) -> Tile:
    return Tile(
        tile.index, tile.x, tile.y, tile.width, tile.height, tile.level, tile.read_px, tile.out_px, tile.mpp, share
    )


def spread(tiles: Sequence[Tile], limit: int | None) -> tuple[Tile, ...]:
    """At most ``limit`` of the tiles, in their order, spread evenly over the ground that they cover; None takes all.

    One of each of so many neighbourhoods of equally many tiles, at a place that changes from one to the next: a fixed
    stride falls in step with the rows of the grid, and shows a few of its columns only.
    """
    if limit is None or limit >= len(tiles):
        return tuple(tiles)
    near = sorted(range(len(tiles)), key=lambda n: _morton(tiles[n].x, tiles[n].y))
    chosen = []
    for i in range(limit):
        first, stop = i * len(tiles) // limit, (i + 1) * len(tiles) // limit
        chosen.append(near[first + int((stop - first) * ((0.5 + i * GOLDEN) % 1))])
    return tuple(tiles[n] for n in sorted(chosen))


def _morton(x: int, y: int) -> int:
    """A number that is close for places that are close: the bits of both coordinates by turns."""
    return int(f"{max(0, y):b}", 4) * 2 + int(f"{max(0, x):b}", 4)


def _digest(settings: tuple[object, ...], tiles: Sequence[Tile]) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for t in tiles:
        row = (t.index, t.x, t.y, t.width, t.height, t.level, t.read_px, t.out_px, t.mpp)
        digest.update(repr(row).encode())
    return digest.hexdigest()
