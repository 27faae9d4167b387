"""Kills `wsi-chat analyze` at a fixed set of points over all its stages, and compares what the next run makes of it.

    PYTHONPATH=. python benchmarks/kill_points.py [--points 200] [--format pdf,html,json] [--folder DIR]

A point is an operation on a file (opened to write, renamed, removed, a folder made, a database opened) or an answer of
the model. One undisturbed run counts them; then, for as many of them as are asked for, spread evenly, a process is
killed with SIGKILL right before that point, and another finishes its run. The report must be the undisturbed run's but
for timings, every document there, no question asked twice that had been answered and kept, and nothing left behind.
Runs are forked from one process, so that a point costs two short analyses and no imports. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import wsi_chat
from wsi_chat.datasets.mosaic import write_pyramid
from wsi_chat.engines import ScriptedEngine
from wsi_chat.schema import Query

CHANGING = {"timings"}  # of report.json: when, how long, and how many answers were kept
OPTIONS: dict[str, Any] = {"specimen": "cervix", "top_k": 3, "adequacy_tiles": 2, "gallery": 6}
EVENTS = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect"})
ANSWER = "answer"


@dataclass
class Points:
    """Counts the points of this process, and kills it before one. ``stage`` is what the run last reported."""

    folder: Path
    asked: Path
    kill_at: int | None = None
    seen: list[str] = field(default_factory=list)
    stage: str = "start"

    def watch(self) -> None:
        """From here on, for the rest of the process: there is no way to take an audit hook back."""
        sys.addaudithook(self._on_event)

    def progress(self, stage: str, done: int, total: int) -> None:
        self.stage = stage

    def answer(self, query: Query) -> str | dict[str, float]:
        """The scripted model: the same answer to the same question. Notes what it was asked, and is a point itself."""
        with self.asked.open("a") as file:
            file.write(f"{query.task} {query.tile_id} {query.target} {query.key}\n")
        self._reached(ANSWER)
        if query.choices:
            p = (int(query.key[:6], 16) % 100) / 100
            return {query.choices[0]: 1 - p, query.choices[-1]: p}
        if query.task != "ground":
            return f"A field with {query.target}."
        if int(query.key[:4], 16) % 3:
            return f"No {query.target} is found."
        return f"{query.target} 1 is located at <region>20 30 90 100</region>."

    def _on_event(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = given
            writes = (
                any(c in str(mode) for c in "wax+") if mode else bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            )
            if not writes:
                return
        elif event not in EVENTS:
            return
        else:
            path = given[0]
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(str(self.folder)):
            self._reached(event)

    def _reached(self, event: str) -> None:
        if len(self.seen) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(self.stage)


def make_slide(path: Path) -> Path:
    """Cells on a bright field, 1,024 x 768 px at 0.5 um/px."""
    rng = np.random.default_rng(3)
    canvas = np.full((768, 1024, 3), 238, np.uint8) + rng.integers(0, 6, (768, 1024, 3), dtype=np.uint8)
    for x, y in rng.integers(60, 700, (20, 2)):
        cv2.circle(canvas, (int(x), int(y)), 24, (150, 180, 190), -1, cv2.LINE_AA)
        cv2.circle(canvas, (int(x), int(y)), 9, (80, 60, 120), -1, cv2.LINE_AA)
    write_pyramid(path, canvas, mpp=0.5)
    return path


def in_child(work: Callable[[], None]) -> int:
    """Do the work in a forked process; returns the number of the signal that ended it, 0 where it ended by itself."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("an analysis failed that was not killed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def analyze(slide: Path, points: Points, **more: Any) -> None:
    """One run into the points' folder, watched."""
    points.watch()
    engine = ScriptedEngine(points.answer)
    wsi_chat.analyze(slide, out=points.folder, engine=engine, progress=points.progress, **{**OPTIONS, **more})
    points.asked.with_suffix(".points").write_text(json.dumps({"stages": points.seen, "modules": sorted(sys.modules)}))


@dataclass(frozen=True)
class Made:
    """What a finished run left: the report but for what changes, the documents' names, the questions asked."""

    report: dict[str, Any]
    files: frozenset[str]
    asked: Counter[str]


def made(points: Points) -> Made:
    (report,) = points.folder.glob("*/report.json")
    content = json.loads(report.read_text(encoding="utf-8"))
    files = frozenset(str(path.relative_to(points.folder)) for path in points.folder.rglob("*"))
    lines = points.asked.read_text().splitlines() if points.asked.exists() else []
    return Made({key: value for key, value in content.items() if key not in CHANGING}, files, Counter(lines))


@dataclass(frozen=True)
class Outcome:
    """One kill: in which stage, how many questions were asked again, and what is wrong (empty: nothing)."""

    point: int
    stage: str
    twice: int
    faults: tuple[str, ...]


def kill_and_resume(slide: Path, folder: Path, point: int, stages: list[str], true: Made, **more: Any) -> Outcome:
    """Kill a run before a point, run it again, and compare with the undisturbed run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked, out = folder / "asked", folder / "out"
    ended = in_child(lambda: analyze(slide, Points(out, asked, kill_at=point), **more))
    faults = [] if ended == signal.SIGKILL else [f"the run was not killed (signal {ended})"]
    finished = next(out.glob("*/report.json"), None)
    if finished is not None and set(json.loads(finished.read_text())) != {*true.report, *CHANGING}:
        faults.append("report.json stood and was not whole")
    in_child(lambda: analyze(slide, Points(out, asked), **more))
    got = made(Points(out, asked))
    faults += ["the report differs"] if got.report != true.report else []
    faults += [f"files: {sorted(got.files ^ true.files)[:4]}"] if got.files != true.files else []
    faults += ["a question was never asked"] if set(got.asked) != set(true.asked) else []
    twice = sum((got.asked - true.asked).values())
    return Outcome(point, stages[point], twice, tuple(faults))


def undisturbed(slide: Path, folder: Path, **more: Any) -> tuple[Made, list[str]]:
    """A run from its beginning to its end, and the stage of each of its points. Runs forked later need no imports."""
    points = Points(folder / "out", folder / "asked")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    in_child(lambda: analyze(slide, points, **more))
    told = json.loads((folder / "asked.points").read_text())
    for name in told["modules"]:
        with suppress(Exception):  # some names of sys.modules are none that can be imported
            import_module(name)
    return made(points), told["stages"]


def spread(total: int, count: int) -> list[int]:
    """``count`` numbers of ``range(total)``, evenly spread, both ends among them."""
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(min(count, total))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--format", default="pdf,html,json", help="documents of the runs")
    parser.add_argument("--folder", type=Path, help="where runs are made; a temporary folder where it is left out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = (given.folder or Path(scratch)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        slide = make_slide(place / "slide.tiff")
        true, stages = undisturbed(slide, place / "sound", format=given.format)
        chosen = spread(len(stages), given.points)
        print(f"{len(stages)} points, {sum(true.asked.values())} questions; killed at {len(chosen)}", flush=True)
        outcomes = []
        for number, point in enumerate(chosen, start=1):
            outcomes.append(kill_and_resume(slide, place / "killed", point, stages, true, format=given.format))
            if outcomes[-1].faults:
                print(f"point {point} ({stages[point]}): {'; '.join(outcomes[-1].faults)}", flush=True)
            if number % 20 == 0:
                print(f"  {number} of {len(chosen)}", flush=True)
    print(
        f"| {'stage':<12} | kills | other report | left behind or missing | questions asked twice, in all and at most |"
    )
    for stage in dict.fromkeys(stages):
        rows = [outcome for outcome in outcomes if outcome.stage == stage]
        other = sum("the report differs" in row.faults for row in rows)
        files = sum(any(fault.startswith("files") for fault in row.faults) for row in rows)
        twice = [row.twice for row in rows] or [0]
        print(f"| {stage} | {len(rows)} | {other} | {files} | {sum(twice)}, {max(twice)} |")
    if any(outcome.faults or outcome.twice > 1 for outcome in outcomes):
        sys.exit("a run did not recover")


if __name__ == "__main__":
    main()
