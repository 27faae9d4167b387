"""mask.png: the foreground mask as a picture, a pixel for each of its cells."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_chat.atomic import write_bytes

if TYPE_CHECKING:
    from tilers import Foreground

MASK = "mask.png"
MASK_PX = 4096

OUTSIDE, EMPTY, UNSURE, FOUND, UNREADABLE = range(5)
PALETTE = ((40, 40, 40), (255, 255, 255), (250, 200, 90), (60, 110, 160), (200, 40, 40))
"""Colours of the above: not scanned dark, empty glass white, unsure amber, cells blue, unreadable red."""


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
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
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
