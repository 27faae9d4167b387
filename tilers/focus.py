"""How sharp a picture is, and which focal plane of a stack is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_chat.errors import SettingError

Focus = int | Literal["best", "mid", "fused"]
"""Which focal plane is read: a number from 0, the middle one, the sharpest of each tile, or all of them fused."""

NEIGHBOURHOOD_UM, NEIGHBOURHOOD_PX = 4.0, 8.0
"""Sigma of the neighbourhood in which planes are compared: about a nucleus. In px where µm/px is not known."""
FLOOR = 1.0  # squared grey levels: where no plane shows more than noise, all count alike
POWER = 4  # a plane that is twice as sharp as another weighs 16 times as much


def focus_score(pixels: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of luminance (3x3 kernel, grey levels 0..255): higher is sharper.

    Comparable only between tiles of one slide at one mpp (Pech-Pacheco et al., ICPR 2000).
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    edges = cv2.Laplacian(grey, cv2.CV_16S)  # whole numbers: nothing is rounded
    squares, mean = cv2.norm(edges, cv2.NORM_L2SQR) / edges.size, cv2.sumElems(edges)[0] / edges.size
    return float(squares - mean * mean)


def fuse_planes(planes: Iterable[NDArray[np.uint8]], *, sigma: float = NEIGHBOURHOOD_PX) -> NDArray[np.uint8]:
    """One picture of several focal planes in which everything is sharp (extended depth of field).

    Every pixel is the mean of the planes, weighted by how sharp each is around it: the energy of the Laplacian of
    luminance in a Gaussian neighbourhood, to a power that lets the sharpest plane prevail without seams between
    regions (Ogden et al., RCA Engineer 30(5), 1985; Forster et al., Microsc Res Tech 65:33, 2004, on microscopy).

    Args:
        planes: (h, w, 3) each, all of one size; one at a time is held.
        sigma: of the neighbourhood, in px.
    """
    total, weights = None, None
    for plane in planes:
        grey = cv2.cvtColor(np.ascontiguousarray(plane), cv2.COLOR_RGB2GRAY).astype(np.float32)
        edges = cv2.Laplacian(cv2.GaussianBlur(grey, (0, 0), 1.0), cv2.CV_32F)
        weight = (cv2.GaussianBlur(edges * edges, (0, 0), sigma) + FLOOR) ** POWER
        weighted = plane * weight[..., None]
        total = weighted if total is None else total + weighted
        weights = weight if weights is None else weights + weight
    if total is None or weights is None:
        raise ValueError("no plane to fuse")
    return np.asarray(total / weights[..., None] + 0.5, np.uint8)


def read_focus(value: str | int) -> Focus:
    """The setting ``z`` as it is typed: ``best``, ``mid``, ``fused`` or a plane's number.

    Raises:
        SettingError: it is none of them.
    """
    text = str(value).strip().lower()
    named: dict[str, Focus] = {"best": "best", "mid": "mid", "fused": "fused"}
    if text in named:
        return named[text]
    if text.isdecimal():
        return int(text)
    raise SettingError(
        f"z is {value!r}.",
        hint="Give best (the sharpest focal plane of each tile), fused (each place from the plane in which it "
        "is sharp), mid, or a plane's number from 0.",
    )


def fixed_plane(focus: Focus, planes: int, name: str) -> int | None:
    """The one plane that is read, or None where several are compared.

    Raises:
        SettingError: the slide has no plane of that number.
    """
    if isinstance(focus, int):
        if focus >= planes:
            number = "1 focal plane" if planes == 1 else f"{planes} focal planes"
            raise SettingError(
                f"z is {focus}, but {name} has {number}.",
                hint=f"Planes are counted from 0: give 0 to {planes - 1}, best, fused or mid."
                if planes > 1
                else "Leave z out for slides without a stack.",
            )
        return focus
    return None if focus in ("best", "fused") and planes > 1 else planes // 2
