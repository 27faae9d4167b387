"""What --features costs: seconds per tile with and without, in turns on one rendered slide, and bytes on disk.

    python benchmarks/features.py [--tiles 96] [--rounds 3] [--slide SLIDE]

CPU seconds of this process and the clock's are both given: the first do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from wsi_chat import analyze
from wsi_chat.datasets.render.slide import render_slide
from wsi_chat.engines import load_engine


def main() -> None:
    """Print the costs."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--tiles", type=int, default=96)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--slide", type=Path, help="this one, and not one that is rendered first")
    given = arguments.parse_args()
    quick = {"specimen": "cervix", "top_k": 0, "adequacy_tiles": 0, "pdf": False, "html": False, "gallery": 0}
    with tempfile.TemporaryDirectory() as scratch:
        slide = given.slide or Path(scratch) / "slide.tiff"
        if given.slide is None:
            render_slide(slide, width_px=3072, height_px=3072, seed=5)
        engine = load_engine()
        analyze(slide, out=Path(scratch) / "warm", engine=engine, limit=8, **quick)
        cpu: dict[bool, list[float]] = {False: [], True: []}
        wall: dict[bool, list[float]] = {False: [], True: []}
        for number in range(given.rounds):
            for features in (False, True):
                engine._running._features.clear()  # type: ignore[attr-defined]
                begun = time.process_time()
                result = analyze(
                    slide, out=Path(scratch) / f"{number}{features}", engine=engine, features=features,
                    limit=given.tiles, **quick,
                )  # fmt: skip
                cpu[features].append(time.process_time() - begun)
                wall[features].append(result.report.timings.seconds["screen"])
        tiles = result.report.funnel.screened
        size = sum(path.stat().st_size for path in (result.folder / "features.zarr").rglob("*") if path.is_file())
    print(f"{tiles} tiles, {given.rounds} rounds, medians")
    for name, found in (("CPU, whole run", cpu), ("clock, screening", wall)):
        off, on = (statistics.median(found[kind]) / tiles for kind in (False, True))
        print(f"  {name:<17}{off:.4f} s per tile without, {on:.4f} with: {on / off - 1:+.1%}")
    print(f"  features.zarr    {size / tiles * 1000 / 2**20:.2f} MiB per 1,000 tiles")


if __name__ == "__main__":
    main()
