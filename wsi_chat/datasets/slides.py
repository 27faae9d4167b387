"""Pictures cut from annotated slides: QuPath GeoJSON, or the truth of a rendered slide.

Tiles go through `tilers`, so they are exactly what the model will be shown of the slide later.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_chat.datasets.annotated import Annotated, Rename
from wsi_chat.datasets.sources import read_json
from wsi_chat.errors import SettingError, SlideError
from wsi_chat.schema import Box, LabelledBox, Tile

if TYPE_CHECKING:
    from PIL import Image

    from tilers import Slide

log = logging.getLogger(__name__)

MIN_VISIBLE = 0.35
"""Share of a box inside a tile below which the cell is not counted there, as in the renderer."""
_OBJECTS = ("annotation", "detection", "cell")


def read_geojson(file: Path, *, rename: Rename, bounds: Box | None = None) -> tuple[LabelledBox, ...]:
    """The classified objects of a QuPath GeoJSON as boxes in level-0 pixels; ``bounds`` is the slide's, if any.

    Objects without a class and QuPath's tiles are left out, as are ignored classes (their names end in ``*``).

    Raises:
        SlideError: the file is no FeatureCollection (or list of features) or a geometry is broken.
    """
    content = read_json(file)
    features = content.get("features") if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise SlideError(f"{file}: holds no list of features.", hint="Export objects from QuPath as GeoJSON.")
    dx, dy = (bounds.x0, bounds.y0) if bounds else (0.0, 0.0)
    found, skipped = [], 0
    for number, feature in enumerate(features, start=1):
        try:
            properties = feature.get("properties") or {}
            name = (properties.get("classification") or {}).get("name")
            if properties.get("objectType", "annotation") not in _OBJECTS or not name or str(name).endswith("*"):
                skipped += 1
                continue
            points = np.asarray(list(_points(feature["geometry"]["coordinates"])), dtype=float)
            (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
            if not math.isfinite(x0 + y0 + x1 + y1):
                raise ValueError("a coordinate is not finite")
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise SlideError(f"{file}: feature {number} is broken ({error}).", hint="Export it again.") from error
        if x1 > x0 and y1 > y0:
            box = Box(float(x0), float(y0), float(x1), float(y1)).shifted(dx, dy)
            found.append(LabelledBox(rename(str(name)), box))
        else:
            skipped += 1
    if skipped:
        log.info("%s: %d objects without class or area left out", file.name, skipped)
    return tuple(found)


def _points(coordinates: Any) -> Iterator[tuple[float, float]]:
    if coordinates and isinstance(coordinates[0], int | float):
        yield float(coordinates[0]), float(coordinates[1])
    else:
        for part in coordinates:
            yield from _points(part)


def read_rendered_slide(file: Path, *, rename: Rename) -> tuple[Path, tuple[LabelledBox, ...], frozenset[str]]:
    """The slide beside a ``*.truth.json``, its boxes, and the classes that the truth lists exhaustively.

    Raises SlideError for a file that is not such a truth.
    """
    from wsi_chat.datasets.render.field import ABNORMAL, ORGANISMS

    content = read_json(file)
    try:
        boxes = tuple(LabelledBox(rename(cell["label"]), Box(*cell["box"])) for cell in content["cells"])
        path = file.parent / content["path"]
    except (KeyError, TypeError, ValueError) as error:
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
) -> list[Annotated]:
    """The tiles that show an annotated object, and ``negatives`` times as many that show none.

    Tiles lie on one grid without overlap, those without an object are drawn by ``seed`` among those with
    foreground. A cell of which less than `MIN_VISIBLE` of the box lies in a tile is not counted there, and
    nothing is asked about its class.

    Raises:
        SlideError: the slide cannot be opened or read. SettingError: ``mpp`` is finer than the slide.
    """
    from shapely import STRtree
    from shapely import box as rectangle

    from tilers import find_foreground, open_slide, plan_tiles

    if negatives < 0:
        raise SettingError(f"negatives is {negatives:g}.", hint="Give 0 or more tiles without objects per tile with.")
    with open_slide(path, mpp=slide_mpp) as opened:
        foreground = find_foreground(opened)
        plan = plan_tiles(opened, None, tile_px=tile_px, mpp=mpp, overlap=0.0)
        tree = STRtree([rectangle(b.box.x0, b.box.y0, b.box.x1, b.box.y1) for b in boxes])
        shown: list[tuple[Tile, tuple[LabelledBox, ...], frozenset[str]]] = []
        empty: list[Tile] = []
        for tile in plan.tiles:
            t = tile.box
            near = [boxes[i] for i in sorted(tree.query(rectangle(t.x0, t.y0, t.x1, t.y1)).tolist())]
            seen = [b for b in near if b.box.intersection(t) >= MIN_VISIBLE * b.box.area]
            partly = {b.label for b in near if 0 < b.box.intersection(t) < MIN_VISIBLE * b.box.area}
            if seen:
                shown.append((tile, tuple(_in_tile(b, tile) for b in seen), frozenset(partly)))
            elif not partly and foreground.fraction(t) > 0:
                empty.append(tile)
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

        from tilers import open_slide
        from tilers.stream import resample

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
    from tilers import open_slide

    with open_slide(path, mpp=mpp) as slide:
        return slide.bounds


def pair(slides: list[Path], notes: list[Path]) -> list[tuple[Path, Path]]:
    """(GeoJSON, slide) pairs, by order. Raises SettingError where their numbers differ."""
    if len(slides) != len(notes):
        raise SettingError(
            f"{len(notes)} GeoJSON files and {len(slides)} slides were given.", hint="Give one --slide per --geojson."
        )
    return list(zip(notes, slides, strict=True))
