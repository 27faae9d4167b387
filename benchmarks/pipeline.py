"""What doing things at the same time gains, and how long a start takes: ratios within one run.

    python benchmarks/pipeline.py [--side 3072] [--rounds 3] [--what batches questions documents starts]

batches: how many an engine needs for a slide that answers so many questions at once, as one stream and one stage
after the other: a count, which no other program disturbs.
questions: a slide's questions as one stream against one stage after the other (`analysis.inquiry`), on a stand-in that
answers each question after a fixed time, so many at once, as a GPU behind vLLM does. The reports are compared.
documents: two slides with the documents of the first written beside the second, against one after the other.
starts: seconds of `wsi-chat --help`, of importing the package and the command `analyze`, and of a finished run that is
run again, each beside a bare start of Python; processor time too, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import wsi_chat
from wsi_chat.analysis.inquiry import ask_all
from wsi_chat.cohort import local
from wsi_chat.datasets.render import render_slide
from wsi_chat.engines.feeding import LoopThread, feed
from wsi_chat.schema import Answer, Query


class Distant:
    """Answers every question after ``seconds``, ``slots`` of them at once."""

    name = model_name = "stand-in"
    model_id = "stand-in@0"

    def __init__(self, *, seconds: float, slots: int) -> None:
        self.lookahead = 2 * slots
        self._seconds = seconds
        self._loop = LoopThread("stand-in")
        self._slots = asyncio.Semaphore(slots)

    def answer(self, queries: Iterable[Query]) -> Iterator[Answer]:
        return feed(self._loop, self._one, queries, under_way=self.lookahead)

    async def _one(self, query: Query) -> Answer:
        async with self._slots:
            await asyncio.sleep(self._seconds)
        return says(query)

    def close(self) -> None:
        self._loop.close()


class InBatches:
    """Answers ``size`` questions at once, and counts how often."""

    name = model_name = "stand-in"
    model_id = "stand-in@0"

    def __init__(self, size: int) -> None:
        self.lookahead = size
        self.batches = 0

    def answer(self, queries: Iterable[Query]) -> Iterator[Answer]:
        source = iter(queries)
        while batch := list(islice(source, self.lookahead)):
            self.batches += 1
            yield from map(says, batch)

    def close(self) -> None: ...


def says(query: Query) -> Answer:
    """Darker fields are more abnormal; controls are as they should be."""
    mean = float(np.asarray(query.images[0]).mean())
    if query.choices:
        p = min(1.0, max(0.0, (245 - mean) / 40))
        kind = query.tile_id.removeprefix("control/").partition("/")[0]
        p = {"glass": 0.02, "blurred": 0.02, "noise": 0.02, "positive": 0.98, "swapped": 1 - p}.get(kind, p)
        chances = {query.choices[0]: 1 - p, query.choices[1]: p}
        return Answer(query.key, query.task, max(chances, key=chances.__getitem__), probabilities=chances)
    at = 20 + int(mean * 1000) % 100
    text = f"{query.target} 1 is located at <region>{at} 100 {at + 40} 140</region>."
    return Answer(query.key, query.task, text if query.target == "hsil" else "None is found.")


def one_after_the_other(asker: Any, *inquiries: Any) -> list[float]:
    """The screening, then each of the others by itself, as it was before."""
    detail, screen, *others = inquiries
    moments = [ask_all(asker, inquiry)[0] for inquiry in (screen, detail, *others)]
    return [moments[1], moments[0], *moments[2:]]


class AtOnce:
    """In place of the thread that writes documents: they are written before the next slide is asked about."""

    def __init__(self, workers: int, thread_name_prefix: str) -> None: ...

    def submit(self, work: Callable[..., None], *given: Any) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(work(*given))
        return done

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *raised: object) -> None: ...


def analyzed(slides: list[Path], *, engine: Any = None, **settings: Any) -> tuple[float, list[dict[str, Any]]]:
    """Seconds, and the reports but for their timings."""
    engine = engine or Distant(seconds=0.3, slots=32)
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        result = wsi_chat.analyze_cohort(slides, out=out, engine=engine, specimen="cervix", **settings)
        seconds = time.perf_counter() - began
        reports = [json.loads(path.read_text()) for path in sorted(Path(out).glob("*/report.json"))]
    engine.close()
    if result.counts.get("failed"):
        raise SystemExit(f"a slide failed: {result.failures[0].reason}")
    return seconds, [{name: value for name, value in report.items() if name != "timings"} for report in reports]


def in_turns(rounds: int, before: Callable[[], Any], after: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of both ways, taken in turns, and the ratio; their reports must agree."""
    pairs = []
    for number in range(rounds):
        ways = (before, after) if number % 2 == 0 else (after, before)
        found = {way: way() for way in ways}
        if found[before][1] != found[after][1]:
            raise SystemExit("the reports differ")
        pairs.append((found[before][0], found[after][0]))
    first, second = (statistics.median(pair[n] for pair in pairs) for n in (0, 1))
    return {
        "before": round(first, 2), "after": round(second, 2),
        "ratio": round(statistics.median(a / b for a, b in pairs), 2),
        "from": round(min(a / b for a, b in pairs), 2), "to": round(max(a / b for a, b in pairs), 2),
    }  # fmt: skip


def questions(slides: list[Path], rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    quick = {"format": "json", "gallery": 0}
    for name, settings in (("default", {}), ("exhaustive", {"exhaustive": True, "limit": 100})):

        def apart(settings: dict[str, Any] = settings) -> Any:
            with mock.patch("wsi_chat.analysis.questions.ask_all", one_after_the_other):
                return analyzed(slides[:1], **settings, **quick)

        def together(settings: dict[str, Any] = settings) -> Any:
            return analyzed(slides[:1], **settings, **quick)

        yield f"questions, {name}", in_turns(rounds, apart, together)


def batches(slides: list[Path]) -> Iterator[tuple[str, dict[str, float]]]:
    quick = {"format": "json", "gallery": 0}
    for name, settings in (("default", {}), ("exhaustive", {"exhaustive": True})):
        for size in (16, 64, 256):
            apart, together = InBatches(size), InBatches(size)
            with mock.patch("wsi_chat.analysis.questions.ask_all", one_after_the_other):
                _, before = analyzed(slides[:1], engine=apart, **settings, **quick)
            _, after = analyzed(slides[:1], engine=together, **settings, **quick)
            if before != after:
                raise SystemExit("the reports differ")
            found = {"before": apart.batches, "after": together.batches}
            yield f"batches of {size}, {name}", found | {"ratio": round(apart.batches / together.batches, 2)}


def documents(slides: list[Path], rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    pool = local.ThreadPoolExecutor

    def choose(workers: int, thread_name_prefix: str) -> Any:
        kind = AtOnce if thread_name_prefix == "documents" else pool
        return kind(workers, thread_name_prefix=thread_name_prefix)

    def apart() -> Any:
        with mock.patch.object(local, "ThreadPoolExecutor", choose):
            return analyzed(slides)

    yield f"documents, {len(slides)} slides", in_turns(rounds, apart, lambda: analyzed(slides))


def spent(command: list[str]) -> tuple[float, float]:
    """Seconds of a command, on the clock and of processors."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def starts(slide: Path, rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    python = sys.executable
    with tempfile.TemporaryDirectory() as out:
        again = [python, "-m", "wsi_chat", "analyze", str(slide), "-o", out, "--specimen", "cervix", "--limit", "12"]
        spent(again)
        commands = {
            "python -c pass": [python, "-c", "pass"],
            "import wsi_chat": [python, "-c", "import wsi_chat"],
            "from wsi_chat import analyze": [python, "-c", "from wsi_chat import analyze"],
            "wsi-chat --help": [python, "-m", "wsi_chat", "--help"],
            "wsi-chat analyze --help": [python, "-m", "wsi_chat", "analyze", "--help"],
            "wsi-chat analyze, finished": again,
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(spent(command))
    for name, found in times.items():
        yield (
            name,
            {
                "seconds": round(min(clock for clock, _ in found), 3),
                "processor": round(statistics.median(cpu for _, cpu in found), 3),
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=3072, help="pixels of the rendered slides at 0.5 um/px")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", nargs="+", default=["batches", "questions", "documents", "starts"])
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        slides = [Path(scratch) / f"{n}.tiff" for n in range(3)]
        for seed, path in enumerate(slides):
            render_slide(path, seed=seed, width_px=given.side, height_px=given.side, recipe="abnormal")
        if "batches" in given.what:
            for line in batches(slides):
                print(*line, flush=True)
        if "questions" in given.what:
            for line in questions(slides, given.rounds):
                print(*line, flush=True)
        if "documents" in given.what:
            for line in documents(slides, given.rounds):
                print(*line, flush=True)
        if "starts" in given.what:
            for line in starts(slides[0], 3 * given.rounds):
                print(*line, flush=True)


if __name__ == "__main__":
    main()
