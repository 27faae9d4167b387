"""Scanner formats and DICOM through OpenSlide. Label and macro images are never opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openslide

from tilers.dicom import file_of_series
from tilers.properties import allow_listed, number, objective, origin_of, tiff_resolution
from tilers.readers import Backend, Pixels, Resolution
from tilers.readers.direct import direct_or_openslide
from tilers.readers.scanner_tiff import check_tile_counts
from tilers.readers.tiff import check_plain_layout
from tilers.scan_choice import check_first_image
from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Box

CACHE_BYTES = 32 * 2**20  # OpenSlide's own default, set so that a release cannot change our memory bound

# Where OpenSlide's mpp-x comes from, for vendors that state it in a property of their own.
TAGS = "tiff resolution tags"
VENDOR_MPP = {"aperio": "aperio.MPP", "generic-tiff": TAGS, "hamamatsu": TAGS, "trestle": TAGS}


class OpenSlideBackend(Backend):
    """One OpenSlide handle. Its errors latch: after the first one the handle only repeats it."""

    def __init__(self, path: Path) -> None:
        file = file_of_series(path) if path.is_dir() else path
        self._slide: Any = openslide.OpenSlide(file)
        self._slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        raw: dict[str, str] = dict(self._slide.properties)
        self.vendor = raw.get("openslide.vendor", "")
        if self.vendor == "aperio":
            check_first_image(self.vendor, raw.get("tiff.ImageDescription", ""), tiled=True)
        self.level_sizes = tuple(self._slide.level_dimensions)
        self.level_downsamples = tuple(float(d) for d in self._slide.level_downsamples)
        self.objective_power = objective(raw.get("openslide.objective-power"))
        self.properties = allow_listed({**raw, **origin_of(raw.get("tiff.ImageDescription"))})
        self.resolutions = _resolutions(raw, self.vendor)
        self.bounds = _bounds(raw)
        colour = raw.get("openslide.background-color", "")
        if len(colour) == 6:
            self.background = (int(colour[0:2], 16), int(colour[2:4], 16), int(colour[4:6], 16))

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        return np.asarray(self._slide.read_region((x, y), level, (width, height)))

    def close(self) -> None:
        self._slide.close()


def _resolutions(raw: dict[str, str], vendor: str) -> tuple[Resolution, ...]:
    resolutions = []
    x, y = number(raw.get("openslide.mpp-x")), number(raw.get("openslide.mpp-y"))
    if x is not None or y is not None:
        source = VENDOR_MPP.get(vendor, "openslide.mpp-x")
        resolutions.append(Resolution(x if x is not None else y or 0.0, y if y is not None else x or 0.0, source))
    tags = tiff_resolution(raw.get("tiff.XResolution"), raw.get("tiff.YResolution"), raw.get("tiff.ResolutionUnit"))
    if tags and not any(r.source == tags.source for r in resolutions):
        resolutions.append(tags)
    return tuple(resolutions)


def _bounds(raw: dict[str, str]) -> Box | None:
    values = [number(raw.get(f"openslide.bounds-{key}")) for key in ("x", "y", "width", "height")]
    x, y, width, height = values
    if x is None or y is None or not width or not height:
        return None
    return Box(x, y, x + width, y + height)


def open_backend(path: Path) -> Backend:
    """Open with OpenSlide.

    Raises:
        SlideUnsupported: OpenSlide does not know the format, or refuses the file.
    """
    try:
        backend = OpenSlideBackend(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideUnsupported("not a format it knows") from error
    except openslide.OpenSlideError as error:
        raise SlideUnsupported(str(error)) from error
    if backend.vendor == "generic-tiff":
        _check_generic(path, backend)
    elif backend.vendor == "ventana":
        _check_ventana(path, backend)
    return direct_or_openslide(path, backend, lambda: OpenSlideBackend(path))


def _check_ventana(path: Path, backend: OpenSlideBackend) -> None:
    """Refuse a file whose XML has more tiles than its directories: OpenSlide reads memory beyond what it was given."""
    try:
        check_tile_counts(path, backend.level_sizes)
    except BaseException:
        backend.close()
        raise


def _check_generic(path: Path, backend: OpenSlideBackend) -> None:
    try:
        check_plain_layout(path, backend.level_sizes)
    except BaseException:
        backend.close()
        raise
