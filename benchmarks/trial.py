"""What it costs to open slides on trial: milliseconds a slide, and the start of the process once in a run.

    python benchmarks/trial.py [SLIDE ...] [--rounds 20]

Each slide is opened and closed with and without a trial, in turn, in one process; the child's memory of what it has
tried is emptied before each. ``work`` is the processor time of both processes. Without slides, a rendered
one is used.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tilers import open_slide
from tilers.trial import Trial, needs_trial, trial
from wsi_chat.datasets.render import render_slide


@contextmanager
def slides(given: list[Path]) -> Iterator[list[Path]]:
    """The slides to open; a rendered one where none is named."""
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rendered.tiff"
        render_slide(path, width_px=4096, height_px=4096, seed=1)
        yield [path]


def child_seconds(process: int) -> float:
    """Processor time of the child so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(path: Path, rounds: int) -> str:
    """Seconds from nothing to the first verdict, the child's processor time by then, and from there to the second."""
    first, second, work = [], [], []
    for _ in range(rounds):
        alone = Trial()
        for kept in (first, second):
            alone._told.clear()
            began = time.perf_counter()
            alone.check(path)
            kept.append(time.perf_counter() - began)
            if kept is first and alone._child is not None:
                work.append(child_seconds(alone._child.pid))
        alone.close()
    return (
        f"the first slide waits {statistics.median(first):.2f} s "
        f"({statistics.median(work):.2f} s of the child's work), the next {statistics.median(second) * 1000:.1f} ms"
    )


def opening(path: Path, rounds: int) -> str:
    times: dict[bool, list[float]] = {False: [], True: []}
    with open_slide(path, mpp=0.5, trial=True):
        pass  # the process is there, the readers are imported on both sides
    began = child_seconds(trial._child.pid) if trial._child else 0.0
    for _ in range(rounds):
        for tried in (False, True):
            trial._told.clear()
            at = time.perf_counter()
            with open_slide(path, mpp=0.5, trial=tried):
                pass
            times[tried].append(time.perf_counter() - at)
    work = (child_seconds(trial._child.pid) - began) / rounds if trial._child else 0.0
    without, with_ = (statistics.median(times[tried]) * 1000 for tried in (False, True))
    kind = "tried" if needs_trial(path) else "not tried"
    return f"| {path.name} | {kind} | {without:.1f} | {with_:.1f} | {with_ - without:.1f} | {work * 1000:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    with slides(given.slides) as paths:
        print(f"start of the process: {start(paths[0], min(5, given.rounds))}")
        print("| slide | | ms without | ms with | more | the child's work, ms |\n|---|---|---|---|---|---|")
        for path in paths:
            print(opening(path, given.rounds), flush=True)


if __name__ == "__main__":
    main()
