"""Seconds that a browser waits for one square of the slide, with many browsers on it at once.

    python benchmarks/page_tiles.py [SLIDE] [--clients 20] [--seconds 30] [--cache 256]

The server is a process of its own (`wsi-chat view`). Each client looks at the slide as a person does: a view of
1,280 x 800 px takes about 24 squares over six connections, then it looks for a moment, moves, zooms in or out. Waiting
is told for one client alone and for all; the ratio is what the others cost. Without SLIDE one of 16,384 px is made.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

import httpx2 as httpx
import numpy as np
import psutil

from tilers import open_slide
from wsi_chat.app.pyramid import SQUARE_PX, Pyramid

VIEW = (1280, 800)
CONNECTIONS = 6  # of a browser to one host


def make_slide(path: Path, side: int = 16_384) -> Path:
    """A pyramid of a rendered field, repeated with shifts so that no two squares are alike."""
    from wsi_chat.datasets.mosaic import write_pyramid
    from wsi_chat.datasets.render.slide import render_slide

    small = path.with_name("field.tiff")
    render_slide(small, width_px=2048, height_px=2048, recipe="abnormal", seed=7)
    with open_slide(small) as slide:
        field = slide.read_region(0, 0, 0, 2048, 2048)
    canvas = np.tile(field, (side // 2048, side // 2048, 1))
    for n in range(side // 2048):
        canvas[n * 2048 : (n + 1) * 2048] = np.roll(canvas[n * 2048 : (n + 1) * 2048], 131 * n, axis=1)
    write_pyramid(path, canvas, mpp=0.5)
    return path


class Client:
    """One person's browser. ``waits`` are the seconds from a request to its last byte."""

    def __init__(self, base: str, pyramid: Pyramid, seed: int) -> None:
        self._base, self._pyramid = base, pyramid
        self._chance = random.Random(seed)
        self._z = max(0, pyramid.depth - 2)
        self._x, self._y = pyramid.width / 2, pyramid.height / 2
        self._known: dict[tuple[int, int, int], str] = {}
        self.waits: list[float] = []
        self.unchanged = 0

    def _squares(self) -> list[tuple[int, int, int]]:
        side = SQUARE_PX << self._z
        half = VIEW[0] / 2 * 2**self._z, VIEW[1] / 2 * 2**self._z
        columns = range(int((self._x - half[0]) // side), int((self._x + half[0]) // side) + 1)
        rows = range(int((self._y - half[1]) // side), int((self._y + half[1]) // side) + 1)
        return [(self._z, x, y) for y in rows for x in columns if self._pyramid.holds(self._z, x, y)]

    def _move(self) -> None:
        turn = self._chance.random()
        if turn < 0.2:
            self._z = min(self._pyramid.depth, self._z + 1)
        elif turn < 0.45:
            self._z = max(0, self._z - 1)
        reach = VIEW[0] * 2**self._z
        self._x = min(max(self._x + self._chance.uniform(-reach, reach), 0), self._pyramid.width)
        self._y = min(max(self._y + self._chance.uniform(-reach, reach), 0), self._pyramid.height)

    async def look(self, until: float) -> None:
        limits = httpx.Limits(max_connections=CONNECTIONS)
        async with httpx.AsyncClient(limits=limits, timeout=60) as http:
            await asyncio.sleep(self._chance.uniform(0, 1))
            while time.monotonic() < until:
                gate = asyncio.Semaphore(CONNECTIONS)
                await asyncio.gather(*(self._get(http, gate, square) for square in self._squares()))
                await asyncio.sleep(self._chance.uniform(0.5, 1.5))
                self._move()

    async def _get(self, http: httpx.AsyncClient, gate: asyncio.Semaphore, square: tuple[int, int, int]) -> None:
        z, x, y = square
        tag = self._known.get(square)
        async with gate:  # as in a browser, waiting for a connection is not the server's time
            start = time.perf_counter()
            answer = await http.get(
                f"{self._base}/squares/{z}/{x}_{y}.jpg", headers={"if-none-match": tag} if tag else {}
            )
            self.waits.append(time.perf_counter() - start)
        if answer.status_code not in (200, 304):
            raise SystemExit(f"{square}: {answer.status_code}")
        self.unchanged += answer.status_code == 304
        self._known[square] = answer.headers["etag"]


async def look(base: str, pyramid: Pyramid, clients: int, seconds: float, seed: int) -> tuple[list[float], int]:
    people = [Client(base, pyramid, seed + n) for n in range(clients)]
    until = time.monotonic() + seconds
    await asyncio.gather(*(person.look(until) for person in people))
    return [wait for person in people for wait in person.waits], sum(person.unchanged for person in people)


def serve(slide: Path, out: Path, cache: int) -> tuple[subprocess.Popen[str], str]:
    command = [
        sys.executable, "-m", "wsi_chat", "view", str(slide), "-o", str(out), "--no-browser", "--port", "0",
        "--cache", str(cache),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip().rstrip("/")


def told(name: str, waits: list[float]) -> float:
    cuts = [1000 * cut for cut in quantiles(waits, n=100)]
    print(f"{name}: {len(waits)} squares, median {cuts[49]:.1f} ms, p95 {cuts[94]:.1f} ms, p99 {cuts[98]:.1f} ms")
    return cuts[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", nargs="?", type=Path)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--cache", type=int, default=256, help="MiB of kept pictures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = args.slide or make_slide(Path(scratch) / "slide.tiff")
        with open_slide(path) as slide:
            pyramid, about = Pyramid(*slide.size), f"{path.name}, {slide.size[0]} x {slide.size[1]} px, {slide.reader}"
        from wsi_chat.analysis.slide_ids import slide_id

        process, url = serve(path, Path(scratch) / "out", args.cache)
        try:
            base = f"{url}/slides/{slide_id(path)}"
            print(f"{about}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
            held = psutil.Process(process.pid)
            httpx.get(f"{base}/overview.jpg", timeout=120)  # the slide is opened, its overview read
            before = held.memory_info().rss / 2**20
            alone, _ = asyncio.run(look(base, pyramid, 1, args.seconds / 2, 1))
            first = told("one client", alone)
            start, used = time.perf_counter(), sum(held.cpu_times()[:2])
            every, unchanged = asyncio.run(look(base, pyramid, args.clients, args.seconds, 100))
            rate = len(every) / (time.perf_counter() - start)
            last = told(f"{args.clients} clients", every)
            after = held.memory_info().rss / 2**20
            busy = 1000 * (sum(held.cpu_times()[:2]) - used) / len(every)
            facts = [
                f"{args.clients} clients / one", f"p99 {last:.0f} / {first:.0f} ms", f"{last / first:.2f}x",
                f"{rate:.0f}/s", f"{unchanged / len(every):.0%} unchanged", f"{busy:.1f} ms of a core each",
                f"{before:.0f} -> {after:.0f} MiB", about,
            ]  # fmt: skip
            print(f"| {' | '.join(facts)} |")
        finally:
            process.terminate()
            process.wait(10)


if __name__ == "__main__":
    main()
