"""Fields: the pictures of a slide that a model is asked about, at the magnification that suits it, and the way back.

Every field covers whole level-0 pixels, so that a box in the picture has one place on the slide.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from tilers.plan import spread
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, LabelledBox, Remark, Tile

if TYPE_CHECKING:
    from tilers import Slide

log = logging.getLogger(__name__)

OVERLAP = 0.25
MARGIN = 1.2
"""A region that is larger than a field is shown with surroundings: this many times its longer side."""
FITS = 1.05
"""A region up to this many times a field's side is taken for the field."""
NAMED = 8
"""Fields that a note names by their place, at most."""
WHOLE_PX = 4
"""A picture of unknown scale is shown whole while its longer side is at most this many times the model's tile."""


@dataclass(frozen=True, slots=True)
class Field:
    """One picture and the level-0 rectangle (whole pixels) that it shows. ``mpp`` is None where unknown."""

    id: str
    index: int
    image: Image.Image
    box: Box
    mpp: float | None = None

    @property
    def tile(self) -> Tile:
        """The field as a tile, for merging boxes across fields."""
        width, height = round(self.box.width), round(self.box.height)
        out = max(self.image.size)
        return Tile(
            self.index, round(self.box.x0), round(self.box.y0), width, height, 0, (width, height), out, self.mpp or 1.0
        )

    def to_level0(self, box: Box) -> Box:
        """From pixels of the picture to level-0 pixels."""
        w, h = self.image.size
        return box.scaled(self.box.width / w, self.box.height / h).shifted(self.box.x0, self.box.y0)

    def to_picture(self, box: Box) -> Box:
        """From level-0 pixels to pixels of the picture; may reach beyond it."""
        w, h = self.image.size
        return box.shifted(-self.box.x0, -self.box.y0).scaled(w / self.box.width, h / self.box.height)


class FieldReader:
    """Reads fields of an open slide for one model.

    Args:
        slide: stays open. Without a resolution, pictures are shown as they are, and `notes` says so.
        px: side of the model's tiles, pixels.
        mpp: resolution that suits it, µm/px.

    Attributes:
        notes: what to know of the fields that were read.
        unread: fields of the area last asked for (`over`) that its limit left out, in the plan's order.
    """

    def __init__(self, slide: Slide, *, px: int, mpp: float) -> None:
        self.slide = slide
        self.px = px
        self.mpp = mpp
        self.bounds = Box(0, 0, *slide.size)
        self.notes: list[Remark] = []
        self.unread: tuple[Tile, ...] = ()
        if slide.mpp is None:
            self.note(Remark("field.unknown_scale", mpp=mpp))
        elif mpp < slide.mpp * 0.95:
            self.note(Remark("field.finer", mpp=mpp, scan=slide.mpp))

    def note(self, text: Remark) -> None:
        if text not in self.notes:
            self.notes.append(text)

    @property
    def side(self) -> int | None:
        """Side of a field in level-0 pixels; None where the resolution is unknown."""
        return None if self.slide.mpp is None else max(1, round(self.px * self.mpp / self.slide.mpp))

    def inside(self, region: Box) -> Box:
        """The part of a region that lies on the slide. Raises SettingError where there is none."""
        found = region.clipped(self.bounds)
        if found is None:
            w, h = self.slide.size
            raise SettingError(
                Remark("field.outside", corners=_corners(region), name=self.slide.name, width=w, height=h),
                hint=Remark("field.give_region"),
            )
        return found

    # ------------------------------------------------------------------------------------------ reading

    def read(self, box: Box, name: str, index: int = 0, *, px: int | None = None) -> Field:
        """The picture of a level-0 rectangle of whole pixels, its longer side ``px`` (the model's tile).

        Raises:
            SlideUnreadable: nothing of it could be read.
        """

        px = px or self.px
        pixels = self.slide.crop(box, px)
        scale = max(box.width, box.height) / px
        mpp = None if self.slide.mpp is None else self.slide.mpp * scale
        return Field(name, index, Image.fromarray(pixels), box, mpp)

    def tile(self, tile: Tile) -> Field:
        """The field of a planned tile, read as the plan says."""
        return self.read(tile.box, tile.id, tile.index, px=tile.out_px)

    def around(self, region: Box, *, name: str = "") -> Field:
        """One field with the region in its middle, for questions that point at it.

        At the model's resolution, or coarser where the region would not fit, which is noted.
        """
        region = self.inside(region)
        longest = max(region.width, region.height)
        side = self.side
        if side is None:
            if max(self.slide.size) <= WHOLE_PX * self.px:
                return self.whole()
            side = self.px
        wanted = side if longest <= side * FITS else round(longest * MARGIN)
        if wanted > side and self.slide.mpp is not None:
            self.note(
                Remark(
                    "field.large_region", length=longest, mpp=self.mpp, side=side,
                    shown=self.slide.mpp * wanted / self.px,
                )
            )  # fmt: skip
        box = self.square(region.center, wanted)
        return self.read(box, name or _region_name(box))

    def square(self, center: tuple[float, float], side: int) -> Box:
        """A square of whole pixels around a point, moved inside the slide where it fits."""
        starts = []
        for middle, length in zip(center, self.slide.size, strict=True):
            start = round(middle - side / 2)
            starts.append(0 if side >= length else min(max(start, 0), length - side))
        return Box(starts[0], starts[1], starts[0] + side, starts[1] + side)

    def whole(self) -> Field:
        """The whole picture as it is, for pictures without a resolution."""
        return self.read(self.bounds, "picture", px=min(max(self.slide.size), WHOLE_PX * self.px))

    def over(self, region: Box | None, *, limit: int, cells_only: bool) -> list[Field]:
        """Fields that together show a region (None: the whole slide), at the model's resolution.

        At most ``limit`` of them, spread evenly; those left out are `unread` and named in the notes. ``cells_only``
        leaves out fields without cells where the whole slide is meant.
        """
        self.unread = ()
        side = self.side
        if side is None:
            if region is None:
                return [self.whole()]
            return [self.read(_whole_pixels(self.inside(region)), _region_name(region))]
        area = self.bounds if region is None else self.inside(region)
        if max(area.width, area.height) <= side * FITS:
            return [self.around(area)]
        tiles = self._tiles(region, cells_only)
        chosen = spread(tiles, limit)
        if len(chosen) < len(tiles):
            taken = {tile.index for tile in chosen}
            self.unread = tuple(tile for tile in tiles if tile.index not in taken)
            self.note(Remark("field.spread", n=len(chosen), all=len(tiles), rest=self._rest(region)))
        return [self.tile(tile) for tile in chosen]

    def _rest(self, region: Box | None) -> Remark:
        """What was not read, in a sentence: by place within a region, by the way out for a whole slide."""
        if region is None:
            return Remark("field.rest_of_slide")
        places = "; ".join(f"{tile.id} at {_corners(tile.box)}" for tile in self.unread[:NAMED])
        more = len(self.unread) - NAMED
        if more > 0:
            return Remark("field.rest_of_region_more", places=places, more=more)
        return Remark("field.rest_of_region", places=places)

    def _tiles(self, region: Box | None, cells_only: bool) -> Sequence[Tile]:
        from tilers import find_foreground, plan_tiles

        foreground = find_foreground(self.slide) if region is None and cells_only else None
        plan = plan_tiles(self.slide, foreground, tile_px=self.px, mpp=self.mpp, overlap=OVERLAP, allow_upsample=True)
        return [t for t in plan.tiles if region is None or t.box.clipped(region) is not None]


def keep_inside(boxes: Sequence[LabelledBox], region: Box | None) -> tuple[list[LabelledBox], int]:
    """The boxes whose centre lies in the region, and how many do not."""
    if region is None:
        return list(boxes), 0
    inside = [b for b in boxes if _holds(region, b.box.center)]
    return inside, len(boxes) - len(inside)


def _holds(region: Box, point: tuple[float, float]) -> bool:
    return region.x0 <= point[0] <= region.x1 and region.y0 <= point[1] <= region.y1


def _whole_pixels(box: Box) -> Box:
    x0, y0, x1, y1 = round(box.x0), round(box.y0), round(box.x1), round(box.y1)
    return Box(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))


def _corners(box: Box) -> str:
    return " ".join(f"{value:g}" for value in (box.x0, box.y0, box.x1, box.y1))


def _region_name(box: Box) -> str:
    return f"region {_corners(_whole_pixels(box))}"
