"""Write slides of any size in seconds: a picture's JPEG tiles once, and directories that point at them again and again.

    PYTHONPATH=. python benchmarks/big_slides.py OUT.svs --side 100000 --levels 1 4 16 [--from SLIDE] [--vendor aperio]

The picture is the top left corner of ``--from`` (2,048 px), or a rendered one; it repeats on every level.
A BigTIFF with tiles of 256 px: Aperio's layout, or none of any scanner (``--vendor generic``).
"""

from __future__ import annotations

import argparse
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from tilers import open_slide
from wsi_chat.datasets.render.slide import render_slide

TILE = 256
PICTURE = 2048
SHORT, LONG, RATIONAL, LONG8, ASCII = 3, 4, 5, 16, 2
SUBSAMPLING = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}


def picture(source: Path | None) -> NDArray[np.uint8]:
    """(2048, 2048, 3): the corner of a slide, mirrored where it is smaller, or a rendered one."""
    if source is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.tiff"
            render_slide(path, seed=5, width_px=PICTURE, height_px=PICTURE, mpp=0.5, recipe="abnormal")
            return picture(path)
    with open_slide(source, mpp=0.5) as slide:
        w, h = (min(PICTURE, side) for side in slide.size)
        corner = slide.read_region(0, 0, 0, w, h)
    return np.pad(corner, ((0, PICTURE - h), (0, PICTURE - w), (0, 0)), mode="symmetric")


def write_slide(
    path: Path,
    image: NDArray[np.uint8],
    *,
    width: int,
    height: int,
    levels: Sequence[int] = (1, 4, 16),
    mpp: float = 0.5,
    vendor: str = "aperio",
    subsampling: str = "420",
    quality: int = 80,
) -> None:
    """A BigTIFF in which ``image`` (2048 px) repeats; ``levels`` are downsamples, powers of two up to 2048."""
    with path.open("wb") as file:
        file.write(b"II" + struct.pack("<HHHQ", 43, 8, 0, 0))
        link = 8
        for level, downsample in enumerate(levels):
            w, h = width // downsample, height // downsample
            offsets, counts = _tiles(file, image, downsample, w, h, subsampling, quality)
            text = f"written for a benchmark\n{w}x{h}"
            if vendor == "aperio":
                text = f"Aperio Image Library v11.2.1 \n{width}x{height} [0,0 {w}x{h}] (256x256) JPEG/RGB Q={quality}"
                text += f"|AppMag = 20|StripeWidth = 2040|MPP = {mpp:.4f}" if level == 0 else ""
            tags: dict[int, tuple[int, Sequence[int] | bytes]] = {
                254: (LONG, [0 if vendor == "aperio" or not level else 1]),
                256: (LONG, [w]), 257: (LONG, [h]), 258: (SHORT, [8, 8, 8]), 259: (SHORT, [7]), 262: (SHORT, [6]),
                270: (ASCII, text.encode() + b"\0"), 277: (SHORT, [3]),
                282: (RATIONAL, [round(1e7 / mpp / downsample), 1000]),
                283: (RATIONAL, [round(1e7 / mpp / downsample), 1000]), 284: (SHORT, [1]), 296: (SHORT, [3]),
                322: (LONG, [TILE]), 323: (LONG, [TILE]), 324: (LONG8, offsets), 325: (LONG8, counts),
                530: (SHORT, SUBSAMPLING[subsampling]),
            }  # fmt: skip
            link = _directory(file, tags, link)


def _tiles(
    file: object, image: NDArray[np.uint8], downsample: int, width: int, height: int, subsampling: str, quality: int
) -> tuple[list[int], list[int]]:
    """Write a level's distinct tiles and list them for every place."""
    side = PICTURE // downsample
    small = image if downsample == 1 else cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    if side < TILE:
        small = np.tile(small, (TILE // side, TILE // side, 1))
    number = small.shape[0] // TILE
    places = {}
    for row in range(number):
        for column in range(number):
            part = np.ascontiguousarray(small[row * TILE :, column * TILE :][:TILE, :TILE])
            data = simplejpeg.encode_jpeg(part, quality=quality, colorsubsampling=subsampling)
            places[row, column] = file.tell(), len(data)  # type: ignore[attr-defined]
            file.write(data)  # type: ignore[attr-defined]
    rows, columns = -(-height // TILE), -(-width // TILE)
    every = [places[row % number, column % number] for row in range(rows) for column in range(columns)]
    return [at for at, _ in every], [count for _, count in every]


def _directory(file: object, tags: dict[int, tuple[int, Sequence[int] | bytes]], link: int) -> int:
    """Write an IFD, point the one before at it, and say where its own pointer lies."""
    write, tell, seek = file.write, file.tell, file.seek  # type: ignore[attr-defined]
    entries = b""
    for tag in sorted(tags):
        kind, values = tags[tag]
        if kind == ASCII:
            data, count = bytes(values), len(values)
        else:
            code = {SHORT: "H", LONG: "I", RATIONAL: "I", LONG8: "Q"}[kind]
            data = struct.pack(f"<{len(values)}{code}", *values)
            count = len(values) // (2 if kind == RATIONAL else 1)
        if len(data) > 8:
            at = tell()
            write(data)
            data = struct.pack("<Q", at)
        entries += struct.pack("<HHQ", tag, kind, count) + data.ljust(8, b"\0")
    start = tell()
    write(struct.pack("<Q", len(tags)) + entries + struct.pack("<Q", 0))
    end = tell()
    seek(link)
    write(struct.pack("<Q", start))
    seek(end)
    return end - 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--vendor", choices=["aperio", "generic"], default="aperio")
    parser.add_argument("--subsampling", choices=list(SUBSAMPLING), default="420")
    parser.add_argument("--mpp", type=float, default=0.5)
    given = parser.parse_args()
    write_slide(
        given.out, picture(given.source), width=given.side, height=given.side, levels=given.levels, mpp=given.mpp,
        vendor=given.vendor, subsampling=given.subsampling,
    )  # fmt: skip


if __name__ == "__main__":
    main()
