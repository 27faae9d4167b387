"""Organisms, herpetic changes and leucocytes. Extents follow the Bethesda 2014 atlas (non-neoplastic findings).

Each function takes a generator, a style and a scale (px per um) and returns a `Sprite` with one mark: the
organism's extent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wsi_chat.datasets.render.cells import Box, Look, Mark, Nucleus, Sprite, draw_cell, extent
from wsi_chat.datasets.render.chance import Rng, between
from wsi_chat.datasets.render.normal_looks import intermediate, superficial
from wsi_chat.datasets.render.shapes import Canvas, Points, blob, rotate
from wsi_chat.datasets.render.stains import F32, Style, patch_of, round_sigma, texture


def _finish(layers: list[tuple[F32, F32]], frame: Canvas, label: str, box: Box, blur: float) -> Sprite:
    return Sprite(frame.dye(layers, blur), frame.x, frame.y, (Mark(label, box, None),))


def _walk(rng: Rng, steps: int, stride: float, wander: float, heading: float) -> Points:
    """A smooth random path (um) starting at the origin."""
    turns = heading + np.cumsum(rng.normal(0, wander, steps))
    path = np.cumsum(np.stack([np.cos(turns), np.sin(turns)], axis=1) * stride, axis=0)
    return np.concatenate([np.zeros((1, 2)), path])


def candida(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """Pseudohyphae, 2-3 um wide with constrictions, and budding yeasts of 3-7 um; red-brown."""
    lines: list[Points] = []
    heading = between(rng, 0, 2 * np.pi)
    for _ in range(int(rng.integers(1, 5))):
        steps = int(rng.integers(5, 13))
        start = lines[0][int(rng.integers(len(lines[0])))] if lines else np.zeros(2)
        lines.append(start + _walk(rng, steps, 5.0, 0.16, heading + rng.normal(0, 0.7)))
    joints = np.concatenate(lines)
    buds = joints[rng.integers(len(joints), size=int(rng.integers(2, 12)))]
    buds = buds + rng.normal(0, 3.0, buds.shape)
    centre = joints.mean(axis=0)
    lines, buds = [line - centre for line in lines], buds - centre
    yeasts = [
        rotate(blob(rng, between(rng, 3, 6.5), between(rng, 2.2, 3.6)), between(rng, 0, 6.3)) + bud for bud in buds
    ]
    everything = np.concatenate([*lines, *yeasts])
    width = between(rng, 1.7, 2.8)
    blur = float(np.hypot(defocus, style.blur)) * scale
    frame = Canvas(everything, scale, pad=6 + width * scale + 3 * blur)
    thread = frame.stroke(*lines, width_um=width, soft=0.25 * scale)
    septa = frame.dots(np.concatenate(lines), 0.45 * width, soft=0.3 * scale)
    plane = thread * (0.55 + 0.3 * septa) + 0.75 * frame.fill(*yeasts, soft=0.25 * scale)
    dye = style.haematoxylin * between(rng, 0.2, 0.6) + style.eosin * between(rng, 0.4, 0.9)
    plane *= np.float32(between(rng, 0.6, 1.15))
    box = extent(everything, scale)
    half = width * scale / 2
    grown = (box[0] - half, box[1] - half, box[2] + half, box[3] + half)
    return _finish([(plane, dye.astype(np.float32))], frame, "candida", grown, blur)


def trichomonas(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """Pear-shaped, 10-22 um, grey-green, pale eccentric lens-shaped nucleus, red granules, fuzzy edge."""
    length = between(rng, 10, 22)
    t = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    pear = np.stack(
        [np.cos(t) * length / 2, np.sin(t) * (1 - between(rng, 0.2, 0.45) * np.cos(t)) * length * 0.34],
        axis=1,
    )
    pear += rng.normal(0, 0.15, pear.shape)
    turn = between(rng, 0, 2 * np.pi)
    body = rotate(pear, turn)
    blur = float(np.hypot(defocus, style.blur)) * scale
    frame = Canvas(body, scale, pad=4 + 3 * blur + 0.8 * scale)
    mask = frame.fill(body, soft=0.5 * scale)
    mottled = patch_of(texture(round_sigma(0.9 * scale)), frame.height, frame.width, rng)
    plane = mask * (1 + np.float32(0.25) * mottled) * np.float32(between(rng, 0.25, 0.55))
    core = rotate(blob(rng, length * 0.27, length * 0.13), turn + rng.normal(0, 0.4))
    core = core + rotate(np.array([[-0.18 * length, rng.normal(0, 0.04) * length]]), turn)
    kernel = frame.fill(core, soft=0.25 * scale) * np.float32(between(rng, 0.25, 0.6))
    grains = rotate(rng.normal(0, 0.14, (int(rng.integers(4, 16)), 2)) * (length, length * 0.7), turn)
    red = frame.dots(grains, 0.4) * mask * np.float32(0.6)
    layers = [(plane, style.cytoplasm_dye(0.8, 0.15, 0.05)), (kernel, style.haematoxylin), (red, style.eosin)]
    return _finish(layers, frame, "trichomonas", extent(body, scale), blur)


def flora(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """A clue cell: a squamous cell whose surface and edge are covered by coccobacilli (shift in flora)."""
    look = intermediate(rng) if rng.random() < 0.6 else superficial(rng)
    base = draw_cell(look, rng, style, scale=scale, defocus=defocus)
    box = base.marks[0].box
    corner = np.array([[box[0], box[1]], [box[2], box[3]]]) / scale
    frame = Canvas(corner, scale, pad=1)
    frame.x, frame.y, (frame.height, frame.width) = base.x, base.y, base.od.shape[1:]
    middle, axes = corner.mean(axis=0), (corner[1] - corner[0]) / 2
    count = int(rng.integers(350, 900))
    angle, radius = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0.0, 0.92, count))
    rods = middle + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None] * axes
    presence = np.float32(between(rng, 0.35, 0.75))
    film = np.minimum(base.od.sum(axis=0) * 6, 1)
    dye = style.haematoxylin * np.float32(0.8) + style.green * np.float32(0.2)
    coat = frame.dots(rods, between(rng, 0.35, 0.6), soft=0.45) * film
    od = base.od + frame.dye([(coat * presence, dye)], float(np.hypot(defocus, style.blur)) * scale)
    return Sprite(od, base.x, base.y, (Mark("flora", box, base.marks[0].nucleus),))


def actinomyces(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """A tangled clump of filaments ("cotton ball"), dark centre, radiating fringe; 25-80 um."""
    size = between(rng, 25, 75)
    filaments = []
    for _ in range(int(rng.integers(45, 90))):
        heading = between(rng, 0, 2 * np.pi)
        start = rng.normal(0, 0.13, 2) * size
        filaments.append(start + _walk(rng, 9, size * between(rng, 0.025, 0.055), 0.3, heading))
    points = np.concatenate(filaments)
    points_mean = points.mean(axis=0)
    filaments = [line - points_mean for line in filaments]
    points = points - points_mean
    blur = float(np.hypot(defocus, style.blur)) * scale
    frame = Canvas(points, scale, pad=4 + 3 * blur)
    fringe = frame.stroke(*filaments, width_um=0.6, soft=0.25 * scale)
    core = frame.fill(blob(rng, size * 0.5, size * 0.42, rough=0.1), soft=0.07 * size * scale)
    grain = patch_of(texture(round_sigma(0.5 * scale)), frame.height, frame.width, rng)
    plane = fringe * np.float32(between(rng, 0.4, 0.75)) + core * (1 + np.float32(0.35) * grain) * np.float32(
        between(rng, 0.5, 1.1)
    )
    dye = style.haematoxylin * np.float32(0.8) + style.eosin * np.float32(between(rng, 0, 0.4))
    return _finish([(plane.astype(np.float32), dye)], frame, "actinomyces", extent(points, scale), blur)


def herps(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """HSV: 2-8 moulded nuclei in one cell, ground-glass chromatin with a thick marginated rim."""
    count = int(rng.integers(2, 9))
    area = between(rng, 45, 95)
    radius = float(np.sqrt(area / np.pi))
    spots: list[tuple[float, float]] = [(0.0, 0.0)]
    while len(spots) < count:
        anchor = spots[int(rng.integers(len(spots)))]
        angle = between(rng, 0, 2 * np.pi)
        new = (anchor[0] + 1.65 * radius * np.cos(angle), anchor[1] + 1.65 * radius * np.sin(angle))
        if all((new[0] - x) ** 2 + (new[1] - y) ** 2 > (1.45 * radius) ** 2 for x, y in spots):
            spots.append((float(new[0]), float(new[1])))
    place = np.array(spots) - np.mean(spots, axis=0)
    nuclei = tuple(
        Nucleus(
            area=area * between(rng, 0.75, 1.15),
            dark=between(rng, 0.45, 0.85),
            aspect=between(rng, 1.05, 1.45),
            angle=between(rng, 0, 6.3),
            rough=0.03,
            coarse=0.02,
            rim=between(rng, 0.5, 0.9),
            pale=between(rng, 0.15, 0.4),
            at=(float(x), float(y)),
            nucleoli=int(rng.random() < 0.2),
            nucleolus=2.2,
        )
        for x, y in place
    )
    span = np.ptp(place, axis=0) + 2 * radius
    grow = between(rng, 1.25, 1.7)
    look = Look(
        "herps",
        float(span[0] * grow),
        float(span[1] * grow),
        "round",
        density=between(rng, 0.3, 0.7),
        tint=(0.7, 0.35, 0.05),
        nuclei=nuclei,
        rough=0.05,
        mottle=0.12,
    )
    return draw_cell(look, rng, style, scale=scale, defocus=defocus)


def neutrophil(rng: Rng, style: Style, *, scale: float, defocus: float = 0.0) -> Sprite:
    """9-13 um, two to four dark lobes, faint cytoplasm (often lost)."""
    size = between(rng, 8.5, 12.5)
    lobes = int(rng.integers(2, 5))
    angles = between(rng, 0, 2 * np.pi) + np.arange(lobes) * between(rng, 1.1, 1.7)
    reach = size * between(rng, 0.16, 0.25)
    width = np.sqrt(rng.uniform(8, 16, lobes) * (3 / lobes) ** 0.5)
    segments = [
        rotate(blob(rng, wide * between(rng, 1, 1.5), wide, rough=0.04), angle)
        + np.array((reach * np.cos(angle), reach * np.sin(angle)))
        for wide, angle in zip(width, angles, strict=True)
    ]
    body = blob(rng, size, size * between(rng, 0.85, 1), rough=0.05)
    blur = float(np.hypot(defocus, style.blur)) * scale
    everything = np.concatenate([body, *segments])
    frame = Canvas(everything, scale, pad=3 + 3 * blur)
    grain = patch_of(texture(round_sigma(0.3 * scale)), frame.height, frame.width, rng)
    lobed = frame.fill(*segments, soft=max(0.45, 0.16 * scale))
    dark = lobed * (1 + np.float32(0.08) * grain) * np.float32(between(rng, 0.9, 1.9) * style.nuclear)
    pale = frame.fill(body, soft=0.4 * scale) * np.float32(between(rng, 0.04, 0.25))
    layers = [(dark, style.haematoxylin), (pale, style.cytoplasm_dye(0.6, 0.5, 0.05))]
    kernel = extent(np.concatenate(segments), scale)
    return Sprite(frame.dye(layers, blur), frame.x, frame.y, (Mark("neutrophil", extent(everything, scale), kernel),))


ORGANISM_SPRITES: dict[str, Callable[..., Sprite]] = {
    "candida": candida,
    "trichomonas": trichomonas,
    "flora": flora,
    "actinomyces": actinomyces,
    "herps": herps,
    "neutrophil": neutrophil,
}
