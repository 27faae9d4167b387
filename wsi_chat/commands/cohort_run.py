"""What ``wsi-chat cohort`` does: progress while it lasts, one line per slide, and one exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from wsi_chat.analysis import cascade
from wsi_chat.analysis.manifest import Sample
from wsi_chat.cohort.result import CohortResult
from wsi_chat.cohort.run import Executor, Silent, Watcher, analyze_cohort
from wsi_chat.cohort.state import SlideState
from wsi_chat.commands.analyze import STAGES, terminate_as_interrupt
from wsi_chat.commands.console import EXIT_INTERRUPTED, EXIT_PARTIAL

MARKS = {"done": "done", "failed": "FAILED", "indeterminate": "INDETERMINATE"}


def run_cohort(
    source: Path,
    *,
    out: Path,
    flags: Mapping[str, Any],
    config: Path | None,
    environ: Mapping[str, str],
    executor: str = "local",
    actors: int | None = None,
    ray_address: str | None = None,
    retry_failed: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Analyze a cohort into ``out`` and say what came of it.

    Returns:
        0 done; 3 finished, but some slides failed or are indeterminate by error; 130 interrupted, state saved.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    with terminate_as_interrupt(), _watch(errors, quiet=quiet) as watcher:
        result = analyze_cohort(
            source,
            out=out,
            config=config,
            environ=environ,
            retry_failed=retry_failed,
            executor=cast(Executor, executor),
            actors=actors,
            ray_address=ray_address,
            watcher=watcher,
            **{name: value for name, value in flags.items() if value is not None},
        )
    if as_json:
        print(json.dumps(_as_json(result), indent=2, ensure_ascii=False))
    elif not quiet:
        _tell(result)
    if result.interrupted:
        errors.print("interrupted: every answer so far is saved; the same command goes on from there")
        return EXIT_INTERRUPTED
    return EXIT_PARTIAL if result.failures or any(state.unwritten for state in result.states) else 0


def _as_json(result: CohortResult) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "summary": str(result.out / "summary.csv"),
        "index": str(result.out / "index.html"),
        "interrupted": result.interrupted,
        "counts": result.counts,
        "slides": result.rows,
    }


def _tell(result: CohortResult) -> None:
    console = Console(highlight=False, soft_wrap=True)
    counts = ", ".join(f"{number} {name}" for name, number in result.counts.items())
    console.print(f"{len(result.samples)} slides: {counts}", markup=False)
    for state in result.states:
        if state in result.failures or state.unwritten:
            console.print(f"  {state.status}  {state.sample_id}  {state.reason}", markup=False)
    for name in ("summary.csv", "index.html"):
        console.print(f"  {result.out / name}", markup=False)
    console.print("  Research use only. Not a diagnosis; not for clinical decisions.", style="dim", markup=False)


class Lines(Silent):
    """One line per slide, with its place in the whole; on a terminal also a bar for the slide and one for all."""

    def __init__(self, console: Console, bars: Progress | None) -> None:
        self._console = console
        self._bars = bars
        self._total = self._done = 0
        self._all: TaskID | None = None

    def planned(self, total: int, settled: Sequence[SlideState]) -> None:
        self._total, self._done = total, len(settled)
        if settled:
            failed = sum(state.status != "done" for state in settled)
            also = f", {failed} of them failed (--retry-failed does those again)" if failed else ""
            self._console.print(f"{len(settled)} of {total} slides were finished earlier{also}", markup=False)
        if self._bars is not None:
            self._all = self._bars.add_task("all slides", total=total, completed=self._done, rate="")

    def begun(self, sample: Sample) -> cascade.Progress:
        bars = self._bars
        if bars is None:
            return cascade.no_progress
        task = bars.add_task(f"  {sample.path.name}"[:28], total=None, rate="")
        for other in bars.task_ids:  # the slide before is finished
            if other not in (task, self._all):
                bars.remove_task(other)

        def update(stage: str, done: int, total: int) -> None:
            if task in bars.task_ids:
                bars.update(task, completed=done, total=total, rate=STAGES.get(stage, stage))

        return update

    def ended(self, state: SlideState) -> None:
        self._done += 1
        row = state.row
        said = [f"[{self._done}/{self._total}]", MARKS[state.status], state.file]
        if state.status == "failed":
            said.append(state.reason)
        else:
            said.append(str(row.get("status", "")).upper())
            said += [f"score {float(row['score']):.3f}"] if row.get("score") else []
            said += [str(row["category"])] if row.get("category") else []
            said += [state.reason] if state.status == "indeterminate" else []
            said += [f"not written: {line}" for line in state.unwritten]
        if state.seconds is not None:
            said.append(f"{state.seconds:.1f} s")
        self._console.print("  ".join(said), markup=False)
        if self._bars is not None and self._all is not None:
            self._bars.update(self._all, completed=self._done)


@contextmanager
def _watch(console: Console, *, quiet: bool) -> Iterator[Watcher]:
    if quiet:
        yield Silent()
        return
    if not console.is_terminal:
        yield Lines(console, None)
        return
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield Lines(bars.console, bars)
