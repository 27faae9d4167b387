"""TIFF-based slides that OpenSlide refuses, through tiffslide (which reads with tifffile and zarr).

tifffile fills pieces that a file does not hold with zeros, and its decoders paint over damage. Here a piece that was
never written is transparent, and one that lies beyond the end of a cut-off file, or that a strict decoder refuses,
makes the read fail: none of them turns black.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
import tiffslide
from numpy.typing import NDArray

from tilers.properties import allow_listed, number, objective, origin_of, tiff_resolution
from tilers.readers import Backend, Pixels, Resolution, WindowBackend
from tilers.readers.tiff import check_plain_layout
from tilers.remote import RemotePath
from tilers.scan_choice import check_first_image
from tilers.segments import TiffImage
from tilers.unreadable import REWRITE, UnsupportedKind
from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Remark

# A strip or tile is decoded whole; beyond this one segment would break the memory bound.
MAX_SEGMENT_BYTES = 256 * 2**20
MINISWHITE, PALETTE = 0, 3
SCANNERS = ("aperio", "hamamatsu", "leica", "philips", "ventana", "trestle")


class TiffSlideBackend(WindowBackend):
    """One tiffslide handle: 8-bit grey, RGB or RGBA."""

    def __init__(self, path: Path) -> None:
        self._path = path
        source: Any = path.open("rb") if isinstance(path, RemotePath) else str(path)
        self._file = source if isinstance(path, RemotePath) else None
        self._slide: Any = tiffslide.TiffSlide(source)
        try:
            self._describe(path.stat().st_size)
        except BaseException:
            self.close()
            raise

    def _describe(self, file_size: int) -> None:
        raw: dict[str, Any] = dict(self._slide.properties)
        series = self._slide.ts_tifffile.series[raw.get("tiffslide.series-index") or 0]
        page = series.levels[0].pages[0]
        vendor = str(raw.get("tiffslide.vendor") or "")
        if vendor in SCANNERS:
            check_first_image(vendor, str(page.description or ""), tiled=bool(page.is_tiled))
        _check(page)
        self.level_sizes = tuple((int(w), int(h)) for w, h in self._slide.level_dimensions)
        self.level_downsamples = tuple(float(d) for d in self._slide.level_downsamples)
        self.vendor = vendor
        self.objective_power = objective(raw.get("tiffslide.objective-power"))
        self.properties = allow_listed({**raw, **origin_of(raw.get("tiff.ImageDescription"))})
        self.resolutions = _resolutions(raw)
        self._inverted = int(page.photometric) == MINISWHITE
        self._images: list[TiffImage] = []
        self._sound: set[tuple[int, int, int]] = set()
        if len(series.levels) == len(self.level_sizes) and raw.get("tiffslide.series-composition") is None:
            self._images = [TiffImage(level.pages[0], file_size) for level in series.levels]
            self.notes = _notes(self._images, self._slide.ts_tifffile, file_size)
            if self._images[0].cut.all():
                raise SlideUnsupported(f"the file ends at byte {file_size}, before any of its pixels")

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        absent: NDArray[np.bool_] | None = None
        if self._images:
            image = self._images[level]
            high, wide = image.piece
            rows = slice(y // high, -(-(y + height) // high))
            cols = slice(x // wide, -(-(x + width) // wide))
            if image.cut[rows, cols].any():
                raise OSError(f"pixels at ({x}, {y}) of level {level} lie beyond the end of the file")
            absent = image.absent[rows, cols]
            self._check_pieces(level, rows, cols)
        # Asking at the centre of the level's pixel makes tiffslide's own truncation land on the right one.
        scale = self.level_downsamples[level]
        at = (int((x + 0.5) * scale), int((y + 0.5) * scale))
        array = np.asarray(self._slide.read_region(at, level, (width, height), as_array=True))
        if array.shape[2] == 1:
            array = np.repeat(array, 3, axis=2)
        if self._inverted:
            array = 255 - array
        if absent is None or not absent.any():
            return np.ascontiguousarray(array[..., :4])
        alpha = np.where(absent, 0, 255).astype(np.uint8)
        alpha = alpha.repeat(high, axis=0).repeat(wide, axis=1)
        top, left = y - rows.start * high, x - cols.start * wide
        alpha = alpha[top : top + height, left : left + width]
        return np.dstack([array[..., :3], alpha])

    def _check_pieces(self, level: int, rows: slice, cols: slice) -> None:
        """Decode each piece strictly, once. Raises what `TiffImage.decode` raises."""
        image = self._images[level]
        for row, col in product(range(rows.start, rows.stop), range(cols.start, cols.stop)):
            if (level, row, col) in self._sound or image.absent[row, col]:
                continue
            places = [(layer * image.rows + row) * image.columns + col for layer in range(image.layers)]
            with self._path.open("rb") as file:
                data = []
                for place in places:
                    file.seek(int(image.offsets[place]))
                    data.append(file.read(int(image.counts[place])))
            image.decode(data, row, col)
            self._sound.add((level, row, col))

    def close(self) -> None:
        self._slide.close()
        if self._file is not None:
            self._file.close()


def _check(page: Any) -> None:
    if page.dtype != np.uint8 or int(page.photometric) == PALETTE:
        raise UnsupportedKind(f"pixels are {page.dtype}, {page.photometric!s}: not 8-bit grey or RGB")
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except KeyError as error:
        raise UnsupportedKind(f"unknown TIFF compression {int(page.compression)}") from error
    rows = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    cols = page.tilewidth if page.is_tiled else page.imagewidth
    size = int(rows) * int(cols) * int(page.samplesperpixel)
    if size > MAX_SEGMENT_BYTES:
        raise UnsupportedKind(
            f"its pixels lie in one piece of {cols} x {rows} px ({size / 2**20:.0f} MiB), "
            "which cannot be read by region; convert it to a tiled TIFF",
            hint=REWRITE,
        )


def _resolutions(raw: dict[str, Any]) -> tuple[Resolution, ...]:
    tags = tiff_resolution(raw.get("tiff.XResolution"), raw.get("tiff.YResolution"), raw.get("tiff.ResolutionUnit"))
    x, y = number(raw.get("tiffslide.mpp-x")), number(raw.get("tiffslide.mpp-y"))
    if x is None or y is None:
        return (tags,) if tags else ()
    if tags and abs(tags.x - x) <= 1e-6 * x:
        return (tags,)  # tiffslide fell back to the tags itself
    source = "aperio.MPP" if raw.get("tiffslide.vendor") == "aperio" else "tiffslide.mpp-x"
    stated = Resolution(x, y, source)
    return (stated, tags) if tags else (stated,)


def _notes(images: list[TiffImage], tiff: Any, file_size: int) -> tuple[Remark, ...]:
    notes = []
    cut = sum(int(image.cut.sum()) for image in images)
    if cut:
        notes.append(Remark("slide.tiles_cut_off", size=file_size, n=cut))
    elif int(tiff.pages[-1].offset) and _dangling(tiff, file_size):
        notes.append(Remark("slide.end_cut_off", size=file_size))
    return tuple(notes)


def _dangling(tiff: Any, file_size: int) -> bool:
    """Whether the last directory that could be read points to another one beyond the end of the file."""
    form, handle = tiff.tiff, tiff.filehandle
    at = int(tiff.pages[-1].offset)
    order: Literal["little", "big"] = "little" if form.byteorder == "<" else "big"
    handle.seek(at)
    entries = int.from_bytes(handle.read(form.tagnosize), order)
    handle.seek(at + form.tagnosize + entries * form.tagsize)
    following = int.from_bytes(handle.read(form.offsetsize), order)
    return following > file_size


def _check_generic(path: Path, backend: TiffSlideBackend) -> None:
    try:
        check_plain_layout(path, backend.level_sizes)
    except BaseException:
        backend.close()
        raise


def open_backend(path: Path) -> Backend:
    """Open with tiffslide.

    Raises:
        SlideUnsupported: not a TIFF, or one whose pixels tiffslide cannot give as 8-bit grey or RGB.
    """
    if path.is_dir():
        raise SlideUnsupported("a folder")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise SlideUnsupported("not a TIFF file")
    try:
        backend = TiffSlideBackend(path)
        if backend.vendor not in SCANNERS:
            _check_generic(path, backend)
        return backend
    except SlideUnsupported:
        raise
    except Exception as error:  # tifffile and its codecs raise many kinds on damaged headers
        raise SlideUnsupported(f"{type(error).__name__}: {error}") from error
