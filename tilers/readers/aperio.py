"""Aperio's slides: OpenSlide says what lies where, and their JPEG tiles are decoded directly and strictly.

OpenSlide decodes such tiles with libjpeg-turbo in its accurate mode, and so does this module (see
``tilers.segments.decode_jpeg``): the pixels are the same, bit for bit. What it adds is that a tile is decoded once for
all threads and all the regions that share it, and that data which OpenSlide passes over (a tile with bytes that belong
to nothing) are an error. Every file proves itself when it is opened: some of its tiles are read both ways.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tilers.readers import Backend, Pixels
from tilers.readers.pieces import PieceBackend
from tilers.segments import JPEG, TiffImage, decode_jpeg
from wsi_chat.errors import SlideUnsupported

VENDOR = "aperio"
ON_GRID = 0.01  # px of the read level: nearer to its pixels OpenSlide's interpolation changes 3 grey levels at most
PROBES = 4  # tiles of each level that are read both ways
MAX_GREY, MEAN_GREY = 3, 0.5  # how far a probe may differ from OpenSlide


class AperioBackend(PieceBackend):
    """An Aperio slide for all threads: JPEG tiles directly, whatever else through an OpenSlide handle.

    A region goes through OpenSlide where a tile was never written (OpenSlide shows the coarser level there), where the
    region lies between the pixels of a level with a fractional downsample, and on levels that are not JPEG tiles.

    Args:
        slide: the handle, which the new backend closes.
        reopen: another one, in place of one that has failed (OpenSlide's errors latch).

    Raises:
        SlideUnsupported: no level of the file can be decoded directly with OpenSlide's pixels; the reason.
    """

    def __init__(self, path: Path, slide: Backend, reopen: Callable[[], Backend]) -> None:
        super().__init__()
        self._slide = slide
        self._reopen = reopen
        self._lock = threading.Lock()
        self._tiff: Any = tifffile.TiffFile(path, _multifile=False)
        self._file = path.open("rb")
        try:
            images, reason = _level_images(self._tiff, slide, os.fstat(self._file.fileno()).st_size)
            if not any(images):
                raise SlideUnsupported(reason)
            self._images = images
            self._gaps = [None if image is None else image.absent | image.cut for image in images]
            self._whole = [gaps is not None and not gaps.any() for gaps in self._gaps]
            self._take_over(slide)
            self.decoding = self._probe()
        except BaseException:
            self._release()
            raise

    def _take_over(self, slide: Backend) -> None:
        self.level_sizes, self.level_downsamples = slide.level_sizes, slide.level_downsamples
        self.resolutions, self.objective_power = slide.resolutions, slide.objective_power
        self.vendor, self.bounds, self.background = slide.vendor, slide.bounds, slide.background
        self.properties, self.notes = slide.properties, slide.notes

    # ------------------------------------------------------------------------------------------ proof

    def _probe(self) -> str:
        """Read some tiles both ways.

        Tiles that OpenSlide cannot read prove nothing. If most of the others are refused or look different, that is
        this file's way of writing and no damage: then OpenSlide keeps it.
        """
        tried = agreed = 0
        why = ""
        for level, row, column in self._chosen():
            image = self._images[level]
            assert image is not None
            high, wide = image.piece
            width, height = min(wide, image.width - column * wide), min(high, image.height - row * high)
            scale = self.level_downsamples[level]
            try:
                theirs = self._through_openslide(
                    round(column * wide * scale), round(row * high * scale), level, width, height
                )
            except Exception:
                continue
            tried += 1
            try:
                ours = self.piece(0, level, row, column)[:height, :width]
            except Exception as error:
                why = f"{error}"
                continue
            difference = np.abs(ours.astype(np.int16) - theirs[..., :3])
            if difference.max() <= MAX_GREY and difference.mean() < MEAN_GREY:
                agreed += 1
            else:
                why = f"their colours differ by {difference.max()} grey levels"
        if 2 * agreed <= tried:
            raise SlideUnsupported(
                f"of {tried} JPEG tiles tried, {tried - agreed} are not as OpenSlide shows them: {why}"
            )
        return f"directly, strictly: {agreed} of {tried} JPEG tiles tried are as OpenSlide shows them"

    def _chosen(self) -> Iterator[tuple[int, int, int]]:
        """(level, row, column) of up to PROBES written tiles of each level, where level and slide pixels coincide."""
        for level, image in enumerate(self._images):
            gaps = self._gaps[level]
            if image is None or gaps is None:
                continue
            whole = self.level_downsamples[level].is_integer()
            written = np.flatnonzero(~gaps.ravel()) if whole else np.flatnonzero(~gaps[:1, :1].ravel())
            for place in written[np.linspace(0, len(written) - 1, min(PROBES, len(written))).astype(int)]:
                yield level, *divmod(int(place), image.columns)

    # ------------------------------------------------------------------------------------------ pixels

    def grid(self, level: int) -> tuple[int, int, int, int] | None:
        image = self._images[level]
        return None if image is None else (image.rows, image.columns, *image.piece)

    def piece(self, plane: int, level: int, row: int, column: int) -> Pixels:
        image = self._images[level]
        assert image is not None
        index = row * image.columns + column
        count = int(image.counts[index])
        data = os.pread(self._file.fileno(), count, int(image.offsets[index]))
        if len(data) < count:
            raise OSError(f"tile ({row}, {column}) lies beyond the end of the file")
        shape = (*image.piece, image.samples)
        return decode_jpeg(data, image.page.jpegtables, shape, image.photometric, self._buffers.empty)

    def read_plane(self, plane: int, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        if self._is_direct(x, y, level, width, height):
            return super().read_plane(plane, x, y, level, width, height)
        return self._through_openslide(x, y, level, width, height)

    def _is_direct(self, x: int, y: int, level: int, width: int, height: int) -> bool:
        image, gaps = self._images[level], self._gaps[level]
        if image is None or gaps is None:
            return False
        scale = self.level_downsamples[level]
        left, top = round(x / scale), round(y / scale)
        if max(abs(x / scale - left), abs(y / scale - top)) > ON_GRID:
            return False
        if self._whole[level]:
            return True
        high, wide = image.piece
        rows = slice(max(0, top // high), max(0, -(-(top + height) // high)))
        columns = slice(max(0, left // wide), max(0, -(-(left + width) // wide)))
        return not gaps[rows, columns].any()

    def _through_openslide(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        slide = self._slide
        try:
            return slide.read(x, y, level, width, height)
        except Exception:
            with self._lock:
                if self._slide is slide:  # others may be reading with it: it closes when the last of them lets go
                    self._slide = self._reopen()
            raise

    def _release(self) -> None:
        self._tiff.close()
        self._file.close()

    def close(self) -> None:
        self._release()
        self._slide.close()


def _level_images(tiff: Any, slide: Backend, file_size: int) -> tuple[list[TiffImage | None], str]:
    """The TIFF image of each level, None where it cannot be decoded directly, and why the last of those cannot."""
    tiled = [page for page in tiff.pages if page.is_tiled]
    images: list[TiffImage | None] = []
    reason = "no level is stored as tiles of its size"
    for size in slide.level_sizes:
        found = [page for page in tiled if (int(page.imagewidth), int(page.imagelength)) == tuple(size)]
        image = TiffImage(found[0], file_size) if len(found) == 1 else None
        if image is not None and (image.compression != JPEG or image.bits != 8 or image.separate):
            reason = f"its tiles are compressed as {found[0].compression.name}, no 8-bit JPEG"
            image = None
        images.append(image)
    return images, reason


def direct_or_openslide(path: Path, slide: Backend, reopen: Callable[[], Backend]) -> Backend:
    """The one place where it is decided who decodes a slide that OpenSlide has opened; ``decoding`` says why."""
    if slide.vendor != VENDOR:
        slide.decoding = (
            f"by OpenSlide; only Aperio's JPEG tiles are decoded directly, and this is {slide.vendor or '?'}"
        )
        return slide
    try:
        return AperioBackend(path, slide, reopen)
    except Exception as error:  # whatever stands against it, OpenSlide still reads the file
        slide.decoding = f"by OpenSlide; {getattr(error, 'message', '') or f'{type(error).__name__}: {error}'}"
        return slide
