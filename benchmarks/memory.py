"""Peak memory of streaming a 4,000 px and a 40,000 px wide slide of the same content density: within 20 %.

    python benchmarks/memory.py [--height 4000] [--tile-px 512] [--workers 2]

Writes both slides as tiled JPEG TIFFs in a temporary folder, then opens, masks, plans and streams each in a
process of its own and compares their peak resident sizes. Exits 1 when they differ by more than 20 %.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WIDTHS = (4_000, 40_000)
TILE = 512
CELLS_PER_TILE = 12


def content(width: int, height: int) -> Iterator[np.ndarray]:
    """TIFF tiles of glass with stained discs, the same number in each, row-major."""
    yy, xx = np.mgrid[0:TILE, 0:TILE]
    variants = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        tile = np.full((TILE, TILE, 3), 238, np.uint8) - rng.integers(0, 6, (TILE, TILE, 1), np.uint8)
        for _ in range(CELLS_PER_TILE):
            x, y = rng.integers(30, TILE - 30, 2)
            tile[(xx - x) ** 2 + (yy - y) ** 2 < int(rng.integers(8, 26)) ** 2] = rng.integers(60, 190, 3)
        variants.append(tile)
    for i in range(-(-width // TILE) * -(-height // TILE)):
        yield variants[i % len(variants)]


def write(path: Path, width: int, height: int) -> None:
    import tifffile

    tifffile.imwrite(
        path,
        content(width, height),
        shape=(height, width, 3),
        dtype="uint8",
        photometric="rgb",
        tile=(TILE, TILE),
        compression="jpeg",
        resolution=(40_000, 40_000),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def child(path: str, tile_px: int, workers: int) -> None:
    from tilers import TileStream, find_foreground, open_slide, plan_tiles

    with open_slide(path) as slide:
        plan = plan_tiles(slide, find_foreground(slide), tile_px=tile_px, mpp=0.5)
        with TileStream(slide, plan, workers=workers) as stream:
            read = sum(patch.status == "ok" for patch in stream)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tiles": len(plan), "read": read, "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=4_000)
    parser.add_argument("--tile-px", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.tile_px, args.workers)
        return
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            path = Path(folder) / f"{width}.tiff"
            write(path, width, args.height)
            command = [sys.executable, __file__, "--child", str(path)]
            command += ["--tile-px", str(args.tile_px), "--workers", str(args.workers)]
            said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{width:6d} x {args.height} px: {said['tiles']} tiles, peak {said['peak_mib']:.0f} MiB")
            if said["read"] != said["tiles"]:
                raise SystemExit("some tiles could not be read")
            peaks.append(said["peak_mib"])
    ratio = peaks[1] / peaks[0]
    print(f"| peak memory, {WIDTHS[1]} / {WIDTHS[0]} px wide | {peaks[1]:.0f} / {peaks[0]:.0f} MiB | {ratio:.2f}x |")
    if abs(ratio - 1) > 0.2:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
