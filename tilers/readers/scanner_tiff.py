"""Scanners' TIFFs whose levels are plain grids of JPEG tiles: where the tiles of each level lie, decoded strictly.

Hamamatsu writes a level as one JPEG picture with restart markers; what lies between two of them is a tile (tifffile
finds them by the file's own table). OpenSlide takes any place behind a restart marker for the one that is meant; here
the marker must bear the right number.
"""

from __future__ import annotations

import math
import os
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

from tilers.readers import Backend, Pixels
from tilers.segments import JPEG, Empty, TiffImage, decode_jpeg, fresh, jpeg_segments
from wsi_chat.errors import SlideUnsupported

SAMPLES = 3
REDUCTIONS = (1, 2, 4, 8)  # that libjpeg decodes
MAX_XML = 4 * 2**20
MAX_WHOLE_PIXELS = 16_000_000  # of a level that is one JPEG picture
RESTART_INTERVAL, JPEG_HEADER = 0xDD, 2**16  # a marker's second byte; bytes in which it stands
END_OF_IMAGE = b"\xff\xd9"
AHEAD_BYTES = 2**16
LENS, FOCAL_PLANE = 65421, 65424  # Hamamatsu's tags: magnification, not positive for label and macro; z in nm


@dataclass(frozen=True, slots=True)
class Source:
    """The directory that a level comes from.

    ``size``: what it shows of the level, (width, height): some writers fill up the last tiles. ``reduce``: how many
    times as large it is. ``origin``: where in the level it begins.
    """

    page: Any
    size: tuple[int, int]
    reduce: int = 1
    origin: tuple[int, int] = (0, 0)


class SharedFile:
    """An open file that several threads read, each a little ahead: what lies together is asked for in turn.

    Every system call is an occasion for the threads to wait for each other, which costs more than the bytes do.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._ahead = threading.local()

    def read(self, start: int, count: int) -> bytes:
        """``count`` bytes from ``start`` on, fewer at the end of the file."""
        at, held = getattr(self._ahead, "held", (0, b""))
        if not at <= start <= start + count <= at + len(held):
            at, held = start, os.pread(self._file.fileno(), max(count, AHEAD_BYTES), start)
            self._ahead.held = at, held
        return held[start - at : start - at + count]

    def close(self) -> None:
        self._file.close()


class TiledLevel:
    """The tiles of one directory that cover a level, or a part of it; see `tilers.readers.direct.StoredLevel`.

    Raises:
        SlideUnsupported: they are not JPEG, or cannot be shown in the level's pixels.
    """

    def __init__(self, source: Source, file: SharedFile, file_size: int) -> None:
        self._image = image = TiffImage(source.page, file_size)
        self._file, self._reduce = file, source.reduce
        self.size, self.origin = source.size, source.origin
        if image.compression != JPEG or image.bits != 8 or image.separate:
            raise SlideUnsupported(f"its tiles are compressed as {source.page.compression.name}, no 8-bit JPEG")
        (high, wide), (width, height) = image.piece, self.size
        self.piece = high // self._reduce, wide // self._reduce
        rows, columns = -(-height // max(1, self.piece[0])), -(-width // max(1, self.piece[1]))
        whole = high % self._reduce == wide % self._reduce == 0
        if image.samples != SAMPLES or not whole or columns > image.columns or rows > image.rows:
            raise SlideUnsupported("its tiles do not cover the level, or hold no RGB")
        self.gaps = (image.absent | image.cut)[:rows, :columns]
        self._most = 2 * high * wide * SAMPLES + 2**16  # no tile is twice as large as its pixels

    def decode(self, row: int, column: int, empty: Empty = fresh) -> Pixels:
        image = self._image
        index = row * image.columns + column
        count = int(image.counts[index])
        if not 0 < count < self._most:
            raise ValueError(f"tile ({row}, {column}) claims {count:,} bytes")
        data = self._file.read(int(image.offsets[index]), count)
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
        self._file = SharedFile(path)
        self.why = "no tiles of their size are stored"
        self.levels: list[TiledLevel | None] = []
        try:
            size = path.stat().st_size
            for source in _sources(self._tiff, slide):
                level = None
                try:
                    level = None if source is None else TiledLevel(source, self._file, size)
                except SlideUnsupported as error:
                    self.why = error.message
                self.levels.append(level)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._tiff.close()
        self._file.close()


def _sources(tiff: Any, slide: Backend) -> list[Source | None]:
    """Where each level that OpenSlide found comes from, None where that is not one directory."""
    tiled = [page for page in tiff.pages if page.is_tiled]
    sizes = [(int(width), int(height)) for width, height in slide.level_sizes]
    if slide.vendor == "leica":
        return list(leica_sources(tiff, len(sizes)))
    if slide.vendor == "philips":  # who fills up the last tiles, so that sizes tell nothing
        return [Source(page, size) for page, size in zip(tiled, sizes, strict=True)]
    if slide.vendor == "hamamatsu":  # between whose levels OpenSlide makes up others
        pages = [page for page in tiff.pages if _is_hamamatsu_level(page)]
        return [next(filter(None, (_of_size(pages, size, n) for n in REDUCTIONS)), None) for size in sizes]
    return [_of_size(tiled, size) for size in sizes]


def _of_size(pages: Sequence[Any], size: tuple[int, int], reduce: int = 1) -> Source | None:
    """The only directory that is so many times as large as a level."""
    whole = (size[0] * reduce, size[1] * reduce)
    found = [page for page in pages if (int(page.imagewidth), int(page.imagelength)) == whole]
    return Source(found[0], size, reduce) if len(found) == 1 else None


def _is_hamamatsu_level(page: Any) -> bool:
    """Whether a directory is a level whose parts can be found; OpenSlide also looks for markers that no table lists."""
    lens, plane = (getattr(page.tags.get(tag), "value", 0) for tag in (LENS, FOCAL_PLANE))
    if lens <= 0 or plane != 0:
        return False
    if page.is_tiled:
        return True
    file = page.parent.filehandle
    file.seek(page.dataoffsets[0])
    in_parts = any(kind == RESTART_INTERVAL for kind, _, _ in jpeg_segments(file.read(JPEG_HEADER)))
    return not in_parts and int(page.imagewidth) * int(page.imagelength) <= MAX_WHOLE_PIXELS


def leica_sources(tiff: Any, count: int) -> Iterator[Source]:
    """The levels of the only area that was scanned, by the XML of Leica's SCN: where it lies on the glass.

    Lengths there are nm. OpenSlide cuts off fractions of a pixel, so that an area begins at the next whole one.

    Raises:
        SlideUnsupported: there are several areas, or not as many levels.
    """
    text = str(tiff.pages[0].description)
    if len(text) > MAX_XML or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise SlideUnsupported("its XML is too large or declares entities")
    collection = ElementTree.fromstring(text.strip("\0 \r\n\t")).find("{*}collection")
    assert collection is not None, "no collection"
    glass = (0, 0, _number(collection, "sizeX"), _number(collection, "sizeY"))
    areas = [
        (image, place)
        for image in collection.findall("{*}image")
        for view in image.findall("{*}view")
        if (place := tuple(_number(view, name) for name in ("offsetX", "offsetY", "sizeX", "sizeY"))) != glass
    ]
    if len(areas) != 1:
        raise SlideUnsupported(f"it holds {len(areas)} areas, not one")
    image, (x, y, across, _) = areas[0]
    found = [one for one in image.findall("{*}pixels/{*}dimension") if one.get("z", "0") == "0"]
    found.sort(key=lambda one: -_number(one, "sizeX"))
    if len(found) != count:
        raise SlideUnsupported(f"its area has {len(found)} levels, not {count}")
    for one in found:
        page = tiff.pages[_number(one, "ifd")]
        scale = across / _number(one, "sizeX")
        origin = math.ceil(x / scale - 1e-6), math.ceil(y / scale - 1e-6)
        yield Source(page, (int(page.imagewidth), int(page.imagelength)), origin=origin)


def _number(element: ElementTree.Element, name: str) -> int:
    return int(element.get(name, ""))


def scanner_levels(path: Path, slide: Backend) -> ScannerTiff:
    """What a scanner's TIFF stores of the levels that OpenSlide found in it. May raise anything."""
    return ScannerTiff(path, slide)


def check_tile_counts(path: Path, level_sizes: Sequence[tuple[int, int]]) -> None:
    """Raises SlideUnsupported where a tiled directory has too few tiles for its level, or lists more than it has."""
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        pages: Iterable[Any] = tiff.pages
        tiled = [page for page in pages if page.is_tiled]
        for page, (width, height) in zip(tiled, level_sizes, strict=False):
            high, wide = int(page.tilelength), int(page.tilewidth)
            columns, rows = -(-int(page.imagewidth) // wide), -(-int(page.imagelength) // high)
            if columns * wide < width or rows * high < height or len(page.dataoffsets) != columns * rows:
                raise SlideUnsupported(
                    f"a directory of {columns} x {rows} tiles lists {len(page.dataoffsets):,} for a level of "
                    f"{width:,} x {height:,} px"
                )
