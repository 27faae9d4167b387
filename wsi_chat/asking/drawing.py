"""The picture of an answer: what was looked at, the boxes with their labels, and a caption with question and answer."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from wsi_chat.errors import OutputError, SettingError
from wsi_chat.schema import Box, LabelledBox

if TYPE_CHECKING:
    from tilers import Slide
    from wsi_chat.asking.result import AskResult
    from wsi_chat.terminology import System

SMALLEST_PX, LARGEST_PX = 768, 1600
INK, PAPER, REGION = (17, 26, 30), (255, 255, 255), (23, 104, 126)
PALETTE = ((181, 65, 14), (23, 104, 126), (106, 61, 154), (60, 120, 40), (150, 40, 90))
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def draw_result(slide: Slide, result: AskResult, path: Path, system: System) -> Path:
    """Draw an answer over the part of the slide that it is about.

    Raises:
        SettingError: the file's suffix is not a picture format that can be written.
        OutputError: the file cannot be written.
        SlideUnreadable: nothing of the place can be read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SettingError(
            f"--draw {path}: unknown picture format.", hint=f"Name a file ending in {', '.join(SUFFIXES)}."
        )
    shown = _shown(result).clipped(Box(0, 0, *slide.size)) or _shown(result)
    px = round(min(LARGEST_PX, max(SMALLEST_PX, max(shown.width, shown.height))))
    picture = Image.fromarray(slide.crop(shown, px))
    marks = list(result.boxes)
    if result.region is not None and shown != result.region:
        marks.append(LabelledBox(result.answer if result.task == "refer" else "region", result.region))
    colors = {label.code: label.color for label in system.labels}
    draw_boxes(picture, marks, shown, colors)
    captioned = _captioned(picture, result)
    try:
        captioned.save(path)
    except OSError as error:
        raise OutputError(f"--draw {path}: cannot be written ({error}).", hint="Choose another place.") from error
    return path


def _shown(result: AskResult) -> Box:
    """The part of the slide to draw: the fields that were asked, together."""
    area = result.fields[0].box
    for given in result.fields[1:]:
        area = area.union(given.box)
    return area


def draw_boxes(
    picture: Image.Image, boxes: list[LabelledBox], shown: Box, colors: dict[str, tuple[int, int, int]]
) -> None:
    """Outline boxes (level-0 px) on the picture of ``shown`` (level-0 px), each with its label where there is room."""
    draw = ImageDraw.Draw(picture)
    scale = picture.width / shown.width
    line = max(2, round(max(picture.size) / 400))
    font = ImageFont.load_default(max(12, round(max(picture.size) / 60)))
    others = {b.label: PALETTE[n % len(PALETTE)] for n, b in enumerate(boxes) if b.label not in colors}
    for found in boxes:
        color = REGION if found.label == "region" else colors.get(found.label, others.get(found.label, INK))
        place = found.box.shifted(-shown.x0, -shown.y0).scaled(scale)
        corners = (place.x0, place.y0, place.x1, place.y1)
        draw.rectangle(corners, outline=PAPER, width=line + 2)
        draw.rectangle(corners, outline=color, width=line)
        _label(draw, found.label, place, color, font, picture.size)


def _label(
    draw: ImageDraw.ImageDraw, text: str, place: Box, color: tuple[int, int, int], font: object, size: tuple[int, int]
) -> None:
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)  # type: ignore[arg-type]
    width, height = x1 - x0 + 6, y1 - y0 + 4
    x = min(max(place.x0, 0), max(0, size[0] - width))
    y = place.y0 - height if place.y0 >= height else min(place.y1, size[1] - height)
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 3 - x0, y + 2 - y0), text, fill=PAPER, font=font)  # type: ignore[arg-type]


def _captioned(picture: Image.Image, result: AskResult) -> Image.Image:
    size = max(14, round(picture.width / 55))
    font = ImageFont.load_default(size)
    chances = ", ".join(f"{option} {p:.2f}" for option, p in (result.probabilities or {}).items())
    lines = [result.question or f"({result.task})", f"{result.answer}{f' ({chances})' if chances else ''}"]
    wide = max(20, int(picture.width / (size * 0.55)))
    text = "\n".join(
        part for line in lines for row in line.splitlines()[:4] for part in textwrap.wrap(row, wide) or [""]
    )
    text += f"\n{result.model.split('@')[0]}, {result.disclaimer}"
    height = round((text.count("\n") + 1) * size * 1.35 + size)
    whole = Image.new("RGB", (picture.width, picture.height + height), PAPER)
    whole.paste(picture, (0, 0))
    ImageDraw.Draw(whole).multiline_text(
        (size * 0.6, picture.height + size * 0.4), text, fill=INK, font=font, spacing=size * 0.3
    )
    return whole
