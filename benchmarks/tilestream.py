"""Tiles per second of TileStream against one read_region per tile, on the same plan, in one run.

    python benchmarks/tilestream.py SLIDE [--tile-px 512] [--mpp 0.5] [--workers 2] [--rounds 3] [--mask]

Both sides give the same patches (checked): RGB, resampled, with a focus score. The rounds alternate, so that a
busy machine slows both; the ratio is of the medians. Without --mask every tile is read.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from tilers import Slide, TilePlan, TileStream, find_foreground, focus_score, open_slide, plan_tiles
from tilers.stream import resample


def one_by_one(path: str, plan: TilePlan, mpp: float | None) -> float:
    start = time.perf_counter()
    with open_slide(path, mpp=mpp) as slide:
        for tile in plan.tiles:
            pixels = resample(slide.read_region(tile.x, tile.y, tile.level, *tile.read_px), tile.out_px)
            focus_score(pixels)
    return len(plan) / (time.perf_counter() - start)


def streamed(path: str, plan: TilePlan, mpp: float | None, workers: int) -> float:
    start = time.perf_counter()
    with open_slide(path, mpp=mpp) as slide, TileStream(slide, plan, workers=workers) as stream:
        lost = sum(patch.status != "ok" for patch in stream)
    if lost:
        raise SystemExit(f"{lost} tiles cannot be read: choose a sound slide")
    return len(plan) / (time.perf_counter() - start)


def check(slide: Slide, plan: TilePlan) -> None:
    """The two ways give the same pixels, or the comparison means nothing."""
    for patch in TileStream(slide, plan, tiles=plan.tiles[:64]):
        tile = patch.tile
        direct = resample(slide.read_region(tile.x, tile.y, tile.level, *tile.read_px), tile.out_px)
        if patch.pixels is None or np.abs(patch.pixels.astype(int) - direct).mean() > 1:
            raise SystemExit(f"{tile.id} differs between the two ways")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide")
    parser.add_argument("--tile-px", type=int, default=512)
    parser.add_argument("--mpp", type=float, default=0.5, help="um/px of the tiles")
    parser.add_argument("--slide-mpp", type=float, default=None)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mask", action="store_true")
    args = parser.parse_args()
    with open_slide(args.slide, mpp=args.slide_mpp) as slide:
        foreground = find_foreground(slide, mask=args.mask)
        plan = plan_tiles(slide, foreground, tile_px=args.tile_px, mpp=args.mpp, overlap=args.overlap)
        check(slide, plan)
        name = f"{slide.path.name}, {slide.size[0]} x {slide.size[1]} px, {slide.reader}"
    rates = [
        (one_by_one(args.slide, plan, args.slide_mpp), streamed(args.slide, plan, args.slide_mpp, args.workers))
        for _ in range(args.rounds)
    ]
    single, many = median(r[0] for r in rates), median(r[1] for r in rates)
    print(f"{name}: {len(plan)} tiles of {args.tile_px} px at {args.mpp:g} um/px, overlap {args.overlap:g}")
    for i, (a, b) in enumerate(rates, 1):
        print(f"  round {i}: one by one {a:7.1f} tiles/s   TileStream {b:7.1f} tiles/s   ratio {b / a:.2f}")
    print(f"| TileStream / one by one | {many:.0f} / {single:.0f} tiles/s | {many / single:.2f}x | {name} |")


if __name__ == "__main__":
    main()
