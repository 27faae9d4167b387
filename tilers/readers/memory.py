"""A picture that is in memory already, as a slide: a Pillow image or an array."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from tilers.readers import Pixels, WindowBackend
from wsi_chat.errors import SettingError

NAME = "picture in memory"


class MemoryBackend(WindowBackend):
    """Pixels that somebody else read; shared by every thread."""

    shareable = True

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self.level_sizes = ((pixels.shape[1], pixels.shape[0]),)
        self.level_downsamples = (1.0,)
        self.digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing is held that the caller does not hold too."""


def open_memory(picture: ArrayLike | Image.Image) -> MemoryBackend:
    """A picture as a backend.

    Args:
        picture: a Pillow image of any mode; or an array (h, w), (h, w, 1), (h, w, 3) RGB or (h, w, 4) RGBA of uint8, of
            uint16 (its whole range), of booleans, or of floats from 0 to 1.

    Raises:
        SettingError: it is none of these.
    """
    if isinstance(picture, Image.Image):
        transparent = picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info
        deep = picture.mode.startswith("I;16")
        array = np.asarray(picture if deep else picture.convert("RGBA" if transparent else "RGB"))
    else:
        array = np.asarray(picture)
    return MemoryBackend(_rgb(_eight_bits(array)))


def _eight_bits(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.array(array, np.uint8)
    if array.dtype == np.uint16:
        return (array.astype(np.uint16) >> 8).astype(np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float64)
        if values.size and np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0:
            return (values * 255 + 0.5).astype(np.uint8)
        raise SettingError("The picture's floats are not all from 0 to 1.", hint="Scale them, or give uint8.")
    raise SettingError(f"A picture of {array.dtype} cannot be read.", hint="Give uint8, or floats from 0 to 1.")


def _rgb(array: NDArray[np.uint8]) -> Pixels:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise SettingError(
            f"An array of shape {array.shape} is not a picture.", hint="Give (height, width, 3), RGB in this order."
        )
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)
