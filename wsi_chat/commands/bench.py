"""The command ``wsi-chat bench``: how fast this machine is with a slide and a model, and which setting to change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from wsi_chat.bench.measure import TILES, measure
from wsi_chat.bench.result import Bench
from wsi_chat.commands.console import show
from wsi_chat.commands.options import ENGINE, Json, Quiet, with_settings
from wsi_chat.commands.progress import bar
from wsi_chat.control_characters import one_line
from wsi_chat.engines.model import Model
from wsi_chat.progress import no_progress
from wsi_chat.settings import resolve


@with_settings(
    *ENGINE, "specimen", "mpp", "reader", "tile_px", "tile_mpp", "overlap", "mask", "top_k", "workers", "batch_size",
    "gpus", "concurrency", "format", "gallery",
)  # fmt: skip
def bench(
    slide: Annotated[
        Path | None, typer.Argument(help="A slide file. Default: a cervical slide rendered for it.", show_default=False)
    ] = None,
    tiles: Annotated[int, typer.Option(min=1, help="Tiles to screen, at most half of the slide's.")] = TILES,
    json_: Json = False,
    quiet: Quiet = False,
    *,
    config: Path | None,
    **settings: Any,
) -> None:
    """Measure reading, screening, the closer look and the documents on this machine, each beside its limit.

    Nothing is kept: the run goes to a temporary folder. Seconds of the whole slide are those of the measured tiles,
    extrapolated.
    """
    effective, _ = resolve(settings, config=config, environ=os.environ)
    model = Model(effective)
    try:
        with bar() as progress:
            found = measure(slide, effective, model, tiles=tiles, progress=no_progress if quiet else progress)
    finally:
        model.close()
    show(found.as_json(), render(found), as_json=json_)


def _figure(rate: float) -> str:
    """A rate with three digits, or as a whole number."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def render(found: Bench) -> Group:
    """The measurement as a table for the terminal, and what to change below it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for name in ("seconds", "rate", "limit", "of it", "whole slide", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in found.stages:
        several, part = stage.unit != "slide", found.part(stage)
        table.add_row(
            stage.name,
            f"{stage.seconds:.2f}",
            f"{_figure(stage.rate)} {stage.unit}/s" if several and stage.items else "",
            "" if stage.limit is None else _figure(stage.limit),
            "" if stage.share is None or not stage.items else f"{stage.share:.0%}",
            {"read": "beside it", "load": ""}.get(
                stage.name, f"{stage.seconds if stage.whole is None else stage.whole:.1f} s"
            ),
            "" if part is None else f"{part:.0%}",
        )
    machine = found.machine
    where = f"{machine['cores']} cores, {machine['gpu'] or 'no GPU'}"
    head = f"{found.slide}: {found.tiles} of {found.planned} tiles, {found.model} on {found.engine}; {where}"
    end = f"the whole slide, model loaded: about {found.whole_slide:.0f} s"
    changed = [
        f"{stage.name} depends on {stage.settings}" + (f"; its limit: {stage.against}" if stage.against else "")
        for stage in found.stages
    ]
    lines = [f"- {line}" for line in found.advice] or ["- Nothing stands out."]
    return Group(
        Text(one_line(head)), table, Text(end), *map(Text, changed), Text("what to change:"), *map(Text, lines)
    )
