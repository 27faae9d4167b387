"""Slides through fastslide (optional), only where it is asked for by name: it is fast, and neither exact nor strict.

It decodes JPEG as libjpeg-turbo does with its fast DCT and without smooth chroma (the same pixels, bit for bit), where
OpenSlide, Pillow and the other readers here take the accurate modes; those cost 5 % more. And it passes over damaged
JPEG data without an error. So no file is read with it unless the user says so (``benchmarks/fastslide_modes.py``).

Where it reports an error, the reader that would have been taken without it reads that part of the slide and no more;
the parts are counted, and the report says how many there were. What neither can read is unreadable.

It gives no transparency, so a file with tiles that were never written, or that end beyond the file, is refused: they
would come as pixels. So are JPEG tiles in YCbCr, of which its colours differ by more than 3 grey levels, and a generic
TIFF of which it would show other levels or colours than are stored.
"""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tilers.properties import allow_listed, objective
from tilers.readers import Backend, Pixels, Resolution, WindowBackend, candidates
from tilers.readers.tiff import check_plain_layout
from tilers.samples import YCBCR
from tilers.tiff_header import has_gaps, read_tiff_header
from tilers.unreadable import UnsupportedKind
from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Remark

log = logging.getLogger(__name__)

PART_PX = 256
"""Side of the smallest part of a region that another reader is asked for."""


class FastSlideBackend(WindowBackend):
    """One fastslide handle, which several threads may read."""

    shareable = True
    decoding = "by fastslide, as asked; it shows damaged JPEG data as if they were sound"

    def __init__(self, slide: Any, path: Path) -> None:
        self._slide = slide
        self._path = path
        self._lock = threading.Lock()
        self._other: tuple[str, Backend] | None = None
        self._parts: dict[str, int] = {}
        raw = {str(key): str(value) for key, value in dict(slide.properties).items()}
        self.level_sizes = tuple((int(w), int(h)) for w, h in slide.level_dimensions)
        self.level_downsamples = tuple(float(d) for d in slide.level_downsamples)
        self.vendor = str(slide.format).lower().replace(" ", "-")
        self.objective_power = objective(raw.get("objective_magnification"))
        self.properties = allow_listed({"openslide.vendor": self.vendor})
        x, y = (float(value) for value in slide.mpp)
        if math.isfinite(x) and math.isfinite(y) and min(x, y) > 0:
            self.resolutions = (Resolution(x, y, "fastslide mpp"),)
        self.planes = max(1, int(slide.z_count))
        if str(slide.dtype) not in ("uint8", "DataType.UINT8") and np.dtype(slide.dtype) != np.uint8:
            raise UnsupportedKind(f"its pixels are {slide.dtype}; only 8-bit RGB is read")

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self.plane_window(self.planes // 2, level, x, y, width, height)

    def plane_window(self, plane: int, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        try:
            return self._decoded(plane, level, x, y, width, height)
        except MemoryError:
            raise
        except Exception as error:
            if width <= PART_PX and height <= PART_PX:
                return self._read_otherwise(error, plane, level, x, y, width, height)
        out = np.empty((height, width, 3), np.uint8)
        for top, high in _halves(height):
            for left, wide in _halves(width):
                part = self.plane_window(plane, level, x + left, y + top, wide, high)
                out[top : top + high, left : left + wide] = part
        return out

    def _decoded(self, plane: int, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        region = self._slide.read_region(location=(x, y), level=level, size=(width, height), z=plane)
        pixels = np.array(region.numpy())
        if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
            raise OSError(f"fastslide gave {pixels.dtype} pixels of shape {pixels.shape}")
        return pixels

    def _read_otherwise(
        self, error: Exception, plane: int, level: int, x: int, y: int, width: int, height: int
    ) -> Pixels:
        """The same window through another reader. Raises ``error`` where it has none, or it fails as well."""
        scale = self.level_downsamples[level]
        with self._lock:  # not every reader may serve several threads
            self._other = self._other or _other_reader(self._path, self)
            if self._other is None:
                raise error
            name, backend = self._other
            try:
                pixels = backend.read_plane(plane, round(x * scale), round(y * scale), level, width, height)
                if pixels.shape[2] == 4 and pixels[..., 3].min() < 255:
                    raise OSError("nothing was scanned there")
            except MemoryError:
                raise
            except Exception as second:
                self._other = None  # an OpenSlide handle that failed once fails for ever
                backend.close()
                raise error from second
            if not self._parts:
                log.warning("fastslide cannot read a part of the slide (%s); %s reads it instead", error, name)
            self._parts[name] = self._parts.get(name, 0) + 1
        return np.ascontiguousarray(pixels[..., :3])

    def reading_notes(self) -> tuple[Remark, ...]:
        with self._lock:
            return tuple(Remark("slide.read_otherwise", n=n, reader=name) for name, n in sorted(self._parts.items()))

    def close(self) -> None:
        with self._lock:
            other, self._other = self._other, None
        if other is not None:
            other[1].close()
        self._slide.close()


def _halves(length: int) -> tuple[tuple[int, int], ...]:
    """Start and length of the two halves of a side, cut at a multiple of the smallest part; or of the whole of it."""
    if length <= PART_PX:
        return ((0, length),)
    first = max(1, length // PART_PX // 2) * PART_PX
    return (0, first), (first, length - first)


def _other_reader(path: Path, like: Backend) -> tuple[str, Backend] | None:
    """The first other reader that shows the file with the same levels and focal planes."""
    for reader in candidates(path):
        try:
            backend = reader.open(path)
        except MemoryError:
            raise
        except Exception as error:
            log.debug("%s does not open it: %s", reader.name, error)
            continue
        same = (
            [tuple(size) for size in backend.level_sizes] == list(like.level_sizes)
            and np.allclose(backend.level_downsamples, like.level_downsamples, rtol=1e-3)
            and max(1, backend.planes) == like.planes
        )
        if same:
            return reader.name, backend
        backend.close()
    return None


def _check_faithful(path: Path) -> None:
    if has_gaps(path):
        raise SlideUnsupported("some of its tiles are missing, which fastslide would show as pixels")
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        ycbcr = int(page.photometric) == YCBCR
        subsampled = ycbcr and tuple(page.subsampling or (1, 1)) != (1, 1)
    if subsampled:
        raise SlideUnsupported(
            "its JPEG tiles have subsampled chroma, which fastslide does not smooth as libjpeg does: colours at edges"
            " differ by up to 37 grey levels"
        )
    if ycbcr:
        raise SlideUnsupported("its JPEG tiles are in YCbCr, which fastslide decodes with up to 5 grey levels of error")


def open_backend(path: Path) -> Backend:
    """Open with fastslide.

    Raises:
        SlideUnsupported: the package is missing, it refuses the file, or would not show it faithfully.
    """
    if path.is_dir():
        raise SlideUnsupported("a folder")
    try:
        from fastslide import FastSlide  # an optional package
    except ImportError as error:
        raise SlideUnsupported("needs the package fastslide: pip install 'wsi-chat[fastslide]'") from error
    header = read_tiff_header(path)
    if header is not None:
        _check_faithful(path)
    try:
        backend = FastSlideBackend(FastSlide.from_file_path(str(path)), path)
    except (SlideUnsupported, MemoryError):
        raise
    except Exception as error:
        raise SlideUnsupported(f"{type(error).__name__}: {error}") from error
    try:
        if header is not None and not header.vendor:
            check_plain_layout(path, backend.level_sizes)
    except BaseException:
        backend.close()
        raise
    return backend
