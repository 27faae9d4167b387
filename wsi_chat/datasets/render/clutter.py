"""What lies between the cells and is not annotated: debris, mucus, blood, bubbles, bacteria, necrotic background."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wsi_chat.datasets.render.cells import Sprite, draw_cell
from wsi_chat.datasets.render.chance import Rng, between
from wsi_chat.datasets.render.normal_looks import naked
from wsi_chat.datasets.render.shapes import Canvas, Points, blob, rotate
from wsi_chat.datasets.render.stains import F32, Style, patch_of, round_sigma, texture


def _sprite(plane: F32, dye: F32, frame: Canvas, style: Style, defocus: float) -> Sprite:
    return Sprite(frame.dye([(plane, dye)], float(np.hypot(defocus, style.blur)) * frame.scale), frame.x, frame.y)


def _frame(points: Points, scale: float, style: Style, defocus: float, extra: float = 0.0) -> Canvas:
    return Canvas(points, scale, pad=4 + (3 * float(np.hypot(defocus, style.blur)) + extra) * scale)


def debris(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """Fragments of 1-7 um in any dye."""
    parts = [
        rotate(blob(rng, between(rng, 0.8, 7), between(rng, 0.8, 4), rough=0.2), between(rng, 0, 6.3))
        + rng.normal(0, 5, 2)
        for _ in range(int(rng.integers(1, 6)))
    ]
    frame = _frame(np.concatenate(parts), scale, style, defocus)
    plane = frame.fill(*parts, soft=0.35 * scale) * np.float32(between(rng, 0.15, 1.0))
    dyes = (style.haematoxylin, style.green, style.eosin, style.orange)
    mix = sum(weight * dye for weight, dye in zip(rng.dirichlet((0.7, 0.5, 0.5, 0.3)), dyes, strict=True))
    return _sprite(plane, np.asarray(mix), frame, style, defocus)


def mucus(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """Faint strands, 40-110 um."""
    turns = between(rng, 0, 6.3) + np.cumsum(rng.normal(0, 0.25, 14))
    path = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], axis=1) * between(rng, 3, 8), axis=0)
    path -= path.mean(axis=0)
    strands = [path + rng.normal(0, 2.5, 2) + rng.normal(0, 0.8, path.shape) for _ in range(int(rng.integers(2, 6)))]
    frame = _frame(np.concatenate(strands), scale, style, defocus, extra=4)
    plane = frame.stroke(*strands, width_um=between(rng, 0.8, 2.5), soft=1.2 * scale)
    dye = style.green * between(rng, 0.2, 0.8) + style.eosin * between(rng, 0, 0.5)
    return _sprite(plane * np.float32(between(rng, 0.08, 0.35)), dye, frame, style, defocus)


def blood(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """A few red cells of 6-8 um, pale centre, pink to orange; liquid-based preparations keep only some."""
    count = int(rng.integers(1, 6))
    places = rng.normal(0, 9, (count, 2))
    outer = [blob(rng, between(rng, 6, 8), between(rng, 5.5, 7.5), rough=0.03) + place for place in places]
    inner = [(cell - cell.mean(axis=0)) * 0.45 + cell.mean(axis=0) for cell in outer]
    frame = _frame(np.concatenate(outer), scale, style, defocus)
    plane = frame.fill(*outer, soft=0.3 * scale) - np.float32(0.5) * frame.fill(*inner, soft=0.6 * scale)
    dye = style.eosin * between(rng, 0.3, 1.0) + style.orange * between(rng, 0.1, 0.7)
    return _sprite(np.maximum(plane, 0) * np.float32(between(rng, 0.15, 0.5)), dye, frame, style, defocus)


def red_sheet(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """Ten to forty red cells close together, whole, ghostly or clumped, as a bloody conventional smear has them."""
    count = int(rng.integers(10, 41))
    spread = between(rng, 3.2, 5.5) * np.sqrt(count)
    places = rng.uniform(-1, 1, (count, 2)) * (spread, spread * between(rng, 0.4, 1.0))
    places = rotate(places, between(rng, 0, 6.3))
    outer = [blob(rng, between(rng, 5.5, 8), between(rng, 5, 7.5), rough=0.05) + place for place in places]
    inner = [(cell - cell.mean(axis=0)) * 0.42 + cell.mean(axis=0) for cell in outer]
    frame = _frame(np.concatenate(outer), scale, style, defocus)
    hollow = np.float32(between(rng, 0.0, 0.6))
    plane = frame.blank()
    for part, core in ((outer[::2], inner[::2]), (outer[1::2], inner[1::2])):  # cells of two layers darken each other
        plane += frame.fill(*part, soft=0.3 * scale) - hollow * frame.fill(*core, soft=0.6 * scale)
    dye = (
        style.eosin * between(rng, 0.3, 1.0) + style.orange * between(rng, 0.0, 0.8) + style.green * rng.random() * 0.3
    )
    return _sprite(np.maximum(plane, 0) * np.float32(between(rng, 0.12, 0.55)), np.asarray(dye), frame, style, defocus)


def bubble(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """A refractile ring, 8-45 um, dark outside, faint inside."""
    size = between(rng, 8, 45)
    ring = blob(rng, size, size * between(rng, 0.85, 1), rough=0.01)
    frame = _frame(ring, scale, style, defocus, extra=1)
    dark = frame.stroke(ring, width_um=between(rng, 0.7, 1.8), closed=True, soft=0.3 * scale)
    halo = frame.stroke(ring * 0.9, width_um=1.5, closed=True, soft=0.8 * scale)
    plane = dark * np.float32(between(rng, 0.25, 0.9)) + halo * np.float32(0.1)
    return _sprite(plane, np.array([0.9, 0.95, 1.0], dtype=np.float32), frame, style, defocus)


def bacilli(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """Lactobacilli: thin rods of 2-5 um, harmless."""
    rods = []
    for _ in range(int(rng.integers(8, 40))):
        length, turn = between(rng, 2, 5), between(rng, 0, np.pi)
        rods.append(
            np.array([[-length / 2, 0.0], [length / 2, 0.0]]) @ [[np.cos(turn), np.sin(turn)], [0, 0]]
            + rng.normal(0, 18, 2)
        )
    frame = _frame(np.concatenate(rods), scale, style, defocus)
    plane = frame.stroke(*rods, width_um=0.5, soft=0.4) * np.float32(between(rng, 0.3, 0.8))
    return _sprite(plane, style.haematoxylin, frame, style, defocus)


def diathesis(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """Granular, lysed protein and blood, 40-100 um, clinging or free; found with inflammation too."""
    size = between(rng, 35, 95)
    patch = blob(rng, size, size * between(rng, 0.4, 0.9), rough=0.16)
    frame = _frame(patch, scale, style, defocus, extra=6)
    coarse = patch_of(texture(round_sigma(2.2 * scale)), frame.height, frame.width, rng)
    fine = patch_of(texture(round_sigma(0.5 * scale)), frame.height, frame.width, rng)
    grains = np.clip(coarse * np.float32(0.6) + fine * np.float32(0.7), 0, 3)
    plane = frame.fill(patch, soft=4 * scale) * grains * np.float32(between(rng, 0.06, 0.3))
    dye = (
        style.eosin * between(rng, 0.2, 0.9)
        + style.green * between(rng, 0.1, 0.7)
        + style.haematoxylin * between(rng, 0, 0.3)
    )
    return _sprite(plane, dye, frame, style, defocus)


def naked_nucleus(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """A degenerated bare nucleus."""
    return draw_cell(naked(rng), rng, style, scale=scale, defocus=defocus)


CLUTTER: dict[str, Callable[..., Sprite]] = {
    "debris": debris,
    "mucus": mucus,
    "blood": blood,
    "red_sheet": red_sheet,
    "bubble": bubble,
    "bacilli": bacilli,
    "diathesis": diathesis,
    "naked": naked_nucleus,
}
