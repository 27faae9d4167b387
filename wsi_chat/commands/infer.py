"""The command ``wsi-chat infer``: parse and call; heavy imports inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


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
    from wsi_chat.commands.infer_run import run_infer

    flags = {
        "model": model, "engine": engine, "dialect": dialect, "device": device, "dtype": dtype,
        "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    code = run_infer(
        dataset, folder=dataset_dir, out=save_name, flags=flags, max_new_tokens=max_new_tokens,
        max_samples=max_samples, overwrite=overwrite, environ=os.environ, as_json=json_, quiet=quiet,
    )  # fmt: skip
    raise typer.Exit(code)


def dashes(option: str) -> str:
    """Option names may be written with underscores, as scripts of others do: ``--dataset_dir``."""
    return option.replace("_", "-")
