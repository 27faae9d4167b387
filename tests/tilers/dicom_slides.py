"""DICOM slides made for the tests: JPEG frames under every kind of table and layout, with a real one's metadata."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

TILE = 64


def write_dicom(
    path: Path,
    template: Path,
    image: NDArray[np.uint8],
    *,
    table: str = "basic",
    colours: str = "YBR_FULL_422",
    sparse: Sequence[tuple[int, int]] | None = None,
    part: tuple[int, int] | None = None,
    jpeg2000: bool = False,
    uid: str = "1.2.3.4",
) -> Path:
    """One file of a series.

    Args:
        table: ``basic``, ``extended``, ``none``, or ``pairs``: a basic one of frames in two fragments each.
        sparse: the (row, column) of each frame in their order; None writes all, row by row.
        part: (first, stop) frame of a concatenation.
    """
    import pydicom
    from pydicom.dataset import Dataset
    from pydicom.encaps import encapsulate, encapsulate_extended
    from pydicom.sequence import Sequence as Items
    from pydicom.uid import JPEG2000, JPEGBaseline8Bit

    rows, columns = -(-image.shape[0] // TILE), -(-image.shape[1] // TILE)
    padded = np.pad(image, ((0, rows * TILE - image.shape[0]), (0, columns * TILE - image.shape[1]), (0, 0)))
    places = [divmod(n, columns) for n in range(rows * columns)] if sparse is None else list(sparse)
    frames = [
        _encode(padded[row * TILE : row * TILE + TILE, column * TILE : column * TILE + TILE], colours, jpeg2000)
        for row, column in places
    ]
    data: Any = pydicom.dcmread(template)
    if part is not None:
        frames = frames[part[0] : part[1]]
        data.ConcatenationFrameOffsetNumber = part[0]
        data.SOPInstanceUIDOfConcatenationSource = "1.2.3"
    data.file_meta.TransferSyntaxUID = JPEG2000 if jpeg2000 else JPEGBaseline8Bit
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid
    data.Rows = data.Columns = TILE
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = image.shape[:2]
    data.NumberOfFrames = len(frames)
    data.PhotometricInterpretation = colours
    if sparse is not None:
        data.DimensionOrganizationType = "TILED_SPARSE"
        data.PerFrameFunctionalGroupsSequence = Items([_position(row, column) for row, column in places])
        assert isinstance(data.PerFrameFunctionalGroupsSequence[0], Dataset)
    if table == "extended":
        data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        data.PixelData = encapsulate(frames, fragments_per_frame=2 if table == "pairs" else 1, has_bot=table != "none")
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    return path


def _encode(tile: NDArray[np.uint8], colours: str, jpeg2000: bool) -> bytes:
    if jpeg2000:
        return bytes(imagecodecs.jpeg2k_encode(tile, level=40, codecformat="j2k", mct=False))
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=80, keep_rgb=colours == "RGB")
    return file.getvalue()


def _position(row: int, column: int) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items

    place = Dataset()
    place.RowPositionInTotalImagePixelMatrix, place.ColumnPositionInTotalImagePixelMatrix = (
        row * TILE + 1,
        column * TILE + 1,
    )
    place.XOffsetInSlideCoordinateSystem = place.YOffsetInSlideCoordinateSystem = (
        place.ZOffsetInSlideCoordinateSystem
    ) = "0"
    group = Dataset()
    group.PlanePositionSlideSequence = Items([place])
    return group


def frame_places(data: bytes) -> list[tuple[int, int]]:
    """(offset of its first fragment's bytes, their length) of each item of a file's pixel data, the table left out."""
    at = data.rindex(b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff") + 12
    places = []
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        (length,) = struct.unpack_from("<I", data, at + 4)
        places.append((at + 8, length))
        at += 8 + length
    return places[1:]
