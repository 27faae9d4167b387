"""How sharp a picture is, and which focal plane of a stack is shown."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_chat.errors import SettingError

Focus = int | Literal["best", "mid"]
"""Which focal plane is read: a number counted from 0, the middle one, or the sharpest of each tile."""


def focus_score(pixels: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of luminance (3x3 kernel, grey levels 0..255): higher is sharper.

    Comparable only between tiles of one slide at one mpp (Pech-Pacheco et al., ICPR 2000).
    """
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def read_focus(value: str | int) -> Focus:
    """The setting ``z`` as it is typed: ``best``, ``mid`` or a plane's number.

    Raises:
        SettingError: it is none of them.
    """
    text = str(value).strip().lower()
    if text == "best" or text == "mid":
        return "best" if text == "best" else "mid"
    if text.isdecimal():
        return int(text)
    raise SettingError(
        f"z is {value!r}.", hint="Give best (the sharpest focal plane of each tile), mid, or a plane's number from 0."
    )


def fixed_plane(focus: Focus, planes: int, name: str) -> int | None:
    """The one plane that is read, or None where it is chosen tile by tile.

    Raises:
        SettingError: the slide has no plane of that number.
    """
    if isinstance(focus, int):
        if focus >= planes:
            number = "1 focal plane" if planes == 1 else f"{planes} focal planes"
            raise SettingError(
                f"z is {focus}, but {name} has {number}.",
                hint=f"Planes are counted from 0: give 0 to {planes - 1}, mid or best."
                if planes > 1
                else "Leave z out for slides without a stack.",
            )
        return focus
    return None if focus == "best" and planes > 1 else planes // 2
