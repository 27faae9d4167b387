"""What stands between ``TileStream`` and the bare decoding of a slide's tiles, part by part.

    PYTHONPATH=. python benchmarks/reading_parts.py SLIDE [--tile-px 256] [--mpp 0.5] [--overlap 0 0.25] [--limit 6000]

Each way reads the same tiles, all take turns in one run, and figures are medians over ``--rounds``. ``us`` is a
thread's time for a tile (the wall clock times the number of threads or processes that work), ``processor us`` what all
threads used, ``waits`` how often a thread gave up its core for a tile: at Python's lock, mostly. The slide is one whose
tiles the reader decodes itself (see ``reading.py``).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from unittest.mock import patch

from benchmarks.reading import WORKERS, decode, needed, options, plan_of
from tilers import Slide, TilePlan, TileStream, open_slide, plan_tiles
from tilers.readers.pieces import PieceBackend
from tilers.stream import _read_block

KEPT = 64
LIMIT = "decode limit, 2 threads"
CHILD = """
import sys
from pathlib import Path
from benchmarks.reading_parts import planned, runs
slide, plan = planned(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
runs(slide, plan)
for _ in sys.stdin:
    runs(slide, plan)
    print(flush=True)
"""


def planned(path: Path, tile_px: int, mpp: float, overlap: float, limit: int) -> tuple[Slide, TilePlan]:
    slide = open_slide(path)
    return slide, plan_of(plan_tiles(slide, None, tile_px=tile_px, mpp=mpp, overlap=overlap), limit)


def kept(backend: PieceBackend, pieces: list[tuple[int, int, int]]) -> None:
    """The limit of a reader that hands on what it decodes: the last tiles stay where they are."""

    def some(part: list[tuple[int, int, int]]) -> None:
        last: deque[object] = deque(maxlen=KEPT)
        for key in part:
            last.append(backend.piece(0, *key))

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(some, [pieces[i::WORKERS] for i in range(WORKERS)]))


def alone(backend: PieceBackend, pieces: list[tuple[int, int, int]]) -> None:
    for key in pieces:
        backend.piece(0, *key)


def runs(slide: Slide, plan: TilePlan, threads: int = 1) -> None:
    """The stream's work without its order: each thread reads every so-many-th run and drops the tiles."""
    stream = TileStream(slide, plan, workers=WORKERS, focus=False)
    slide.expect(stream._announced())

    def some(first: int) -> None:
        for block in stream._blocks[first::threads]:
            _read_block(slide, block, focus=False)

    if threads == 1:
        some(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(threads)))


def streamed(slide: Slide, plan: TilePlan) -> None:
    for _ in TileStream(slide, plan, workers=WORKERS, focus=False):
        pass


def uncopied(slide: Slide, plan: TilePlan) -> None:
    """Two threads whose tiles hold whatever was in their memory."""

    def empty(self: PieceBackend, _cut: object, _pieces: object, width: int, height: int) -> object:
        return self._buffers.empty((height, width, 3))

    with patch.object(PieceBackend, "_joined", empty):
        runs(slide, plan, WORKERS)


def processes(given: argparse.Namespace, overlap: float) -> float:
    """Seconds in which two processes of one thread each read all tiles, each of them all."""
    command = [sys.executable, "-c", CHILD, str(given.slide), str(given.tile_px), str(given.mpp), str(overlap)]
    children = [
        subprocess.Popen([*command, str(given.limit)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(WORKERS)
    ]
    seconds = []
    for _ in range(given.rounds + 1):
        begun = time.perf_counter()
        for child in children:
            assert child.stdin
            child.stdin.write("\n")
            child.stdin.flush()
        for child in children:
            assert child.stdout
            child.stdout.readline()
        seconds.append(time.perf_counter() - begun)
    for child in children:
        child.communicate()
    return median(seconds[1:])  # before the first, one of them still starts


def measured(way: Callable[[], None], tiles: int, threads: int) -> tuple[float, float, float]:
    """(thread's µs a tile, processor µs a tile, waits a tile)."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    way()
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds * threads / tiles * 1e6, spent / tiles * 1e6, (after.ru_nvcsw - before.ru_nvcsw) / tiles


def compare(given: argparse.Namespace, overlap: float) -> None:
    slide, plan = planned(given.slide, given.tile_px, given.mpp, overlap, given.limit)
    backend, n = slide._backend, len(plan)
    assert isinstance(backend, PieceBackend), f"{slide.decoding}: choose a slide whose tiles are decoded directly"
    pieces = needed(backend, plan)
    ways: dict[str, tuple[Callable[[], None], int]] = {
        LIMIT: (lambda: decode(backend, pieces), WORKERS),
        f"the same, and the last {KEPT} tiles of each kept": (lambda: kept(backend, pieces), WORKERS),
        "decoding, 1 thread": (lambda: alone(backend, pieces), 1),
        "tiles, 1 thread, dropped": (lambda: runs(slide, plan), 1),
        "tiles, 2 threads, dropped, no pixels copied": (lambda: uncopied(slide, plan), WORKERS),
        "tiles, 2 threads, dropped": (lambda: runs(slide, plan, WORKERS), WORKERS),
        "TileStream": (lambda: streamed(slide, plan), WORKERS),
    }
    rounds = [{name: measured(way, n, threads) for name, (way, threads) in ways.items()} for _ in range(given.rounds)]
    print(f"\n{n} tiles, overlap {overlap:g}, {len(pieces) / n:.2f} stored tiles each\n")
    print(f"| | us | processor us | waits | of the {LIMIT} |\n|---|---|---|---|---|")
    for name in ways:
        time_us, spent, waits = (median(r[name][i] for r in rounds) for i in range(3))
        share = median(r[LIMIT][0] / r[name][0] for r in rounds)
        print(f"| {name} | {time_us:.0f} | {spent:.0f} | {waits:.2f} | {share:.2f} |")
    limit = median(r[LIMIT][0] for r in rounds)
    apart = processes(given, overlap) / n * 1e6
    print(f"| tiles, 2 processes of 1 thread, dropped | {apart:.0f} | | | {limit / apart:.2f} |")


def main() -> None:
    given = options(__doc__, limit=6000, rounds=5).parse_args()
    for overlap in given.overlap:
        compare(given, overlap)


if __name__ == "__main__":
    main()
