"""A second opinion on a damaged slide: what a strict decoder says of the pieces under tiles that came back as sound.

It finds the pieces by itself (tifffile, pydicom), so that a mistake of the readers in `tilers` is not repeated here.
"""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import simplejpeg
import tifffile

from benchmarks.fuzz.scanner_seeds import LEICA_PLACE

JPEG, LZW, DEFLATES, NONE, PACKBITS = 7, 5, (8, 32946), 1, 32773
SECTOR = bytes(512)

Spot = tuple[int, int, int, int]
"""x and y at level 0, the level, and the side in that level's pixels, of a tile whose pixels are not the sound ones."""


def objection(path: Path, spots: Sequence[Spot], sound: bytes = b"") -> str:
    """Why what lies under the spots cannot be called sound; empty where nothing in the file shows it.

    ``sound`` is the file before it was damaged: zeros that it holds already are no lost sector.
    """
    data = path.read_bytes()
    if data[:2] not in (b"II", b"MM"):
        return _dicom(path, spots) if data[128:132] == b"DICM" else _picture(data)
    try:
        return next((said for piece, page in _pieces(path, data, spots) if (said := _piece(piece, page, sound))), "")
    except _BeyondTheEndError as error:
        return str(error)
    except Exception:  # tifffile cannot tell
        return ""


def _picture(data: bytes) -> str:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data)
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:2] == b"BM":
        (size,) = struct.unpack("<I", data[2:6])
        return "" if size <= len(data) else "BMP: the file is shorter than it says"
    return ""


def _png(data: bytes) -> str:
    at, body, ended = 8, b"", False
    while at + 12 <= len(data) and not ended:
        (length,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if data[at + 8 + length : at + 12 + length] != struct.pack(">I", zlib.crc32(kind + content)):
            return "PNG: a wrong checksum"
        body += content if kind == b"IDAT" else b""
        ended = kind == b"IEND"
        at += 12 + length
    try:
        zlib.decompress(body)
    except zlib.error:
        return "PNG: zlib"
    return "" if ended else "PNG: no end"


def _jpeg(data: bytes) -> str:
    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError as error:
        return f"libjpeg: {re.sub('[0-9]+', 'N', str(error))}"
    return ""


class _BeyondTheEndError(ValueError):
    pass


def _pieces(path: Path, data: bytes, spots: Sequence[Spot]) -> Iterator[tuple[bytes, Any]]:
    """The bytes of each piece of a TIFF under the spots, with its page."""
    with tifffile.TiffFile(path) as tiff:
        every: list[Any] = []
        with contextlib.suppress(tifffile.TiffFileError):  # up to a directory that is damaged
            every.extend(tiff.pages)
        pages = [page for page in every if page.is_tiled] or every[:1]
        for x, y, level, side in spots:
            page: Any = pages[min(level, len(pages) - 1)]
            if tiff.is_ndpi:  # levels that are stored at 1 and 1:4, and read at every power of 2
                page = every[0 if level < 2 else 1]
                side = side * 2**level * page.imagewidth // every[0].imagewidth
            if tiff.is_scn:
                x, y = x - LEICA_PLACE[0], y - LEICA_PLACE[1]
            scale = pages[0].imagewidth / page.imagewidth
            tiled = page.is_tiled
            wide, high = (page.tilewidth, page.tilelength) if tiled else (page.imagewidth, page.rowsperstrip)
            across = -(-page.imagewidth // wide)
            for row in range(max(0, int(y / scale) // high), (int(y / scale) + side - 1) // high + 1):
                for column in range(max(0, int(x / scale) // wide), (int(x / scale) + side - 1) // wide + 1):
                    n = row * across + column
                    if column >= across or n >= len(page.dataoffsets):
                        continue
                    at, count = page.dataoffsets[n], page.databytecounts[n]
                    if (
                        not tiled and int(page.compression) == NONE
                    ):  # the rows of the tile, of a piece that is one strip
                        stop = min(int(y / scale) + side - row * high, high)
                        count = stop * wide * page.samplesperpixel * page.bitspersample // 8
                    if at + count > len(data):
                        raise _BeyondTheEndError("a piece lies beyond the end of the file")
                    if count:
                        yield data[at : at + count], page


def _piece(piece: bytes, page: Any, sound: bytes) -> str:
    kind = int(page.compression)
    width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, 0)
    need = width * height * (1 if page.planarconfig == 2 else page.samplesperpixel) * page.bitspersample // 8
    if kind == JPEG and page.jpegheader:
        piece = page.jpegheader + piece[:-2] + b"\xff\xd9"
    if kind == JPEG and (said := _jpeg(page.jpegtables[:-2] + piece[2:] if page.jpegtables else piece)):
        return said
    try:
        if kind in DEFLATES and len(zlib.decompress(piece)) < need:
            return "deflate: too little"
        if kind == LZW and len(imagecodecs.lzw_decode(piece)) < need:
            return "LZW: too little"
        if kind == PACKBITS and len(imagecodecs.packbits_decode(piece)) < need:
            return "PackBits: too little"
    except Exception as error:
        return f"compression {kind}: {type(error).__name__}"
    if kind == NONE:
        return "raw: too little" if len(piece) < need else ""
    return f"compression {kind}: a lost sector" if SECTOR in piece and piece not in sound else ""


def _dicom(path: Path, spots: Sequence[Spot]) -> str:
    """Frames under the spots of a DICOM slide whose frames lie row by row, that libjpeg refuses."""
    import pydicom
    from pydicom.encaps import generate_frames

    levels = []
    for file in sorted(path.parent.glob("*.dcm")):
        try:
            data = pydicom.dcmread(file)
            if data.file_meta.TransferSyntaxUID.is_encapsulated:
                frames = list(generate_frames(data.PixelData, number_of_frames=int(data.NumberOfFrames)))
                levels.append((int(data.TotalPixelMatrixColumns), int(data.Columns), int(data.Rows), frames))
        except Exception:  # pydicom cannot tell
            continue
    levels.sort(key=lambda level: -level[0])
    for x, y, number, side in spots:
        if number >= len(levels):
            continue
        across, wide, high, frames = levels[number]
        scale = levels[0][0] / across
        for row in range(int(y / scale) // high, (int(y / scale) + side - 1) // high + 1):
            for column in range(
                int(x / scale) // wide, min((int(x / scale) + side - 1) // wide + 1, -(-across // wide))
            ):
                index = row * -(-across // wide) + column
                if index < len(frames) and (said := _jpeg(bytes(frames[index]).rstrip(b"\0"))):
                    return said
    return ""
