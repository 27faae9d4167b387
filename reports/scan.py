"""scan.jpg: the scan as a small picture without marks, from which a report's pictures can be drawn anew.

The pictures of a run are always drawn from this file, so that a later rebuild without the slide gives the same ones.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_chat.atomic import write_bytes

NAME = "scan.jpg"
SIDE = 1600  # the pictures show it at 1,020 px
QUALITY = 90


def write_scan(overview_rgb: NDArray[np.uint8], folder: Path) -> Path:
    """Store the overview, its longer side at most 1,600 px.

    Raises:
        OutputError: the file cannot be written.
    """

    picture = Image.fromarray(np.ascontiguousarray(overview_rgb[..., :3]))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=QUALITY, subsampling=0)
    return write_bytes(folder / NAME, buffer.getvalue())


def read_scan(folder: Path) -> NDArray[np.uint8] | None:
    """The stored overview as [h, w, 3]; None where there is none that can be read."""

    try:
        with Image.open(folder / NAME) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None
