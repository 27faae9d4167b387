"""How a slide and a plan show themselves in a notebook: a small table, and a small picture where one is at hand."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from PIL import Image

from wsi_chat.errors import SlideError

if TYPE_CHECKING:
    from tilers.plan import TilePlan
    from tilers.slide import Slide

PICTURE_PX = 240
AT_HAND = 4096
"""A level whose longer side has at most so many pixels is read for the picture; a finer one would take its time."""
GRID_PX = 180


def slide_card(slide: Slide) -> str:
    """Size, scale, levels and reader of an open slide, with its overview where the file has a small level."""
    width, height = slide.size
    mpp = "unknown" if slide.mpp is None else f"{slide.mpp:.4g} µm/px ({slide.mpp_source})"
    pairs = [
        ("Size", f"{width:,} × {height:,} px"),
        ("Resolution", mpp),
        ("Levels", ", ".join(f"{down:g}" for down in slide.level_downsamples)),
        ("Reader", slide.reader),
        *(("Note", str(note)) for note in slide.notes),
    ]
    if slide.mpp is not None:
        pairs.insert(1, ("On the glass", f"{width * slide.mpp / 1000:.2f} × {height * slide.mpp / 1000:.2f} mm"))
    picture = ""
    if max(slide.level_sizes[-1]) <= AT_HAND:
        try:
            picture = _picture(Image.fromarray(slide.overview(PICTURE_PX)), f"Overview of {slide.name}")
        except SlideError as error:
            pairs.append(("Note", str(error)))
    return _card(slide.name, pairs, picture)


def plan_card(plan: TilePlan) -> str:
    """How many tiles a plan has of how many, at which scale, and where they lie on the grid."""
    rows, columns = plan.grid_shape
    pairs = [
        ("Tiles", f"{plan.selected:,} selected, {plan.foreground:,} with foreground, of {plan.grid:,}"),
        ("Each", f"{plan.tile_px} px at {plan.mpp:.3g} µm/px{', enlarged' if plan.upsampled else ''}"),
        ("Overlap", f"{plan.overlap:.0%}"),
        ("SHA-256", plan.sha256[:16]),
        *(("Note", str(note)) for note in plan.notes),
    ]
    picture = ""
    if plan.grid:
        chosen = Image.new("L", (columns, rows), 235)
        for tile in plan.tiles:
            row, column = plan.position(tile)
            chosen.putpixel((column, row), 90)
        side = max(1, GRID_PX // max(rows, columns))
        shown = chosen.resize((columns * side, rows * side), Image.Resampling.NEAREST)
        shown.thumbnail((GRID_PX, GRID_PX))
        picture = _picture(shown, f"{plan.selected} of {plan.grid} grid cells are selected")
    return _card("Tile plan", pairs, picture)


def _picture(image: Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"<img alt='{html.escape(alt, quote=True)}' src='data:image/png;base64,{data}'>"


def _card(title: str, pairs: Iterable[tuple[str, str]], picture: str) -> str:
    rows = "".join(
        f"<tr><td style='text-align:left;color:#5c6a70;padding:0 12px 0 0'>{html.escape(name)}</td>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in pairs
    )
    return (
        "<div style='display:flex;gap:16px;font:13px/1.45 system-ui,sans-serif'>"
        f"{picture}<div><b>{html.escape(title)}</b><table style='border-collapse:collapse'>{rows}</table></div></div>"
    )
