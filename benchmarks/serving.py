"""What the pipeline keeps of vLLM's speed, what screening costs in tokens, and what a tile's shared prefix saves.

    .venv-serving/bin/python benchmarks/serving.py SLIDE [--tiles 128] [--rounds 3] [--model FOLDER]

Everything is measured on one engine in one process; the ways take turns and the caches are emptied before each, and
medians are compared. "From memory" is the same engine fed with questions that were built beforehand; "pipeline" reads
the slide, builds the questions, keeps the journal and scores the tiles, as ``wsi-chat analyze`` does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tilers import Slide, TilePlan, TileStream, find_foreground, open_slide, plan_tiles
from wsi_chat import tasks
from wsi_chat.analysis.cascade import screen
from wsi_chat.dialects import Dialect, detect_dialect, get_dialect
from wsi_chat.engines import find_checkpoint
from wsi_chat.engines.asker import Asker
from wsi_chat.engines.checkpoint import read_config
from wsi_chat.engines.serving import plan_serving
from wsi_chat.engines.vllm import VLLMEngine
from wsi_chat.journal import Journal
from wsi_chat.schema import Query
from wsi_chat.terminology import System, load_system


def questions(slide: Slide, plan: TilePlan, asks: list[tasks.Ask], dialect: Dialect) -> list[list[Query]]:
    """For each question one query per tile, all in memory."""
    images = [Image.fromarray(np.ascontiguousarray(patch.pixels)) for patch in TileStream(slide, plan)]
    return [[dialect.build(ask, image, model_id="any", decoding={})[0] for image in images] for ask in asks]


def ask_all(engine: VLLMEngine, queries: list[Query]) -> float:
    """Seconds for these questions."""
    started = time.perf_counter()
    answers = list(engine.answer(queries))
    spent = time.perf_counter() - started
    bad = [answer.error for answer in answers if answer.status == "failed"]
    if bad:
        raise SystemExit(f"{len(bad)} questions failed, first: {bad[0]}")
    return spent


def pipeline(engine: VLLMEngine, slide: Slide, plan: TilePlan, dialect: Dialect, system: System) -> float:
    """Seconds for screening the plan's tiles from the slide, journal and all."""
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
        asker = Asker(engine, dialect, journal, {})
        started = time.perf_counter()
        with TileStream(slide, plan) as patches:
            verdicts = screen(patches, asker, system, total=len(plan.tiles))
        spent = time.perf_counter() - started
    if any(verdict.p_screen is None for verdict in verdicts.values()):
        raise SystemExit("some tiles were not screened")
    return spent


def median_of(rounds: int, engine: VLLMEngine, ways: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Median seconds of each way; they take turns, each with empty caches."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            engine.forget()
            spent = run()
            if number:  # the first turn warms up
                times[name].append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dialect", default=None)
    parser.add_argument("--specimen", default="cervix")
    parser.add_argument("--tiles", type=int, default=128)
    parser.add_argument("--prefix-tiles", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()

    folder = find_checkpoint(given.model)
    dialect = get_dialect(given.dialect or detect_dialect(folder))
    engine = VLLMEngine(folder, dtype=given.dtype, plan=plan_serving(read_config(folder), dialect.image_px))
    try:
        measure(engine, dialect, given)
    finally:
        engine.close()


def measure(engine: VLLMEngine, dialect: Dialect, given: Any) -> None:
    system = load_system(given.specimen)
    with open_slide(given.slide) as slide:
        foreground = find_foreground(slide, mask=False)
        side, mpp = dialect.tile_px, dialect.mpp_for(system)
        plan = plan_tiles(slide, foreground, tile_px=side, mpp=mpp, overlap=0.25, limit=given.tiles)
        asks = [tasks.screen(system), tasks.ground("hsil", max_tokens=32), tasks.describe(max_tokens=32)]
        screening, grounding, describing = questions(slide, plan, asks, dialect)
        spent = median_of(
            given.rounds,
            engine,
            {
                "from memory": lambda: ask_all(engine, screening),
                "pipeline": lambda: pipeline(engine, slide, plan, dialect, system),
            },
        )
    count = len(screening)
    print(f"{given.slide.name}: {count} tiles of {side} px, {engine.model_id}, medians of {given.rounds} rounds")
    for name, seconds in spent.items():
        print(f"{name:12} {count / seconds:8.1f} tiles/s")
    print(f"pipeline over from memory: {spent['from memory'] / spent['pipeline']:.3f}")
    engine.forget()
    before = engine.prompt_tokens
    ask_all(engine, screening)
    print(f"screening one tile: {(engine.prompt_tokens - before) / count:.0f} prompt tokens and 1 new token")
    prefix(engine, [part[: given.prefix_tiles] for part in (screening, grounding, describing)], given.rounds)


def prefix(engine: VLLMEngine, parts: list[list[Query]], rounds: int) -> None:
    """Screen, then locate and describe the same tiles, with and without what the cache kept of them."""
    tokens = 0

    def shared() -> float:
        nonlocal tokens
        before = engine.cached_tokens, engine.prompt_tokens
        spent = sum(ask_all(engine, part) for part in parts)
        tokens = round(100 * (engine.cached_tokens - before[0]) / (engine.prompt_tokens - before[1]))
        return spent

    def afresh() -> float:
        spent = 0.0
        for part in parts:
            engine.forget()
            spent += ask_all(engine, part)
        return spent

    seconds = median_of(rounds, engine, {"shared": shared, "afresh": afresh})
    print(
        f"screen, locate and describe {len(parts[0])} tiles: {seconds['afresh']:.2f} s each part afresh, "
        f"{seconds['shared']:.2f} s with the shared prefix ({seconds['afresh'] / seconds['shared']:.2f}x; "
        f"{tokens} % of the prompt tokens were in the cache)"
    )


if __name__ == "__main__":
    main()
