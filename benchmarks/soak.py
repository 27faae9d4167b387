"""Many small specimens through `cohort` in one process: whether memory, open files and the time for a slide stay flat.

    PYTHONPATH=. python benchmarks/soak.py [--slides 1000] [--format html,json] [--out DIR]

The model is scripted, so that everything but inference is measured: reading, tiling, the journal, the verdict and the
documents. Every slide is a file of its own (a hard link to one of five). After each the resident memory, the open files
and the processor seconds since the one before are noted; the table has their medians over tenths of the run. Linux.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

import wsi_chat
from wsi_chat.cohort.attempt import Outcome
from wsi_chat.cohort.book import Silent
from wsi_chat.datasets.mosaic import write_pyramid
from wsi_chat.engines import ScriptedEngine
from wsi_chat.schema import Query

SIDE_PX = 320
DIFFERENT = 5


def says(query: Query) -> str | dict[str, float]:
    """One tile in ten is suspicious, and holds a cell."""
    suspicious = int(query.key[:4], 16) % 10 == 0
    if query.choices:
        return {query.choices[0]: 0.2 if suspicious else 0.9, query.choices[-1]: 0.8 if suspicious else 0.1}
    if suspicious and query.target == "hsil":
        return "hsil 1 is located at <region>20 30 90 100</region>."
    return f"No {query.target} is found."


def make_slides(folder: Path, count: int) -> None:
    """``count`` slides of 320 x 320 px at 0.5 um/px, each under a name of its own."""
    originals = []
    for seed in range(DIFFERENT):
        rng = np.random.default_rng(seed)
        pixels = np.full((SIDE_PX, SIDE_PX, 3), 235, np.uint8)
        for x, y in rng.integers(20, SIDE_PX - 20, (12, 2)):
            cv2.circle(pixels, (int(x), int(y)), 12, (90, 70, 120), -1)
        originals.append(folder / f".original-{seed}.tiff")
        write_pyramid(originals[-1], pixels, mpp=0.5)
    for number in range(count):
        os.link(originals[number % DIFFERENT], folder / f"specimen-{number:05}.tiff")


class Meter(Silent):
    """Notes after each slide: MiB resident, open files, processor seconds since the slide before; a row a tenth."""

    def __init__(self, engine: ScriptedEngine, slides: int) -> None:
        self.rows: list[tuple[float, int, float]] = []
        self._engine = engine
        self._tenth = max(1, slides // 10)
        self._last = time.process_time()

    def ended(self, outcome: Outcome) -> None:
        assert outcome.error is None, outcome.error
        now = time.process_time()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * resource.getpagesize() / 2**20
        self.rows.append((resident, len(os.listdir("/proc/self/fd")), now - self._last))  # noqa: PTH208
        self._last = now
        self._engine.asked.clear()  # it keeps every question with its picture, for tests
        if len(self.rows) % self._tenth == 0:
            rows = self.rows[-self._tenth :]
            memory, files, seconds = (statistics.median(column) for column in zip(*rows, strict=True))
            place = f"{len(self.rows) - self._tenth + 1} to {len(self.rows)}"
            print(f"| {place} | {memory:.0f} | {files:.0f} | {seconds:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--format", default="html,json", help="documents; a PDF takes about a second of its own")
    parser.add_argument("--out", type=Path, help="run folder, kept; a temporary one where it is left out")
    given = parser.parse_args()
    engine = ScriptedEngine(says)
    print("| slides | resident MiB | open files | processor seconds for a slide |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        slides = Path(scratch) / "slides"
        slides.mkdir()
        make_slides(slides, given.slides)
        result = wsi_chat.analyze_cohort(
            slides, out=given.out or Path(scratch) / "out", engine=engine, watcher=Meter(engine, given.slides),
            specimen="cervix", top_k=2, format=given.format, controls=False,
        )  # fmt: skip
    assert result.counts == {"done": given.slides}, result.counts


if __name__ == "__main__":
    main()
