"""Tiles and strips of one TIFF image, decoded strictly: a piece is what its directory says, or an error.

Decoders that fill up what is missing in silence are checked first: JPEG by libjpeg's own warnings, deflate by its
checksum, LZW and uncompressed data by their length, all that is compressed for zeros where a disk lost a sector.
Sizes are compared with the directory before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from tilers.samples import YCBCR, photometric_name
from tilers.tiff_header import MAX_TILE_BYTES
from tilers.unreadable import REWRITE, UnsupportedKind
from wsi_chat.errors import SlideUnsupported

NONE, LZW, OLD_JPEG, JPEG, DEFLATE, DEFLATE_OLD, PACKBITS = 1, 5, 6, 7, 8, 32946, 32773
JPEG2000 = (33003, 33004, 33005, 34712)
MAX_SIDE = 4_000_000
MAX_STRIP_BYTES = 384 * 2**20  # a flat picture in one strip, as large as one of another format may be
RAW_ROWS = 256
ONE_BIT = "its pixels have 1 bit, black or white, which shows no cells"
LOST_SECTOR = bytes(512)
"""Compressed data look random: so many zeros in a row are what a disk or a copy lost."""
Empty = Callable[[tuple[int, int, int]], NDArray[np.uint8]]
"""Makes an array of this shape, its content arbitrary."""
SEPARATE = 2  # PlanarConfiguration: each sample in pieces of its own


def fresh(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An array in memory of its own."""
    return np.empty(shape, np.uint8)


class TiffImage:
    """One directory of a TIFF, its geometry checked.

    ``rows``, ``columns``: how many pieces of ``piece`` (height, width) px cover it. ``absent``: (rows, columns) bool,
    pieces that were never written; ``cut``: those that end beyond the end of the file. ``empty`` makes the arrays that
    JPEG pieces are decoded into.

    Raises:
        SlideUnsupported: sizes that cannot be true, or pixels that cannot be decoded.
    """

    def __init__(self, page: Any, file_size: int) -> None:
        self.page = page
        self.empty: Empty = fresh
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self.samples = int(page.samplesperpixel)
        self.photometric = int(page.photometric)
        self.compression = int(page.compression)
        self.dtype: np.dtype[Any] = np.dtype(page.dtype) if page.dtype is not None else np.dtype(object)
        self.bits = int(page.bitspersample)
        self.extra = tuple(int(kind) for kind in page.extrasamples)
        self.separate = int(page.planarconfig) == SEPARATE and self.samples > 1
        self.size = (self.width, self.height)
        if not (0 < self.width <= MAX_SIDE and 0 < self.height <= MAX_SIDE):
            raise SlideUnsupported(f"an image claims {self.width:,} x {self.height:,} px")
        self.piece = self._piece_size()
        layers = self.samples if self.separate else 1
        self.offsets, self.counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
        if self.compression == NONE and not page.is_tiled and self.piece[0] == self.height:
            self._split_strip(layers)
        self.rows, self.columns = -(-self.height // self.piece[0]), -(-self.width // self.piece[1])
        self._check_pixels()
        expected = self.rows * self.columns * layers
        if self.offsets.size != expected or self.counts.size != expected:
            raise SlideUnsupported(
                f"an image of {self.width:,} x {self.height:,} px needs {expected:,} pieces, its directory lists "
                f"{min(self.offsets.size, self.counts.size):,}"
            )
        shape = (layers, self.rows, self.columns)
        self.absent = np.all((self.counts == 0).reshape(shape), axis=0)
        self.cut = np.any(((self.offsets + self.counts > file_size) & (self.counts > 0)).reshape(shape), axis=0)
        self.layers = layers

    def _piece_size(self) -> tuple[int, int]:
        if self.page.is_tiled:
            return int(self.page.tilelength), int(self.page.tilewidth)
        return min(int(self.page.rowsperstrip) or self.height, self.height), self.width

    def _split_strip(self, layers: int) -> None:
        """Read raw pixels that lie in one strip as strips of RAW_ROWS: any of them can be found without the others."""
        row = self.width * (1 if self.separate else self.samples) * self.bits
        if row % 8 or self.offsets.size != layers or self.counts.size != layers:
            return
        starts = np.arange(0, self.height, RAW_ROWS, dtype=np.int64)
        rows = np.minimum(RAW_ROWS, self.height - starts)
        left = np.clip(self.counts[:, None] - starts * (row // 8), 0, None)
        self.counts = np.minimum(rows * (row // 8), left).ravel()
        self.offsets = (self.offsets[:, None] + starts * (row // 8)).ravel()
        self.piece = (min(RAW_ROWS, self.height), self.width)

    def _check_pixels(self) -> None:
        rows, columns = self.piece
        if rows < 1 or columns < 1:
            raise SlideUnsupported(f"its pieces claim {columns} x {rows} px")
        if self.dtype.kind == "b":
            raise UnsupportedKind(ONE_BIT)
        if self.dtype.kind not in "uif" or (self.dtype.kind == "f" and self.dtype.itemsize > 8):
            raise UnsupportedKind(f"pixels are {self.page.dtype or 'of mixed depths'}, which cannot be shown")
        size = rows * columns * (1 if self.separate else self.samples) * self.dtype.itemsize
        if size > (MAX_TILE_BYTES if self.page.is_tiled else MAX_STRIP_BYTES):
            raise UnsupportedKind(
                f"its pixels lie in one piece of {columns} x {rows} px ({size / 2**20:,.0f} MiB), "
                "which cannot be read by region; convert it to a tiled TIFF",
                hint=REWRITE,
            )
        if self.compression == OLD_JPEG:
            raise UnsupportedKind("its compression is old-style JPEG (6), which is not read; convert it")
        try:
            tifffile.TIFF.DECOMPRESSORS[self.compression]
        except KeyError as error:
            raise UnsupportedKind(f"unknown TIFF compression {self.compression}") from error
        subsampling = tuple(self.page.subsampling or (1, 1))
        if self.photometric == YCBCR and self.compression not in (JPEG, *JPEG2000) and subsampling != (1, 1):
            raise UnsupportedKind(
                f"its photometric interpretation is {photometric_name(YCBCR)} with chroma subsampled by "
                f"{subsampling[0]} x {subsampling[1]}, which is read only with JPEG compression"
            )

    def piece_shape(self, row: int, column: int) -> tuple[int, int]:
        """(height, width) that a piece stores: the last strip is shorter, tiles at the edge are not."""
        if self.page.is_tiled:
            return self.piece
        return min(self.piece[0], self.height - row * self.piece[0]), self.piece[1]

    def decode(self, data: list[bytes], row: int, column: int) -> NDArray[Any]:
        """The piece from its bytes, one per layer: (height, width, samples) as stored, all of its planned size.

        Raises:
            ValueError and whatever codecs raise: the data are damaged.
        """
        parts = [self._decode_layer(part, row, column, layer) for layer, part in enumerate(data)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def _decode_layer(self, data: bytes, row: int, column: int, layer: int) -> NDArray[Any]:
        height, width = self.piece_shape(row, column)
        samples = 1 if self.separate else self.samples
        if self.compression not in (NONE, JPEG, DEFLATE, DEFLATE_OLD):  # two are judged closer, the others by checksum
            check_lost_sectors(data)
        if self.compression == JPEG and self.bits == 8:
            return decode_jpeg(data, self.page.jpegtables, (height, width, samples), self.photometric, self.empty)
        row_bytes = -(-width * samples * self.bits // 8)
        need, most = row_bytes * height, row_bytes * self.piece[0]  # some writers fill up the last strip
        simple = self.compression in (NONE, LZW, DEFLATE, DEFLATE_OLD, PACKBITS)
        if simple and int(self.page.predictor) in (1, 2) and self.bits == 8 * self.dtype.itemsize:
            raw = _inflate(data, self.compression, need, most)
            order = self.dtype.newbyteorder(self.page.parent.byteorder)
            array = np.frombuffer(raw, order).astype(self.dtype).reshape(height, width, samples)
            if int(self.page.predictor) == 2:
                array = imagecodecs.delta_decode(array, axis=1)
            return array
        if self.compression in JPEG2000:
            check_jpeg2000(data, height, width)
        elif simple and self.compression != NONE:
            _inflate(data, self.compression, need, most)  # for its checks; other predictors are tifffile's work
        index = (layer * self.rows + row) * self.columns + column
        decoded, _, _ = self.page.decode(data, index, jpegtables=self.page.jpegtables, _fullsize=True)
        if decoded is None:
            raise ValueError("the piece holds no pixels")
        array = np.asarray(decoded)[0, :height, :width]  # (depth, height, width, samples)
        if array.shape != (height, width, samples):
            raise ValueError(f"a piece of shape {array.shape} instead of {(height, width, samples)}")
        return array


def check_lost_sectors(data: bytes) -> None:
    """Raises ValueError where compressed data hold a lost sector."""
    if LOST_SECTOR in data:
        raise ValueError(f"compressed pixels hold {len(LOST_SECTOR)} zero bytes in a row: a lost sector")


def check_jpeg_sectors(data: bytes) -> None:
    """As `check_lost_sectors`, of JPEG data, where zeros may also be a blank area.

    Huffman codes that are all zeros stand for the first value of their table. Only where that is "as before" (DC) and
    "the rest of the block is zero" (AC) in every table do zeros draw a blank area; progressive data may hold them too.
    """
    if LOST_SECTOR not in data:
        return
    blank = True
    for kind, start, stop in jpeg_segments(data):
        if kind == 0xC2:
            return
        at = start
        while kind == 0xC4 and at + 17 < stop:  # DHT: class and number, 16 counts, the values
            blank = blank and data[at + 17] == 0
            at += 17 + sum(data[at + 1 : at + 17])
    if not blank:
        check_lost_sectors(data)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker's second byte, start, stop of its content) of each segment of JPEG data up to the first scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0x01, 0xFF, *range(0xD0, 0xDA)):
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2:
            return
        yield data[at + 1], at + 4, min(at + 2 + length, len(data))
        at += 2 + length


def _inflate(data: bytes, compression: int, need: int, most: int) -> bytes:
    """Exactly ``need`` bytes of a piece that holds at most ``most``.

    Raises:
        ValueError: the data give less or more, or their checksum is wrong.
    """
    if compression in (DEFLATE, DEFLATE_OLD):
        try:  # libdeflate: three times as fast as zlib, and as strict
            raw: bytes | bytearray = imagecodecs.deflate_decode(data, out=most)
        except imagecodecs.DeflateError as error:
            raise ValueError(f"a deflated piece ends early, goes on too long or is damaged ({error})") from error
    elif compression == LZW:
        raw = imagecodecs.lzw_decode(data, out=most)
    elif compression == PACKBITS:
        raw = imagecodecs.packbits_decode(data, out=most)
    else:
        raw = data
    if len(raw) < need:
        raise ValueError(f"a piece has {len(raw):,} bytes of pixels instead of {need:,}")
    return bytes(raw[:need])


def decode_jpeg(
    data: bytes,
    tables: bytes | None,
    shape: tuple[int, int, int],
    photometric: int,
    empty: Empty = fresh,
    *,
    reduce: int = 1,
) -> NDArray[np.uint8]:
    """A JPEG piece, strictly: what libjpeg merely warns of is an error. YCbCr comes as RGB.

    ``shape`` is that of the data, (height, width, samples). What comes is ``reduce`` times as small, 1, 2, 4 or 8.
    ``empty`` makes the array that it is decoded into.

    Raises:
        ValueError: the data are damaged, or another size than the directory says.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError("a JPEG piece does not begin as JPEG data")
    transform = 1 if photometric == YCBCR else 0
    # The directory says what the components are, whatever the stream's own marker or its lack makes libjpeg assume.
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    inner = tables[2:-2] if tables and tables[:2] == b"\xff\xd8" else b""
    height, width, samples = shape
    stream = b"\xff\xd8" + (adobe if samples >= 3 else b"") + inner + _without_adobe(data)
    check_jpeg_sectors(stream)
    h, w, _, _ = simplejpeg.decode_jpeg_header(stream, strict=True)
    if (h, w) != (height, width):
        raise ValueError(f"a JPEG piece is {w} x {h} px instead of {width} x {height}")
    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(samples)
    if space is None:
        raise ValueError(f"JPEG with {samples} samples per pixel")
    out = empty((height // reduce, width // reduce, samples))
    least = {} if reduce == 1 else {"min_height": out.shape[0], "min_width": out.shape[1]}
    simplejpeg.decode_jpeg(stream, colorspace=space, buffer=out, strict=True, **least)
    return out


def _without_adobe(data: bytes) -> bytes:
    """A JPEG stream's content behind its first marker, without the segments APP14."""
    if b"Adobe" not in data:  # by which libjpeg knows such a segment; faster to find than the marker
        return data[2:]
    out, at = [], 2
    for kind, _, stop in jpeg_segments(data):
        if kind != 0xEE:
            out.append(data[at:stop])
        at = stop
    return b"".join(out) + data[at:]


def check_jpeg2000(data: bytes, height: int, width: int) -> None:
    """The size in the codestream, before a decoder allocates it."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 24:
        raise ValueError("a JPEG 2000 piece holds no codestream")
    x1, y1, x0, y0 = (int.from_bytes(data[at + 8 + 4 * i : at + 12 + 4 * i], "big") for i in range(4))
    if (x1 - x0, y1 - y0) != (width, height):
        raise ValueError(f"a JPEG 2000 piece is {x1 - x0} x {y1 - y0} px instead of {width} x {height}")
