"""PNG, JPEG and simple TIFF images through Pillow: decoded whole, so only up to a size, judged by the header."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from tilers.properties import allow_listed, origin_of, tiff_resolution
from tilers.readers import Backend, Pixels, Resolution, WindowBackend
from wsi_chat.errors import SlideUnreadable, SlideUnsupported

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 120_000_000  # 360 MB decoded; a 20x scan of 4 x 4 mm has 64 million


class PlainBackend(WindowBackend):
    """One decoded image in memory, shared by every thread."""

    shareable = True

    def __init__(self, image: Image.Image) -> None:
        self._pixels = _pixels(image)
        self.level_sizes = (image.size,)
        self.level_downsamples = (1.0,)
        origin = origin_of(image.info.get("Description") or getattr(image, "tag_v2", {}).get(270))
        self.properties = allow_listed({"plain.format": image.format, "plain.mode": image.mode, **origin})
        said = _resolution(image)
        self.resolutions = (said,) if said else ()

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self._pixels[y : y + height, x : x + width]

    def close(self) -> None:
        self._pixels = np.zeros((0, 0, 3), np.uint8)


def _pixels(image: Image.Image) -> Pixels:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = np.asarray(image).astype(np.int64)
        return np.repeat((np.clip(grey, 0, 65535) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _resolution(image: Image.Image) -> Resolution | None:
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        return tiff_resolution(tags.get(282), tags.get(283), tags.get(296, 2))
    dpi = image.info.get("dpi")
    if not dpi or not dpi[0] or not dpi[1]:
        return None
    return Resolution(25_400.0 / float(dpi[0]), 25_400.0 / float(dpi[1]), "image resolution tags")


def open_backend(path: Path) -> Backend:
    """Open a plain image.

    Raises:
        SlideUnsupported: not such an image, or above MAX_PIXELS (told from the header, before decoding).
        SlideUnreadable: the image is damaged or cut off.
    """
    if path.is_dir():
        raise SlideUnsupported("a folder")
    try:
        with warnings.catch_warnings():
            # Pillow warns at 89 million pixels and raises at twice that; the limit below is checked instead.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise SlideUnsupported(_too_large(str(error))) from error
    except Exception as error:
        raise SlideUnsupported("not a PNG, JPEG or simple TIFF image") from error
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise SlideUnsupported(_too_large(f"{width} x {height} px"))
        try:
            image.load()
            return PlainBackend(image)
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error ...
            raise SlideUnreadable(
                f"{path.name}: the image cannot be decoded: {error}.",
                hint="Copy the file again from its source; it looks damaged or cut off.",
            ) from error


def _too_large(seen: str) -> str:
    return (
        f"too large for a plain image ({seen}, at most {MAX_PIXELS // 1_000_000} million pixels, "
        "since it must be decoded whole); convert it to a tiled pyramidal TIFF"
    )
