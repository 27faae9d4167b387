"""The command ``wsi-chat evaluate``: its options, the call, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi_chat.commands.console import say, say_json
from wsi_chat.commands.terminal import Console
from wsi_chat.errors import OutputError
from wsi_chat.evaluation.evaluate import evaluate as score
from wsi_chat.evaluation.figure import draw
from wsi_chat.evaluation.summary import render


def evaluate(
    file: Annotated[
        Path, typer.Argument(help="File written by wsi-chat infer, or any JSONL or JSON of prompt, predict and label.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for evaluation.json and .png. Default: FILE-evaluation.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="Box format of the predictions: a dialect. Default: inferred from them.")
    ] = None,
    image_size: Annotated[
        tuple[int, int] | None, typer.Option(help="Width and height of the images, if the rows do not give them.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, help="Number of bootstrap resamples of images; 0 computes no intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the bootstrap.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Score predictions: choices, boxes, classes, phrases and text, with baselines and intervals."""
    result = score(file, dialect=dialect, image_size=image_size, resamples=resamples, seed=seed)
    folder = out or file.with_name(f"{file.stem}-evaluation")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}", hint="Choose another -o.") from error
    draw(result, folder / "evaluation.png")
    if json_:
        say_json(result.model_dump_json(indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200
    console.print(render(result))
    for name in ("evaluation.json", "evaluation.png"):
        say(str(folder / name))
