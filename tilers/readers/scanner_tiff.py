"""Scanners' TIFFs whose levels are plain grids of JPEG tiles: where the tiles of each level lie, decoded strictly.

Hamamatsu writes a level as one JPEG picture with restart markers; what lies between two of them is a tile (tifffile
finds them by the file's own table). OpenSlide takes any place behind a restart marker for the one that is meant; here
the marker must bear the right number.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tifffile

from tilers.readers import Backend, Pixels
from tilers.segments import JPEG, Empty, TiffImage, decode_jpeg, fresh
from wsi_chat.errors import SlideUnsupported

SAMPLES = 3
REDUCTIONS = (1, 2, 4, 8)  # that libjpeg decodes
MAX_WHOLE_PIXELS = 16_000_000  # of a level that is one JPEG picture
END_OF_IMAGE = b"\xff\xd9"
LENS, FOCAL_PLANE = 65421, 65424  # Hamamatsu's tags: magnification, not positive for label and macro; z in nm


class TiledLevel:
    """The tiles of one directory that cover a level; see `tilers.readers.direct.StoredLevel`.

    ``size`` (width, height) is the level's: a directory may be larger, where its writer fills up the last tiles, or
    ``reduce`` times as large, where the level is the directory decoded in small.
    """

    def __init__(self, image: TiffImage, file: int, size: tuple[int, int], reduce: int) -> None:
        self._image, self._file, self._reduce = image, file, reduce
        self.piece = image.piece[0] // reduce, image.piece[1] // reduce
        rows, columns = -(-size[1] // self.piece[0]), -(-size[0] // self.piece[1])
        self.gaps = (image.absent | image.cut)[:rows, :columns]

    def decode(self, row: int, column: int, empty: Empty = fresh) -> Pixels:
        image = self._image
        index = row * image.columns + column
        count = int(image.counts[index])
        data = os.pread(self._file, count, int(image.offsets[index]))
        if len(data) < count:
            raise OSError(f"tile ({row}, {column}) lies beyond the end of the file")
        if image.page.jpegheader:
            data = self._between_restarts(data, index)
        shape = (*image.piece, image.samples)
        return decode_jpeg(data, image.page.jpegtables, shape, image.photometric, empty, reduce=self._reduce)

    def _between_restarts(self, data: bytes, index: int) -> bytes:
        """A part of a JPEG picture that ends with a restart marker, as a picture of its own."""
        last = index == self._image.offsets.size - 1
        if data[-2:] != (END_OF_IMAGE if last else bytes([0xFF, 0xD0 + index % 8])):
            raise ValueError(f"part {index} of a JPEG picture does not end with its restart marker")
        return bytes(self._image.page.jpegheader) + data[:-2] + END_OF_IMAGE


class ScannerTiff:
    """The levels of one file; see `tilers.readers.direct.StoredLevels`."""

    def __init__(self, path: Path, slide: Backend) -> None:
        self._tiff: Any = tifffile.TiffFile(path, _multifile=False)
        self._file = path.open("rb")
        try:
            size = os.fstat(self._file.fileno()).st_size
            images, self.why = _level_images(self._tiff, slide, size)
            self.levels: Sequence[TiledLevel | None] = [
                None if image is None else TiledLevel(image, self._file.fileno(), level, reduce)
                for (image, reduce), level in zip(images, slide.level_sizes, strict=True)
            ]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._tiff.close()
        self._file.close()


def _level_images(tiff: Any, slide: Backend, file_size: int) -> tuple[list[tuple[TiffImage | None, int]], str]:
    """The TIFF image of each level and how far it is reduced, None where it cannot be decoded directly; and why not."""
    pages = [page for page in tiff.pages if _may_be_level(page, slide.vendor)]
    images: list[tuple[TiffImage | None, int]] = []
    reason = "no tiles of their size are stored"
    for number, size in enumerate(slide.level_sizes):
        page, reduce = _page_of(pages, slide, number)
        try:
            image = None if page is None else TiffImage(page, file_size)
        except SlideUnsupported as error:
            image, reason = None, error.message
        if image is not None and (image.compression != JPEG or image.bits != 8 or image.separate):
            reason = f"its tiles are compressed as {page.compression.name}, no 8-bit JPEG"
            image = None
        if image is not None and not _fits(image, size, reduce):
            image = None
        images.append((image, reduce))
    return images, reason


def _may_be_level(page: Any, vendor: str) -> bool:
    if vendor != "hamamatsu":
        return bool(page.is_tiled)
    lens, plane = (getattr(page.tags.get(tag), "value", 0) for tag in (LENS, FOCAL_PLANE))
    small = int(page.imagewidth) * int(page.imagelength) <= MAX_WHOLE_PIXELS
    return lens > 0 and plane == 0 and bool(page.is_tiled or small)


def _page_of(pages: Sequence[Any], slide: Backend, level: int) -> tuple[Any, int]:
    """The directory of a level, or None, and by how much it is reduced.

    It is the only one of the level's size; of Philips, who fills up the last tiles, they come in order. Of Hamamatsu
    OpenSlide makes up levels between those that are stored.
    """
    if slide.vendor == "philips":
        return (pages[level] if len(pages) == len(slide.level_sizes) else None), 1
    width, height = slide.level_sizes[level]
    for reduce in REDUCTIONS if slide.vendor == "hamamatsu" else (1,):
        size = (width * reduce, height * reduce)
        found = [page for page in pages if (int(page.imagewidth), int(page.imagelength)) == size]
        if found:
            return (found[0] if len(found) == 1 else None), reduce
    return None, 1


def _fits(image: TiffImage, size: tuple[int, int], reduce: int) -> bool:
    """Whether an image's tiles can be shown in the level's pixels, and cover it."""
    (high, wide), (width, height) = image.piece, size
    whole = high % reduce == wide % reduce == 0
    covers = image.columns * wide >= width * reduce and image.rows * high >= height * reduce
    return image.samples == SAMPLES and whole and covers


def scanner_levels(path: Path, slide: Backend) -> ScannerTiff:
    """What a scanner's TIFF stores of the levels that OpenSlide found in it. May raise anything."""
    return ScannerTiff(path, slide)
