"""The command ``wsi-chat analyze``: the slides one after another, progress while it lasts, and one exit code.

One bad slide never stops the others; a dead engine does, with everything answered so far kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Self

import typer
from rich.text import Text

from tilers.remote import slide_path
from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.run_log import run_log
from wsi_chat.analysis.sample import Sample
from wsi_chat.analysis.summary import indeterminate_by_error, reason_of, row_of
from wsi_chat.cohort.attempt import Outcome
from wsi_chat.cohort.book import Silent
from wsi_chat.cohort.run import analyze_slides
from wsi_chat.commands.console import EXIT_FAILED, EXIT_PARTIAL, complain, say_json
from wsi_chat.commands.options import Json, Quiet, with_settings
from wsi_chat.commands.progress import SlideBar, slide_bar
from wsi_chat.commands.signals import exit_code, signals_handled
from wsi_chat.commands.terminal import Console
from wsi_chat.control_characters import one_line
from wsi_chat.errors import EngineDied, WsiChatError
from wsi_chat.progress import Progress
from wsi_chat.settings import declared


@with_settings(*declared())
def analyze(
    slides: Annotated[
        list[Path],
        typer.Argument(
            parser=slide_path,
            help="Slide files (SVS, TIFF, DICOM, OME-Zarr and more), photographs (PNG, JPEG, TIFF), or folders of "
            "photographs, each of which is one specimen. TIFF-based slides and OME-Zarr also by address (https://, "
            "s3://).",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder.")] = Path("wsi-chat-out"),
    json_: Json = False,
    quiet: Quiet = False,
    *,
    config: Path | None,
    **settings: Any,
) -> None:
    """Analyze slides: a verdict, the cells that carry it, and a report for each."""
    with run_log(out):
        code = run_analyze(
            slides, out=out, flags=settings, config=config, environ=os.environ, as_json=json_, quiet=quiet
        )
    raise typer.Exit(code)


def run_analyze(
    slides: Sequence[Path],
    *,
    out: Path,
    flags: Mapping[str, Any],
    config: Path | None,
    environ: Mapping[str, str],
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Analyze the slides into ``out`` and say what came of it.

    Returns:
        0 done; 1 or 2 the one slide failed; 3 finished, but some slides failed or are indeterminate by error, or
        the engine died; 130 (Ctrl-C) or 143 (SIGTERM) interrupted, state saved.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    bars = not quiet and console.is_terminal
    watcher = _Teller(RunFolder(out), console, bars=bars, verdicts=not (quiet or as_json))
    given = {name: value for name, value in flags.items() if value is not None}
    with signals_handled(), watcher:
        run = analyze_slides(slides, out=out, config=config, environ=environ, watcher=watcher, **given)
    if run.stopped_by is not None:
        watcher.fail(run.stopped_by)
    if run.interrupted:
        console.print("interrupted: every answer so far is saved; run the same command again to resume")
    if as_json:
        finished = {result.report.slide.id: _as_json(result) for result in watcher.results}
        say_json([finished.get(str(row["slide_id"]), row) for row in map(_present, run.rows)])
    if run.interrupted:
        return exit_code()
    if isinstance(run.stopped_by, EngineDied):
        return run.stopped_by.exit_code
    return _exit_code(watcher.results, watcher.errors)


class _Teller(Silent):
    """Shows how far each slide is, and says what came of it: a verdict on stdout, an error on stderr."""

    def __init__(self, run: RunFolder, console: Console, *, bars: bool, verdicts: bool) -> None:
        self.results: list[SlideResult] = []
        self.errors: list[Exception] = []
        self._run = run
        self._console = console
        self._bars = bars
        self._verdicts = verdicts
        self._slide = ExitStack()
        self._shown: tuple[str, SlideBar] | None = None

    def begun(self, sample: Sample) -> Progress:
        self._slide.close()
        bar = self._slide.enter_context(slide_bar(self._console, sample.path, quiet=not self._bars))
        self._shown = (sample.slide_id, bar)
        return bar

    def ended(self, outcome: Outcome) -> None:
        if self._shown is not None and self._shown[0] != outcome.state.slide_id:
            with self._shown[1].aside():  # the next slide is under way
                self._tell(outcome)
            return
        self._slide.close()
        self._shown = None
        self._tell(outcome)

    def _tell(self, outcome: Outcome) -> None:
        if outcome.result is not None:
            self.results.append(outcome.result)
            if self._verdicts:
                _tell(outcome.result, earlier=outcome.earlier)
        elif outcome.error is not None:
            self.fail(outcome.error, outcome)

    def fail(self, error: Exception, outcome: Outcome | None = None) -> None:
        """One slide's failure, or that of the whole run, on stderr."""
        if outcome is None:
            self._slide.close()
        self.errors.append(error)
        if isinstance(error, WsiChatError):
            complain(error)
        elif outcome is not None:
            trace = self._run.slide(outcome.state.slide_id).traceback_path
            complain(
                WsiChatError(
                    f"{outcome.state.file} failed: {reason_of(error)}.",
                    hint=f"Please report it, with the traceback in {trace}. What was answered is kept.",
                )
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._slide.close()


def _exit_code(results: Sequence[SlideResult], failures: Sequence[Exception]) -> int:
    if failures and not results:
        return getattr(failures[0], "exit_code", EXIT_FAILED) if len(failures) == 1 else EXIT_FAILED
    by_error = any(indeterminate_by_error(result.report) for result in results)
    without = any(result.unwritten for result in results)
    return EXIT_PARTIAL if failures or by_error or without else 0


def _present(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a slide that has no verdict: which it is, how it stands, and why."""
    return {name: row[name] for name in ("slide_id", "file", "image_path", "state", "reason", "error") if row[name]}


def _as_json(result: SlideResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "report": str(result.files.report_path),
        **row_of(result.report),
        "score": result.score,
    }


def _tell(result: SlideResult, *, earlier: bool = False) -> None:
    """The verdict and the paths of the report files, on stdout."""
    from reports.wording import included

    report = result.report
    verdict, funnel = report.verdict, report.funnel
    console = Console(highlight=False, soft_wrap=True)
    head = Text(one_line(report.slide.file_name), style="bold")
    why = f" ({verdict.grounds[0].headline})" if verdict.grounds else ""
    rest = f"  {verdict.status.upper()}{why}"
    if verdict.score is not None:
        rest += f"  score {verdict.score:.3f} ({verdict.score_kind})"
    console.hang("", Text().append_text(head).append(one_line(rest)))
    if verdict.category_name:
        share, kind = verdict.category_confidence, verdict.category_confidence_kind
        confidence = "" if share is None else f"  (confidence {share:.2f}: {kind})"
        console.hang("  category  ", f"{verdict.category_name}{confidence}")
    console.hang("  reason    ", verdict.reason)
    scope = report.scope
    if scope is not None and scope.outside and not any(ground.rule == "scope" for ground in verdict.grounds):
        console.hang("  scope     ", f"The slide is outside what the model was made for: {scope.outside}.")
    if verdict.fitted is not None and verdict.fitted.guarantee:
        console.hang("  threshold ", f"{verdict.threshold:.3g}: {verdict.fitted.guarantee}")
    kinds = {label: ", ".join(row.name for row in rows) for label, rows in included(verdict).items()}
    among = {label: f" ({names} included)" for label, names in kinds.items()}
    findings = ", ".join(f"{row.name} {row.seen}{among.get(row.label, '')}" for row in verdict.counts if row.seen)
    console.hang("  findings  ", findings or "none")
    console.hang(
        "  tiles     ",
        f"{funnel.grid} in the grid, {funnel.foreground} foreground, {funnel.screened} screened, "
        f"{funnel.detailed} detailed, {funnel.unreadable + funnel.screen_failed} failed"
        + (f", {funnel.detail_failed} detailed only in part" if funnel.detail_failed else ""),
    )
    model = report.provenance.model
    console.hang("  model     ", f"{model.name}, engine {model.engine} ({model.engine_reason})")
    files = result.files
    for path in (files.pdf_path, files.html_path, files.report_path, files.findings_path, files.overview_path,
                 files.heatmap_path):  # fmt: skip
        if path.exists():
            console.print(f"  {path}", markup=False)
    for line in result.unwritten:
        console.hang("  not written: ", line)
    for line in result.notes:
        console.hang("  note: ", line)
    if earlier:
        console.hang("  ", "finished earlier, and nothing has changed since; --overwrite asks everything again")
    console.print(f"  {report.disclaimer}", style="dim", markup=False)
