"""mask.png: the foreground mask as a picture, a pixel for each of its cells."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wsi_chat.atomic import write_bytes

if TYPE_CHECKING:
    from tilers import Foreground

MASK = "mask.png"
MASK_PX = 4096

OUTSIDE, EMPTY, UNSURE, FOUND, UNREADABLE = range(5)
PALETTE = ((40, 40, 40), (255, 255, 255), (250, 200, 90), (60, 110, 160), (200, 40, 40))
"""Colours of the above: not scanned dark, empty glass white, unsure amber, cells blue, unreadable red."""


CELL = "wsi-chat.cell"
"""Text entry of the PNG: the side of what one pixel stands for, level-0 pixels."""


class Mask(NamedTuple):
    """mask.png as it was written. ``kinds``: [rows, columns] uint8 of the kinds above; ``cell``: level-0 pixels that
    one of its pixels is wide, None where the file does not say (it then covers the scan)."""

    kinds: NDArray[np.uint8]
    cell: float | None


def read_mask(path: Path) -> Mask | None:
    """The mask of a run folder; None where there is none that can be read."""
    try:
        with Image.open(path) as picture:
            kinds = np.asarray(picture)
            cell = float(picture.info[CELL]) if CELL in picture.info else None
            palette = picture.mode == "P"
    except (OSError, SyntaxError, ValueError):
        return None
    sound = palette and kinds.size > 0 and int(kinds.max()) < len(PALETTE) and (cell is None or cell > 0)
    return Mask(kinds, cell) if sound else None


def write_mask(foreground: Foreground, path: Path) -> Path:
    """Write the mask as a PNG with a palette, its longer side at most `MASK_PX` pixels.

    Raises:
        OutputError: the file cannot be written.
    """
    kinds = np.full(foreground.mask.shape, OUTSIDE, np.uint8)
    kinds[foreground.scanned] = EMPTY
    if foreground.unsure is not None:
        kinds[foreground.unsure] = UNSURE
    kinds[foreground.mask] = FOUND
    kinds[foreground.unreadable] = UNREADABLE
    step = -(-max(kinds.shape) // MASK_PX)
    picture = Image.fromarray(_shrunk(kinds, step), mode="P")
    picture.putpalette([value for colour in PALETTE for value in colour])
    about = PngInfo()
    about.add_text(CELL, f"{foreground.cell * step:.6g}")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True, pnginfo=about)
    return write_bytes(path, buffer.getvalue())


def _shrunk(kinds: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Blocks of ``step`` cells as one, by what matters most in them: the highest kind."""
    if step == 1:
        return kinds
    rows, columns = kinds.shape
    grown = np.pad(kinds, ((0, -rows % step), (0, -columns % step)))
    blocks = grown.reshape(grown.shape[0] // step, step, grown.shape[1] // step, step)
    shrunk: NDArray[np.uint8] = blocks.max(axis=(1, 3))
    return shrunk
