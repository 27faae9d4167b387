"""Annotated fields of 256 px for training: rendered cervical fields from a pool on disk, and BCCD blood smears.

A field is an RGB image with labelled boxes in its own pixels. Boxes are x0, y0, x1, y1; labels are the dialect's
class tokens (`wording.CLASSES`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_chat.datasets.mosaic import BCCD_NAMES, bccd_fields
from wsi_chat.datasets.render import Field, render_field
from wsi_chat.datasets.render.camera import photograph
from wsi_chat.datasets.voc import read_voc
from wsi_chat.training.embedded import wording

U8 = NDArray[np.uint8]
SIZE = 256
HELD_OUT_SEED = 900_000_000
"""Rendered seeds from here on are never trained on."""
POOL_MIX: dict[str, float] = {
    "abnormal": 0.38,
    "normal": 0.15,
    "hard_normal": 0.25,
    "organism": 0.10,
    "single": 0.07,
    "empty": 0.05,
}
SHARD = 250
BLOOD_MPP = 0.15
BLOOD_DOMAINS = ("blood", "blood-typed")
"""Smears whose white cells are only found, and smears whose nucleated cells have their types."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated field. `boxes` is (n, 4) float32 in px; `labels`: n class tokens; `domain`: the specimen."""

    image: U8
    labels: tuple[str, ...]
    boxes: NDArray[np.float32]
    abnormal: bool
    domain: str


def prerender(folder: Path, shard: int, *, first_seed: int = 1_000_000) -> Path:
    """Render shard number `shard` (`SHARD` fields) into `folder` unless it is there; returns the path of its images.

    Beside the images (.npy, mapped into memory by every process that trains) lie their cells (.json).
    """
    from wsi_chat.training.embedded.pool import drawn

    target = folder / f"shard_{shard:04d}.npy"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    images = np.empty((SHARD, SIZE, SIZE, 3), dtype=np.uint8)
    notes = []
    for i, (kind, field) in zip(range(SHARD), drawn(shard, first_seed + shard * SHARD), strict=False):
        images[i] = field.image
        cells = [[c.label, *(round(float(v), 1) for v in c.box)] for c in field.cells]
        notes.append({"abnormal": field.abnormal, "kind": kind, "cells": cells})
    target.with_suffix(".json").write_text(json.dumps(notes))
    partial = folder / f"partial_{shard:04d}.npy"
    np.save(partial, images)
    partial.rename(target)
    return target


def render_shards(folder: Path, shards: Sequence[int]) -> None:
    """Render some shards at the lowest priority; the body of the recipe's rendering processes."""
    os.nice(9)
    cv2.setNumThreads(1)
    for shard in shards:
        prerender(folder, shard)


def held_out(count: int, *, first_seed: int = HELD_OUT_SEED) -> list[Sample]:
    """`count` rendered fields of the renderer's own mix that no training run sees."""
    return [sample_of(render_field(seed)) for seed in range(first_seed, first_seed + count)]


def sample_of(field: Field) -> Sample:
    """A rendered field as a sample."""
    boxes = np.array([c.box for c in field.cells], dtype=np.float32).reshape(-1, 4)
    return Sample(field.image, tuple(c.label for c in field.cells), boxes, field.abnormal, "cervix")


class Pool:
    """Rendered shards of a folder, mapped into memory; `refresh` picks up shards that appeared since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []
        self.images: list[U8] = []
        self.notes: list[list[dict[str, object]]] = []
        self.refresh()

    def refresh(self) -> int:
        """Maps new shards; returns the number of fields held."""
        for path in sorted(self.folder.glob("shard_*.npy")):
            if path.name in self.names:
                continue
            self.images.append(np.load(path, mmap_mode="r"))
            self.notes.append(json.loads(path.with_suffix(".json").read_text()))
            self.names.append(path.name)
        return len(self)

    def __len__(self) -> int:
        return sum(len(block) for block in self.images)

    def draw(self, rng: np.random.Generator) -> Sample:
        """A random field, turned and mirrored, slightly recoloured or seen through another camera."""
        block = int(rng.integers(len(self.images)))
        index = int(rng.integers(len(self.images[block])))
        note = self.notes[block][index]
        cells: list[list[object]] = note["cells"]  # type: ignore[assignment]
        labels = tuple(str(cell[0]) for cell in cells)
        boxes = np.array([cell[1:] for cell in cells], dtype=np.float32).reshape(-1, 4)
        image, boxes = turn(np.asarray(self.images[block][index]), boxes, int(rng.integers(8)))
        if rng.random() < (0.7 if note["kind"] == "wide" else 0.3):
            image = photograph(image, rng, strength=float(rng.uniform(0.2, 1.1)))
        else:
            image = recolour(image, rng, 0.5)
        return Sample(image, labels, boxes, bool(note["abnormal"]), "cervix")


def turn(image: U8, boxes: NDArray[np.float32], which: int) -> tuple[U8, NDArray[np.float32]]:
    """One of the eight symmetries of the square, applied to a square image and its boxes."""
    size = image.shape[0]
    x0, y0, x1, y1 = boxes.T
    if which & 1:
        image, x0, x1 = image[:, ::-1], size - x1, size - x0
    if which & 2:
        image, y0, y1 = image[::-1], size - y1, size - y0
    if which & 4:
        image, x0, y0, x1, y1 = image.transpose(1, 0, 2), y0, x0, y1, x1
    return np.ascontiguousarray(image), np.stack([x0, y0, x1, y1], axis=1).astype(np.float32)


def recolour(image: U8, rng: np.random.Generator, amount: float) -> U8:
    """Random gain, offset and gamma per channel (`amount` 1 is strong)."""
    gain = 1 + amount * rng.uniform(-0.12, 0.12) + amount * rng.uniform(-0.06, 0.06, 3)
    offset = amount * rng.uniform(-10, 10, 3)
    gamma = np.exp(amount * rng.uniform(-0.25, 0.25))
    ramp = np.arange(256, dtype=np.float32)[:, None]
    table = np.clip(255 * (ramp / 255) ** gamma * gain + offset, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table[None]))


class Bccd:
    """BCCD fields held in memory, cut to 256 px views at about 0.15 um/px.

    `lists` are names of the data set's own lists (`train`, `val`, `test`).
    """

    def __init__(self, folder: Path, lists: tuple[str, ...] = ("train",)) -> None:
        self.images: list[U8] = []
        self.labels: list[tuple[str, ...]] = []
        self.boxes: list[NDArray[np.float32]] = []
        for picture, annotation in (pair for name in lists for pair in bccd_fields(folder, name)):
            bgr = cv2.imread(str(picture))
            if bgr is None:
                continue
            self.images.append(np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8))
            kept = [found for found in read_voc(annotation) if min(found.box.width, found.box.height) >= 4]
            self.labels.append(tuple(BCCD_NAMES[found.label] for found in kept))
            boxes = [(found.box.x0, found.box.y0, found.box.x1, found.box.y1) for found in kept]
            self.boxes.append(np.array(boxes, dtype=np.float32).reshape(-1, 4))

    def view(self, index: int, scale: float, centre: tuple[float, float], fill: int = 235) -> Sample:
        """256 px around `centre` (source px) at `scale` (output px per source px); outside is `fill` grey."""
        shift = SIZE / 2 - scale * np.array(centre)
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], dtype=np.float64)
        image = cv2.warpAffine(
            self.images[index],
            matrix,
            (SIZE, SIZE),
            flags=cv2.INTER_AREA if scale < 0.8 else cv2.INTER_LINEAR,
            borderValue=(fill, fill, fill),
        )
        return self._keep(np.asarray(image, dtype=np.uint8), self.labels[index], self.boxes[index] * scale, shift)

    @staticmethod
    def _keep(image: U8, labels: tuple[str, ...], boxes: NDArray[np.float32], shift: NDArray[np.float64]) -> Sample:
        moved = boxes + np.tile(shift, 2)
        clipped = np.clip(moved, 0, SIZE)
        seen = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1) / np.prod(moved[:, 2:] - moved[:, :2], axis=1)
        keep = seen >= 0.35
        chosen = tuple(label for label, ok in zip(labels, keep, strict=True) if ok)
        return Sample(image, chosen, clipped[keep].astype(np.float32), "wbc" in chosen, "blood")

    def draw(self, rng: np.random.Generator) -> Sample:
        """A random view: shift, scale 0.85-1.2 around 0.15 um/px, turned, recoloured, sometimes with pasted cells."""
        index = int(rng.integers(len(self.images)))
        height, width = self.images[index].shape[:2]
        scale = 0.52 * float(np.exp(rng.uniform(np.log(0.85), np.log(1.2))))
        half = SIZE / 2 / scale
        x = rng.uniform(min(half, width / 2), max(width - half, width / 2))
        y = rng.uniform(min(half, height / 2), max(height - half, height / 2))
        if rng.random() < 0.15:
            x, y = rng.uniform(0.3, 0.7) * width, rng.uniform(0.2, 0.8) * height
        fill = int(rng.choice([255, 235, 210, 128]))
        sample = self.view(index, scale, (x, y), fill)
        if rng.random() < 0.45:
            sample = self._paste(sample, scale, rng)
        image, boxes = turn(sample.image, sample.boxes, int(rng.integers(8)))
        return Sample(recolour(image, rng, 1.0), sample.labels, boxes, sample.abnormal, "blood")

    def _paste(self, sample: Sample, scale: float, rng: np.random.Generator) -> Sample:
        """Copies a white cell or platelets from another field into this one, feathered at the rim."""
        kind = "wbc" if rng.random() < 0.4 else "platelet"
        image, labels, boxes = sample.image.copy(), list(sample.labels), list(sample.boxes)
        for _ in range(1 if kind == "wbc" else int(rng.integers(1, 4))):
            source = int(rng.integers(len(self.images)))
            found = [i for i, label in enumerate(self.labels[source]) if label == kind]
            if not found:
                continue
            x0, y0, x1, y1 = (self.boxes[source][found[int(rng.integers(len(found)))]]).astype(int)
            crop = self.images[source][max(y0, 0) : y1, max(x0, 0) : x1]
            wide, high = round((x1 - x0) * scale), round((y1 - y0) * scale)
            if crop.size == 0 or not 8 <= wide < 200 or not 8 <= high < 200:
                continue
            patch = np.asarray(cv2.resize(crop, (wide, high), interpolation=cv2.INTER_AREA))
            left, top = int(rng.integers(0, SIZE - wide)), int(rng.integers(0, SIZE - high))
            spot = np.array([left, top, left + wide, top + high], dtype=np.float32)
            if kind == "wbc":
                # A pasted white cell hides what lies under it.
                kept = [i for i, box in enumerate(boxes) if hidden(box, spot) < 0.6]
                labels, boxes = [labels[i] for i in kept], [boxes[i] for i in kept]
            elif any(hidden(spot, box) > 0.3 for box in boxes):
                continue
            yy, xx = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
            alpha = np.clip((1.12 - np.sqrt(xx**2 + yy**2)) / 0.15, 0, 1)[..., None]
            under = image[top : top + high, left : left + wide]
            image[top : top + high, left : left + wide] = alpha * patch + (1 - alpha) * under
            labels.append(kind)
            boxes.append(spot)
        order = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        return Sample(image, tuple(labels), order, "wbc" in labels, "blood")

    def tiles(self) -> list[Sample]:
        """Two fixed 480 px squares of every field (left and right), scaled to 256 px: the evaluation views."""
        views = []
        for index, image in enumerate(self.images):
            height, width = image.shape[:2]
            views += [self.view(index, SIZE / height, (x, height / 2)) for x in (height / 2, width - height / 2)]
        return views


def hidden(box: NDArray[np.float32], cover: NDArray[np.float32]) -> float:
    """Fraction of `box` that `cover` hides."""
    wide = min(box[2], cover[2]) - max(box[0], cover[0])
    high = min(box[3], cover[3]) - max(box[1], cover[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return float(max(wide, 0) * max(high, 0) / max(area, 1e-6))


def classes_of(domain: str) -> tuple[str, ...]:
    """Class tokens that a field of this domain can hold."""
    return {"blood": wording.BLOOD_UNTYPED, "blood-typed": wording.BLOOD}.get(domain, wording.CERVIX)
