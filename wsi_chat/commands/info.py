"""The command ``wsi-chat info``: what a slide file is, as JSON or as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tilers import open_slide
from tilers.remote import slide_path
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.commands.console import show
from wsi_chat.commands.options import Json, with_settings
from wsi_chat.control_characters import one_line
from wsi_chat.settings import resolve


@with_settings("mpp", "reader", config=False)
def info(
    slide: Annotated[Path, typer.Argument(parser=slide_path, help="A slide file, or the address of one.")],
    json_: Json = False,
    **settings: Any,
) -> None:
    """Show what a slide file is: size, resolution and its source, levels, reader, and who decodes its tiles and why."""
    chosen, _ = resolve(settings)
    payload, lines = describe_slide(slide, mpp=chosen.mpp, reader=chosen.reader)
    show(payload, lines, as_json=json_)


def describe_slide(path: Path, *, mpp: float | None, reader: str | None) -> tuple[dict[str, Any], RenderableType]:
    """The slide's record; only opening it decodes a few tiles. Raises SlideError as :func:`tilers.open_slide` does."""
    with open_slide(path, mpp=mpp, reader=reader) as slide:
        width, height = slide.size
        known = slide.mpp is not None
        payload: dict[str, Any] = {
            "id": slide_id(path),
            "file": path.name,
            "reader": slide.reader,
            "decoding": slide.decoding,
            "vendor": slide.vendor,
            "width": width,
            "height": height,
            "level_sizes": [list(size) for size in slide.level_sizes],
            "planes": slide.planes,
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "objective_power": slide.objective_power,
            "fingerprint": slide.fingerprint,
            "notes": list(slide.notes),
            "properties": dict(slide.properties),
        }
        size_mm = f", {width * slide.mpp / 1000:.2f} x {height * slide.mpp / 1000:.2f} mm" if slide.mpp else ""
        rows = [
            ("file", str(path)),
            ("id", payload["id"]),
            ("reader", f"{slide.reader}" + (f" ({slide.vendor})" if slide.vendor else "")),
            *([("decoding", slide.decoding)] if slide.decoding else []),
            ("size", f"{width} x {height} px{size_mm}"),
            ("levels", ", ".join(f"{w} x {h}" for w, h in slide.level_sizes)),
            *([("planes", f"{slide.planes} focal planes")] if slide.planes > 1 else []),
            (
                "resolution",
                f"{slide.mpp:.4g} µm/px ({slide.mpp_source})" if known else "unknown; give it with --mpp",
            ),
            ("objective", f"{slide.objective_power:g}x" if slide.objective_power else "not recorded"),
            ("fingerprint", slide.fingerprint),
            *[("note", note) for note in slide.notes],
        ]
    return payload, _pairs(rows)


def _pairs(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(one_line(value)))
    return table
