"""Scanners' TIFFs whose levels are plain grids of JPEG tiles: where the tiles of each level lie, decoded strictly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tifffile

from tilers.readers import Backend, Pixels
from tilers.segments import JPEG, TiffImage, decode_jpeg

SAMPLES = 3


class TiledLevel:
    """The tiles of one directory that cover a level; see `tilers.readers.direct.StoredLevel`.

    ``size`` (width, height) is the level's: a directory may be larger, where its writer fills up the last tiles.
    """

    def __init__(self, image: TiffImage, file: int, size: tuple[int, int]) -> None:
        self._image, self._file = image, file
        self.piece = image.piece
        rows, columns = -(-size[1] // image.piece[0]), -(-size[0] // image.piece[1])
        self.gaps = (image.absent | image.cut)[:rows, :columns]

    def decode(self, row: int, column: int) -> Pixels:
        image = self._image
        index = row * image.columns + column
        count = int(image.counts[index])
        data = os.pread(self._file, count, int(image.offsets[index]))
        if len(data) < count:
            raise OSError(f"tile ({row}, {column}) lies beyond the end of the file")
        shape = (*image.piece, image.samples)
        return decode_jpeg(data, image.page.jpegtables, shape, image.photometric)


class ScannerTiff:
    """The levels of one file; see `tilers.readers.direct.StoredLevels`."""

    def __init__(self, path: Path, slide: Backend) -> None:
        self._tiff: Any = tifffile.TiffFile(path, _multifile=False)
        self._file = path.open("rb")
        try:
            size = os.fstat(self._file.fileno()).st_size
            images, self.why = _level_images(self._tiff, slide, size)
            self.levels: Sequence[TiledLevel | None] = [
                None if image is None else TiledLevel(image, self._file.fileno(), level)
                for image, level in zip(images, slide.level_sizes, strict=True)
            ]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._tiff.close()
        self._file.close()


def _level_images(tiff: Any, slide: Backend, file_size: int) -> tuple[list[TiffImage | None], str]:
    """The TIFF image of each level, None where it cannot be decoded directly, and why the last of those cannot."""
    tiled = [page for page in tiff.pages if page.is_tiled]
    images: list[TiffImage | None] = []
    reason = "no level is stored as tiles of its size"
    for number, size in enumerate(slide.level_sizes):
        page = _page_of(tiled, slide, number)
        image = None if page is None else TiffImage(page, file_size)
        if image is not None and (image.compression != JPEG or image.bits != 8 or image.separate):
            reason = f"its tiles are compressed as {page.compression.name}, no 8-bit JPEG"
            image = None
        if image is not None and (image.samples != SAMPLES or not _covers(image, size)):
            image = None
        images.append(image)
    return images, reason


def _page_of(tiled: Sequence[Any], slide: Backend, level: int) -> Any:
    """The directory of a level: the only one of its size; of Philips, who fills up the last tiles, in their order."""
    if slide.vendor == "philips":
        return tiled[level] if len(tiled) == len(slide.level_sizes) else None
    size = tuple(slide.level_sizes[level])
    found = [page for page in tiled if (int(page.imagewidth), int(page.imagelength)) == size]
    return found[0] if len(found) == 1 else None


def _covers(image: TiffImage, size: tuple[int, int]) -> bool:
    return image.columns * image.piece[1] >= size[0] and image.rows * image.piece[0] >= size[1]


def scanner_levels(path: Path, slide: Backend) -> ScannerTiff:
    """What a scanner's TIFF stores of the levels that OpenSlide found in it. May raise anything."""
    return ScannerTiff(path, slide)
