"""Boxes and tiles, in level-0 pixels of the slide where they are stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned rectangle, ``x0 <= x1`` and ``y0 <= y1``; the one box type and the one IoU.

    In stored results the unit is level-0 slide pixels; inside a dialect it is pixels of the image as sent.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not (self.x0 <= self.x1 and self.y0 <= self.y1):
            raise ValueError(f"box corners out of order or not numbers: {self.x0, self.y0, self.x1, self.y1}")

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def center(self) -> tuple[float, float]:
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    def scaled(self, sx: float, sy: float | None = None) -> Box:
        """The box with both axes multiplied (``sy`` defaults to ``sx``)."""
        sy = sx if sy is None else sy
        return Box(self.x0 * sx, self.y0 * sy, self.x1 * sx, self.y1 * sy)

    def shifted(self, dx: float, dy: float) -> Box:
        return Box(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)

    def clipped(self, bounds: Box) -> Box | None:
        """The part inside ``bounds``, or None where nothing (or only an edge) is left."""
        x0, y0 = max(self.x0, bounds.x0), max(self.y0, bounds.y0)
        x1, y1 = min(self.x1, bounds.x1), min(self.y1, bounds.y1)
        return Box(x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None

    def intersection(self, other: Box) -> float:
        """Shared area; 0 for disjoint boxes."""
        w = min(self.x1, other.x1) - max(self.x0, other.x0)
        h = min(self.y1, other.y1) - max(self.y0, other.y0)
        return w * h if w > 0 and h > 0 else 0.0

    def iou(self, other: Box) -> float:
        """Intersection over union, 0..1; 0 for disjoint boxes and for two empty ones."""
        shared = self.intersection(other)
        union = self.area + other.area - shared
        return shared / union if union > 0 else 0.0

    def union(self, other: Box) -> Box:
        """The smallest box that holds both."""
        return Box(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))


@dataclass(frozen=True, slots=True)
class Tile:
    """One rectangle of a slide, as planned: where it lies at level 0 and how it is to be read.

    ``x, y, width, height`` are level-0 pixels; ``read_px`` is (width, height) read from ``level``;
    ``out_px`` is the side in pixels of the square that the model sees; ``mpp`` is its effective µm/px.
    ``cellularity`` (0..1, foreground area fraction from the overview) is what the plan knew of it.
    """

    index: int
    x: int
    y: int
    width: int
    height: int
    level: int
    read_px: tuple[int, int]
    out_px: int
    mpp: float
    cellularity: float | None = None

    @property
    def id(self) -> str:
        """Stable name within a plan, e.g. ``t000042``; cited as evidence in reports."""
        return f"t{self.index:06d}"

    @property
    def box(self) -> Box:
        return Box(self.x, self.y, self.x + self.width, self.y + self.height)

    def to_level0(self, box: Box) -> Box:
        """From pixels of the tile's ``out_px`` x ``out_px`` image to level-0 slide pixels."""
        return box.scaled(self.width / self.out_px, self.height / self.out_px).shifted(self.x, self.y)
