"""Why fastslide is used only on request: in which of libjpeg-turbo's modes it decodes, and what damage it notices.

    PYTHONPATH=. python benchmarks/fastslide_modes.py SLIDE.svs    # needs fastslide; an Aperio slide of JPEG tiles

A picture is written as JPEG TIFF with chroma whole and subsampled, and read by OpenSlide and fastslide; libjpeg-turbo
decodes the same tiles in its four modes. Then JPEG tiles of the slide are damaged one at a time (200 bytes zeroed, or a
bit flipped), and counted where a decoder gives pixels that are wrong by more than 8 grey levels without an error.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
import tifffile
from fastslide import FastSlide
from numpy.typing import NDArray

from benchmarks.big_slides import picture
from tilers.segments import TiffImage, decode_jpeg

SIDE, TILE = 1024, 256
MODES = {
    "accurate DCT, smooth chroma": {},
    "accurate DCT, plain chroma": {"fastupsample": True},
    "fast DCT, smooth chroma": {"fastdct": True},
    "fast DCT, plain chroma": {"fastdct": True, "fastupsample": True},
}
Pixels = NDArray[np.int64]


def by_openslide(path: Path, x: int, y: int, w: int, h: int) -> Pixels:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((x, y), 0, (w, h)).convert("RGB")).astype(int)


def by_fastslide(path: Path, x: int, y: int, w: int, h: int) -> Pixels:
    slide = FastSlide.from_file_path(str(path))
    return np.array(slide.read_region(location=(x, y), level=0, size=(w, h)).numpy()).astype(int)


def modes(folder: Path, image: NDArray[np.uint8]) -> None:
    print("| chroma | libjpeg-turbo's mode | from OpenSlide: largest (mean) | from fastslide |")
    print("|---|---|---|---|")
    for name in ("444", "422", "420"):
        number = SIDE // TILE
        parts = [
            np.ascontiguousarray(image[r * TILE :, c * TILE :][:TILE, :TILE])
            for r in range(number)
            for c in range(number)
        ]
        data = [simplejpeg.encode_jpeg(part, quality=80, colorsubsampling=name) for part in parts]
        path = folder / f"{name}.tiff"
        sampling = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[name]
        tifffile.imwrite(
            path, iter(data), shape=(SIDE, SIDE, 3), dtype=np.uint8, tile=(TILE, TILE), compression="jpeg",
            photometric="ycbcr", subsampling=sampling, metadata=None,
        )  # fmt: skip
        shown = [by_openslide(path, 0, 0, SIDE, SIDE), by_fastslide(path, 0, 0, SIDE, SIDE)]
        for mode, how in MODES.items():
            decoded = [simplejpeg.decode_jpeg(one, **how) for one in data]
            rows = [np.hstack(decoded[r * number : (r + 1) * number]) for r in range(number)]
            gaps = [np.abs(np.vstack(rows).astype(int) - other) for other in shown]
            print(f"| {name} | {mode} | {' | '.join(f'{gap.max()} ({gap.mean():.2f})' for gap in gaps)} |")


def damage(folder: Path, source: Path, number: int) -> None:
    data = source.read_bytes()
    with tifffile.TiffFile(source) as tiff:
        page = tiff.pages[0]
        image, tables = TiffImage(page, len(data)), page.jpegtables
    rng, silent = np.random.default_rng(0), Counter[str]()
    high, wide = image.piece
    for n in range(number):
        row, column = int(rng.integers(0, image.rows - 1)), int(rng.integers(0, image.columns - 1))
        at, count = (int(values[row * image.columns + column]) for values in (image.offsets, image.counts))
        hurt = bytearray(data[at : at + count])
        place = int(rng.integers(20, count - 200))
        if n % 2:
            hurt[place : place + 200] = bytes(200)
        else:
            hurt[place] ^= 1 << int(rng.integers(0, 8))
        path = folder / "hurt.svs"
        path.write_bytes(data[:at] + bytes(hurt) + data[at + count :])
        shape = (high, wide, image.samples)
        sound = decode_jpeg(data[at : at + count], tables, shape, image.photometric).astype(int)
        where = (path, column * wide, row * high, wide, high)
        ways = {
            "fastslide": lambda where=where: by_fastslide(*where),
            "OpenSlide": lambda where=where: by_openslide(*where),
            "direct, strictly": lambda hurt=hurt, shape=shape: decode_jpeg(
                bytes(hurt), tables, shape, image.photometric
            ),
        }
        for name, way in ways.items():
            try:
                silent[name] += bool(np.abs(way() - sound).max() > 8)
            except Exception:
                continue
    print(f"\n| {number} damaged tiles | wrong pixels without an error |\n|---|---|")
    for name in ways:
        print(f"| {name} | {silent[name]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--tiles", type=int, default=200, help="tiles that are damaged")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        modes(Path(folder), picture(given.slide)[:SIDE, :SIDE])
        damage(Path(folder), given.slide, given.tiles)


if __name__ == "__main__":
    main()
