"""The command ``wsi-chat analyze``: the slides one after another, progress while it lasts, and one exit code.

One bad slide never stops the others; a dead engine does, with everything answered so far kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from wsi_chat.analysis.pipeline import analyze_slide
from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.run_folder import (
    indeterminate_by_error,
    open_folder,
    reason_of,
    row_of,
    row_of_failure,
    row_of_waiting,
    slide_id,
    write_run,
    write_summary,
    write_traceback,
)
from wsi_chat.analysis.run_log import run_log
from wsi_chat.commands.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PARTIAL, complain
from wsi_chat.commands.options import Json, Quiet, with_settings
from wsi_chat.commands.progress import slide_bar
from wsi_chat.commands.signals import signals_handled
from wsi_chat.engines.model import Model
from wsi_chat.errors import EngineDied, WsiChatError
from wsi_chat.settings import declared, resolve


@with_settings(*declared())
def analyze(
    slides: Annotated[list[Path], typer.Argument(help="Slide files: SVS, TIFF, DICOM, OME-Zarr, PNG, JPEG and more.")],
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
        the engine died; 130 interrupted, state saved.
    """
    settings, origin = resolve(flags, config=config, environ=environ)
    open_folder(out)
    model = Model(settings)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    results: list[SlideResult] = []
    failures: list[tuple[Path, Exception]] = []
    code: int | None = None
    write_summary(out, [row_of_waiting(slide) for slide in slides])
    try:
        with signals_handled():
            for slide in slides:
                try:
                    with slide_bar(errors, slide, quiet=quiet or not errors.is_terminal) as progress:
                        result = analyze_slide(slide, out, settings, model, progress=progress)
                except EngineDied as error:
                    failures.append((slide, error))
                    complain(error)
                    code = error.exit_code
                    break
                except WsiChatError as error:
                    failures.append((slide, error))
                    complain(error)
                    continue
                except Exception as error:
                    failures.append((slide, error))
                    complain(_unexpected(slide, out, error))
                    continue
                results.append(result)
                if not (quiet or as_json):
                    _tell(result)
    except KeyboardInterrupt:
        errors.print("interrupted: every answer so far is saved; run the same command again to resume")
        code = EXIT_INTERRUPTED
    finally:
        model.close()
        rows = [row_of(result.report) for result in results] + [row_of_failure(*failure) for failure in failures]
        if rows:
            write_summary(out, rows)
        known = {slide_id(slide): str(slide.resolve()) for slide in slides}
        write_run(out, config=settings.model_dump(), origin=origin, slides=known)
    if as_json:
        print(json.dumps([_as_json(result) for result in results], indent=2, ensure_ascii=False))
    return code if code is not None else _exit_code(results, [error for _, error in failures])


def _unexpected(slide: Path, out: Path, error: Exception) -> WsiChatError:
    """What nobody foresaw, as an error like the others: one slide's failure, its traceback kept beside it."""
    trace = write_traceback(out / slide_id(slide), error)
    return WsiChatError(
        f"{slide.name} failed: {reason_of(error)}.",
        hint=f"What was answered is kept. The traceback is in {trace}: please report it.",
    )


def _exit_code(results: Sequence[SlideResult], failures: Sequence[Exception]) -> int:
    if failures and not results:
        return getattr(failures[0], "exit_code", EXIT_FAILED) if len(failures) == 1 else EXIT_FAILED
    by_error = any(indeterminate_by_error(result.report) for result in results)
    without = any(result.unwritten for result in results)
    return EXIT_PARTIAL if failures or by_error or without else 0


def _as_json(result: SlideResult) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "report": str(result.folder / "report.json"),
        **row_of(result.report),
        "score": result.score,
    }


def _tell(result: SlideResult) -> None:
    """The verdict and the paths of the report files, on stdout."""
    report = result.report
    verdict, funnel = report.verdict, report.funnel
    console = Console(highlight=False, soft_wrap=True)
    console.print(report.slide.file_name, style="bold", markup=False, end="")
    console.print(f"  {verdict.status.upper()}", end="")
    if verdict.score is not None:
        console.print(f"  score {verdict.score:.3f} ({verdict.score_kind})", end="", markup=False)
    console.print()
    if verdict.category_name:
        sure = verdict.category_confidence
        told = "" if sure is None else f"  (confidence {sure:.2f}: {verdict.category_confidence_kind})"
        console.print(f"  category  {verdict.category_name}{told}", markup=False)
    console.print(f"  reason    {verdict.reason}", markup=False)
    if verdict.fitted is not None and verdict.fitted.guarantee:
        console.print(f"  threshold {verdict.threshold:.3g}: {verdict.fitted.guarantee}", markup=False)
    seen = ", ".join(f"{count.name} {count.seen}" for count in verdict.counts if count.seen)
    console.print(f"  findings  {seen or 'none'}", markup=False)
    console.print(
        f"  tiles     {funnel.grid} in the grid, {funnel.foreground} foreground, {funnel.screened} screened, "
        f"{funnel.detailed} detailed, {funnel.unreadable + funnel.screen_failed} failed"
        + (f", {funnel.detail_failed} detailed only in part" if funnel.detail_failed else ""),
        markup=False,
    )
    model = report.provenance.model
    console.print(f"  model     {model.name}, engine {model.engine} ({model.engine_reason})", markup=False)
    for name in ("report.pdf", "report.html", "report.json", "findings.geojson", "overview.png", "heatmap.png"):
        if (result.folder / name).exists():
            console.print(f"  {result.folder / name}", markup=False)
    for line in result.unwritten:
        console.print(f"  not written: {line}", markup=False)
    console.print(f"  {report.disclaimer}", style="dim", markup=False)
