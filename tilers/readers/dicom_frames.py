"""DICOM slides: where the JPEG frame of each tile lies, and its pixels, decoded strictly.

A frame is found by its file's offset table, or by walking the fragments where there is none. What a table says is
believed only if it can be true (offsets rise), and a frame only if its fragments fill its place to the last byte, so
that a damaged table shows no tile in another's place.
"""

from __future__ import annotations

import mmap
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tilers.dicom import dicom_files, series_uid
from tilers.readers import Backend, Pixels
from tilers.samples import RGB, YCBCR
from tilers.segments import Empty, check_jpeg2000, check_lost_sectors, decode_jpeg, fresh
from tilers.tiff_header import MAX_TILE_BYTES
from wsi_chat.errors import SlideUnsupported

WANTED = (
    "ImageType", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths",
    "DimensionOrganizationType", "ConcatenationFrameOffsetNumber", "SOPInstanceUID",
)  # fmt: skip
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
PER_FRAME = 0x52009230  # groups of attributes frame by frame; the tables of offsets and the pixels come behind them
POSITION = {  # of a frame, in px of the level from 1: the bytes before the number
    "row": rb"\x48\x00\x1f\x02SL\x04\x00",
    "column": rb"\x48\x00\x1e\x02SL\x04\x00",
}
MAX_PER_FRAME = 4096  # bytes of the attributes of one frame
EXTENDED_TABLE = b"\xe0\x7f\x01\x00OV\x00\x00"
PIXEL_DATA = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"  # of undefined length: in fragments
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
VOLUME = "VOLUME"
MAX_FRAMES = 4_000_000
EMPTY, LOST = -1, -2
"""In place of a frame's number: no frame was ever written there; there ought to be one."""


class FrameFile:
    """The frames of one file.

    Raises:
        SlideUnsupported: its frames are not 8-bit RGB in a compression that can be checked, or cannot be found.
    """

    def __init__(self, path: Path) -> None:
        from pydicom.filereader import read_partial
        from pydicom.tag import Tag

        self._file = path.open("rb")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd values: what matters is checked below
                self.data: Any = read_partial(
                    self._file, lambda tag, *_: int(tag) >= PER_FRAME, specific_tags=[Tag(name) for name in WANTED]
                )
                self._describe()
        except BaseException:
            self._file.close()
            raise

    def _describe(self) -> None:
        data = self.data
        self.is_scan = VOLUME in list(data.get("ImageType") or ())
        if not self.is_scan:
            return
        self.uid = str(data.get("SOPInstanceUID") or "")
        self.size = int(data.TotalPixelMatrixColumns), int(data.TotalPixelMatrixRows)
        self.piece = int(data.Rows), int(data.Columns)
        self.count = int(data.get("NumberOfFrames") or 1)
        self.first = int(data.get("ConcatenationFrameOffsetNumber") or 0)
        self._syntax = str(data.file_meta.TransferSyntaxUID)
        if self._syntax != JPEG_BASELINE and self._syntax not in JPEG2000:
            raise SlideUnsupported(f"its frames are in the transfer syntax {self._syntax}, no JPEG")
        colours = str(data.PhotometricInterpretation)
        self._photometric = RGB if colours == "RGB" else YCBCR
        kind = int(data.SamplesPerPixel), int(data.BitsAllocated)
        planes = int(data.get("TotalPixelMatrixFocalPlanes") or 1), int(data.get("NumberOfOpticalPaths") or 1)
        if kind != (3, 8) or planes != (1, 1) or not colours.startswith(("RGB", "YBR")):
            raise SlideUnsupported(
                f"its frames have {kind[0]} samples of {kind[1]} bits, {colours}, of {planes[0]} focal planes and "
                f"{planes[1]} optical paths"
            )
        if min(*self.size, *self.piece) < 1 or self.piece[0] * self.piece[1] * 3 > MAX_TILE_BYTES:
            raise SlideUnsupported(f"its frames claim {self.piece[1]:,} x {self.piece[0]:,} px")
        if not 0 < self.count <= MAX_FRAMES:
            raise SlideUnsupported(f"it claims {self.count:,} frames")
        self._find_frames()

    # ------------------------------------------------------------------------------------------ where frames lie

    def _find_frames(self) -> None:
        """``_starts``: where the first fragment of each frame begins, and one more for the end of the last, or -1."""
        self._size = os.fstat(self._file.fileno()).st_size
        at = self._file.tell()
        most = min(self._size, at + self.count * MAX_PER_FRAME + 2**20)
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = data.find(PIXEL_DATA + ITEM, at, most)
            self._between = data[at : max(at, header)]
        start = header + len(PIXEL_DATA) + 8
        table_length = int.from_bytes(self._read(start - 4, 4), "little")
        if header < 0 or table_length not in (0, 4 * self.count):
            raise SlideUnsupported("its pixels do not begin with a table of offsets, not even an empty one")
        begin = start + table_length
        wide = self._between.find(EXTENDED_TABLE) + len(EXTENDED_TABLE) + 4
        extended = self._between[wide : wide + 8 * self.count] if EXTENDED_TABLE in self._between else b""
        for offsets in (
            np.frombuffer(extended[: len(extended) // 8 * 8], "<u8").astype(np.int64),
            np.frombuffer(self._read(start, table_length), "<u4").astype(np.int64),
        ):
            if len(offsets) == self.count and offsets[0] == 0 and (np.diff(offsets) > 8).all():
                self._starts = np.append(begin + offsets, -1)
                return
        self._starts = self._walked(begin)

    def _walked(self, begin: int) -> NDArray[np.int64]:
        """Each fragment is a frame. One that were lost, or its length damaged, would move all that follow."""
        from pydicom.encaps import parse_fragments

        self._file.seek(begin)
        try:
            number, offsets = parse_fragments(self._file)
        except ValueError as error:
            raise SlideUnsupported(f"its fragments are damaged: {error}") from error
        if number != self.count:
            raise SlideUnsupported(f"it claims {self.count:,} frames and holds {number:,} fragments without a table")
        return np.asarray([*offsets, -1], np.int64)

    def _read(self, start: int, length: int) -> bytes:
        data = os.pread(self._file.fileno(), length, start)
        if len(data) < length:
            raise OSError("a frame lies beyond the end of the file")
        return data

    def _frame(self, number: int) -> bytes:
        """The bytes of a frame, which its fragments fill to the last one.

        Raises:
            ValueError, OSError: they do not.
        """
        at, stop = int(self._starts[number]), int(self._starts[number + 1])
        if stop < 0:
            stop = self._size
        parts: list[bytes] = []
        left = 2 * self.piece[0] * self.piece[1] * 3 + 2**16  # no frame is twice as large as its pixels
        while at < stop:
            head = self._read(at, 8)
            if head[:4] == END and parts:  # behind the last frame
                break
            length = int.from_bytes(head[4:], "little")
            left -= length
            if head[:4] != ITEM or at + 8 + length > stop or left < 0:
                raise ValueError(f"frame {number + 1} of {self.count} does not lie where its file says")
            parts.append(self._read(at + 8, length))
            at += 8 + length
        return b"".join(parts)

    # ------------------------------------------------------------------------------------------ pixels

    def decode(self, number: int, empty: Empty = fresh) -> Pixels:
        """A frame, counted from 0 in this file, (height, width, 3) RGB.

        Raises:
            ValueError and whatever codecs raise: it is damaged.
        """
        data = self._frame(number)
        height, width = self.piece
        if self._syntax == JPEG_BASELINE:
            return decode_jpeg(data, None, (height, width, 3), self._photometric, empty)
        check_lost_sectors(data)
        check_jpeg2000(data, height, width)
        pixels = np.asarray(imagecodecs.jpeg2k_decode(data))
        if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"a JPEG 2000 frame of {pixels.shape}, {pixels.dtype}")
        return pixels

    def places(self, rows: int, columns: int) -> NDArray[np.int64]:
        """(frames, 2): row and column of each frame of the file in a level of so many pieces; others lie outside.

        Raises:
            SlideUnsupported: its frames are laid out in another way.
        """
        kind = str(self.data.get("DimensionOrganizationType") or "TILED_FULL")
        if kind == "TILED_FULL":
            return np.stack(np.divmod(np.arange(self.first, self.first + self.count), columns), axis=1)
        if kind != "TILED_SPARSE":
            raise SlideUnsupported(f"its frames are organized as {kind}")
        places = np.empty((self.count, 2), np.int64)
        for axis, (name, before) in enumerate(POSITION.items()):
            found = re.findall(before + b"(.{4})", self._between, re.DOTALL)  # pydicom takes 150 µs a frame
            if len(found) != self.count:
                raise SlideUnsupported(f"it states the {name} of {len(found):,} frames and holds {self.count:,}")
            places[:, axis] = np.frombuffer(b"".join(found), "<i4").astype(np.int64) - 1
        off = (places % self.piece).any(axis=1)
        places //= self.piece
        places[off] = LOST
        return places

    @property
    def is_sparse(self) -> bool:
        return str(self.data.get("DimensionOrganizationType") or "") == "TILED_SPARSE"

    def close(self) -> None:
        self._file.close()


class FrameLevel:
    """A level in the frames of one file or of several; see `tilers.readers.direct.StoredLevel`.

    Where the places of frames contradict each other, no place without a frame is taken for one that was not scanned.
    """

    def __init__(self, files: Sequence[FrameFile]) -> None:
        first = files[0]
        self.piece, self.size, self.origin = first.piece, first.size, (0, 0)
        rows, columns = -(-first.size[1] // self.piece[0]), -(-first.size[0] // self.piece[1])
        if any(file.piece != first.piece for file in files) or rows * columns > MAX_FRAMES:
            raise SlideUnsupported("its files have frames of several sizes, or too many")
        self._files = files
        self._numbers = np.full((rows, columns), EMPTY)  # of the frame, over all files
        self._bounds = np.cumsum([0, *(file.count for file in files)])
        rows_of, columns_of = np.concatenate([file.places(rows, columns) for file in files]).T
        inside = (rows_of >= 0) & (rows_of < rows) & (columns_of >= 0) & (columns_of < columns)
        counts = np.zeros((rows, columns), int)
        np.add.at(counts, (rows_of[inside], columns_of[inside]), 1)
        self._numbers[rows_of[inside], columns_of[inside]] = np.flatnonzero(inside)
        self._numbers[counts > 1] = LOST
        if not inside.all() or (counts > 1).any() or not all(file.is_sparse for file in files):
            self._numbers[counts == 0] = LOST
        self.gaps = self._numbers == EMPTY

    def decode(self, row: int, column: int, empty: Empty = fresh) -> Pixels:
        number = int(self._numbers[row, column])
        if number < 0:
            raise ValueError(f"no frame can be told to lie at row {row + 1}, column {column + 1} of the tiles")
        file = int(np.searchsorted(self._bounds, number, side="right")) - 1
        return self._files[file].decode(number - int(self._bounds[file]), empty)


class FrameSeries:
    """The levels of a series; see `tilers.readers.direct.StoredLevels`."""

    def __init__(self, path: Path, slide: Backend) -> None:
        with ExitStack() as opened:
            self.why = "no level is stored as frames of its size"
            by_size: dict[tuple[int, int], list[FrameFile]] = {}
            for file in _series(path):
                try:
                    frames = FrameFile(file)
                except Exception as error:  # pydicom raises many kinds on damaged headers
                    self.why = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
                    continue
                opened.callback(frames.close)
                if frames.is_scan and all(frames.uid != other.uid for other in by_size.get(frames.size, ())):
                    by_size.setdefault(frames.size, []).append(frames)
            self.levels = [self._level(by_size.get((int(w), int(h)), [])) for w, h in slide.level_sizes]
            self._opened = opened.pop_all()

    def _level(self, files: list[FrameFile]) -> FrameLevel | None:
        if not files:
            return None
        try:
            return FrameLevel(sorted(files, key=lambda file: file.first))
        except SlideUnsupported as error:
            self.why = error.message
            return None

    def close(self) -> None:
        self._opened.close()


def _series(path: Path) -> list[Path]:
    """The files of a slide: those beside ``path`` that belong to its series, or all in a folder."""
    files = dicom_files(path if path.is_dir() else path.parent)
    if path.is_dir():
        return files
    uid = series_uid(path)
    return [path, *(file for file in files if file.name != path.name and series_uid(file) == uid)]


def dicom_levels(path: Path, slide: Backend) -> FrameSeries:
    """What the files of a DICOM series store of the levels that OpenSlide found in it. May raise anything."""
    return FrameSeries(path, slide)
