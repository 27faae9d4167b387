"""The command ``wsi-chat ask``: parse, ask, print. Answers on stdout; what to know of them on stderr."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tilers.remote import slide_path
from wsi_chat.asking.ask import as_region, ask_with
from wsi_chat.asking.result import AskResult
from wsi_chat.commands.console import say, say_json, say_lines
from wsi_chat.commands.options import ENGINE, Json, with_settings
from wsi_chat.engines.model import Model
from wsi_chat.settings import resolve

CONTEXT_SETTINGS = {"allow_interspersed_args": True}

SHOWN = 40
"""Boxes and fields listed on a terminal; --json has them all."""


@with_settings(*ENGINE, "specimen", "mpp", "reader", "tile_px", "tile_mpp", "views", "contrast", "zoom", "language")
def ask(
    picture: Annotated[Path, typer.Argument(parser=slide_path, help="An image or a slide.")],
    question: Annotated[str, typer.Argument(help="The question. Not needed for refer and describe.")] = "",
    task: Annotated[
        str | None,
        typer.Option(
            help="screen, mcq, ground, refer, describe, vqa, region or phrase. Default: guessed from the question; the "
            "guess is printed."
        ),
    ] = None,
    region: Annotated[
        tuple[float, float, float, float] | None, typer.Option(help="x0 y0 x1 y1 in level-0 pixels.")
    ] = None,
    choices: Annotated[str | None, typer.Option(help="Options of a multiple choice, separated by commas.")] = None,
    orders: Annotated[int, typer.Option(help="Average a multiple choice over N orders of its options.")] = 1,
    max_fields: Annotated[int, typer.Option(help="Show the model at most N fields of a large region.")] = 16,
    draw: Annotated[Path | None, typer.Option(help="Write the picture with boxes and labels to this PNG file.")] = None,
    json_: Json = False,
    *,
    config: Path | None,
    **settings: Any,
) -> None:
    """Ask one question about an image, a region or a slide: the answer, boxes in level-0 pixels, probabilities."""
    raise typer.Exit(
        run_ask(
            picture,
            question,
            flags=settings,
            config=config,
            task=task,
            region=region,
            choices=tuple(part.strip() for part in choices.split(",")) if choices else (),
            orders=orders,
            max_fields=max_fields,
            draw=draw,
            as_json=json_,
        )
    )


def run_ask(
    picture: Path, question: str, *, flags: dict[str, Any], config: Path | None, as_json: bool, **asked: Any
) -> int:
    """Ask and print. Returns the exit code: 0, or 1 where no usable answer came."""
    settings, _ = resolve(flags, config=config, environ=os.environ)
    model = Model(settings)
    try:
        result = ask_with(picture, question, model, **{**asked, "region": as_region(asked.get("region"))})
    finally:
        model.close()
    if as_json:
        say_json(result.model_dump_json(indent=2))
    else:
        tell(result)
    return 1 if result.status == "failed" else 0


def tell(result: AskResult) -> None:
    """The answer on stdout, one thing a line; the task taken, notes and the reminder on stderr."""
    say(f"task: {result.task} ({result.task_reason})", err=True)
    for note in result.notes:
        say(f"note: {note}", err=True)
    say_lines(result.answer or "no usable answer")
    if result.probabilities:
        width = max(map(len, result.probabilities))
        for option, p in result.probabilities.items():
            say(f"  {option:<{width}}  {p:.3f}")
    if len(result.fields) > 1 and result.task in ("screen", "mcq") and result.probabilities:
        option = result.target or result.choice or max(result.probabilities, key=result.probabilities.__getitem__)
        top = sorted(result.fields, key=lambda f: -(f.probabilities or {}).get(option, -1.0))
        over = f"of {result.highest}" if result.highest else f"the mean of {len(result.fields)} fields"
        say(f"  these are {over}; the highest fields for {option}:")
        for given in top[:3]:
            if given.probabilities:
                say(f"    {given.id}  {given.probabilities[option]:.3f}  at {corners(given.box)}")
    for found in result.boxes[:SHOWN]:
        say(f"  {found.label}  {corners(found.box)}")
    if len(result.boxes) > SHOWN:
        say(f"  ... and {len(result.boxes) - SHOWN} more (--json lists all)")
    if result.status == "truncated":
        say("note: an answer was cut off; there may be more", err=True)
    if result.drawing:
        say(result.drawing)
    say(result.disclaimer, err=True)


def corners(box: Any) -> str:
    """x0 y0 x1 y1 in level-0 pixels, as --region takes them."""
    return " ".join(f"{value:.0f}" for value in (box.x0, box.y0, box.x1, box.y1))
