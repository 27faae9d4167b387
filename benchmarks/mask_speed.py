"""What finding the cells of large slides costs, against decoding the same tiles and throwing them away.

    PYTHONPATH=. python benchmarks/mask_speed.py [--side 60000 100000] [--against CHECKOUT] [--from SLIDE]

For each side: a slide of one level, one with a gap of 1:32 between its levels, and one with a full pyramid (1, 4, 16),
of repeated JPEG tiles (``big_slides.py``). Each is masked in a process of its own, whose seconds, processor seconds and
peak memory are printed; ``--against`` masks it with another checkout of this project too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.big_slides import picture, write_slide

KINDS = {"one level": (1,), "levels 1:32": (1, 32), "levels 1:4:16": (1, 4, 16)}
CHILD = """
import json, resource, sys, time
from tilers import find_foreground, open_slide
begun, spent = time.perf_counter(), time.process_time()
with open_slide(sys.argv[1]) as slide:
    opened = time.perf_counter() - begun
    found = find_foreground(slide)
seconds, spent = time.perf_counter() - begun, time.process_time() - spent
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
share = round(found.area_fraction, 4)
print(json.dumps(dict(s=seconds, cpu=spent, mib=peak, opened=opened, share=share, cell=found.cell)))
"""
LIMIT = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from tilers import open_slide
from tilers.cell_grid import FINE_UM
from tilers.reduce import level_for
with open_slide(sys.argv[1]) as slide:
    backend, level = slide._backend, level_for(slide, FINE_UM / slide.mpp)
    rows, columns, _, _ = backend.grid(level)
    def some(first):
        for row in range(first, rows, 2):
            for column in range(columns):
                backend.piece(0, level, row, column)
    begun, spent = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(some, range(2)))
    print(json.dumps(dict(s=time.perf_counter() - begun, cpu=time.process_time() - spent)))
"""


def child(code: str, slide: Path, checkout: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": checkout}
    done = subprocess.run(
        [sys.executable, "-c", code, str(slide)], capture_output=True, text=True, env=environment, cwd=slide.parent,
        check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, nargs="+", default=[60_000, 100_000])
    parser.add_argument("--kind", choices=list(KINDS), nargs="+", default=list(KINDS))
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--against")
    given = parser.parse_args()
    here, image = str(Path.cwd()), picture(given.source)
    print(
        "| slide | before: s (processor s) | peak MiB | now: s (processor s) | peak MiB | decoding: s (processor s) |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for side in given.side:
            for kind in given.kind:
                path = Path(folder) / "slide.svs"
                write_slide(path, image, width=side, height=side, levels=KINDS[kind])
                now, limit = child(CHILD, path, here), child(LIMIT, path, here)
                before = child(CHILD, path, given.against) if given.against else None
                if before and abs(before["share"] - now["share"]) > 0.002:
                    raise SystemExit(f"the masks differ: {before} and {now}")
                cells = (
                    ["", ""] if before is None else [f"{before['s']:.1f} ({before['cpu']:.1f})", f"{before['mib']:.0f}"]
                )
                cells += [
                    f"{now['s']:.1f} ({now['cpu']:.1f})",
                    f"{now['mib']:.0f}",
                    f"{limit['s']:.1f} ({limit['cpu']:.1f})",
                ]
                print(f"| {side:,} px, {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
