"""The command line: parse, call, print. Data goes to stdout; logs, progress and errors go to stderr.

Heavy imports happen inside the commands, so that ``wsi-chat --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_chat._version import __version__
from wsi_chat.commands.ask import ask
from wsi_chat.commands.chat import chat
from wsi_chat.commands.cohort import cohort_like
from wsi_chat.commands.console import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, complain, set_up_logging
from wsi_chat.commands.dataset import dataset, synth
from wsi_chat.commands.evaluate import evaluate
from wsi_chat.commands.fit import fit
from wsi_chat.commands.infer import dashes, infer
from wsi_chat.commands.report import report
from wsi_chat.commands.train import train
from wsi_chat.commands.validate import validate
from wsi_chat.errors import WsiChatError

app = typer.Typer(
    name="wsi-chat",
    help="Whole-slide cytology analysis with multimodal language models. Research use only; never a diagnosis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"wsi-chat {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Whole-slide cytology analysis with multimodal language models. Research use only; never a diagnosis."""


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@app.command()
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
    json_: Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")] = False,
) -> None:
    """Analyze slides: a verdict, the cells that carry it, and a report for each."""
    from wsi_chat.commands.analyze import run_analyze

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


# in the order of the help
app.command(name="cohort")(cohort_like(analyze))
app.command("ask", context_settings={"allow_interspersed_args": True})(ask)
app.command("chat")(chat)
app.command()(report)
app.command()(fit)
app.command()(validate)
app.command(context_settings={"token_normalize_func": dashes})(infer)
app.command()(evaluate)
app.command("train")(train)
app.add_typer(dataset, name="dataset")
app.add_typer(synth, name="synth")


@app.command()
def info(
    slide: Annotated[Path, typer.Argument(help="A slide file.")],
    mpp: Annotated[float | None, typer.Option(help="um/px of level 0, over what the slide says.")] = None,
    reader: Annotated[str | None, typer.Option(help="Force one reader.")] = None,
    json_: Json = False,
) -> None:
    """Say what a slide file is: size, resolution and its source, levels, reader. Reads no pixel."""
    from wsi_chat.commands.describe import describe_slide

    payload, lines = describe_slide(slide, mpp=mpp, reader=reader)
    _print(payload, lines, as_json=json_)


@app.command()
def models(
    folders: Annotated[list[Path] | None, typer.Argument(help="Checkpoint folders to look at.")] = None,
    json_: Json = False,
) -> None:
    """List the embedded checkpoint and the given ones: architecture, size, dialect, and whether they load here."""
    from wsi_chat.commands.describe import describe_models

    payload, lines = describe_models(folders or [])
    _print(payload, lines, as_json=json_)


@app.command(name="serve-command")
def serve_command(
    model: Annotated[str | None, typer.Argument(help="Checkpoint folder or name. Default: the embedded one.")] = None,
    dialect: Annotated[str | None, typer.Option(help="How the model is asked. Default: read from it.")] = None,
    gpus: Annotated[str | None, typer.Option(help="How many GPUs (2) or which (0,3).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    json_: Json = False,
) -> None:
    """Print the vllm serve line that suits a checkpoint and its dialect."""
    from wsi_chat.commands import serve_command as command

    payload, notes = command.serve_command(model, dialect=dialect, gpus=gpus, host=host, port=port)
    if not json_:
        typer.echo(payload["command"])
        for note in notes:
            typer.echo(f"# {note}", err=True)
        return
    _print(payload, "", as_json=True)


@app.command()
def doctor(
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also check that this folder can be written.")] = None,
    json_: Json = False,
) -> None:
    """Check this machine: PASS, WARN or FAIL, with the fix on each line."""
    from wsi_chat.commands.doctor import examine, render

    checks = examine(out)
    _print([check._asdict() for check in checks], render(checks), as_json=json_)
    if any(check.state == "FAIL" for check in checks):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def specimens(
    name: Annotated[str | None, typer.Argument(help="Show this one in full, with its sources.")] = None,
    check: Annotated[str | None, typer.Option(help="Check a reporting system's YAML of your own.")] = None,
    json_: Json = False,
) -> None:
    """List the specimen types and the reporting system that each is read by; show one, or check a file."""
    from wsi_chat.commands.specimens import say_specimens

    said = say_specimens(name, check=check)
    _print(said.payload, said.lines, as_json=json_)
    if not said.ok:
        raise typer.Exit(EXIT_USAGE)


def _print(payload: Any, lines: Any, *, as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(payload, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(lines)


def main() -> None:
    """The console script: every WsiChatError becomes one clear message and its exit code."""
    set_up_logging()
    try:
        app()
    except WsiChatError as error:
        complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted: state saved", err=True)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
