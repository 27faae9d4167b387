"""EXIF and TIFF orientation: pictures are shown upright, whichever way they are stored.

The eight values are those of TIFF 6.0's Orientation tag: 1 is upright, 2 to 4 are mirrored or turned by 180
degrees, 5 to 8 exchange width and height.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tilers.readers import Backend, Pixels, WindowBackend
from wsi_chat.schema import Remark

UPRIGHT = 1


def turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Stored pixels (h, w, n) as they are to be shown."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) as shown, of a picture stored with ``size``."""
    return (size[1], size[0]) if orientation in (5, 6, 7, 8) else size


class TurnedBackend(WindowBackend):
    """A backend seen upright: windows are read where they are stored and turned."""

    def __init__(self, stored: WindowBackend, orientation: int) -> None:
        self._stored = stored
        self._orientation = orientation
        self.level_sizes = tuple(turned_size(size, orientation) for size in stored.level_sizes)
        self.level_downsamples = stored.level_downsamples
        self.resolutions = stored.resolutions
        self.objective_power = stored.objective_power
        self.vendor = stored.vendor
        self.background = stored.background
        self.properties = stored.properties
        self.notes = stored.notes
        self.planes = stored.planes
        self.shareable = stored.shareable

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self.plane_window(self.planes // 2, level, x, y, width, height)

    def plane_window(self, plane: int, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        shown_w, shown_h = self.level_sizes[level]
        if self._orientation in (2, 3, 6, 7):
            x = shown_w - x - width
        if self._orientation in (3, 4, 7, 8):
            y = shown_h - y - height
        if self._orientation in (5, 6, 7, 8):
            x, y, width, height = y, x, height, width
        return turn(self._stored.plane_window(plane, level, x, y, width, height), self._orientation)

    def reading_notes(self) -> Sequence[Remark]:
        return self._stored.reading_notes()

    def close(self) -> None:
        self._stored.close()


def upright(backend: WindowBackend, orientation: int) -> Backend:
    """The backend itself where it is stored upright, else one that turns what it reads."""
    return TurnedBackend(backend, orientation) if 2 <= orientation <= 8 else backend
