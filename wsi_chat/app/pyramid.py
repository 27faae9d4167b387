"""The squares into which the page cuts a slide: level ``z`` shows 2**z level-0 pixels in one, in squares of 256."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsi_chat.schema import Box

SQUARE_PX = 256


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The squares of a slide of ``width`` x ``height`` level-0 pixels; at ``depth`` one square holds it all."""

    width: int
    height: int

    @property
    def depth(self) -> int:
        return max(0, math.ceil(math.log2(max(self.width, self.height, 1) / SQUARE_PX)))

    def grid(self, z: int) -> tuple[int, int]:
        """Columns and rows of a level."""
        side = SQUARE_PX << z
        return -(-self.width // side), -(-self.height // side)

    def holds(self, z: int, x: int, y: int) -> bool:
        if not 0 <= z <= self.depth:
            return False
        columns, rows = self.grid(z)
        return 0 <= x < columns and 0 <= y < rows

    def box(self, z: int, x: int, y: int) -> Box:
        """The square in level-0 pixels; the last of a row or column reaches beyond the slide."""
        side = SQUARE_PX << z
        return Box(x * side, y * side, (x + 1) * side, (y + 1) * side)
