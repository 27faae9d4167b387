"""A whole synthetic slide as a function of position: any block of it can be drawn, in any order and size.

Every square of a 64 um grid has its own generator, so blocks agree on what lies across their borders; a pixel is
the same whichever block it is drawn in. Memory is bounded by two caches, whatever the size of the slide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wsi_chat.datasets.render.cells import Mark, Sprite, moved
from wsi_chat.datasets.render.field import ABNORMAL, ORGANISMS, Cell, cells_in, clip, stamp
from wsi_chat.datasets.render.groups import Item, draw_item, label_of, make_group
from wsi_chat.datasets.render.smear import PREPARATIONS
from wsi_chat.datasets.render.stains import F32, U8, develop, draw_style, grain

GRID_UM = 64.0
MARGIN_UM = 128.0  # nothing reaches further than this beyond its grid square; what would is left out
SPRITE_CACHE_BYTES = 192 * 1024**2
SQUARE_CACHE = 20_000
SLIDE_RECIPES = ("normal", "hard_normal", "organism", "abnormal", "sparse", *ABNORMAL)

_NORMAL_MIX = {
    "superficial": 0.26, "intermediate": 0.40, "parabasal": 0.05, "metaplastic": 0.06, "endocervical": 0.05,
    "neutrophil": 0.13, "reactive": 0.03, "neutrophil_clump": 0.01, "naked": 0.01,
}  # fmt: skip
_HARD_MIX = {
    "atrophic": 0.2, "parabasal": 0.12, "reactive": 0.18, "metaplastic": 0.1, "endocervical": 0.08,
    "intermediate": 0.12, "superficial": 0.05, "neutrophil": 0.1, "neutrophil_clump": 0.03, "naked": 0.02,
}  # fmt: skip
_CLUTTER_MIX = {"debris": 0.55, "blood": 0.14, "mucus": 0.1, "bacilli": 0.1, "diathesis": 0.08, "bubble": 0.03}
_CLUTTER_SHARE = 0.3  # clutter events per cell event inside the deposit
_DUST = 2.0  # specks per mm2 outside it

Square = tuple[int, int]
Placed = tuple[Item, int, int]


class Scene:
    """What lies where on a slide, and its pixels at level 0.

    `deposit` is the circle (centre x, y, radius; px) that the liquid-based preparation covers; `density` counts events
    (single cells or groups) per mm2 in it; `abnormal_cells` is the exact number of abnormal cells or glandular groups.
    A `conventional` preparation covers the whole slide, unevenly, with blood; `variety` widens the range of stains.
    """

    def __init__(
        self,
        seed: int,
        width_px: int,
        height_px: int,
        mpp: float,
        recipe: str,
        density: float,
        abnormal_cells: int,
        *,
        preparation: str = "liquid",
        variety: float = 1.0,
    ) -> None:
        if recipe not in SLIDE_RECIPES:
            raise ValueError(f"recipe {recipe!r} is unknown; use one of {', '.join(SLIDE_RECIPES)}")
        if preparation not in PREPARATIONS:
            raise ValueError(f"preparation {preparation!r} is unknown; use one of {', '.join(PREPARATIONS)}")
        self.seed, self.recipe, self.mpp, self.density = seed, recipe, mpp, density
        self.preparation = preparation
        self.width, self.height, self.scale = width_px, height_px, 1 / mpp
        rng = np.random.default_rng([seed, 5001])
        self.style = draw_style(rng, slide=seed * 7919 + 13, variety=variety)
        short = min(width_px, height_px)
        radius = short * float(rng.uniform(0.44, 0.475))
        jitter = rng.uniform(-0.4, 0.4, 2) * (short / 2 - radius)
        self.deposit = (width_px / 2 + float(jitter[0]), height_px / 2 + float(jitter[1]), radius)
        mix = dict(_HARD_MIX if recipe == "hard_normal" else _NORMAL_MIX)
        mix = {kind: share * float(rng.lognormal(0, 0.35)) for kind, share in mix.items()}
        if recipe == "organism":
            mix[str(rng.choice(ORGANISMS))] = 0.08 * sum(mix.values())
        self._kinds, self._chances = list(mix), np.cumsum(list(mix.values())) / sum(mix.values())
        clutter = dict(_CLUTTER_MIX)
        uneven = 0.35
        if preparation == "conventional":
            self.deposit = (width_px / 2, height_px / 2, float(np.hypot(width_px, height_px)) / 2 * 1.03)
            clutter |= {"red_sheet": 0.3 * float(rng.random()), "blood": 0.5 * float(rng.random()), "diathesis": 0.15}
            uneven = 0.8
        self._clutter = list(clutter)
        self._clutter_chances = np.cumsum(list(clutter.values())) / sum(clutter.values())
        self._crowd = rng.normal(0, uneven, (12, 12))
        self._shade = _waves(rng, width_px, self.style.shade), _waves(rng, height_px, self.style.shade)
        self._abnormal = self._scatter(rng, abnormal_cells)
        self._squares: OrderedDict[Square, list[Placed]] = OrderedDict()
        self._sprites: OrderedDict[tuple[int, int, int], Sprite] = OrderedDict()
        self._sprite_bytes = 0

    @property
    def cached_bytes(self) -> int:
        """Bytes held by the sprite cache."""
        return self._sprite_bytes

    @property
    def cached_squares(self) -> int:
        """Grid squares held in memory."""
        return len(self._squares)

    def _scatter(self, rng: np.random.Generator, count: int) -> dict[Square, list[tuple[str, float, float, int]]]:
        """Where the abnormal cells lie, by grid square: label, x, y (um), seed."""
        if self.recipe in ABNORMAL:
            labels: tuple[str, ...] = (self.recipe,)
        else:
            labels = tuple(rng.choice(ABNORMAL, 1 if rng.random() < 0.6 else 2, replace=False))
        x0, y0, radius = (value * self.mpp for value in self.deposit)
        found: dict[Square, list[tuple[str, float, float, int]]] = {}
        for _ in range(count):
            if self.preparation == "conventional":
                x, y = (float(v) for v in (np.array([self.width, self.height]) * self.mpp) * rng.uniform(0.03, 0.97, 2))
            else:
                far, angle = max(radius * 0.94, 1.0) * np.sqrt(rng.random()), 2 * np.pi * rng.random()
                x, y = x0 + float(far * np.cos(angle)), y0 + float(far * np.sin(angle))
            square = int(x // GRID_UM), int(y // GRID_UM)
            found.setdefault(square, []).append((str(rng.choice(labels)), x, y, int(rng.integers(2**31))))
        return found

    def _items(self, square: Square) -> list[Placed]:
        """What is anchored in a grid square, with its level-0 px anchor."""
        if square in self._squares:
            self._squares.move_to_end(square)
            return self._squares[square]
        rng = np.random.default_rng([self.seed, 5002, square[0] + 2**20, square[1] + 2**20])
        area = (GRID_UM / 1000) ** 2
        x0, y0, radius = (value * self.mpp for value in self.deposit)
        placed: list[Placed] = []

        def put(group: list[Item], x: float, y: float) -> None:
            blur = abs(rng.normal(0, 0.22)) if rng.random() < 0.88 else rng.uniform(0.4, 1.1)
            for item in group:
                item = replace(item, defocus=float(blur))
                placed.append((item, round((x + item.x) * self.scale), round((y + item.y) * self.scale)))

        crowd = self._crowd[square[1] % 12, square[0] % 12]
        for _ in range(rng.poisson(self.density * area * _CLUTTER_SHARE)):
            x, y = (square + rng.random(2)) * GRID_UM
            kind = self._clutter[int(np.searchsorted(self._clutter_chances, rng.random() * 0.999))]
            inside = (x - x0) ** 2 + (y - y0) ** 2 < radius**2
            if inside:
                put(make_group(kind, rng), x, y)
        for _ in range(rng.poisson(_DUST * area)):
            x, y = (square + rng.random(2)) * GRID_UM
            put(make_group("debris", rng), x, y)
        for _ in range(rng.poisson(self.density * area * np.exp(crowd))):
            x, y = (square + rng.random(2)) * GRID_UM
            kind = self._kinds[int(np.searchsorted(self._chances, rng.random() * 0.999))]
            if (x - x0) ** 2 + (y - y0) ** 2 < (radius * 0.985) ** 2:
                put(make_group(kind, rng), x, y)
        for label, x, y, seed in self._abnormal.get(square, []):
            put(make_group(label, np.random.default_rng(seed), 1), x, y)
        self._squares[square] = placed
        if len(self._squares) > SQUARE_CACHE:
            self._squares.popitem(last=False)
        return placed

    def _sprite(self, square: Square, number: int, item: Item) -> Sprite:
        key = (*square, number)
        if key in self._sprites:
            self._sprites.move_to_end(key)
            return self._sprites[key]
        sprite = draw_item(item, self.style, scale=self.scale)
        self._sprites[key] = sprite
        self._sprite_bytes += sprite.od.nbytes
        while self._sprite_bytes > SPRITE_CACHE_BYTES and len(self._sprites) > 1:
            self._sprite_bytes -= self._sprites.popitem(last=False)[1].od.nbytes
        return sprite

    def _around(self, x: int, y: int, width: int, height: int) -> Iterator[tuple[Sprite, int, int]]:
        """Sprites that can touch a block, always in the same order."""
        reach = MARGIN_UM
        low_x, high_x = (x * self.mpp - reach) // GRID_UM, ((x + width) * self.mpp + reach) // GRID_UM
        low_y, high_y = (y * self.mpp - reach) // GRID_UM, ((y + height) * self.mpp + reach) // GRID_UM
        likely = int(70 * self.scale)  # px within which to look without drawing first
        for gy in range(int(low_y), int(high_y) + 1):
            for gx in range(int(low_x), int(high_x) + 1):
                for number, (item, px, py) in enumerate(self._items((gx, gy))):
                    span = likely * 2 if item.kind in ("mucus", "candida", "diathesis", "actinomyces") else likely
                    if px + span < x or py + span < y or px - span > x + width or py - span > y + height:
                        continue
                    sprite = self._sprite((gx, gy), number, item)
                    if _extent(sprite) <= span:
                        yield sprite, px, py

    def density_plane(self, x: int, y: int, width: int, height: int) -> F32:
        """Optical density (3, height, width) of a level-0 block; parts beyond the slide are drawn too."""
        od = np.zeros((3, height, width), dtype=np.float32)
        columns = self._shade[0].take(np.arange(x, x + width), mode="clip")
        rows = self._shade[1].take(np.arange(y, y + height), mode="clip")
        od += (rows[:, None] + columns[None, :]) + np.float32(0.02)
        self._film(od, x, y)
        for sprite, px, py in self._around(x, y, width, height):
            stamp(od, sprite, px - x, py - y)
        return od

    def _film(self, od: F32, x: int, y: int) -> None:
        """The deposit's faint film and the ridge at its edge."""
        x0, y0, radius = self.deposit
        half_y, half_x = od.shape[1] / 2, od.shape[2] / 2
        middle, half = np.hypot(x + half_x - x0, y + half_y - y0), np.hypot(half_x, half_y)
        if middle - half > radius + 2:
            return
        dye = self.style.green * np.float32(0.6) + np.float32(0.3)
        if middle + half < radius - 30 * self.scale:
            od += (np.float32(0.012) * dye)[:, None, None]
            return
        dx = np.arange(x, x + od.shape[2], dtype=np.float64) + 0.5 - x0
        dy = np.arange(y, y + od.shape[1], dtype=np.float64) + 0.5 - y0
        away = (radius - np.sqrt((dx * dx)[None, :] + (dy * dy)[:, None])) * self.mpp
        inside = np.clip(away / 20, 0, 1)
        ridge = np.maximum(1 - np.abs(away - 12) / 12, 0)
        film = (0.012 * inside + 0.05 * ridge).astype(np.float32)
        od += film * dye[:, None, None]

    def block(self, x: int, y: int, width: int, height: int) -> U8:
        """RGB (height, width, 3) of a level-0 block, as the scanner sees it before compression."""
        noise = grain()
        side = noise.shape[1]
        across, down = x % side, y % side
        if across + width > side or down + height > side:
            noise = np.tile(noise, (1, (down + height) // side + 1, (across + width) // side + 1))
        return develop(
            self.density_plane(x, y, width, height), self.style, noise[:, down : down + height, across : across + width]
        )

    def seen(self, x: int, y: int, width: int, height: int) -> tuple[Cell, ...]:
        """Every annotated thing seen in a block, normal cells too, in px of the block; ordered as in a field."""
        around = ((sprite, px - x, py - y) for sprite, px, py in self._around(x, y, width, height))
        return cells_in(around, width, height)

    def tally(self, x: int, y: int, width: int, height: int, counts: dict[str, int]) -> list[Cell]:
        """Adds the annotated things anchored in a block to `counts`; returns those that are not simply normal."""
        cells = []
        squares_x = range(int(x * self.mpp // GRID_UM) - 1, int((x + width) * self.mpp // GRID_UM) + 2)
        squares_y = range(int(y * self.mpp // GRID_UM) - 1, int((y + height) * self.mpp // GRID_UM) + 2)
        for square in ((gx, gy) for gy in squares_y for gx in squares_x):
            for number, (item, px, py) in enumerate(self._items(square)):
                label = label_of(item.kind)
                if label is None or not (x <= px < x + width and y <= py < y + height):
                    continue
                counts[label] = counts.get(label, 0) + 1
                if label in ABNORMAL or label in ORGANISMS:
                    sprite = self._sprite(square, number, item)
                    cells += [self._cell(mark, px, py) for mark in sprite.marks]
        return cells

    def _cell(self, mark: Mark, px: int, py: int) -> Cell:
        box = moved(mark.box, px, py)
        inside = clip(box, self.width, self.height)
        seen = (inside[2] - inside[0]) * (inside[3] - inside[1]) / ((box[2] - box[0]) * (box[3] - box[1]))
        core = None if mark.nucleus is None else clip(moved(mark.nucleus, px, py), self.width, self.height)
        return Cell(mark.label, inside, core, float(min(seen, 1.0)))


def _extent(sprite: Sprite) -> int:
    """How far a sprite reaches from its anchor, px."""
    height, width = sprite.od.shape[1:]
    return int(max(-sprite.x, -sprite.y, sprite.x + width, sprite.y + height))


def _waves(rng: np.random.Generator, length: int, strength: float) -> NDArray[np.float32]:
    """Uneven light along one axis: a few slow waves."""
    at = np.arange(length, dtype=np.float64)
    total = np.zeros(length)
    for period in (1300.0, 4100.0, max(length * 1.3, 6000.0)):
        total += strength / 3 * np.sin(2 * np.pi * (at / period + rng.random()))
    return np.maximum(total, -0.009).astype(np.float32)
