"""One field of view: what lies where, drawn, and annotated.

`plan_field` decides (style, items), `paint` draws any part of a plan, `render_field` does both and
goes through the camera.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_chat.datasets.render.cells import Box, Sprite, moved
from wsi_chat.datasets.render.groups import Item, draw_item, make_group
from wsi_chat.datasets.render.smear import PREPARATIONS, Smear, draw_smear, film
from wsi_chat.datasets.render.stains import F32, U8, Style, develop, draw_style, grain, patch_of

Rng = np.random.Generator

ABNORMAL = ("ascus", "lsil", "asch", "hsil", "scc", "agc")
NORMAL = ("superficial", "intermediate", "parabasal", "metaplastic", "endocervical")
ORGANISMS = ("candida", "trichomonas", "flora", "actinomyces", "herps")
LABELS = (*ABNORMAL, *NORMAL, *ORGANISMS, "neutrophil")
RECIPES = ("normal", "abnormal", "organism", "empty", "hard_normal", "single")
MIN_VISIBLE = 0.35  # a cell of which less is seen is drawn, but not annotated
ABNORMAL_VISIBLE = 0.5  # a field is abnormal if at least this much of an abnormal cell is seen

_MIX = {"abnormal": 0.46, "normal": 0.16, "hard_normal": 0.2, "organism": 0.08, "single": 0.06, "empty": 0.04}


@dataclass(frozen=True, slots=True)
class Cell:
    """An annotated thing. Boxes are x0, y0, x1, y1 in px of the field, clipped to it.

    `box` is the whole cell, the group for `agc`, `endocervical` and clumped neutrophils, or the organism's extent;
    `nucleus` is None for groups and organisms. `visible` is the fraction of the unclipped box inside the field.
    """

    label: str
    box: Box
    nucleus: Box | None
    visible: float


@dataclass(frozen=True, slots=True)
class Field:
    """A rendered field: (size, size, 3) uint8 RGB, its annotations in reading order, and whether it is abnormal."""

    image: U8
    cells: tuple[Cell, ...]
    abnormal: bool
    mpp: float
    recipe: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that determines a field but its pixels. Item positions are um from the field's top-left corner."""

    recipe: str
    style: Style
    items: tuple[Item, ...]
    sprites: tuple[tuple[Sprite, int, int], ...]
    size: int
    mpp: float
    camera_seed: int
    smear: Smear | None = None


def render_field(
    seed: int,
    *,
    size: int = 256,
    mpp: float = 0.5,
    recipe: str | None = None,
    classes: Sequence[str] | None = None,
    count: tuple[int, int] | None = None,
    preparation: str = "liquid",
    variety: float = 1.0,
) -> Field:
    """A synthetic Papanicolaou field of `size` px at `mpp` um/px; the same arguments give the same bytes everywhere.

    `recipe` is one of `RECIPES`, or None for a mix by seed of which about half is abnormal. `classes` restricts what is
    annotated; `count` is the inclusive range of how many annotated things there are (groups count once).
    `preparation` is one of `PREPARATIONS`; `variety` widens the range of stains and cameras (see `draw_style`). Raises
    ValueError for an unknown recipe, class or preparation.
    """
    plan = plan_field(
        seed, size=size, mpp=mpp, recipe=recipe, classes=classes, count=count, preparation=preparation, variety=variety
    )
    cells = annotate(plan)
    abnormal = any(cell.label in ABNORMAL and cell.visible >= ABNORMAL_VISIBLE for cell in cells)
    return Field(expose(plan, paint(plan)), cells, abnormal, mpp, plan.recipe)


def plan_field(
    seed: int,
    *,
    size: int = 256,
    mpp: float = 0.5,
    recipe: str | None = None,
    classes: Sequence[str] | None = None,
    count: tuple[int, int] | None = None,
    preparation: str = "liquid",
    variety: float = 1.0,
) -> Plan:
    """Style and placed items of a field; see `render_field`."""
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown; use one of {', '.join(RECIPES)}")
    if preparation not in PREPARATIONS:
        raise ValueError(f"preparation {preparation!r} is unknown; use one of {', '.join(PREPARATIONS)}")
    for name in classes or ():
        if name not in LABELS:
            raise ValueError(f"class {name!r} is unknown; use one of {', '.join(LABELS)}")
    rng = np.random.Generator(np.random.PCG64([seed, 20140]))
    if recipe is None:
        if classes is not None or count is not None:
            recipe = "abnormal" if classes is None or any(name in ABNORMAL for name in classes) else "normal"
        else:
            recipe = str(rng.choice(list(_MIX), p=list(_MIX.values())))
    style = draw_style(rng, variety=variety)
    smear = draw_smear(rng) if preparation == "conventional" else None
    layout = _Layout(rng, style, size, mpp, smear)
    if recipe == "single":
        layout.exactly(tuple(classes or LABELS), 1)
    elif classes is not None or count is not None:
        low, high = count or (1, 5)
        layout.exactly(tuple(classes or _choices(recipe)), int(rng.integers(low, high + 1)))
    else:
        _FILL[recipe](layout, rng)
    layout.clutter(recipe)
    order = rng.permutation(len(layout.placed)) if recipe == "hard_normal" else np.arange(len(layout.placed))
    chosen = [layout.placed[i] for i in order]
    return Plan(
        recipe, layout.style, tuple(item for item, _ in chosen), tuple(drawn for _, drawn in chosen), size, mpp,
        int(rng.integers(2**31)), smear,
    )  # fmt: skip


def _choices(recipe: str) -> tuple[str, ...]:
    return {"abnormal": ABNORMAL, "organism": ORGANISMS, "empty": ()}.get(recipe, NORMAL)


class _Layout:
    """Places groups in a field: centres inside, little overlap unless there is no room."""

    def __init__(self, rng: Rng, style: Style, size: int, mpp: float, smear: Smear | None) -> None:
        self.rng, self.style, self.size, self.scale, self.smear = rng, style, size, 1 / mpp, smear
        self.placed: list[tuple[Item, tuple[Sprite, int, int]]] = []
        self.taken = np.zeros((0, 4))

    def add(self, kind: str, *, count: int | None = None, inside: float = 0.8, overlap: float = 0.15) -> int:
        """Places one group; returns the number of annotations. `inside` is how often it is kept wholly in the field."""
        rng, size = self.rng, self.size
        if self.smear is not None:
            overlap = max(overlap, self.smear.overlap)
        group = make_group(kind, rng, count)
        defocus = float(abs(rng.normal(0, 0.22))) if rng.random() < 0.85 else float(rng.uniform(0.4, 1.1))
        group = [replace(item, defocus=defocus) for item in group]
        drawn = [draw_item(item, self.style, scale=self.scale) for item in group]
        spots = [(round(item.x * self.scale), round(item.y * self.scale)) for item in group]
        boxes = np.array(
            [moved(m.box, dx, dy) for s, (dx, dy) in zip(drawn, spots, strict=True) for m in s.marks]
        ).reshape(-1, 4)
        if len(boxes):
            low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        else:
            low, high = np.array([-4.0, -4.0]), np.array([4.0, 4.0])
        span = high - low
        slack = 0.0 if rng.random() < inside else 0.3
        start, stop = -slack * span - low, size - (1 - slack) * span - low
        stop, start = np.maximum(start, stop), np.minimum(start, stop)
        spots_tried = np.round(rng.uniform(start, stop, (14 if len(boxes) else 1, 2)))
        cost = self._overlap(np.concatenate([spots_tried + low, spots_tried + high], axis=1))
        good = np.flatnonzero(cost <= overlap)
        x, y = (int(value) for value in spots_tried[good[0] if good.size else int(cost.argmin())])
        if len(boxes):
            self.taken = np.concatenate([self.taken, [[x + low[0], y + low[1], x + high[0], y + high[1]]]])
        for item, sprite, (dx, dy) in zip(group, drawn, spots, strict=True):
            self.placed.append((item, (sprite, x + dx, y + dy)))
        return len(boxes)

    def _overlap(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each candidate box, the sum over what lies there of the overlap, relative to the smaller of the two."""
        side = np.minimum(boxes[:, None, 2:], self.taken[None, :, 2:]) - np.maximum(
            boxes[:, None, :2], self.taken[None, :, :2]
        )
        shared = np.maximum(side, 0).prod(axis=2)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        other = (self.taken[:, 2:] - self.taken[:, :2]).prod(axis=1)
        return np.asarray((shared / np.maximum(np.minimum(area[:, None], other[None]), 1)).sum(axis=1))

    def exactly(self, classes: tuple[str, ...], count: int) -> None:
        """`count` annotated things of `classes`, one by one."""
        for _ in range(count if classes else 0):
            label = str(self.rng.choice(classes))
            kind = label
            if label in ("parabasal", "intermediate") and self.rng.random() < 0.3:
                kind = "atrophic" if label == "parabasal" else "reactive"
            elif label == "neutrophil" and self.rng.random() < 0.25:
                kind = "neutrophil_clump"
            self.add(kind, count=1, inside=0.9, overlap=0.05)

    def clutter(self, recipe: str) -> None:
        """Unannotated background; any recipe can have any of it."""
        rng = self.rng
        room = (self.size / self.scale / 128) ** 2
        busy = rng.gamma(1.2, 1.3) * (2.0 if recipe == "empty" else 1.0)
        rates = {
            "debris": 1.6,
            "mucus": 0.25,
            "blood": 0.35,
            "bubble": 0.08,
            "bacilli": 0.2,
            "diathesis": 0.2,
            "naked": 0.25,
        }
        if recipe == "empty" or recipe == "single":
            rates["naked"] = 0.0
        if self.smear is not None:
            rates |= {"blood": 0.35 * self.smear.blood, "red_sheet": 0.12 * self.smear.blood, "diathesis": 0.35}
        before = len(self.placed)
        for kind, rate in rates.items():
            for _ in range(min(int(rng.poisson(rate * busy * room)), 12)):
                self.add(kind, inside=0.5, overlap=0.6)
        self.placed = self.placed[before:] + self.placed[:before]


def _normal(layout: _Layout, rng: Rng) -> None:
    weights = rng.dirichlet((1.2, 1.6, 0.5, 0.5, 0.5))
    for _ in range(_events(layout, rng, 1, 7)):
        layout.add(str(rng.choice(NORMAL, p=weights)))
    if rng.random() < 0.35:
        layout.add(str(rng.choice(("reactive", "atrophic"))))
    _leucocytes(layout, rng)


def _hard_normal(layout: _Layout, rng: Rng) -> None:
    theme = str(rng.choice(("atrophy", "repair", "inflammation", "mixed")))
    weights = {
        "atrophy": {"atrophic": 0.6, "parabasal": 0.15, "naked": 0.1, "reactive": 0.15},
        "repair": {"reactive": 0.6, "metaplastic": 0.2, "endocervical": 0.2},
        "inflammation": {"neutrophil_clump": 0.3, "reactive": 0.5, "intermediate": 0.2},
        "mixed": {"atrophic": 0.2, "reactive": 0.3, "metaplastic": 0.2, "endocervical": 0.2, "naked": 0.1},
    }[theme]
    for _ in range(_events(layout, rng, 1, 5)):
        layout.add(str(rng.choice(list(weights), p=list(weights.values()))))
    if rng.random() < 0.5:
        layout.add(str(rng.choice(("superficial", "intermediate"))))
    _leucocytes(layout, rng)


def _abnormal(layout: _Layout, rng: Rng) -> None:
    first = str(rng.choice(ABNORMAL))
    for _ in range(int(rng.integers(1, 4))):
        layout.add(first if rng.random() < 0.8 else str(rng.choice(ABNORMAL)))
    if rng.random() < 0.8:
        companions = rng.dirichlet((1, 1.4, 0.5, 0.5, 0.4))
        for _ in range(_events(layout, rng, 0, 5)):
            layout.add(str(rng.choice(NORMAL, p=companions)))
    if rng.random() < 0.25:
        layout.add(str(rng.choice(("reactive", "atrophic"))))
    if first == "scc" and rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 4))):
            layout.add("diathesis", inside=0.4, overlap=0.9)
    _leucocytes(layout, rng)


def _organism(layout: _Layout, rng: Rng) -> None:
    kind = str(rng.choice(ORGANISMS))
    many = {"trichomonas": 6, "flora": 4, "candida": 3}.get(kind, 2)
    for _ in range(int(rng.integers(1, many + 1))):
        layout.add(kind)
    for _ in range(_events(layout, rng, 0, 4)):
        layout.add(str(rng.choice(("superficial", "intermediate", "parabasal", "reactive"), p=(0.3, 0.4, 0.15, 0.15))))
    if rng.random() < 0.2:
        layout.add(str(rng.choice(ABNORMAL)))
    _leucocytes(layout, rng)


def _empty(layout: _Layout, rng: Rng) -> None:
    del layout, rng


_FILL = {
    "normal": _normal,
    "hard_normal": _hard_normal,
    "abnormal": _abnormal,
    "organism": _organism,
    "empty": _empty,
}


def _events(layout: _Layout, rng: Rng, low: int, high: int) -> int:
    """A number of groups for a 128 um field, scaled with the field's area."""
    room = (layout.size / layout.scale / 128) ** 2 * (layout.smear.crowding if layout.smear else 1.0)
    return max(low, round(float(rng.uniform(low, high)) * room))


def _leucocytes(layout: _Layout, rng: Rng) -> None:
    if rng.random() < 0.45:
        often = layout.smear.inflammation if layout.smear else 1.0
        for _ in range(min(int(rng.gamma(1.0, 2.5) * often) + 1, round(12 * max(often, 1.0)))):
            layout.add("neutrophil_clump" if rng.random() < 0.06 else "neutrophil", overlap=0.5)


def paint(plan: Plan, *, skip: int | None = None) -> F32:
    """The plan's optical density (3, size, size); `skip` leaves one item out."""
    if plan.smear is None:
        od = np.zeros((3, plan.size, plan.size), dtype=np.float32)
    else:
        od = film(plan.smear, plan.style, plan.size, 1 / plan.mpp)
    for number, (sprite, x, y) in enumerate(plan.sprites):
        if number != skip:
            stamp(od, sprite, x, y)
    return od


def stamp(od: F32, sprite: Sprite, x: int, y: int) -> None:
    """Adds a sprite whose centre lies at (x, y) px to `od`, clipped."""
    top, left = y + sprite.y, x + sprite.x
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + sprite.od.shape[1], od.shape[1]), min(left + sprite.od.shape[2], od.shape[2])
    if y1 > y0 and x1 > x0:
        od[:, y0:y1, x0:x1] += sprite.od[:, y0 - top : y1 - top, x0 - left : x1 - left]


def expose(plan: Plan, od: F32) -> U8:
    """The image of a density plane: uneven light, camera curve, noise, JPEG. `od` is used up."""
    rng = np.random.default_rng(plan.camera_seed)
    size, style = plan.size, plan.style
    shade = rng.standard_normal((3, 3)).astype(np.float32) * np.float32(style.shade)
    od += np.maximum(cv2.resize(shade, (size, size), interpolation=cv2.INTER_CUBIC), -0.02) + np.float32(0.02)
    image = develop(od, style, patch_of(grain(), size, size, rng))
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, packed = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, style.jpeg])
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB))


def annotate(plan: Plan) -> tuple[Cell, ...]:
    """The annotations of a plan, top to bottom in bands of an eighth of the field, then left to right."""
    return cells_in(plan.sprites, plan.size, plan.size)


def cells_in(sprites: Iterable[tuple[Sprite, int, int]], width: int, height: int) -> tuple[Cell, ...]:
    """What is seen of sprites at (x, y) px in a window of that size, in the order of `annotate`."""
    cells = []
    for sprite, x, y in sprites:
        for mark in sprite.marks:
            box = moved(mark.box, x, y)
            clipped = clip(box, width, height)
            whole = (box[2] - box[0]) * (box[3] - box[1])
            seen = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1]) / whole
            if seen < MIN_VISIBLE:
                continue
            nucleus = None
            if mark.nucleus is not None:
                nucleus = clip(moved(mark.nucleus, x, y), width, height)
                if nucleus[2] - nucleus[0] < 1 or nucleus[3] - nucleus[1] < 1:
                    nucleus = None
            cells.append(Cell(mark.label, clipped, nucleus, float(min(seen, 1.0))))
    band = height / 8
    return tuple(sorted(cells, key=lambda c: ((c.box[1] + c.box[3]) / 2 // band, c.box[0] + c.box[2])))


def clip(box: Box, width: float, height: float) -> Box:
    """The part of a box inside an image."""
    return (
        min(max(box[0], 0.0), float(width)),
        min(max(box[1], 0.0), float(height)),
        min(max(box[2], 0.0), float(width)),
        min(max(box[3], 0.0), float(height)),
    )
