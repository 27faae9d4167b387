"""How cells lie together: sheets, rows, rosettes, syncytia, clumps; and how one placed thing becomes a sprite.

Glandular groups and neutrophil clumps carry one annotation for the group, as cytologists box them; all others carry one
per cell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsi_chat.datasets.render.cells import Look, Mark, Sprite, draw_cell, moved
from wsi_chat.datasets.render.chance import Rng, between
from wsi_chat.datasets.render.clutter import CLUTTER
from wsi_chat.datasets.render.looks import LOOKS
from wsi_chat.datasets.render.organisms import ORGANISM_SPRITES, neutrophil
from wsi_chat.datasets.render.stains import Style

GROUP_KINDS = ("agc", "endocervical_group", "neutrophil_clump")
_GOLDEN = np.pi * (3 - np.sqrt(5))


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to draw: what, where its centre lies (um), its own seed, its defocus (um).

    `look` fixes a cell's measurements; without it they follow from the seed.
    """

    kind: str
    x: float
    y: float
    seed: int
    defocus: float = 0.0
    look: Look | None = None


def label_of(kind: str) -> str | None:
    """The label that things of `kind` are annotated with; None for clutter."""
    if kind in CLUTTER or kind == "naked":
        return None
    aliases = {
        "reactive": "intermediate",
        "atrophic": "parabasal",
        "endocervical_group": "endocervical",
        "neutrophil_clump": "neutrophil",
    }
    return aliases.get(kind, kind)


def draw_item(item: Item, style: Style, *, scale: float) -> Sprite:
    """The sprite of an item; depends on the item, the style and the scale (px per um) only."""
    rng = np.random.default_rng(item.seed)
    if item.look is not None:
        return draw_cell(item.look, rng, style, scale=scale, defocus=item.defocus)
    if item.kind in ORGANISM_SPRITES:
        return ORGANISM_SPRITES[item.kind](rng, style, scale=scale, defocus=item.defocus)
    if item.kind in CLUTTER:
        return CLUTTER[item.kind](rng, style, scale=scale, defocus=item.defocus)
    if item.kind == "agc":
        return _merge("agc", _glandular_group(rng), rng, style, scale, item.defocus)
    if item.kind == "endocervical_group":
        return _merge("endocervical", _endocervical_group(rng), rng, style, scale, item.defocus)
    if item.kind == "neutrophil_clump":
        return _clump(rng, style, scale, item.defocus)
    return draw_cell(LOOKS[item.kind](rng), rng, style, scale=scale, defocus=item.defocus)


def _union(label: str, sprites: list[tuple[Sprite, int, int]]) -> Sprite:
    """Sprites at px offsets as one sprite with one mark around all marks."""
    x0 = min(s.x + dx for s, dx, _ in sprites)
    y0 = min(s.y + dy for s, _, dy in sprites)
    x1 = max(s.x + dx + s.od.shape[2] for s, dx, _ in sprites)
    y1 = max(s.y + dy + s.od.shape[1] for s, _, dy in sprites)
    od = np.zeros((3, y1 - y0, x1 - x0), dtype=np.float32)
    boxes = []
    for s, dx, dy in sprites:
        top, left = s.y + dy - y0, s.x + dx - x0
        od[:, top : top + s.od.shape[1], left : left + s.od.shape[2]] += s.od
        boxes += [moved(mark.box, dx, dy) for mark in s.marks]
    stack = np.array(boxes)
    low, high = stack[:, :2].min(axis=0), stack[:, 2:].max(axis=0)
    return Sprite(od, x0, y0, (Mark(label, (float(low[0]), float(low[1]), float(high[0]), float(high[1])), None),))


def _merge(
    label: str, members: list[tuple[Look, float, float]], rng: Rng, style: Style, scale: float, defocus: float
) -> Sprite:
    drawn = []
    for look, x, y in members:
        sprite = draw_cell(look, rng, style, scale=scale, defocus=defocus)
        drawn.append((sprite, round(x * scale), round(y * scale)))
    return _union(label, drawn)


def _clump(rng: Rng, style: Style, scale: float, defocus: float) -> Sprite:
    """4-14 neutrophils on top of each other: a dark clump that is no epithelium."""
    count = int(rng.integers(4, 15))
    drawn = []
    for i in range(count):
        radius, angle = 4.6 * np.sqrt(i) * between(rng, 0.8, 1.15), i * _GOLDEN + rng.normal(0, 0.3)
        sprite = neutrophil(rng, style, scale=scale, defocus=defocus)
        drawn.append((sprite, round(radius * np.cos(angle) * scale), round(radius * np.sin(angle) * scale)))
    return _union("neutrophil", drawn)


def _darken(look: Look, factor: float, **changes: Any) -> Look:
    """The look with its nuclei `factor` times as dark, and other fields changed."""
    return replace(look, nuclei=tuple(replace(n, dark=n.dark * factor) for n in look.nuclei), **changes)


def _glandular_group(rng: Rng) -> list[tuple[Look, float, float]]:
    """AGC: a rosette, a feathering strip or a crowded sheet of elongated overlapping nuclei (Bethesda 2014)."""
    tint = LOOKS["glandular"](rng).tint
    tone = between(rng, 0.75, 1.15)
    members: list[tuple[Look, float, float]] = []
    kind, lean = rng.random(), between(rng, 0, 2 * np.pi)
    c, s = np.cos(lean), np.sin(lean)
    count = int(rng.integers(7, 17))
    for i in range(count):
        look = _darken(LOOKS["glandular"](rng), tone, tint=tint, label="agc")
        if kind < 0.35:  # rosette: nuclei outwards around a lumen
            angle = 2 * np.pi * i / count + rng.normal(0, 0.12)
            radius = max(9.0, count * 0.95) * between(rng, 0.85, 1.15)
            members.append((replace(look, angle=float(angle)), radius * np.cos(angle), radius * np.sin(angle)))
        elif kind < 0.7:  # strip: pseudostratified, feathering at one edge
            along, across = (i - count / 2) * between(rng, 3.8, 5.2), rng.normal(0, 3.2)
            turn = lean + np.pi / 2 + rng.normal(0, 0.22)
            members.append((replace(look, angle=float(turn)), along * c - across * s, along * s + across * c))
        else:
            radius, angle = 5.0 * np.sqrt(i + 0.3) * between(rng, 0.85, 1.15), i * _GOLDEN
            turn = lean + rng.normal(0, 0.45)
            members.append((replace(look, angle=float(turn)), radius * np.cos(angle), radius * np.sin(angle)))
    return members


def _endocervical_group(rng: Rng) -> list[tuple[Look, float, float]]:
    """A flat honeycomb seen from above, or a picket fence seen from the side; nuclei even and evenly spaced."""
    tint = LOOKS["endocervical"](rng).tint
    reactive = rng.random() < 0.3  # benign: larger nuclei with nucleoli, still round and spaced
    dark, area = (
        between(rng, 0.55, 1.25),
        between(rng, 42, 60) * (between(rng, 1.3, 1.9) if reactive else 1.0),
    )
    density = between(rng, 0.22, 0.5)
    members: list[tuple[Look, float, float]] = []
    lean = between(rng, 0, 2 * np.pi)
    c, s = np.cos(lean), np.sin(lean)
    if rng.random() < 0.6:
        crowded = rng.random() < 0.35  # benign too: hyperplasia, tubal metaplasia; the nuclei stay even and smooth
        pitch = between(rng, 9.5, 12.5) * (1.15 if reactive else 1.0) * (0.72 if crowded else 1.0)
        count = int(rng.integers(5, 17))
        for i in range(count):
            look = LOOKS["endocervical"](rng)
            nucleus = replace(
                look.nuclei[0],
                area=area * rng.lognormal(0, 0.1),
                dark=dark * rng.lognormal(0, 0.08),
                aspect=between(rng, 1, 1.25),
                angle=between(rng, 0, 3),
                at=(0.0, 0.0),
                nucleoli=1 if reactive else look.nuclei[0].nucleoli,
            )
            look = replace(
                look,
                form="polygon",
                width=pitch * 1.18,
                height=pitch * 1.12,
                tint=tint,
                density=density,
                nuclei=(nucleus,),
                vacuoles=(),
                rim=0.25,
                gradient=-0.2,
            )
            radius, angle = pitch * 0.55 * np.sqrt(i) * between(rng, 0.97, 1.03), i * _GOLDEN
            members.append((look, radius * np.cos(angle), radius * np.sin(angle)))
    else:
        for i in range(count := int(rng.integers(3, 9))):
            look = LOOKS["endocervical"](rng)
            nucleus = replace(look.nuclei[0], area=area * rng.lognormal(0, 0.1), dark=dark * rng.lognormal(0, 0.08))
            turn = lean + np.pi / 2 + rng.normal(0, 0.07)
            look = replace(look, tint=tint, density=density, nuclei=(nucleus,), angle=float(turn), rim=0.15)
            along, across = (i - count / 2) * look.height * 0.92, rng.normal(0, 0.8)
            members.append((look, along * c - across * s, along * s + across * c))
    return members


def sheet(kind: str, rng: Rng, count: int, *, crowding: float) -> list[Item]:
    """`count` cells in a flat group sharing tint and tone; `crowding` 1 touches, above 1 overlaps."""
    first = LOOKS[kind](rng)
    tone = between(rng, 0.8, 1.15)
    items = []
    stream = between(rng, 0, np.pi)
    for i in range(count):
        made = LOOKS[kind](rng)
        turn = float(stream + rng.normal(0, 0.25)) if kind == "reactive" else made.angle
        look = _darken(made, tone, tint=first.tint, density=first.density, angle=turn)
        pitch = 0.5 * (first.width + first.height) / 2 * 1.9 / crowding
        radius, angle = pitch * 0.55 * np.sqrt(i) * between(rng, 0.92, 1.08), i * _GOLDEN
        items.append(Item(kind, radius * np.cos(angle), radius * np.sin(angle), int(rng.integers(2**31)), look=look))
    return items


def row(kind: str, rng: Rng, count: int) -> list[Item]:
    """Cells in single file, as HSIL often lies in mucus."""
    first = LOOKS[kind](rng)
    turn, items, x, y = between(rng, 0, 2 * np.pi), [], 0.0, 0.0
    for _ in range(count):
        look = replace(LOOKS[kind](rng), tint=first.tint)
        items.append(Item(kind, x, y, int(rng.integers(2**31)), look=look))
        turn += rng.normal(0, 0.25)
        step = (look.width + first.width) / 2 * between(rng, 0.75, 1.05)
        x, y = x + step * np.cos(turn), y + step * np.sin(turn)
    return items


def centred(items: list[Item]) -> list[Item]:
    """The same items around their common centre."""
    mx = sum(item.x for item in items) / len(items)
    my = sum(item.y for item in items) / len(items)
    return [replace(item, x=item.x - mx, y=item.y - my) for item in items]


def make_group(kind: str, rng: Rng, count: int | None = None) -> list[Item]:
    """Items around (0, 0) for one event of `kind`: alone, or in the arrangement typical of it.

    `count` fixes how many annotated things come of it. `kind` is a label, `reactive`, `atrophic`, or
    `neutrophil_clump`.
    """
    single = [Item(kind, 0.0, 0.0, int(rng.integers(2**31)))]
    if kind == "endocervical" and rng.random() < 0.75:
        single = [Item("endocervical_group", 0.0, 0.0, int(rng.integers(2**31)))]
    if count == 1 or kind in GROUP_KINDS or kind in ORGANISM_SPRITES or kind in CLUTTER or kind == "endocervical":
        return single
    ranges = {
        "hsil": (2, 8),
        "asch": (2, 5),
        "scc": (2, 6),
        "parabasal": (2, 7),
        "atrophic": (4, 15),
        "metaplastic": (2, 8),
        "reactive": (2, 7),
        "intermediate": (2, 4),
        "lsil": (2, 4),
        "superficial": (2, 3),
        "ascus": (2, 3),
    }
    chance = {
        "atrophic": 0.85,
        "metaplastic": 0.6,
        "hsil": 0.5,
        "reactive": 0.6,
        "parabasal": 0.5,
        "asch": 0.4,
    }
    if count is None:
        if rng.random() > chance.get(kind, 0.25):
            return single
        count = int(rng.integers(ranges[kind][0], ranges[kind][1] + 1))
    if kind in ("hsil", "asch") and rng.random() < 0.4:
        return centred(row(kind, rng, count))
    tight = {"hsil": (0.95, 1.5), "atrophic": (0.9, 1.35), "asch": (0.8, 1.1), "metaplastic": (0.85, 1.1)}
    low, high = tight.get(kind, (0.65, 1.05))
    return centred(sheet(kind, rng, count, crowding=between(rng, low, high)))
