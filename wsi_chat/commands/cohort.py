"""The command ``wsi-chat cohort``: its own options, and every setting that ``wsi-chat analyze`` has.

Progress while it lasts, one line per slide, and one exit code.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from wsi_chat.analysis.run_log import run_log
from wsi_chat.analysis.sample import Sample
from wsi_chat.cohort.attempt import Outcome
from wsi_chat.cohort.book import Silent, Watcher
from wsi_chat.cohort.result import CohortResult
from wsi_chat.cohort.run import Executor, analyze_cohort
from wsi_chat.cohort.state import SlideState
from wsi_chat.commands.console import EXIT_PARTIAL, say_json
from wsi_chat.commands.options import Json, Quiet, with_settings
from wsi_chat.commands.progress import STAGES
from wsi_chat.commands.signals import exit_code, signals_handled
from wsi_chat.commands.terminal import Console
from wsi_chat.control_characters import one_line
from wsi_chat.progress import Progress as StageProgress
from wsi_chat.progress import no_progress
from wsi_chat.schema import DISCLAIMER
from wsi_chat.settings import declared

MARKS = {"done": "done", "failed": "FAILED", "indeterminate": "INDETERMINATE"}


@with_settings(*declared())
def cohort(
    source: Annotated[
        Path,
        typer.Argument(
            help="Manifest (CSV with image_path and, if known, sample_id, mpp, label, patient and specimen; "
            "photographs with one specimen_id are one specimen; the headers of TRIDENT, hs2p and CLAM are "
            "understood), or a folder to search for slides and for folders of photographs."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder.")] = Path("wsi-chat-out"),
    executor: Annotated[
        str,
        typer.Option(help="local (one slide after another) or ray (Ray actors; pip install 'wsi-chat[ray]')."),
    ] = "local",
    actors: Annotated[
        int | None,
        typer.Option(
            help="Number of Ray actors, each with its own engine. Default: one per GPU, or one per four cores."
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster, HOST:6379, as started with `ray start --head` there and `ray start --address=HOST:6379` "
            "on its other machines, which must all see the slides and the run folder under the same paths. "
            "Default: a cluster on this machine alone, which ends with the run."
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Repeat slides that failed or are indeterminate because of an error."),
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
    *,
    config: Path | None,
    **settings: Any,
) -> None:
    """Analyze many slides: every slide's documents, summary.csv and index.html; one bad slide never stops the run.

    Run the same command again to resume: finished slides are skipped if file and settings are the same.
    Nothing that was answered is asked again.

    The mpp and the specimen of a manifest's row override the options.
    """
    with run_log(out):
        code = run_cohort(
            source,
            out=out,
            flags=settings,
            config=config,
            environ=os.environ,
            executor=executor,
            actors=actors,
            ray_address=ray_address,
            retry_failed=retry_failed,
            as_json=json_,
            quiet=quiet,
        )
    raise typer.Exit(code)


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
        0 done; 3 finished, but some slides failed or are indeterminate by error; 130 (Ctrl-C) or 143 (SIGTERM)
        interrupted, state saved.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    with signals_handled(), _watch(errors, quiet=quiet) as watcher:
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
        say_json(_as_json(result))
    elif not quiet:
        _tell(result, known=watcher.told if isinstance(watcher, Lines) else frozenset())
    if result.interrupted:
        errors.print("interrupted: every answer so far is saved; run the same command again to resume")
        return exit_code()
    return EXIT_PARTIAL if result.failures or any(state.unwritten for state in result.states) else 0


def _as_json(result: CohortResult) -> dict[str, Any]:
    return {
        "out": str(result.out),
        "summary": str(result.run.summary_path),
        "index": str(result.run.index_path),
        "interrupted": result.interrupted,
        "counts": result.counts,
        "slides": result.rows,
    }


def _tell(result: CohortResult, *, known: Collection[str]) -> None:
    """The run as a whole. Reasons are given for slides that have none on their line above (``known``)."""
    console = Console(highlight=False, soft_wrap=True)
    counts = ", ".join(f"{number} {name}" for name, number in result.counts.items())
    console.print(f"{len(result.samples)} slide{'' if len(result.samples) == 1 else 's'}: {counts}", markup=False)
    for state in result.states:
        if state in result.failures or state.unwritten:
            why = "" if state.sample_id in known else f"  {state.reason}"
            console.print(f"  {state.status}  {state.sample_id}{why}", markup=False)
    for path in (result.run.summary_path, result.run.index_path):
        console.print(f"  {path}", markup=False)
    console.print(f"  {DISCLAIMER}", style="dim", markup=False)


class Lines(Silent):
    """One line per slide, with its place in the whole; on a terminal also a bar for the slide and one for all."""

    def __init__(self, console: Console, bars: Progress | None) -> None:
        self._console = console
        self._bars = bars
        self._total = self._done = 0
        self._all: TaskID | None = None
        self.told: set[str] = set()
        """Samples whose reason stands on their line."""

    def planned(self, total: int, settled: Sequence[SlideState]) -> None:
        self._total, self._done = total, len(settled)
        if settled:
            failed = sum(state.status == "failed" for state in settled)
            lacking = sum(state.worth_repeating for state in settled) - failed
            parts = [f"{failed} of them failed"] if failed else []
            parts += [f"{lacking} of them indeterminate because of an error"] if lacking else []
            also = f", {' and '.join(parts)} (--retry-failed does those again)" if parts else ""
            self._console.print(f"{len(settled)} of {total} slides were finished earlier{also}", markup=False)
        if self._bars is not None:
            self._all = self._bars.add_task("all slides", total=total, completed=self._done, rate="")

    def begun(self, sample: Sample) -> StageProgress:
        bars = self._bars
        if bars is None:
            return no_progress
        task = bars.add_task(one_line(f"  {sample.file_name}")[:28], total=None, rate="")
        for other in bars.task_ids:  # the slide before is finished
            if other not in (task, self._all):
                bars.remove_task(other)

        def update(stage: str, done: int, total: int) -> None:
            if task in bars.task_ids:
                bars.update(task, completed=done, total=total, rate=STAGES.get(stage, stage))

        return update

    def ended(self, outcome: Outcome) -> None:
        self._done += 1
        state, row = outcome.state, outcome.state.row
        self.told.add(state.sample_id)
        parts = [f"[{self._done}/{self._total}]", MARKS[state.status], state.file]
        if state.status == "failed":
            parts.append(state.reason)
        else:
            parts += [str(row.get("status", "")).upper()] if state.status == "done" else []
            parts += [f"score {float(row['score']):.3f}"] if row.get("score") else []
            parts += [str(row["category"])] if row.get("category") else []
            parts += [state.reason] if state.status == "indeterminate" else []
            parts += [f"not written: {line}" for line in state.unwritten]
        if state.seconds is not None:
            parts.append(f"{state.seconds:.1f} s")
        self._console.print("  ".join(parts), markup=False)
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
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield Lines(console, bars)
