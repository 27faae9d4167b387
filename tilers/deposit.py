"""The area in which the cells lie: a disc (liquid-based preparations) or a smear. A description, never a filter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

COARSE_UM = 250.0  # cells of a thin deposit lie closer than this; debris outside it does not
LEAST_UM2 = 2e6  # a deposit of under 2 square millimetres is no deposit but a field
ROUND = 0.85  # overlap with the disc of equal area above which it is called a circle


@dataclass(frozen=True, slots=True)
class Deposit:
    """Outline in level-0 px. ``circle``: ``center`` and ``radius`` describe it; ``smear``: the polygon does.

    ``polygon`` is closed implicitly and has at least three corners; ``area_mm2`` is that of the found area.
    """

    kind: Literal["circle", "smear"]
    center: tuple[float, float]
    radius: float
    polygon: tuple[tuple[float, float], ...]
    area_mm2: float

    @property
    def ring(self) -> tuple[tuple[float, float], ...]:
        """The outline to draw: 96 points of the circle, or the polygon of a smear."""
        if self.kind == "smear":
            return self.polygon
        (x, y), turn = self.center, math.tau / 96
        return tuple((x + self.radius * math.cos(n * turn), y + self.radius * math.sin(n * turn)) for n in range(96))


def find_deposit(mask: NDArray[np.bool_], *, cell: float, cell_um: float) -> Deposit | None:
    """The largest area densely set with foreground cells, or None where none is large enough.

    Args:
        mask: the foreground grid.
        cell: side of a grid cell, level-0 px; ``cell_um``: the same in µm.
    """
    factor = max(1, round(COARSE_UM / cell_um))
    rows, columns = (-(-n // factor) for n in mask.shape)
    grown = np.pad(mask, ((0, rows * factor - mask.shape[0]), (0, columns * factor - mask.shape[1])))
    coarse = grown.reshape(rows, factor, columns, factor).any(axis=(1, 3)).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    # A border of zeros keeps closing from treating the slide's edge as set.
    closed = cv2.morphologyEx(np.pad(coarse, 2), cv2.MORPH_CLOSE, kernel)[2:-2, 2:-2]
    closed = cv2.morphologyEx(np.pad(closed, 2), cv2.MORPH_OPEN, kernel)[2:-2, 2:-2]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    part = (labels == largest).astype(np.uint8)
    contours, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(contours, key=len)
    filled = np.zeros_like(part)
    cv2.drawContours(filled, [outline], -1, 1, thickness=-1)
    side_um = factor * cell_um
    area_um2 = float(filled.sum()) * side_um**2
    if area_um2 < LEAST_UM2:
        return None
    ys, xs = np.nonzero(filled)
    cx, cy = xs.mean() + 0.5, ys.mean() + 0.5
    radius = math.sqrt(filled.sum() / math.pi)
    yy, xx = np.mgrid[0:rows, 0:columns] + 0.5
    disc = (xx - cx) ** 2 + (yy - cy) ** 2 <= radius**2
    # A deposit cut by the slide's edge is compared with what of its disc lies on the slide: too lenient only
    # for tiny scans, which LEAST_UM2 leaves out.
    overlap = (disc & (filled > 0)).sum() / (disc | (filled > 0)).sum()
    hull = cv2.convexHull(outline)[:, 0, :] + 0.5
    size = factor * cell
    return Deposit(
        kind="circle" if overlap >= ROUND else "smear",
        center=(float(cx * size), float(cy * size)),
        radius=float(radius * size),
        polygon=tuple((float(x * size), float(y * size)) for x, y in hull),
        area_mm2=area_um2 / 1e6,
    )
