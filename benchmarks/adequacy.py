"""Does the interval of the estimated cell count hold what it promises, and what does counting cost?

    python benchmarks/adequacy.py [--slides 6] [--side 4096] [--repeats 2000] [--model]

Three parts. *Simulated*: deposits whose tiles hold known counts (even, clumped, thinning out towards the edge), sampled
again and again; the share of intervals that hold the true total, beside that of the symmetrical interval on the same
estimate. *Rendered*: slides from `wsi-chat synth slide`, masked and planned as `analyze` does it, true counts of the
sampled tiles from the renderer, the true total from the slide's truth JSON; what the mask left out counts as missed.
*Model* (with --model): the embedded checkpoint counts; its estimate beside the truth, and the seconds it took.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aggregators.sampling import Frame, Total, draw, total
from wsi_chat.schema import Box, Tile

SIDE, STRIDE = 256, 192
FIRST_SEED = 960_000_000
SIZES = (8, 16, 32, 64)
SQUAMOUS = ("superficial", "intermediate", "parabasal", "metaplastic")


def disc(across: int) -> list[Tile]:
    """The tiles that touch a round deposit ``across`` tiles wide, with their cellularity."""
    middle = (across - 1) / 2
    tiles = []
    for row in range(across):
        for column in range(across):
            far = math.hypot(row - middle, column - middle)
            share = min(1.0, max(0.0, across / 2 - far + 0.5))
            if share > 0:
                index = row * across + column
                place = (column * STRIDE, row * STRIDE)
                tiles.append(Tile(index, *place, SIDE, SIDE, 0, (SIDE, SIDE), SIDE, 0.5, share))
    return tiles


def populations(tiles: Sequence[Tile], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Name -> true counts by tile."""
    share = np.array([tile.cellularity for tile in tiles])
    thin = np.linspace(0.2, 1.8, len(tiles)) * share
    return {
        "even, 4 cells a tile": rng.poisson(4 * share),
        "sparse, 0.5 cells a tile": rng.poisson(0.5 * share),
        "clumped, negative binomial k = 1": rng.poisson(rng.gamma(1.0, 4 * share)),
        "strongly clumped, k = 0.3": rng.poisson(rng.gamma(0.3, 4 * share / 0.3)),
        "density falling ninefold across the slide": rng.poisson(4 * thin),
    }


def held(made: Total, truth: float) -> tuple[bool, bool, float]:
    """Whether the interval and its symmetrical counterpart hold the truth, and how wide the interval is in truths."""
    low, high = made.interval.low, made.interval.high
    reach = math.log(high / made.value) if made.value > 0 else math.inf
    plain = abs(truth - made.value) <= made.value * reach if made.value > 0 else False
    return low <= truth <= high, plain, (high - low) / truth


def coverage(
    frame: Frame, counts: dict[int, float], truth: float, size: int, repeats: int
) -> tuple[float, float, float, float]:
    """Shares held by both intervals, the median width in truths, and the mean estimate in truths."""
    rows = []
    for seed in range(repeats):
        chosen = draw(frame.tiles, size, seed=seed)
        made = total({tile.index: counts[tile.index] for tile in chosen}, frame, drawn=len(chosen))
        rows.append((*held(made, truth), made.value / truth))
    table = np.array(rows, dtype=float)
    return (
        float(table[:, 0].mean()),
        float(table[:, 1].mean()),
        float(np.median(table[:, 2])),
        float(table[:, 3].mean()),
    )


def simulated(repeats: int) -> None:
    print(f"simulated: nominal 95 %, {repeats} samples each; held / held by the symmetrical interval / median width")
    tiles = disc(22)
    frame = Frame(tuple(tiles), len(tiles), STRIDE, Box(0, 0, 21 * STRIDE + SIDE, 21 * STRIDE + SIDE))
    for name, values in populations(tiles, np.random.default_rng(1)).items():
        counts = {tile.index: float(value) for tile, value in zip(tiles, values, strict=True)}
        truth = float(values.sum())
        parts = []
        for size in SIZES:
            good, plain, width, _ = coverage(frame, counts, truth, size, repeats)
            parts.append(f"{size} tiles {good:.1%} / {plain:.1%} / {width:.2f}")
        print(f"  {name} ({len(tiles)} tiles, {truth:.0f} cells): {'; '.join(parts)}", flush=True)


def rendered(slides: int, side: int, repeats: int, folder: Path, *, model: bool) -> None:
    from tilers import find_foreground, open_slide, plan_tiles
    from wsi_chat.datasets.render.scene import Scene
    from wsi_chat.datasets.render.slide import render_slide

    print(f"rendered: {slides} slides of {side} px, {repeats} samples each; held / estimate in truths (mean)")
    pooled: dict[int, list[float]] = {size: [] for size in SIZES}
    for n in range(slides):
        density = (120.0, 250.0, 500.0)[n % 3]
        recipe = ("normal", "hard_normal")[n % 2]
        path = folder / f"slide{n}.tiff"
        render_slide(path, seed=FIRST_SEED + n, width_px=side, height_px=side, recipe=recipe, density=density)
        found = json.loads(path.with_name(f"{path.stem}.truth.json").read_text(encoding="utf-8"))
        truth = float(sum(found["counts"].get(label, 0) for label in SQUAMOUS))
        scene = Scene(FIRST_SEED + n, side, side, found["mpp"], recipe, density, 0)
        with open_slide(path) as slide:
            plan = plan_tiles(slide, find_foreground(slide), tile_px=SIDE, mpp=0.5)
        frame = Frame(plan.tiles, plan.foreground, plan.stride, Box(0, 0, side, side))
        counts = {tile.index: float(_true_count(scene.tally, frame.core(tile))) for tile in plan.tiles}
        parts = []
        for size in SIZES:
            good, _, _, bias = coverage(frame, counts, truth, size, repeats)
            pooled[size].append(good)
            parts.append(f"{size} tiles {good:.1%} / {bias:.3f}")
        kept = sum(counts.values()) / truth
        where = (
            f"{recipe}, density {density:.0f}: {truth:.0f} cells, {kept:.1%} of them in {len(plan.tiles)} planned tiles"
        )
        print(f"  {where}: {'; '.join(parts)}", flush=True)
        if model:
            _by_model(path, truth)
    print(f"  all slides: {'; '.join(f'{size} tiles {np.mean(shares):.1%}' for size, shares in pooled.items())}")


def _true_count(tally: Callable[[int, int, int, int, dict[str, int]], object], core: Box) -> int:
    counts: dict[str, int] = {}
    x0, y0, x1, y1 = (round(value) for value in (core.x0, core.y0, core.x1, core.y1))
    tally(x0, y0, x1 - x0, y1 - y0, counts)
    return sum(counts.get(label, 0) for label in SQUAMOUS)


def _by_model(path: Path, truth: float) -> None:
    import wsi_chat

    begun = time.perf_counter()
    result = wsi_chat.analyze(path, out=path.parent / "out", specimen="cervical-lbc", top_k=24, pdf=False, gallery=0)
    whole = time.perf_counter() - begun
    adequacy, spent = result.report.verdict.adequacy, result.report.timings.seconds
    interval = adequacy.cells_interval
    assert adequacy.cells_estimate is not None
    assert interval is not None
    print(
        f"    embedded checkpoint: {adequacy.cells_estimate:.0f} ({interval.low:.0f} to {interval.high:.0f}) cells,"
        f" {adequacy.cells_estimate / truth:.2f} of the truth; counting {spent['adequacy']:.1f} s of {whole:.1f} s"
        f" (screening {spent['screen']:.1f} s, detail {spent['detail']:.1f} s)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=6)
    parser.add_argument("--side", type=int, default=4096, help="of a rendered slide, px at 0.5 um/px")
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--model", action="store_true", help="also count with the embedded checkpoint")
    given = parser.parse_args()
    simulated(given.repeats)
    with tempfile.TemporaryDirectory() as folder:
        rendered(given.slides, given.side, max(1, given.repeats // 4), Path(folder), model=given.model)


if __name__ == "__main__":
    main()
