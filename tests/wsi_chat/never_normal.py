"""Pictures and models for tests/cases/never_normal.yaml, each made from a few lines and the same every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from wsi_chat.datasets.mosaic import write_pyramid
from wsi_chat.datasets.render.field import render_field
from wsi_chat.datasets.render.slide import render_slide
from wsi_chat.engines.scripted import CONTROL
from wsi_chat.schema import RENDERED_NOTE, Answer, Query

MPP, SIDE = 0.5, 640
Pixels = NDArray[np.uint8]

# ------------------------------------------------------------------------------------------------ pictures


def _cells() -> Pixels:
    """Twenty cells on bright glass, in focus."""
    rng = np.random.default_rng(3)
    canvas = np.full((SIDE, SIDE, 3), 236, np.uint8) + rng.integers(0, 8, (SIDE, SIDE, 3), dtype=np.uint8)
    for x, y in rng.integers(40, SIDE - 40, (20, 2)):
        cv2.circle(canvas, (int(x), int(y)), 26, (150, 180, 190), -1, cv2.LINE_AA)
        cv2.circle(canvas, (int(x), int(y)), 8, (80, 60, 120), -1, cv2.LINE_AA)
    return canvas


def _text() -> Pixels:
    page = Image.new("RGB", (SIDE, SIDE), (252, 251, 248))
    draw = ImageDraw.Draw(page)
    for row in range(30):
        draw.text(
            (30, 20 + 20 * row), "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do " * 2, (20, 20, 25)
        )
    return np.asarray(page)


def _label() -> Pixels:
    page = Image.new("RGB", (SIDE, SIDE), (90, 80, 70))
    label = Image.new("RGB", (420, 260), (245, 240, 225))
    draw = ImageDraw.Draw(label)
    for row in range(8):
        draw.text((20, 20 + 26 * row), f"No. {row}7-4412  LAB  {row}/2024", (10, 10, 60))
    draw.rectangle((280, 160, 400, 240), fill=(30, 30, 30))
    page.paste(label.rotate(17, expand=True, fillcolor=(90, 80, 70)), (60, 120))
    return np.asarray(page)


def _noise() -> Pixels:
    return np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _blurred(pixels: Pixels) -> Pixels:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 12), np.uint8)


def _png(folder: Path, pixels: Pixels, *, marked: bool = False) -> Path:
    note = PngInfo()
    if marked:
        note.add_text("Description", RENDERED_NOTE)
    Image.fromarray(pixels).save(folder / "picture.png", pnginfo=note)
    return folder / "picture.png"


def _slide(folder: Path) -> Path:
    write_pyramid(folder / "slide.tiff", _cells(), mpp=MPP)
    return folder / "slide.tiff"


def _unreadable(folder: Path) -> Path:
    """A slide of which nine tenths of the tiles of level 0 are scrambled in the file."""
    path = folder / "slide.tiff"
    write_pyramid(path, np.tile(_cells(), (3, 3, 1)), mpp=MPP)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    data = bytearray(path.read_bytes())
    for number, (start, size) in enumerate(places):
        if number % 10:
            data[start : start + size] = bytes(size)
    path.write_bytes(data)
    return path


def _rendered(folder: Path, *, marked: bool = True) -> Path:
    path = folder / "rendered.tiff"
    render_slide(path, seed=31, width_px=SIDE, height_px=SIDE, mpp=MPP, density=900)
    if not marked:
        path.write_bytes(path.read_bytes().replace(RENDERED_NOTE.encode(), b" " * len(RENDERED_NOTE)))
    return path


def _field(seed: int = 12) -> Pixels:
    return render_field(seed, size=SIDE, recipe="normal").image


PICTURES: dict[str, Callable[[Path], Path]] = {
    "slide": _slide,
    "photograph": lambda folder: _png(folder, _cells()),
    "tiny": lambda folder: _png(
        folder, np.pad(np.full((8, 8, 3), 90, np.uint8), ((4, 4), (4, 4), (0, 0)), constant_values=236)
    ),
    "glass": lambda folder: _png(folder, np.full((SIDE, SIDE, 3), 241, np.uint8)),
    "one_colour": lambda folder: _png(folder, np.full((SIDE, SIDE, 3), (214, 150, 190), np.uint8)),
    "black": lambda folder: _png(folder, np.zeros((SIDE, SIDE, 3), np.uint8)),
    "blurred": lambda folder: _png(folder, _blurred(_cells())),
    "inverted": lambda folder: _png(folder, np.asarray(255 - _cells(), np.uint8)),
    "fluorescence": lambda folder: _png(folder, _fluorescence()),
    "unreadable": _unreadable,
    "rendered": _rendered,
    "unmarked": lambda folder: _rendered(folder, marked=False),
    "text": lambda folder: _png(folder, _text()),
    "label": lambda folder: _png(folder, _label()),
    "noise": lambda folder: _png(folder, _noise()),
    "marked_noise": lambda folder: _png(folder, _noise(), marked=True),
    "marked_text": lambda folder: _png(folder, _text(), marked=True),
    "marked_blurred": lambda folder: _png(folder, _blurred(_field()), marked=True),
}
"""Name -> makes the picture in a folder. ``tissue`` and ``blood`` are real ones."""


def _fluorescence() -> Pixels:
    rng = np.random.default_rng(4)
    canvas = rng.integers(2, 9, (SIDE, SIDE, 3), dtype=np.uint8)
    for x, y in rng.integers(30, SIDE - 30, (25, 2)):
        cv2.circle(canvas, (int(x), int(y)), 12, (20, 60, 220), -1, cv2.LINE_AA)
    return canvas


# ------------------------------------------------------------------------------------------------ models


def _p(query: Query, p: float) -> dict[str, float]:
    """Probability of the second option as it stands in the question."""
    return {query.choices[0]: 1 - p, query.choices[-1]: p}


def _dark(query: Query) -> float:
    """A probability that depends on the picture, and is low for every picture."""
    return 0.02 + 0.2 * (1 - float(np.asarray(query.images[0]).mean()) / 255)


def _is_control(query: Query, kind: str = "") -> bool:
    return query.tile_id.startswith(CONTROL + kind)


def _swapped(query: Query) -> bool:
    return _is_control(query, "swapped")


def _seeing(query: Query, p: float) -> dict[str, float]:
    """The same answer to the same picture, wherever the options stand."""
    return _p(query, 1 - p if _swapped(query) else p)


def _failed(query: Query) -> Answer:
    return Answer(query.key, query.task, "", status="failed", finish_reason="error", error="503")


def _first_words(query: Query) -> str:
    return "abnormal" if _swapped(query) else "normal"


SCREENS: dict[str, Callable[[Query], object]] = {
    "negative": lambda query: _seeing(query, _dark(query)),
    "chatting": lambda query: "What a lovely picture! Tell me more about the patient before I say anything.",
    "refusing": lambda query: "I'm sorry, but I can't help with medical images.",
    "truncated": lambda query: Answer(
        query.key, query.task, "The cells in", status="truncated", finish_reason="length"
    ),
    "nan": lambda query: Answer(query.key, query.task, "A", probabilities=dict.fromkeys(query.choices, float("nan"))),
    "failing": _failed,
    "half_failing": lambda query: _failed(query) if int(query.key[:4], 16) % 2 else _seeing(query, _dark(query)),
    "always_a": lambda query: _p(query, 0.0),
    "always_b": lambda query: _p(query, 1.0),
    "letter_a": lambda query: "A",
    "first_in_words": _first_words,
    "always_normal": lambda query: "normal",
    "constant_half": lambda query: _p(query, 0.5),
    "constant_low": lambda query: _seeing(query, 0.02),
    "glass_abnormal": lambda query: _seeing(query, 0.9 if _is_control(query, "glass") else _dark(query)),
    "blind": lambda query: _seeing(query, _dark(query)),
    "silent_on_controls": lambda query: _failed(query) if _is_control(query) else _p(query, _dark(query)),
    "no_counting": lambda query: _seeing(query, _dark(query)),
}
"""Name -> how a scripted model answers the screening question."""


def script(name: str) -> Callable[[Query], object]:
    """What a scripted model of this name answers to any question."""

    def answer(query: Query) -> object:
        if query.choices:
            return SCREENS[name](query)
        return _failed(query) if name == "no_counting" else f"No {query.target} is found."

    return answer
