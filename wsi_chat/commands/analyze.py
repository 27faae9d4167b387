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
from wsi_chat.commands.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PARTIAL, complain, terminate_as_interrupt
from wsi_chat.commands.progress import slide_bar
from wsi_chat.engines.model import Model
from wsi_chat.errors import EngineDied, WsiChatError
from wsi_chat.settings import resolve


def analyze(
    slides: Annotated[list[Path], typer.Argument(help="Slide files: SVS, TIFF, DICOM, OME-Zarr, PNG, JPEG ...")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder.")] = Path("wsi-chat-out"),
    model: Annotated[str | None, typer.Option(help="Checkpoint folder. Default: the embedded checkpoint.")] = None,
    adapter: Annotated[str | None, typer.Option(help="LoRA adapter folder, trained on the model.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, transformers, vllm or openai.")] = None,
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server: http://127.0.0.1:8000/v1.")] = None,
    gpus: Annotated[str | None, typer.Option(help="How many GPUs (2) or which (0,3): one engine each.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Questions under way at once (openai, vllm).")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one request to a server may take.")] = None,
    dialect: Annotated[str | None, typer.Option(help="How the model is asked. Default: read from it.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Queries per forward pass.")] = None,
    specimen: Annotated[
        str | None, typer.Option(help="Specimen type, e.g. cervix or blood-smear, or a YAML of your own.")
    ] = None,
    preparation: Annotated[
        str | None, typer.Option(help="liquid-based or conventional, for the adequacy rule.")
    ] = None,
    reduced_minimum: Annotated[
        bool | None, typer.Option("--reduced-minimum", help="Accept the adequacy rule's lower bound (after therapy).")
    ] = None,
    age: Annotated[int | None, typer.Option(help="Of the patient in years, where known.")] = None,
    adequacy_tiles: Annotated[
        int | None, typer.Option(help="Random tiles to count normal cells in. Default: 16 where that tells anything.")
    ] = None,
    mpp: Annotated[float | None, typer.Option(help="um/px of level 0, over what the slide says.")] = None,
    reader: Annotated[str | None, typer.Option(help="Force one reader, e.g. openslide.")] = None,
    tile_px: Annotated[int | None, typer.Option(help="Tile side in pixels, as the model sees it.")] = None,
    tile_mpp: Annotated[float | None, typer.Option(help="um/px that the model sees.")] = None,
    overlap: Annotated[float | None, typer.Option(help="Share of a tile that its neighbour repeats.")] = None,
    mask: Annotated[bool | None, typer.Option("--mask/--no-mask", help="Tile only where cells are.")] = None,
    workers: Annotated[int | None, typer.Option(help="Reading threads.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Tiles to ground and describe.")] = None,
    exhaustive: Annotated[bool | None, typer.Option("--exhaustive", help="Ground and describe every tile.")] = None,
    limit: Annotated[int | None, typer.Option(help="Screen at most so many tiles, spread evenly.")] = None,
    views: Annotated[str | None, typer.Option(help="none, quadrants or context: more views of each tile.")] = None,
    contrast: Annotated[str | None, typer.Option(help="none, blank or blur: calibrate each tile's score.")] = None,
    zoom: Annotated[float | None, typer.Option(help="Look again at what was located, so many times closer.")] = None,
    features: Annotated[
        bool | None, typer.Option("--features/--no-features", help="Keep image features of every tile (wsi-chat fit).")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="Slide score: topk_logit, mean, max, noisy_or, fraction_above, findings.")
    ] = None,
    pool_k: Annotated[int | None, typer.Option(help="k of the top-k mean.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Score at and above which a slide is abnormal.")] = None,
    coverage_floor: Annotated[float | None, typer.Option(help="Share of tiles needed for a verdict.")] = None,
    box_precision: Annotated[
        str | None,
        typer.Option(help="Share of the model's boxes that are right: 0.7, hsil=0.7,..., or evaluate's JSON."),
    ] = None,
    aggregator: Annotated[
        str | None, typer.Option(help="Folder of wsi-chat fit; auto: the checkpoint's own; none.")
    ] = None,
    miss_rate: Annotated[
        float | None, typer.Option(help="With --aggregator: abnormal slides called normal, at most, e.g. 0.05.")
    ] = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="The same of normal slides; slides between are indeterminate.")
    ] = None,
    force: Annotated[
        bool | None, typer.Option("--force", help="Apply an aggregator that was fitted under other conditions.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that draws.")] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite/--resume", help="Forget earlier answers, or go on from them.")
    ] = None,
    pdf: Annotated[bool | None, typer.Option("--pdf/--no-pdf", help="Write report.pdf.")] = None,
    gallery: Annotated[int | None, typer.Option(help="Cells in the gallery.")] = None,
    font_path: Annotated[str | None, typer.Option(help="Folder with more fonts for the PDF, or a font file.")] = None,
    html: Annotated[bool | None, typer.Option("--html/--no-html", help="Write report.html.")] = None,
    dicom: Annotated[
        bool | None, typer.Option("--dicom/--no-dicom", help="Write DICOM objects where the slide is DICOM.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Of the report: en or zh.")] = None,
    narrative: Annotated[str | None, typer.Option(help="template, or model: written by it, then checked.")] = None,
    ancillary: Annotated[
        list[str] | None, typer.Option(help="Result of another test, as you supply it, or a YAML file; repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags and WSI_CHAT_* win.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")] = False,
) -> None:
    """Analyze slides: a verdict, the cells that carry it, and a report for each."""
    chosen = {
        "model": model, "engine": engine, "base_url": base_url, "gpus": gpus, "concurrency": concurrency,
        "timeout": timeout, "dialect": dialect, "device": device, "dtype": dtype,
        "batch_size": batch_size, "preparation": preparation, "reduced_minimum": reduced_minimum, "age": age,
        "adequacy_tiles": adequacy_tiles, "specimen": specimen, "mpp": mpp, "reader": reader, "tile_px": tile_px,
        "tile_mpp": tile_mpp, "overlap": overlap, "mask": mask, "workers": workers, "top_k": top_k,
        "exhaustive": exhaustive, "limit": limit, "pool": pool, "pool_k": pool_k, "threshold": threshold,
        "coverage_floor": coverage_floor, "box_precision": box_precision, "aggregator": aggregator,
        "miss_rate": miss_rate,
        "false_alarm_rate": false_alarm_rate, "force": force, "seed": seed, "overwrite": overwrite, "pdf": pdf,
        "gallery": gallery, "font_path": font_path, "html": html, "dicom": dicom, "language": language,
        "narrative": narrative, "ancillary": tuple(ancillary) if ancillary else None, "adapter": adapter,
        "views": views, "contrast": contrast, "zoom": zoom, "features": features,
    }  # fmt: skip
    code = run_analyze(slides, out=out, flags=chosen, config=config, environ=os.environ, as_json=json_, quiet=quiet)
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
        with terminate_as_interrupt():
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
        errors.print("interrupted: every answer so far is saved; the same command goes on from there")
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
