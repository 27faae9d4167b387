"""The command ``wsi-chat infer``: loads the model, asks, reports bad rows by line, and one exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from wsi_chat.commands.console import EXIT_INTERRUPTED, EXIT_PARTIAL, terminate_as_interrupt
from wsi_chat.commands.progress import answers_bar
from wsi_chat.engines.model import Model
from wsi_chat.errors import SettingError
from wsi_chat.inference.rows import find_data
from wsi_chat.inference.run import Inferred
from wsi_chat.inference.run import infer as infer_all
from wsi_chat.settings import resolve

SHOWN = 20
"""Bad rows named on stderr; all of them are in the file."""


def dashes(option: str) -> str:
    """Option names may be written with underscores, as scripts of others do: ``--dataset_dir``."""
    return option.replace("_", "-")


CONTEXT_SETTINGS = {"token_normalize_func": dashes}


def infer(
    dataset: Annotated[str, typer.Option(help="Name in dataset_info.json, or a .jsonl or .json file.")],
    save_name: Annotated[Path, typer.Option(help="Where the answers go, one JSON line each.")] = Path(
        "generated_predictions.jsonl"
    ),
    dataset_dir: Annotated[Path | None, typer.Option(help="Folder of dataset_info.json. Default: data.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "--model-name-or-path", help="Checkpoint folder. Default: the embedded checkpoint."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Who answers; see wsi-chat analyze.")] = None,
    dialect: Annotated[str | None, typer.Option(help="How the model is asked. Default: read from it.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Queries per forward pass.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Room for an answer; the dialect may need less.")] = 1024,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Ask only so many rows, the first ones.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that draws; decoding is greedy.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite/--resume", help="Forget earlier answers, or go on from them.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only errors.")] = False,
) -> None:
    """Ask a model every question of a ShareGPT data set; write prompt, predict, label. A rerun goes on."""
    flags = {
        "model": model, "engine": engine, "dialect": dialect, "device": device, "dtype": dtype,
        "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    code = run_infer(
        dataset, folder=dataset_dir, out=save_name, flags=flags, max_new_tokens=max_new_tokens,
        max_samples=max_samples, overwrite=overwrite, environ=os.environ, as_json=json_, quiet=quiet,
    )  # fmt: skip
    raise typer.Exit(code)


def run_infer(
    dataset: str,
    *,
    folder: Path | None,
    out: Path,
    flags: Mapping[str, Any],
    max_new_tokens: int,
    max_samples: int | None,
    overwrite: bool,
    environ: Mapping[str, str],
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Run batch inference. Returns 0 done, 3 some rows failed, 130 interrupted with the answers kept."""
    if out.suffix not in (".jsonl", ".json"):
        raise SettingError(f"--save-name {out} is no .jsonl file.", hint="Give a name that ends in .jsonl.")
    data = find_data(dataset, folder)
    if out.resolve() == data.path.resolve():
        raise SettingError(f"--save-name {out} is the data set itself.", hint="Choose another name.")
    settings, _ = resolve(flags, environ=environ)
    model = Model(settings)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with terminate_as_interrupt(), answers_bar(errors, quiet=quiet or not errors.is_terminal) as progress:
            done = infer_all(
                data,
                out,
                dialect=model.dialect,
                engine=model.engine,
                max_new_tokens=max_new_tokens,
                max_samples=max_samples,
                seed=settings.seed,
                overwrite=overwrite,
                progress=progress,
            )
    except KeyboardInterrupt:
        errors.print(f"interrupted: every answer so far is in {out}; the same command goes on from there")
        return EXIT_INTERRUPTED
    finally:
        model.close()
    _tell(done, data.path, errors, as_json=as_json, quiet=quiet)
    return EXIT_PARTIAL if done.failed else 0


def _tell(done: Inferred, source: Path, errors: Console, *, as_json: bool, quiet: bool) -> None:
    for line, reason in done.failed[:SHOWN]:
        errors.print(f"{source}:{line}: {reason}", markup=False)
    if len(done.failed) > SHOWN:
        errors.print(f"... and {len(done.failed) - SHOWN} more; see status and error in {done.path}", markup=False)
    if as_json:
        payload = {
            "file": str(done.path), "rows": done.rows, "answers": done.answers, "new": done.new,
            "reused": done.reused, "truncated": done.truncated,
            "failed": [{"line": line, "reason": reason} for line, reason in done.failed],
        }  # fmt: skip
        print(json.dumps(payload, indent=2, ensure_ascii=False))
        return
    if not quiet:
        known = f", {done.reused} of them known already" if done.reused else ""
        print(f"{done.path}: {done.answers} answers to {done.rows} rows{known}")
        print(f"{done.truncated} cut off, {len(done.failed)} failed")
