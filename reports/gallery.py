"""gallery/*.png: the cells that carry the verdict, all at one stated field of view, so that sizes compare.

Each picture shows a cell with its surroundings, ticks outside the corners of its box, and a 10 µm scale bar.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsi_chat.atomic import HINT, replacing
from wsi_chat.errors import OutputError
from wsi_chat.schema import Box, Finding, Report, TileVerdict

FOLDER = "gallery"
FIELD_UM = 60.0  # a squamous cell measures 40-60 µm across, a nucleus 7-20
FIELD_STEPS = (1.0, 2.0, 4.0, 8.0, 16.0)
CLOSER_UM = (15.0, 30.0)  # where every cell shown is small, as on a blood smear, the common field comes closer
CONTEXT = 1.5  # the field is at least this many times the cell's longer side
SCALE_UM = 10.0
INK = (17, 26, 30)
PAPER = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One picture of the gallery. ``id`` is a finding's id, or a tile's where tiles alone carry the verdict.

    ``field`` is the level-0 rectangle shown, ``field_um`` its side in µm, ``field_name`` the photograph that
    the cell lies in, where there are several, ``position_mm`` its centre from the top left corner of the scan (or of
    the photograph). ``label`` is its class's code, empty for a tile,
    ``also_called`` the classes that other tiles gave it.
    ``score`` is the screening probability of its tile, ``confidence`` what the model gave the cell itself, if anything.
    ``drawn`` is False where the pixels could not be read (then no file exists).
    """

    id: str
    file: str
    name: str
    abnormal: bool
    score: float | None
    tile_id: str
    box: Box
    field: Box
    field_um: float
    position_mm: tuple[float, float]
    also_called: tuple[str, ...] = ()
    drawn: bool = False
    label: str = ""
    confidence: float | None = None
    field_name: str = ""


def gallery_items(report: Report, *, limit: int = 48, tile_verdicts: Sequence[TileVerdict] = ()) -> list[GalleryItem]:
    """Which cells are shown, and what of the slide; no pixels are read.

    The findings that carry the verdict come first, in the verdict's order; then other abnormal findings by
    score; where cells are only counted, the classes take turns. Without any finding, the carrying tiles are shown.
    """
    verdict = report.verdict
    by_id = {finding.id: finding for finding in verdict.findings}
    chosen = {name: by_id[name] for name in verdict.carrying if name in by_id}
    rest = [finding for finding in verdict.findings if finding.id not in chosen]
    ranked = [f for f in sorted(rest, key=_rank) if f.abnormal] + list(_in_turn([f for f in rest if not f.abnormal]))
    shown = [*chosen.values(), *ranked][:limit]
    sides = sorted(max(f.box.width, f.box.height) * report.slide.mpp * CONTEXT for f in shown)
    most = sides[int(0.9 * (len(sides) - 1))] if sides else 0.0  # a few larger ones take a wider field of their own
    base = next((um for um in CLOSER_UM if um >= most), FIELD_UM)
    items = [_of_finding(report, finding, base) for finding in shown]
    if not verdict.findings:
        tiles = {row.tile.id: row for row in tile_verdicts}
        items = [_of_tile(report, tiles[name]) for name in verdict.carrying if name in tiles][:limit]
    return items


def draw_gallery(
    read_box: Callable[[Box, int], np.ndarray | None],
    report: Report,
    out_dir: Path | str,
    *,
    limit: int = 48,
    px: int = 224,
    tile_verdicts: Sequence[TileVerdict] = (),
) -> list[GalleryItem]:
    """Draw ``gallery/<id>.png`` under ``out_dir`` for the cells that carry the verdict.

    Args:
        read_box: gives [px, px, 3] uint8 for a level-0 rectangle and a side in px, or None where it is unreadable.
            The rectangle may reach past the scan's edge only where the scan is smaller than the field.
        limit: at most this many pictures.
        px: side of a picture.
        tile_verdicts: needed to show tiles where no finding carries the verdict.

    Returns:
        The items in order, those without readable pixels with ``drawn`` False.

    Raises:
        OutputError: if a picture cannot be written.
    """

    items = []
    for item in gallery_items(report, limit=limit, tile_verdicts=tile_verdicts):
        pixels = read_box(item.field, px)
        if pixels is None:
            items.append(item)
            continue
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., :3], dtype=np.uint8))
        if picture.size != (px, px):
            picture = picture.resize((px, px), Image.Resampling.LANCZOS)
        _annotate(picture, item, measured=report.slide.scale_known)
        with replacing(Path(out_dir) / item.file) as scratch:
            picture.save(scratch, format="PNG")
        items.append(replace(item, drawn=True))
    _remove_others(Path(out_dir) / FOLDER, {Path(item.file).name for item in items if item.drawn})
    return items


def _remove_others(folder: Path, drawn: set[str]) -> None:
    """Remove an earlier run's pictures: the same id would now show another cell."""
    for old in folder.glob("*.png") if folder.is_dir() else ():
        if old.name not in drawn and re.fullmatch(r"[ft]\d+\.png", old.name):
            try:
                old.unlink()
            except OSError as error:
                raise OutputError(f"Cannot remove {old}: {error.strerror or error}.", hint=HINT) from error


def _rank(finding: Finding) -> tuple[float, str]:
    return (-(finding.score if finding.score is not None else -1.0), finding.id)


def _in_turn(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The best of each class, then the second best of each, and so on."""
    classes: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=_rank):
        classes.setdefault(finding.label, []).append(finding)
    for row in zip_longest(*(classes[label] for label in sorted(classes))):
        yield from (finding for finding in row if finding is not None)


def _of_finding(report: Report, finding: Finding, base: float) -> GalleryItem:
    side_um = max(finding.box.width, finding.box.height) * report.slide.mpp * CONTEXT
    field_um = next((base * n for n in FIELD_STEPS if base * n >= side_um), base * FIELD_STEPS[-1])
    tile_id = finding.tile_ids[0] if finding.tile_ids else ""
    item = _item(report, finding.id, finding.name, finding.abnormal, finding.score, tile_id, finding.box, field_um)
    return replace(item, also_called=finding.other_labels, label=finding.label, confidence=finding.confidence)


def _of_tile(report: Report, row: TileVerdict) -> GalleryItem:
    box = row.tile.box
    field_um = max(box.width, box.height) * report.slide.mpp
    return _item(report, row.tile.id, "field", False, row.p_screen, row.tile.id, box, field_um)


def _item(
    report: Report,
    name: str,
    label: str,
    abnormal: bool,
    score: float | None,
    tile_id: str,
    box: Box,
    field_um: float,
) -> GalleryItem:
    slide = report.slide
    own = slide.field_at(box)
    x, y = (box if own is None else own.own(box)).center
    return GalleryItem(
        id=name,
        file=f"{FOLDER}/{name}.png",
        name=label,
        abnormal=abnormal,
        score=score,
        tile_id=tile_id,
        box=box,
        field=_field(report, box, field_um / slide.mpp),
        field_um=field_um,
        position_mm=(x * slide.mpp / 1000, y * slide.mpp / 1000),
        field_name="" if own is None else own.name,
    )


def _field(report: Report, box: Box, side: float) -> Box:
    """A square of this side around the box, moved inside the scan, or the photograph, where it fits."""
    x, y = box.center
    x0, y0 = x - side / 2, y - side / 2
    own = report.slide.field_at(box)
    whole = Box(0, 0, report.slide.width, report.slide.height) if own is None else own.box
    if side <= whole.width:
        x0 = min(max(x0, whole.x0), whole.x1 - side)
    if side <= whole.height:
        y0 = min(max(y0, whole.y0), whole.y1 - side)
    return Box(x0, y0, x0 + side, y0 + side)


def _annotate(picture: Image.Image, item: GalleryItem, *, measured: bool) -> None:
    draw = ImageDraw.Draw(picture)
    px = picture.width
    scale = px / item.field.width
    if item.box != item.field:
        shown = item.box.shifted(-item.field.x0, -item.field.y0).scaled(scale)
        _corner_ticks(draw, shown, px)
    if measured:
        _scale_bar(draw, px, SCALE_UM / item.field_um * px, _font(max(9, px // 14)))


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: Pillow's own font has no micro sign."""
    import matplotlib as mpl

    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _corner_ticks(draw: ImageDraw.ImageDraw, box: Box, px: int) -> None:
    """Short lines that lead away from each corner of the box; nothing is drawn on the cell."""
    gap, length = max(2, px // 75), max(6, px // 18)
    for x, dx in ((box.x0, -1), (box.x1, 1)):
        for y, dy in ((box.y0, -1), (box.y1, 1)):
            start = (x + dx * gap, y + dy * gap)
            end = (x + dx * (gap + length), y + dy * (gap + length))
            draw.line([start, end], fill=PAPER, width=max(4, px // 48))
            draw.line([start, end], fill=INK, width=max(2, px // 100))


def _scale_bar(draw: ImageDraw.ImageDraw, px: int, length: float, font: ImageFont.FreeTypeFont) -> None:
    x, y, thick = px * 0.04, px * 0.94, max(3, px // 60)
    draw.rectangle([x - 1, y - 1, x + math.ceil(length) + 1, y + thick + 1], fill=PAPER)
    draw.rectangle([x, y, x + length, y + thick], fill=INK)
    halo = max(1, px // 112)
    draw.text((x, y - 3), f"{SCALE_UM:g} µm", fill=INK, font=font, anchor="lb", stroke_width=halo, stroke_fill=PAPER)
