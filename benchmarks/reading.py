"""Tiles per second of TileStream against plain OpenSlide, the bare decoding of the same JPEG tiles, and other packages.

    PYTHONPATH=. python benchmarks/reading.py SLIDE [--tile-px 256] [--mpp 0.5] [--overlap 0 0.25] [--limit 2000]
        [--peer hs2p=PYTHON --peer lazyslide=PYTHON --peer tiatoolbox=PYTHON]

All ways take turns in one run, so that a busy machine slows all of them; figures are medians over ``--rounds``. Wall
clock ratios count where nothing else runs; processor time per tile beside them holds on a busy machine too. The slide
is one whose tiles the reader decodes itself (``wsi-chat info`` says so); make one with ``big_slides.py``. The pixels of
each reader are compared with OpenSlide's on 64 tiles.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import openslide

from tilers import Slide, TilePlan, TileStream, open_slide, plan_tiles
from tilers.readers.openslide import OpenSlideBackend
from tilers.readers.pieces import PieceBackend
from tilers.stream import resample
from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Tile

WORKERS = 2
BASE, LIMIT = "OpenSlide, one by one", "decode limit"
COPIED = "decode limit, and each tile's pixels copied once"
RING = 64  # arrays that are copied into by turns
PEERS = Path(__file__).with_name("peer_reading.py")


def of_openslide(slide: openslide.OpenSlide, tile: Tile) -> np.ndarray:
    read = np.asarray(slide.read_region((tile.x, tile.y), tile.level, tile.read_px).convert("RGB"))
    return read if read.shape[0] == tile.out_px else resample(read, tile.out_px)


def one_by_one(path: Path, plan: TilePlan, threads: int) -> None:
    """As most scripts do it: read_region and convert, one handle a thread."""

    def read(tiles: Iterable[Tile]) -> None:
        with openslide.OpenSlide(path) as slide:
            for tile in tiles:
                of_openslide(slide, tile)

    size = -(-len(plan) // threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, [plan.tiles[i : i + size] for i in range(0, len(plan), size)]))


def streamed(slide: Slide, plan: TilePlan, *, focus: bool) -> None:
    lost = sum(patch.status != "ok" for patch in TileStream(slide, plan, workers=WORKERS, focus=focus))
    if lost:
        raise SystemExit(f"{lost} tiles cannot be read: choose a sound slide")


def needed(backend: PieceBackend, plan: TilePlan) -> list[tuple[int, int, int]]:
    """(level, row, column) of every stored tile that the plan touches, once."""
    found = set()
    for tile in plan.tiles:
        grid = backend.grid(tile.level)
        if grid is None:
            raise SystemExit("the decode limit needs a slide whose tiles are decoded directly: see `wsi-chat info`")
        rows, columns, high, wide = grid
        scale = backend.level_downsamples[tile.level]
        x, y = round(tile.x / scale), round(tile.y / scale)
        for row in range(y // high, min(rows, -(-(y + tile.read_px[1]) // high))):
            found |= {(tile.level, row, c) for c in range(x // wide, min(columns, -(-(x + tile.read_px[0]) // wide)))}
    return sorted(found)


def decode(backend: PieceBackend, pieces: list[tuple[int, int, int]]) -> None:
    """The limit: threads decode the stored tiles and throw them away."""

    def some(part: list[tuple[int, int, int]]) -> None:
        for key in part:
            backend.piece(0, *key)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(some, [pieces[i::WORKERS] for i in range(WORKERS)]))


def decode_and_copy(backend: PieceBackend, pieces: list[tuple[int, int, int]], tiles: int, side: int) -> None:
    """The limit of a reader whose tiles outlive the next one: as `decode`, and each tile is written once."""

    def some(part: list[tuple[int, int, int]]) -> None:
        ring = [np.zeros((side, side, 3), np.uint8) for _ in range(RING)]
        copied = 0
        for done, key in enumerate(part, start=1):
            piece = backend.piece(0, *key)[:side, :side, :3]
            while copied * len(pieces) < done * tiles:
                ring[copied % RING][: piece.shape[0], : piece.shape[1]] = piece
                copied += 1

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(some, [pieces[i::WORKERS] for i in range(WORKERS)]))


def measured(way: Callable[[], None], tiles: int) -> tuple[float, float]:
    """(tiles per second, processor time per tile in ms)."""
    before, begun = os.times(), time.perf_counter()
    way()
    seconds, after = time.perf_counter() - begun, os.times()
    return tiles / seconds, (after.user + after.system - before.user - before.system) / tiles * 1e3


def peer(name: str, python: str, path: Path, given: argparse.Namespace, overlap: float) -> tuple[float, float]:
    command = [python, "-W", "ignore", str(PEERS), name, str(path), "--tile-px", str(given.tile_px)]
    command += ["--mpp", str(given.mpp), "--overlap", str(overlap), "--limit", str(given.limit)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(said["per_s"]), spent / said["tiles"] * 1e3  # with its start


def readers(path: Path) -> dict[str, Slide]:
    """The slide by each reader that takes it; ``OpenSlide alone`` leaves direct decoding out."""
    slides = {}
    for name in (None, "tiffslide", "fastslide"):
        try:
            slide = open_slide(path, reader=name)
        except SlideUnsupported as error:
            print(f"({name or 'default'}: {error.message})")
            continue
        slides[f"TileStream, {name}" if name else f"TileStream ({slide.reader})"] = slide
    plain = OpenSlideBackend(path)
    slides["TileStream, OpenSlide alone"] = Slide(
        path, reader="openslide", opener=OpenSlideBackend, backend=plain, mpp=slides[next(iter(slides))].mpp
    )
    return slides


def difference(slide: Slide, plan: TilePlan) -> str:
    """Largest and mean difference from OpenSlide's pixels over 64 tiles, grey levels."""
    tiles = plan.tiles[:: max(1, len(plan) // 64)][:64]
    largest, mean = 0, []
    with openslide.OpenSlide(slide.path) as plain:
        for patch in TileStream(slide, plan, tiles=tiles):
            gap = np.abs(np.asarray(patch.pixels, int) - of_openslide(plain, patch.tile))
            largest, mean = max(largest, int(gap.max())), [*mean, float(gap.mean())]
    return f"{largest} ({np.mean(mean):.2f})"


def options(description: str | None, *, limit: int, rounds: int) -> argparse.ArgumentParser:
    """What is read, and how often."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--tile-px", type=int, default=256)
    parser.add_argument("--mpp", type=float, default=0.5, help="um/px of the tiles")
    parser.add_argument("--overlap", type=float, nargs="+", default=[0.0, 0.25])
    parser.add_argument("--limit", type=int, default=limit, help="tiles, the first of the plan")
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def main() -> None:
    parser = options(__doc__, limit=2000, rounds=3)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    given = parser.parse_args()
    slides = readers(given.slide)
    first = next(iter(slides.values()))
    print(f"{given.slide.name}: {first.size[0]} x {first.size[1]} px, {first.reader}, {first.decoding}")
    for overlap in given.overlap:
        compare(given, slides, overlap)


def compare(given: argparse.Namespace, slides: dict[str, Slide], overlap: float) -> None:
    first = next(iter(slides.values()))
    plan = plan_of(plan_tiles(first, None, tile_px=given.tile_px, mpp=given.mpp, overlap=overlap), given.limit)
    backend, n = first._backend, len(plan)
    assert isinstance(backend, PieceBackend), f"{first.decoding}: choose a slide whose tiles are decoded directly"
    pieces = needed(backend, plan)
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        BASE: lambda: measured(lambda: one_by_one(given.slide, plan, 1), n),
        "OpenSlide, one by one, 2 threads": lambda: measured(lambda: one_by_one(given.slide, plan, 2), n),
        LIMIT: lambda: measured(lambda: decode(backend, pieces), n),
        COPIED: lambda: measured(lambda: decode_and_copy(backend, pieces, n, given.tile_px), n),
    }
    for name, slide in slides.items():
        ways[name] = lambda slide=slide: measured(lambda: streamed(slide, plan, focus=False), n)
        if slide is first:
            ways[f"{name}, with focus"] = lambda: measured(lambda: streamed(first, plan, focus=True), n)
    for one in given.peer:
        name, _, python = one.partition("=")
        ways[name] = lambda name=name, python=python: peer(name, python, given.slide, given, overlap)
    rounds = [{name: way() for name, way in ways.items()} for _ in range(given.rounds)]
    colours = {name: difference(slide, plan) for name, slide in slides.items()}
    print(f"\n{n} tiles of {given.tile_px} px at {given.mpp:g} um/px, overlap {overlap:g};", end=" ")
    print(f"{len(pieces)} stored tiles, medians of {given.rounds} rounds\n")
    heads = ("", "tiles/s", f"times {BASE}", f"of the {LIMIT}", "of it with a copy")
    heads = (*heads, "processor ms a tile", f"{LIMIT}'s share of it", "colours")
    print(f"| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|---|")
    for name in ways:
        rate, cost = (median(r[name][i] for r in rounds) for i in (0, 1))
        times = median(r[name][0] / r[BASE][0] for r in rounds)
        share = median(r[name][0] / r[LIMIT][0] for r in rounds)
        copied = median(r[name][0] / r[COPIED][0] for r in rounds)
        part = median(r[LIMIT][1] / r[name][1] for r in rounds)
        shown = (
            f"{rate:.0f}",
            f"{times:.2f}",
            f"{share:.2f}",
            f"{copied:.2f}",
            f"{cost:.2f}",
            f"{part:.2f}",
            colours.get(name, ""),
        )
        print(f"| {name} | {' | '.join(shown)} |")


def plan_of(plan: TilePlan, limit: int) -> TilePlan:
    """The first tiles of a plan."""

    return replace(plan, tiles=plan.tiles[:limit])


if __name__ == "__main__":
    main()
