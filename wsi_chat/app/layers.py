"""What is laid over the slide: the screening probabilities and what was left out, one pixel for each grid cell.

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
from wsi_chat.analysis.run_folder import SlideFolder

FAINTEST = 0.15
"""Opacity of a tile at p = 0: the slide is seen through it, and that it was screened is seen too."""
FAILED = (STATUS_CODES["unreadable"], STATUS_CODES["screen_failed"])
LEFT_OUT = STATUS_CODES["not_planned"]
MASK_RGB = (60, 66, 74)
FAILED_RGB = (214, 0, 170)


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


def heat_scale(steps: int = 9) -> list[str]:
    """The colours from 0 to 1 as CSS, for the legend."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex

    return [to_hex(mpl.colormaps[HEAT_MAP](value)) for value in np.linspace(0, 1, steps)]


def _png(rgba: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, format="PNG")
    return buffer.getvalue()
