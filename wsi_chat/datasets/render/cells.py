"""Draws one epithelial cell from its measurements as a patch of optical density, with its boxes.

A `Look` holds everything that is measured on a cell (um); `draw_cell` turns it into a `Sprite`. Which measurements make
which diagnosis is decided in `looks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wsi_chat.datasets.render.chance import between
from wsi_chat.datasets.render.shapes import Canvas, Form, Points, blob, outline, rotate
from wsi_chat.datasets.render.stains import F32, Style, mixed_texture, patch_of, round_sigma, texture

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """An annotation of a sprite: boxes in px from the sprite's centre."""

    label: str
    box: Box
    nucleus: Box | None


@dataclass(frozen=True, slots=True)
class Sprite:
    """Optical density (3, h, w), its corner at `x`, `y` px from the object's centre, and what is annotated."""

    od: F32
    x: int
    y: int
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Nucleus:
    """A nucleus: area in um2, darkness as optical density, the rest relative (0..1)."""

    area: float
    dark: float
    aspect: float = 1.15
    angle: float = 0.0
    rough: float = 0.015
    notches: int = 0
    coarse: float = 0.12
    rim: float = 0.15
    pale: float = 0.0
    nucleoli: int = 0
    nucleolus: float = 1.5
    at: tuple[float, float] = (0.0, 0.0)

    @property
    def axes(self) -> tuple[float, float]:
        """Long and short axis, um."""
        short = float(np.sqrt(4 * self.area / np.pi / self.aspect))
        return short * self.aspect, short


@dataclass(frozen=True, slots=True)
class Look:
    """A cell: axes in um, `density` as optical density of the cytoplasm, `tint` as weights of green, eosin, orange."""

    label: str
    width: float
    height: float
    form: Form
    density: float
    tint: tuple[float, float, float]
    nuclei: tuple[Nucleus, ...]
    angle: float = 0.0
    rough: float = 0.03
    ragged: float = 0.35
    mottle: float = 0.12
    gradient: float = 0.25
    rim: float = 0.06
    folds: int = 0
    granules: int = 0
    vacuoles: tuple[float, ...] = field(default=())
    halo: float = 0.0
    halo_depth: float = 0.0
    halo_rim: float = 0.0
    halo_soft: float = 0.6
    bacteria: float = 0.0

    @property
    def reach(self) -> float:
        """Half of the long axis, um."""
        return max(self.width, self.height) / 2


def extent(points: Points, scale: float) -> Box:
    """The box (px) around points in um."""
    low, high = points.min(axis=0) * scale, points.max(axis=0) * scale
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def moved(box: Box, x: float, y: float) -> Box:
    """The box shifted by (x, y)."""
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def draw_cell(look: Look, rng: np.random.Generator, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """Draws `look` at `scale` px per um, out of focus by a Gaussian of `defocus` um."""
    body = rotate(outline(look.form, rng, look.width, look.height, look.rough), look.angle)
    shapes: list[Points] = []
    for nucleus in look.nuclei:
        curve = blob(rng, *nucleus.axes, rough=nucleus.rough, notches=nucleus.notches)
        shift = rotate(np.array([nucleus.at]), look.angle)
        shapes.append(rotate(curve, nucleus.angle + look.angle) + shift)
    blur = float(np.hypot(defocus, style.blur)) * scale
    everything = np.concatenate([body, *shapes]) if shapes else body
    frame = Canvas(everything, scale, pad=3 + 3 * blur)
    chromatin, nucleoli = frame.blank(), frame.blank()
    layers = [(chromatin, style.haematoxylin)]
    if look.density > 0:
        layers.append((_cytoplasm(look, body, shapes, frame, rng), style.cytoplasm_dye(*look.tint)))
    for nucleus, curve in zip(look.nuclei, shapes, strict=True):
        _stain_nucleus(chromatin, nucleoli, nucleus, curve, frame, rng)
    chromatin *= np.float32(style.nuclear)
    if any(nucleus.nucleoli for nucleus in look.nuclei):
        layers.append((nucleoli, style.haematoxylin * np.float32(0.35) + style.eosin * np.float32(0.55)))
    od = frame.dye(layers, blur)
    kernel = extent(np.concatenate(shapes), scale) if shapes else None
    mark = Mark(look.label, extent(everything if look.density > 0 else np.concatenate(shapes), scale), kernel)
    return Sprite(od, frame.x, frame.y, (mark,) if look.label else ())


def _cytoplasm(look: Look, body: Points, shapes: list[Points], frame: Canvas, rng: np.random.Generator) -> F32:
    """The cytoplasm's density plane, before its dye."""
    scale = frame.scale
    mask = frame.fill(body, soft=max(0.4, look.ragged * scale))
    plane = mask * np.float32(look.density)
    height, width = plane.shape
    mottled = patch_of(mixed_texture(round_sigma(1.6 * scale), round_sigma(0.35 * scale)), height, width, rng)
    factor = mottled * np.float32(look.mottle)
    factor += np.float32(1 - look.gradient / 2)
    if look.gradient:
        factor += np.float32(look.gradient) * frame.ramp(np.zeros(2), (look.width / 2, look.height / 2), look.angle)
    plane *= factor
    if look.rim:
        plane += np.float32(look.rim) * mask * frame.stroke(body, width_um=0.7, closed=True)
    for _ in range(look.folds):
        centre, turn = rng.normal(0, 0.3, 2) * look.reach, between(rng, 0, np.pi)
        t = np.linspace(-1, 1, 8)[:, None] * look.reach * between(rng, 0.3, 0.7)
        line = centre + t * (np.cos(turn), np.sin(turn)) + (t / 8) ** 2 * (-np.sin(turn), np.cos(turn))
        crease = frame.stroke(line, width_um=between(rng, 0.6, 1.6), soft=0.5 * scale)
        plane += np.float32(look.density * between(rng, 0.4, 0.9)) * crease * mask
    for radius in look.vacuoles:
        centre = rng.uniform(-0.32, 0.32, (1, 2)) * (look.width, look.height)
        plane *= 1 - np.float32(0.75) * frame.fill(
            blob(rng, 2 * radius, 2 * radius) + rotate(centre, look.angle), soft=0.3 * scale
        )
    if look.halo_depth and shapes:
        centre = np.concatenate(shapes).mean(axis=0)
        ring = blob(rng, 2 * look.halo, 2 * look.halo * between(rng, 0.7, 1.0), rough=0.07)
        ring = rotate(ring, between(rng, 0, np.pi)) + centre
        plane *= 1 - np.float32(look.halo_depth) * frame.fill(ring, soft=max(0.4, look.halo_soft * scale))
        if look.halo_rim:
            edge = frame.stroke(ring, width_um=1.6, closed=True, soft=0.5 * scale)
            plane += np.float32(look.halo_rim) * edge * mask
    if look.granules:
        spots = rotate(rng.normal(0, 0.22, (look.granules, 2)) * (look.width, look.height), look.angle)
        plane += np.float32(0.5) * frame.dots(spots, 0.35) * mask
    return np.asarray(np.maximum(plane, 0))


def _stain_nucleus(
    chromatin: F32, nucleoli: F32, nucleus: Nucleus, curve: Points, frame: Canvas, rng: np.random.Generator
) -> None:
    """Adds one nucleus to the planes, drawn in a window of its own."""
    scale = frame.scale
    near = Canvas(curve, scale, pad=3)
    mask = near.fill(curve, soft=max(0.45, 0.16 * scale))
    height, width = mask.shape
    y, x = near.y - frame.y, near.x - frame.x
    inside = (slice(y, y + height), slice(x, x + width))
    grain = patch_of(texture(round_sigma(0.22 * scale)), height, width, rng)
    clumps = patch_of(texture(round_sigma((0.3 + 0.5 * nucleus.coarse) * scale)), height, width, rng)
    plane = 1 + np.float32(0.08) * grain + np.float32(nucleus.coarse) * np.tanh(clumps * np.float32(1.6))
    centre = curve.mean(axis=0)
    if nucleus.rim or nucleus.pale:
        inner = near.fill((curve - centre) * 0.78 + centre, soft=max(0.6, 0.35 * scale))
        plane += np.float32(nucleus.rim) * (1 - inner) - np.float32(nucleus.pale) * inner
    chromatin[inside] += mask * np.maximum(plane, np.float32(0.15)) * np.float32(nucleus.dark)
    if nucleus.nucleoli:
        spread = np.array(nucleus.axes) * 0.2
        spots = rotate(rng.normal(0, 1, (nucleus.nucleoli, 2)).clip(-1, 1) * spread, nucleus.angle) + centre
        sizes = nucleus.nucleolus / 2 * rng.uniform(0.75, 1.15, nucleus.nucleoli)
        nucleoli[inside] += near.dots(spots, sizes, soft=0.35) * mask
