"""Blood smears with typed white cells: photographs with every cell boxed, and single cells cut out of others.

The folder holds `fields.json` and `fields/`, `cells.json` and `cells/`: pictures of the PBC data set (Acevedo et al.,
Data in Brief 2020, CC BY 4.0), boxes by TXL-PBC (arXiv 2407.13214, MIT), types and splits by WBCAtt (MIT). They are
about 0.10 um/px; training looks at them at 0.11 to 0.2 um/px.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_chat.errors import SettingError
from wsi_chat.training.embedded import wording
from wsi_chat.training.embedded.fields import SIZE, U8, Sample, hidden, recolour, turn

PBC_MPP = 0.10
"""um/px of the pictures, derived from red cells of 7.5 um; the source states none."""
TEST_SCALE = 0.705
"""Output px per source px of the views that are measured: a picture of 363 px fills the tile."""
RARE = ("ig", "erythroblast")
"""Types that no field holds: they are learned from cut-outs alone, and drawn twice as often."""
SMALL = ("rbc", "platelet")
MIN_VISIBLE = 0.35


@dataclass(frozen=True, slots=True)
class CutOut:
    """A single cell: RGB pixels, its class token and its box x0, y0, x1, y1 in them."""

    image: U8
    label: str
    box: tuple[float, float, float, float]

    def mirrored(self, which: int) -> CutOut:
        """The cut-out flipped left to right (bit 0) and upside down (bit 1)."""
        image, (x0, y0, x1, y1) = self.image, self.box
        height, width = image.shape[:2]
        if which & 1:
            image, x0, x1 = image[:, ::-1], width - x1, width - x0
        if which & 2:
            image, y0, y1 = image[::-1], height - y1, height - y0
        return CutOut(image, self.label, (x0, y0, x1, y1))


@dataclass(slots=True)
class Canvas:
    """A picture that cells are laid on, with the labels and boxes of what it shows."""

    image: U8
    labels: list[str]
    boxes: NDArray[np.float32]


def read_rgb(data: NDArray[np.uint8]) -> U8:
    """RGB pixels of an encoded picture."""
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), dtype=np.uint8)


class Pbc:
    """Fields and cut-outs of one split (`train`, `val`, `test`); pictures are kept encoded in memory.

    Raises:
        SettingError: the folder lacks fields.json or cells.json.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        fields, cells = (_records(folder / f"{name}.json") for name in ("fields", "cells"))
        self.fields: list[tuple[NDArray[np.uint8], tuple[str, ...], NDArray[np.float32]]] = []
        for field in fields:
            path = folder / "fields" / str(field["image"])
            if field["split"] == split and path.exists():
                boxes = np.array([cell[1:] for cell in field["cells"]], dtype=np.float32).reshape(-1, 4)
                self.fields.append((np.fromfile(path, np.uint8), tuple(cell[0] for cell in field["cells"]), boxes))
        self.cells: dict[str, list[tuple[NDArray[np.uint8], tuple[float, float, float, float]]]] = {}
        for cell in cells:
            path = folder / "cells" / str(cell["image"])
            if cell["split"] == split and path.exists():
                self.cells.setdefault(cell["type"], []).append((np.fromfile(path, np.uint8), tuple(cell["box"])))
        self.types = sorted(self.cells)
        weight = np.array([2.0 if kind in RARE else 0.6 if kind == "platelet" else 1.0 for kind in self.types])
        self.chances = weight / weight.sum() if len(weight) else weight

    def field(self, index: int) -> Canvas:
        """A field as it is."""
        data, labels, boxes = self.fields[index]
        return Canvas(read_rgb(data).copy(), list(labels), boxes.copy())

    def cell(self, kind: str, index: int) -> CutOut:
        """A single cell."""
        data, box = self.cells[kind][index]
        return CutOut(read_rgb(data), kind, box)

    def some_cell(self, rng: np.random.Generator) -> CutOut:
        """A random cell, mirrored at random; the rare types come twice as often."""
        kind = self.types[int(rng.choice(len(self.types), p=self.chances))]
        return self.cell(kind, int(rng.integers(len(self.cells[kind])))).mirrored(int(rng.integers(4)))

    def some_field(self, rng: np.random.Generator) -> Canvas:
        """A random field."""
        return self.field(int(rng.integers(len(self.fields))))

    def draw(self, rng: np.random.Generator) -> Sample:
        """A random view of a field, of four side by side, or of cut-outs alone on a plain ground."""
        kind = rng.random()
        if kind < 0.38:
            canvas, scale, pasted = self.some_field(rng), rng.uniform(0.71, 0.92), int(rng.choice([0, 1, 1, 2]))
        elif kind < 0.72:
            canvas, scale, pasted = self._four(rng), rng.uniform(0.5, 0.9), int(rng.choice([0, 1, 2, 3, 4]))
        else:
            canvas, scale, pasted = self._ground(rng), rng.uniform(0.5, 0.95), int(rng.choice([0, 1, 1, 1, 2, 3, 5]))
        for _ in range(pasted):
            lay(canvas, self.some_cell(rng), rng)
        return self._view(canvas, float(scale), rng)

    def _four(self, rng: np.random.Generator) -> Canvas:
        """Four fields side by side, so that the view may be wider than one."""
        side = 360
        image = np.zeros((2 * side, 2 * side, 3), dtype=np.uint8)
        labels: list[str] = []
        rows = []
        for number in range(4):
            part = self.some_field(rng)
            pixels = part.image[:side, :side]
            top, left = side * (number // 2), side * (number % 2)
            image[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            boxes = np.clip(part.boxes, 0, side)
            kept = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) > 6
            rows.append(boxes[kept] + np.array([left, top, left, top], dtype=np.float32))
            labels += [label for label, ok in zip(part.labels, kept, strict=True) if ok]
        return Canvas(image, labels, np.concatenate(rows))

    def _ground(self, rng: np.random.Generator) -> Canvas:
        """A bare ground in the colour of a real one, with red cells of a field strewn on it more often than not."""
        side = 400
        source = self.some_field(rng)
        colour = _bright(source.image, float(rng.uniform(80, 97))) + rng.normal(0, 4, 3)
        slow = cv2.resize(rng.normal(0, rng.uniform(0, 5), (5, 5, 3)).astype(np.float32), (side, side))
        noise = rng.normal(0, rng.uniform(0.3, 2.5), (side, side, 1))
        canvas = Canvas(np.clip(colour + slow + noise, 0, 255).astype(np.uint8), [], np.zeros((0, 4), dtype=np.float32))
        height, width = source.image.shape[:2]
        red = [i for i, label in enumerate(source.labels) if label == "rbc"]
        rng.shuffle(red)
        for i in red[: int(rng.choice([0, 0, 2, 5, 10, 16]))]:
            x0, y0, x1, y1 = (int(v) for v in source.boxes[i])
            left, top, right, bottom = max(x0 - 6, 0), max(y0 - 6, 0), min(x1 + 6, width), min(y1 + 6, height)
            if right - left > 20 and bottom - top > 20:
                box = (float(x0 - left), float(y0 - top), float(x1 - left), float(y1 - top))
                lay(canvas, CutOut(source.image[top:bottom, left:right], "rbc", box), rng)
        return canvas

    def _view(self, canvas: Canvas, scale: float, rng: np.random.Generator) -> Sample:
        """256 px of the canvas, mostly around a white cell, turned, recoloured, at times blurred."""
        height, width = canvas.image.shape[:2]
        half = SIZE / 2 / scale
        white = [i for i, label in enumerate(canvas.labels) if label not in SMALL]
        if white and rng.random() < 0.7:
            box = canvas.boxes[white[int(rng.integers(len(white)))]]
            x = (box[0] + box[2]) / 2 + rng.uniform(-0.7, 0.7) * half
            y = (box[1] + box[3]) / 2 + rng.uniform(-0.7, 0.7) * half
        else:
            x, y = rng.uniform(0, width), rng.uniform(0, height)
        x = float(np.clip(x, min(half, width / 2), max(width - half, width / 2)))
        y = float(np.clip(y, min(half, height / 2), max(height - half, height / 2)))
        sample = look_at(canvas, scale, (x, y))
        image, boxes = turn(sample.image, sample.boxes, int(rng.integers(8)))
        if rng.random() < 0.3:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.0))), dtype=np.uint8)
        return Sample(recolour(image, rng, 1.2), sample.labels, boxes, sample.abnormal, sample.domain)

    def tiles(self) -> list[Sample]:
        """Every field whole, filling the tile: the views that are measured."""
        views = []
        for index in range(len(self.fields)):
            canvas = self.field(index)
            height, width = canvas.image.shape[:2]
            views.append(look_at(canvas, TEST_SCALE, (width / 2, height / 2)))
        return views

    def singles(self, kind: str, count: int) -> list[Sample]:
        """The first `count` cut-outs of a type, each alone in the middle of a ground of its rim's colour."""
        views = []
        for index in range(min(count, len(self.cells[kind]))):
            cut = self.cell(kind, index)
            side = round(SIZE / TEST_SCALE)
            ground = np.median(_rim(cut.image), axis=0)
            image = np.empty((side, side, 3), dtype=np.uint8)
            image[:] = ground.astype(np.uint8)
            canvas = Canvas(image, [], np.zeros((0, 4), dtype=np.float32))
            height, width = cut.image.shape[:2]
            put(canvas, cut, ((side - width) // 2, (side - height) // 2))
            views.append(look_at(canvas, TEST_SCALE, (side / 2, side / 2)))
        return views


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(
            f"{path} cannot be read: {error}.", hint="Name the folder that holds fields.json and cells.json."
        ) from error
    return found


def _bright(image: NDArray[Any], percent: float) -> NDArray[np.float32]:
    """A percentile of each channel, read from every third row and column."""
    return np.asarray(np.percentile(image[::3, ::3].reshape(-1, 3), percent, axis=0), np.float32)


def _rim(image: U8) -> U8:
    return np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3)])


def lay(canvas: Canvas, cut: CutOut, rng: np.random.Generator) -> None:
    """Paste a cell at a random place where it hides no white cell; left out where there is no room."""
    height, width = canvas.image.shape[:2]
    high, wide = cut.image.shape[:2]
    if high >= height or wide >= width:
        return
    for _ in range(4):
        left, top = int(rng.integers(0, width - wide)), int(rng.integers(0, height - high))
        spot = np.array(cut.box, dtype=np.float32) + np.array([left, top, left, top], dtype=np.float32)
        guarded = [i for i, label in enumerate(canvas.labels) if label not in SMALL or cut.label in SMALL]
        if not any(hidden(canvas.boxes[i], spot) > 0.15 or hidden(spot, canvas.boxes[i]) > 0.15 for i in guarded):
            put(canvas, cut, (left, top))
            return


def put(canvas: Canvas, cut: CutOut, corner: tuple[int, int]) -> None:
    """Paste a cell at a corner (px): feathered, its ground brought to the colour of the place; hides what is below."""
    left, top = corner
    high, wide = cut.image.shape[:2]
    under = canvas.image[top : top + high, left : left + wide].astype(np.float32)
    pixels = cut.image.astype(np.float32)
    pixels = np.clip(pixels + (_bright(under, 90) - _bright(pixels, 90)), 0, 255)
    x0, y0, x1, y1 = cut.box
    yy, xx = np.mgrid[0:high, 0:wide].astype(np.float32)
    away_x = (xx - (x0 + x1) / 2) / max((x1 - x0) / 2, 1)
    away_y = (yy - (y0 + y1) / 2) / max((y1 - y0) / 2, 1)
    alpha = np.clip((1.14 - np.sqrt(away_x**2 + away_y**2)) / 0.14, 0, 1)[..., None]
    canvas.image[top : top + high, left : left + wide] = (alpha * pixels + (1 - alpha) * under).astype(np.uint8)
    spot = np.array([left + x0, top + y0, left + x1, top + y1], dtype=np.float32)
    kept = [i for i in range(len(canvas.labels)) if hidden(canvas.boxes[i], spot) < 0.6]
    canvas.labels = [*(canvas.labels[i] for i in kept), cut.label]
    canvas.boxes = np.concatenate([canvas.boxes[kept], spot[None]])


def look_at(canvas: Canvas, scale: float, centre: tuple[float, float]) -> Sample:
    """256 px around `centre` (source px) at `scale`; beyond the picture its edge is repeated.

    A view with a white cell of unknown type is an untyped blood field: its other white cells become `wbc`.
    """
    shift = SIZE / 2 - scale * np.array(centre)
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    flags = cv2.INTER_AREA if scale < 0.8 else cv2.INTER_LINEAR
    image = cv2.warpAffine(canvas.image, matrix, (SIZE, SIZE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    moved = canvas.boxes * np.float32(scale) + np.tile(shift, 2).astype(np.float32)
    clipped = np.clip(moved, 0, SIZE)
    area = np.prod(moved[:, 2:] - moved[:, :2], axis=1)
    kept = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1) >= MIN_VISIBLE * np.maximum(area, 1e-6)
    labels = [label for label, ok in zip(canvas.labels, kept, strict=True) if ok]
    boxes = clipped[kept].astype(np.float32)
    domain = "blood-typed"
    if "wbc" in labels:
        domain = "blood"
        labels = ["wbc" if label in wording.WHITE else label for label in labels]
        known = [label in wording.BLOOD_UNTYPED for label in labels]
        labels, boxes = [label for label, ok in zip(labels, known, strict=True) if ok], boxes[known]
    white = any(label == "wbc" or label in wording.WHITE for label in labels)
    return Sample(np.asarray(image, dtype=np.uint8), tuple(labels), boxes, white, domain)
