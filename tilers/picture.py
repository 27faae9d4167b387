"""Flat pictures as models and data sets use them: upright, RGB, checked, whatever the file stores.

The same decoding as ``open_slide``: EXIF and TIFF orientation are applied, odd sample formats are converted or refused
by name, sizes are checked in the header, and damage is an error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tilers.readers import Backend, plain, tiff
from tilers.tiff_header import read_tiff_header
from wsi_chat.errors import SlideError, SlideNotFound, SlideUnreadable, SlideUnsupported


def open_picture(path: str | Path) -> Image.Image:
    """A picture as an RGB image, upright; transparent pixels show white.

    Raises:
        SlideNotFound: no such file.
        SlideUnsupported: not a picture that can be read (its photometric interpretation is named), or too large.
        SlideUnreadable: the picture is damaged or cut off.
    """
    path = Path(path)
    backend = _open(path)
    try:
        width, height = backend.level_sizes[0]
        _check_size(path, width, height)
        pixels = backend.read(0, 0, 0, width, height)
    except (SlideError, MemoryError):
        raise
    except Exception as error:
        raise SlideUnreadable(
            f"{path.name}: the image cannot be decoded: {error}.",
            hint="Copy the file again from its source; it looks damaged or cut off.",
        ) from error
    finally:
        backend.close()
    if pixels.shape[2] == 4:
        weight = pixels[..., 3:4].astype(np.uint16)
        pixels = ((pixels[..., :3] * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def picture_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a picture as it is shown, upright, from its header alone.

    Raises:
        SlideNotFound, SlideUnsupported: as ``open_picture``.
    """
    path = Path(path)
    _check_exists(path)
    try:
        if read_tiff_header(path) is None:
            return plain.read_header(path).size
        backend = tiff.open_backend(path)
    except SlideUnsupported as error:
        raise _named(path, error) from error
    width, height = backend.level_sizes[0]
    backend.close()
    return int(width), int(height)


def _open(path: Path) -> Backend:
    _check_exists(path)
    try:
        return plain.open_backend(path) if read_tiff_header(path) is None else tiff.open_backend(path)
    except SlideUnsupported as error:
        raise _named(path, error) from error


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise SlideNotFound(f"There is no picture {path}.", hint="Check the path and its spelling.")


def _named(path: Path, error: SlideUnsupported) -> SlideUnsupported:
    return SlideUnsupported(
        f"{path.name} cannot be read as a picture: {error.message}.",
        hint="Convert it to an 8-bit RGB PNG, JPEG or TIFF.",
    )


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > plain.MAX_PIXELS:
        raise SlideUnsupported(
            f"{path.name} has {width} x {height} px, too many for a picture that is read whole.",
            hint=f"Use at most {plain.MAX_PIXELS // 1_000_000} million pixels, or read it as a slide.",
        )
