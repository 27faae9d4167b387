"""Where to look again, closer: squares that hold the boxes of a first look, and boxes that such a view cuts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wsi_chat.schema import Box, LabelledBox, Tile

SPOTS = 8
"""Closer looks per tile, at most."""
EDGE_PX = 2.0
"""A box that ends this near the border of a closer look is cut by it: the first look saw it whole."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where to look again: a level-0 square, and the classes of the boxes in it."""

    box: Box
    labels: tuple[str, ...]


def hot_spots(tile: Tile, boxes: Iterable[LabelledBox], factor: float, *, most: int = SPOTS) -> list[Spot]:
    """Squares of the tile's side over ``factor`` that together hold the centre of every box, the fullest first.

    They lie in whole level-0 pixels inside the tile (and so inside the slide wherever the tile does).
    """
    side = max(1, round(tile.width / factor))
    left = sorted(boxes, key=lambda b: (b.box.y0, b.box.x0, b.label))
    spots: list[Spot] = []
    while left and len(spots) < most:
        squares = [_square_in(tile, found.box.center, side) for found in left]
        inside = [[b for b in left if _in(square, b.box.center)] for square in squares]
        best = max(range(len(left)), key=lambda n: (len(inside[n]), -n))
        spots.append(Spot(squares[best], tuple(dict.fromkeys(b.label for b in inside[best]))))
        left = [b for b in left if not _in(squares[best], b.box.center)]
    return spots


def _square_in(tile: Tile, center: tuple[float, float], side: int) -> Box:
    x = min(max(round(center[0] - side / 2), tile.x), tile.x + tile.width - side)
    y = min(max(round(center[1] - side / 2), tile.y), tile.y + tile.height - side)
    return Box(x, y, x + side, y + side)


def _in(box: Box, point: tuple[float, float]) -> bool:
    return box.x0 <= point[0] <= box.x1 and box.y0 <= point[1] <= box.y1


def touches_edge(box: Box, size: tuple[int, int]) -> bool:
    """Whether a box (pixels of a view of ``size``) ends within `EDGE_PX` of the view's border."""
    return box.x0 <= EDGE_PX or box.y0 <= EDGE_PX or box.x1 >= size[0] - EDGE_PX or box.y1 >= size[1] - EDGE_PX
