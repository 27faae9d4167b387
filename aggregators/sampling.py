"""A random sample of tiles, and the total of a count over all tiles of the foreground with its interval.

Neighbouring tiles overlap, so each tile owns the part of it that lies nearer to it than to its neighbours (its
*core*): cores tile the slide, and a cell belongs to the core that holds its centre. Counting by cores counts no cell
twice and leaves out the cells that a tile's border cuts.

**The sample** is stratified: the foreground's tiles in the order of their cellularity, cut into strata of equal
size, a simple random sample without replacement in each (Cochran WG, Sampling Techniques, 3rd edition, Wiley 1977,
chapter 5).

**The estimator** is the combined ratio estimator over strata (Cochran, chapter 6): the count per foreground area of
the sample times the foreground area of all tiles. Its variance is the linearised one with the finite-population
correction, and never less than a Poisson count's. The interval is taken on the logarithm, with Student's t:
counts per tile are skewed, and the symmetrical interval then reaches below what was seen and misses too often
above (see benchmarks/adequacy.py for the coverage that both have). A tile without an answer is left out of the
sample and stands for nothing; the rest of its stratum stands for it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wsi_chat.schema import Box, Interval, Tile

LEVEL = 0.95
#: Tiles to a stratum at least; fewer leave too few degrees of freedom for a variance within strata.
PER_STRATUM = 4
MOST_STRATA = 4


@dataclass(frozen=True)
class Frame:
    """All tiles that a sample speaks for.

    Attributes:
        tiles: those planned; ``foreground`` is how many the foreground holds (more, where ``--limit`` left some out:
            the planned ones are then an even sample of them).
        stride: level-0 px between neighbouring tiles.
        bounds: the slide in level-0 px.
    """

    tiles: tuple[Tile, ...]
    foreground: int
    stride: float
    bounds: Box

    def core(self, tile: Tile) -> Box:
        """The part of a tile (level-0 px) that no other tile of the grid owns; cores tile the slide."""
        x0, x1 = _core(tile.x, tile.width, self.stride, self.bounds.x1)
        y0, y1 = _core(tile.y, tile.height, self.stride, self.bounds.y1)
        return Box(x0, y0, x1, y1)

    @cached_property
    def areas(self) -> dict[int, float]:
        """Tile index -> area of its core in level-0 px."""
        return {tile.index: self.core(tile).area for tile in self.tiles}

    @property
    def scale(self) -> float:
        """How many foreground tiles each planned one stands for."""
        return max(1.0, self.foreground / len(self.tiles)) if self.tiles else 1.0


@dataclass(frozen=True, slots=True)
class Total:
    """An estimated total over the frame. ``interval`` covers the error of sampling and no other."""

    value: float
    interval: Interval
    area_fraction: float


def strata(tiles: Sequence[Tile], size: int) -> list[list[Tile]]:
    """The tiles cut by cellularity into strata of equal size, as many as a sample of ``size`` can fill."""
    ordered = sorted(tiles, key=lambda tile: (tile.cellularity or 0.0, tile.index))
    count = max(1, min(MOST_STRATA, size // PER_STRATUM))
    edges = [round(n * len(ordered) / count) for n in range(count + 1)]
    return [ordered[low:high] for low, high in itertools.pairwise(edges) if high > low]


def draw(tiles: Sequence[Tile], size: int, *, seed: int) -> list[Tile]:
    """A stratified random sample of tiles in plan order; all of them where there are no more than ``size``.

    The same tiles, size and seed give the same sample, whatever the order of the tiles.
    """

    if size <= 0:
        return []
    if len(tiles) <= size:
        return sorted(tiles, key=lambda tile: tile.index)
    rng = np.random.default_rng([seed, 20_771])
    groups = strata(tiles, size)
    chosen: list[Tile] = []
    for n, group in enumerate(groups):
        share = (n + 1) * size // len(groups) - n * size // len(groups)
        chosen += [group[int(i)] for i in rng.choice(len(group), min(share, len(group)), replace=False)]
    return sorted(chosen, key=lambda tile: tile.index)


def total(counts: Mapping[int, float], frame: Frame, *, drawn: int, level: float = LEVEL) -> Total:
    """The total over the frame's foreground from the counts of sampled tiles.

    Args:
        counts: tile index -> count in the tile's core, of the tiles with an answer.
        drawn: how many tiles were drawn, which fixes the strata.

    Raises:
        ValueError: no counts.
    """
    if not counts:
        raise ValueError("no tile was counted, so there is nothing to extrapolate")
    groups = _filled(strata(frame.tiles, drawn), counts)
    known = all(tile.cellularity is not None for tile in frame.tiles)
    areas = frame.areas
    size = {tile.index: areas[tile.index] * ((tile.cellularity or 0.0) if known else 1.0) for tile in frame.tiles}
    whole = math.fsum(size.values()) * frame.scale
    seen_y = seen_x = 0.0
    for group in groups:
        inside = [tile.index for tile in group if tile.index in counts]
        weight = len(group) * frame.scale / len(inside)
        seen_y += weight * math.fsum(counts[i] for i in inside)
        seen_x += weight * math.fsum(size[i] for i in inside)
    sampled = math.fsum(area for index, area in areas.items() if index in counts)
    fraction = min(1.0, sampled / (math.fsum(areas.values()) * frame.scale))
    ratio = whole / seen_x if seen_x > 0 else 1.0
    value = seen_y * ratio
    variance = floor = 0.0
    per_x = seen_y / seen_x if seen_x > 0 else 0.0
    freedom = 0
    for group in groups:
        inside = [tile.index for tile in group if tile.index in counts]
        n, large = len(inside), len(group) * frame.scale
        part = large * large * max(0.0, 1 - n / large) / n * ratio * ratio
        rest = [counts[i] - per_x * size[i] for i in inside]
        middle = math.fsum(rest) / n
        variance += part * (math.fsum((d - middle) ** 2 for d in rest) / (n - 1) if n > 1 else 0.0)
        floor += part * math.fsum(counts[i] for i in inside) / n
        freedom += n - 1
    return Total(value, _interval(value, max(variance, floor), max(1, freedom), fraction, level), fraction)


def _interval(value: float, variance: float, freedom: int, fraction: float, level: float) -> Interval:
    if value <= 0:
        # nothing seen: the largest Poisson total of which nothing is seen in this share by chance
        return Interval(low=0.0, high=0.0 if fraction >= 1 else -math.log((1 - level) / 2) / fraction, level=level)
    if variance <= 0:
        return Interval(low=value, high=value, level=level)
    from scipy.stats import t

    reach = float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance) / value
    return Interval(low=value * math.exp(-reach), high=value * math.exp(min(reach, 50.0)), level=level)


def _filled(groups: list[list[Tile]], counts: Mapping[int, float]) -> list[list[Tile]]:
    """Strata with at least two counted tiles each; a poorer one joins its neighbour."""
    filled: list[list[Tile]] = []
    for group in groups:
        if filled and (_counted(group, counts) < 2 or _counted(filled[-1], counts) < 2):
            filled[-1] = [*filled[-1], *group]
        else:
            filled.append(group)
    return filled


def _counted(group: Sequence[Tile], counts: Mapping[int, float]) -> int:
    return sum(tile.index in counts for tile in group)


def _core(start: int, side: int, stride: float, length: float) -> tuple[float, float]:
    """From the middle of the overlap with the tile before to that with the tile after, along one axis."""
    last = length - side
    if last <= 0:
        return start, start + side
    if start >= last:
        before = (math.ceil(last / stride) - 1) * stride
        return (before + side + start) / 2, start + side
    low = 0.0 if start == 0 else (start - stride + side + start) / 2
    after = min(start + stride, last)
    return low, (start + side + after) / 2
