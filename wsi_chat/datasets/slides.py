"""Pictures cut from slides whose cells are marked, e.g. in QuPath or by the renderer.

Tiles go through `tilers`, so they are exactly what the model will be shown of the slide later.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tilers import find_foreground, open_slide, plan_tiles
from tilers.stream import resample
from wsi_chat.datasets.annotated import Annotated, Renaming
from wsi_chat.datasets.pictures import locate
from wsi_chat.datasets.render.field import ABNORMAL, ORGANISMS
from wsi_chat.datasets.sources import read_json
from wsi_chat.errors import SettingError, SlideError
from wsi_chat.schema import Box, LabelledBox, Tile

if TYPE_CHECKING:
    from PIL import Image

    from tilers import Slide

log = logging.getLogger(__name__)

MIN_VISIBLE = 0.35
"""Share of a box inside a tile below which the cell is not counted there, as in the renderer."""


def read_rendered_slide(file: Path, *, rename: Renaming) -> tuple[Path, tuple[LabelledBox, ...], frozenset[str]]:
    """The slide beside a ``*.truth.json``, its boxes, and the classes that the truth lists exhaustively.

    Raises SlideError for a file that is not such a truth.
    """
    content = read_json(file)
    try:
        boxes = tuple(LabelledBox(rename(cell["label"]), Box(*cell["box"])) for cell in content["cells"])
        path = locate(content["path"], (file.parent,))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SlideError(f"{file}: not the truth of a rendered slide ({error}).", hint="Render it again.") from error
    return path, boxes, frozenset(rename(label) for label in (*ABNORMAL, *ORGANISMS))


def cut_tiles(
    path: Path,
    boxes: tuple[LabelledBox, ...],
    *,
    known: frozenset[str],
    tile_px: int,
    mpp: float,
    negatives: float = 1.0,
    seed: int = 0,
    slide_mpp: float | None = None,
    group: str = "",
    places: Sequence[LabelledBox] = (),
) -> list[Annotated]:
    """The tiles that show an annotated object, and ``negatives`` times as many that show none.

    Tiles lie on one grid without overlap, those without an object are drawn by ``seed`` among those with
    foreground. A cell of which less than `MIN_VISIBLE` of the box lies in a tile is not counted there, and
    nothing is asked about its class; nor is it where a cell may be that is marked without a box (``places``).

    Raises:
        SlideError: the slide cannot be opened or read. SettingError: ``mpp`` is finer than the slide.
    """
    from shapely import STRtree
    from shapely import box as rectangle

    if negatives < 0:
        raise SettingError(f"negatives is {negatives:g}.", hint="Give 0 or more tiles without objects per tile with.")
    with open_slide(path, mpp=slide_mpp) as opened:
        foreground = find_foreground(opened)
        plan = plan_tiles(opened, None, tile_px=tile_px, mpp=mpp, overlap=0.0)
        tree = STRtree([rectangle(b.box.x0, b.box.y0, b.box.x1, b.box.y1) for b in boxes])
        unsized = _unsized(places, boxes)
        marked = STRtree([rectangle(b.box.x0, b.box.y0, b.box.x1, b.box.y1) for b in unsized])
        used: set[int] = set()
        shown: list[tuple[Tile, tuple[LabelledBox, ...], frozenset[str]]] = []
        empty: list[Tile] = []
        for tile in plan.tiles:
            t = tile.box
            square = rectangle(t.x0, t.y0, t.x1, t.y1)
            near = sorted(tree.query(square).tolist())
            inside = [i for i in near if boxes[i].box.intersection(t) >= MIN_VISIBLE * boxes[i].box.area]
            partly = {
                boxes[i].label for i in near if 0 < boxes[i].box.intersection(t) < MIN_VISIBLE * boxes[i].box.area
            }
            partly |= {unsized[i].label for i in marked.query(square).tolist()}
            used.update(inside)
            if inside:
                shown.append((tile, tuple(_in_tile(boxes[i], tile) for i in inside), frozenset(partly)))
            elif not partly and foreground.fraction(t) > 0:
                empty.append(tile)
        if len(used) < len(boxes):
            log.warning(
                "%s: %d of %d marked cells lie by less than %.0f %% in any tile: they are in no answer",
                path.name, len(boxes) - len(used), len(boxes), 100 * MIN_VISIBLE,
            )  # fmt: skip
        wanted = min(len(empty), math.ceil(negatives * max(len(shown), 1))) if known else 0
        rng = np.random.default_rng([seed, 77])
        drawn = sorted(rng.choice(len(empty), wanted, replace=False).tolist()) if wanted else []
        shown += [(empty[i], (), frozenset()) for i in drawn]
        shown.sort(key=lambda entry: entry[0].index)
        name = path.name.split(".")[0]
        source = _Source(path, slide_mpp, tiles=len(shown))
        return [
            Annotated(
                f"{name}_{tile.id}", (tile_px, tile_px), partial(source.read, tile),
                group or f"{path.parent.name}/{path.name}", seen_boxes, known, unsure, mpp=tile.mpp, source=path.name,
            )
            for tile, seen_boxes, unsure in shown
        ]  # fmt: skip


def _unsized(places: Sequence[LabelledBox], boxes: Sequence[LabelledBox]) -> list[LabelledBox]:
    """Where the cells may be that are marked without a box: as far around as half a large cell of this slide."""
    sides = [max(found.box.width, found.box.height) for found in boxes]
    reach = float(np.quantile(sides, 0.9)) / 2 if sides else 0.0
    return [
        LabelledBox(p.label, Box(p.box.x0 - reach, p.box.y0 - reach, p.box.x1 + reach, p.box.y1 + reach))
        for p in places
    ]


def _in_tile(found: LabelledBox, tile: Tile) -> LabelledBox:
    inside = found.box.clipped(tile.box)
    assert inside is not None  # it is there by at least MIN_VISIBLE
    scale = tile.out_px / tile.width
    return LabelledBox(found.label, inside.shifted(-tile.x, -tile.y).scaled(scale, tile.out_px / tile.height))


class _Source:
    """A slide that is opened for the first of its tiles and closed after the last; later readings open it again."""

    def __init__(self, path: Path, mpp: float | None, *, tiles: int) -> None:
        self.path, self.mpp, self.left = path, mpp, tiles
        self.slide: Slide | None = None

    def read(self, tile: Tile) -> Image.Image:
        """The pixels of one tile. Raises SlideError."""
        from PIL import Image

        if self.slide is None:
            self.slide = open_slide(self.path, mpp=self.mpp)
        try:
            pixels = self.slide.read_region(tile.x, tile.y, tile.level, *tile.read_px)
        except SlideError:
            self._close()  # a handle that failed once is dead
            raise
        self.left -= 1
        if self.left <= 0:
            self._close()
        return Image.fromarray(resample(pixels, tile.out_px))

    def _close(self) -> None:
        if self.slide is not None:
            self.slide.close()
            self.slide = None


def bounds_of(path: Path, *, mpp: float | None = None) -> Box | None:
    """The scanned area of a slide in level-0 pixels, where the file states one."""
    with open_slide(path, mpp=mpp) as slide:
        return slide.bounds


def pair(slides: list[Path], notes: list[Path]) -> list[tuple[Path, Path]]:
    """(GeoJSON, slide) pairs, by order. Raises SettingError where their numbers differ."""
    if len(slides) != len(notes):
        raise SettingError(
            f"{len(notes)} GeoJSON files and {len(slides)} slides were given.", hint="Give one --slide per --geojson."
        )
    return list(zip(notes, slides, strict=True))
