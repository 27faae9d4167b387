"""What reading the next slide beside this one's inference gains, as a ratio from one run.

    python benchmarks/cohort_overlap.py [--slides 4] [--side 4096] [--seconds-per-tile 0.01] [--model]

Renders a small cohort, then analyzes it with slides prepared ahead and without, in turns, each time into a folder of
its own. Without ``--model`` the engine sleeps for a fixed time per tile, as a CPU waits for a GPU; with it the
embedded checkpoint answers on this CPU, where reading and inference share the cores. Documents that take the same
time either way (PDF, gallery) are left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import wsi_chat
from wsi_chat.datasets.cohort import render_cohort
from wsi_chat.engines import Engine, ScriptedEngine, load_engine
from wsi_chat.schema import Query


def sleeper(seconds: float) -> Engine:
    def says(query: Query) -> str | dict[str, float]:
        time.sleep(seconds)
        return {"A": 0.9, "B": 0.1} if query.choices else f"No {query.target} is found."

    return ScriptedEngine(says)


def timed(manifest: Path, engine: Engine, *, ahead: int) -> float:
    with tempfile.TemporaryDirectory() as out:
        begun = time.perf_counter()
        result = wsi_chat.analyze_cohort(
            manifest, out=out, engine=engine, ahead=ahead, specimen="cervix", top_k=0, pdf=False, gallery=0
        )
        seconds = time.perf_counter() - begun
    assert not result.failures, result.failures
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=4)
    parser.add_argument("--side", type=int, default=4096, help="pixels at 0.5 um/px")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds-per-tile", type=float, default=0.01)
    parser.add_argument("--model", action="store_true", help="the embedded checkpoint in place of a fixed time")
    parser.add_argument("--cohort", type=Path, help="folder of the rendered slides; kept and used again")
    given = parser.parse_args()
    load: Callable[[], Engine] = load_engine if given.model else lambda: sleeper(given.seconds_per_tile)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.cohort or Path(scratch)
        manifest = render_cohort(folder, slides=given.slides, width_px=given.side, height_px=given.side)
        engine = load()
        pairs = []
        for n in range(given.repeats):
            order = (0, 1) if n % 2 == 0 else (1, 0)  # in turns, so that a warm cache helps neither
            seconds = {ahead: timed(manifest, engine, ahead=ahead) for ahead in order}
            pairs.append(seconds)
            print(f"one by one {seconds[0]:.1f} s, next slide read ahead {seconds[1]:.1f} s")
        engine.close()
    ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
    print(f"{given.slides} slides of {given.side} px: {ratio:.2f}x (median of {given.repeats})")


if __name__ == "__main__":
    main()
