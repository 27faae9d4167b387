"""KFB files as the package kfbslide parses them, for tests and for benchmarks/reader_matrix.py."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_kfb(path: Path, image: np.ndarray, *, tile: int = 256, mpp: float = 0.5) -> Path:
    """A KFB file as kfbslide parses it: header, macro, one tile index, JPEG tiles of level 0 (here in PNG's stead)."""
    height, width = image.shape[:2]
    tiles = []
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            part, data = image[y : y + tile, x : x + tile], io.BytesIO()
            Image.fromarray(part).save(data, "JPEG", quality=95)
            tiles.append((x, y, part.shape[1], part.shape[0], data.getvalue()))
    macro = io.BytesIO()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(macro, "JPEG")
    second = 4 + 96 + 4  # where section 2 begins
    macro_at = second + 4 + 44 + 4
    index_at = macro_at + len(macro.getvalue())
    data_at = index_at + 64 * len(tiles)
    payload = bytearray(96)
    payload[0:3] = b"KFB"
    struct.pack_into("<fIIII4s", payload, 8, 1.6, len(tiles), height, width, 20, b"JPEG")
    struct.pack_into("<IIQQf", payload, 48, second, 0, data_at, index_at, mpp)
    struct.pack_into("<I", payload, 84, tile)
    image_section = bytearray(44)
    struct.pack_into("<II", image_section, 4, 20, 40)
    struct.pack_into("<II", image_section, 16, len(macro.getvalue()), macro_at - second)
    index = b"".join(struct.pack("<4xIIIIf8xI28x", x, y, w, h, 20.0, len(data)) for x, y, w, h, data in tiles)
    path.write_bytes(
        b"\xf1\x01\xee\xee" + payload + b"\xff\x01\xee\xee"
        + b"\xf1\x02\xee\xee" + image_section + b"\xff\x02\xee\xee"
        + macro.getvalue() + index + b"".join(data for *_, data in tiles)
    )  # fmt: skip
    return path
