"""What is laid over the slide: the screening probabilities, what was not screened, and the foreground mask.

The first two have one pixel for each grid cell, the mask one for each of its own cells (mask.png of the run folder).
The colours are those of heatmap.png: a tile without an answer is grey, never drawn as low.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reports.figures import HEAT_MAP, MISSING_GREY
from reports.maps import STATUS_CODES
from reports.mask import EMPTY, FOUND, OUTSIDE, UNREADABLE, UNSURE, Mask
from wsi_chat.analysis.run_folder import SlideFolder

FAINTEST = 0.15
"""Opacity of a tile at p = 0: the slide is seen through it, and that it was screened is seen too."""
FAILED = (STATUS_CODES["unreadable"], STATUS_CODES["screen_failed"])
LEFT_OUT = STATUS_CODES["not_planned"]
MASK_RGB = (60, 66, 74)
FAILED_RGB = (214, 0, 170)
GLASS_RGBA = {
    OUTSIDE: (40, 40, 40, 255), EMPTY: (40, 90, 160, 255), UNSURE: (235, 160, 20, 255), FOUND: (0, 0, 0, 0),
    UNREADABLE: (200, 40, 40, 255),
}  # fmt: skip
"""What the mask found, as the page shows it: where it found cells the slide is seen as it is."""
GLASS_NAMES = {EMPTY: "empty", UNSURE: "unsure", OUTSIDE: "outside", UNREADABLE: "unreadable"}
"""Kinds that the legend names, in its order."""


@dataclass(frozen=True, slots=True)
class Grid:
    """maps.zarr as far as the page draws it. ``extent`` is x0, y0, x1, y1 in level-0 pixels; ``outline`` the rings of
    the deposit, lists of (x, y)."""

    p_screen: NDArray[np.float32]
    status: NDArray[np.uint8]
    extent: tuple[float, float, float, float]
    outline: list[list[list[float]]]


def read_grid(folder: Path) -> Grid | None:
    """The grid of a slide's folder; None where there is none that can be read."""
    import zarr

    try:
        group: Any = zarr.open_group(str(SlideFolder(folder).maps_path), mode="r")
        p, status = np.asarray(group["p_screen"][...]), np.asarray(group["status"][...])
        transform = group.attrs["transform"]
        stride, origin = transform["stride"], transform["origin"]
        rows, columns = p.shape
        extent = (
            float(origin[0]), float(origin[1]),
            float(origin[0] + columns * stride[0]), float(origin[1] + rows * stride[1]),
        )  # fmt: skip
        outline = [[[float(x), float(y)] for x, y in ring] for ring in group.attrs.get("outline", [])]
    except (OSError, KeyError, ValueError, TypeError):
        return None
    return Grid(p, status, extent, outline) if p.size else None


def heat_png(grid: Grid) -> bytes:
    """The screening probabilities in the report's colours, the lower the clearer; cells not planned are clear."""
    import matplotlib as mpl

    rgba = np.zeros((*grid.p_screen.shape, 4), np.uint8)
    known = np.isfinite(grid.p_screen)
    rgba[known, :3] = (mpl.colormaps[HEAT_MAP](grid.p_screen[known])[:, :3] * 255).round().astype(np.uint8)
    missing = ~known & (grid.status != LEFT_OUT)
    rgba[missing, :3] = MISSING_GREY
    rgba[known, 3] = (255 * (FAINTEST + (1 - FAINTEST) * grid.p_screen[known])).round().astype(np.uint8)
    rgba[missing, 3] = 255
    return _png(rgba)


def mask_png(grid: Grid) -> bytes:
    """What no model was asked about: cells left out by the foreground mask are dark, failed ones magenta."""
    rgba = np.zeros((*grid.status.shape, 4), np.uint8)
    out = grid.status == LEFT_OUT
    failed = np.isin(grid.status, FAILED)
    rgba[out] = (*MASK_RGB, 255)
    rgba[failed] = (*FAILED_RGB, 255)
    return _png(rgba)


def glass_png(mask: Mask) -> bytes:
    """The foreground mask: empty glass, what it is not sure of, what was not scanned and what cannot be read."""
    colors = np.array([GLASS_RGBA[kind] for kind in range(len(GLASS_RGBA))], np.uint8)
    return _png(colors[mask.kinds])


def extent_of(mask: Mask, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where the mask lies: x0, y0, x1, y1 in level-0 pixels; the whole scan where it does not say."""
    if mask.cell is None:
        return 0.0, 0.0, float(size[0]), float(size[1])
    rows, columns = mask.kinds.shape
    return 0.0, 0.0, columns * mask.cell, rows * mask.cell


def heat_scale(steps: int = 9) -> list[str]:
    """The colours from 0 to 1 as CSS, for the legend."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    return [to_hex(mpl.colormaps[HEAT_MAP](value)) for value in np.linspace(0, 1, steps)]


def _png(rgba: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, format="PNG")
    return buffer.getvalue()
