"""Plans: full coverage, whole tiles, levels, order, limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tilers import plan_tiles
from tilers.plan import BLOCK, spread
from tilers.readers import Backend, Pixels, Resolution
from tilers.slide import Slide
from wsi_chat.errors import ResolutionUnknown, SettingError
from wsi_chat.schema import Tile


class Geometry(Backend):
    """A slide that has sizes and no pixels: a plan must not read."""

    def __init__(self, size: tuple[int, int], mpp: float | None, downsamples: Sequence[float] = (1.0,)) -> None:
        self.level_sizes = [(max(1, int(size[0] / d)), max(1, int(size[1] / d))) for d in downsamples]
        self.level_downsamples = downsamples
        self.resolutions = () if mpp is None else (Resolution(mpp, mpp, "test"),)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        raise AssertionError("a plan is metadata only")

    def close(self) -> None: ...


def slide_of(size: tuple[int, int], mpp: float | None, downsamples: Sequence[float] = (1.0,)) -> Slide:
    backend = Geometry(size, mpp, downsamples)
    return Slide(Path("slide.x"), reader="test", opener=lambda p: backend, backend=backend, mpp=None)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    tile_px=st.integers(64, 700),
    mpp=st.floats(0.2, 2.5),
    overlap=st.floats(0, 0.7),
    downsamples=st.sampled_from([(1.0,), (1.0, 2.0, 4.0), (1.0, 4.0, 16.0), (1.0, 4.0161, 16.13)]),
)
@example(width=1, height=964, tile_px=64, mpp=1.0, overlap=0.0, downsamples=(1.0, 4.0161, 16.13))
def test_every_pixel_is_covered_by_whole_tiles_inside_the_slide(
    width: int, height: int, tile_px: int, mpp: float, overlap: float, downsamples: tuple[float, ...]
) -> None:
    slide = slide_of((width, height), 0.2, downsamples)
    plan = plan_tiles(slide, None, tile_px=tile_px, mpp=mpp, overlap=overlap)
    rows, columns = plan.grid_shape
    assert plan.grid == len(plan.tiles) == plan.foreground == plan.selected == rows * columns
    for length, starts, side in (
        (width, sorted({t.x for t in plan.tiles}), plan.tiles[0].width),
        (height, sorted({t.y for t in plan.tiles}), plan.tiles[0].height),
    ):
        assert starts[0] == 0
        assert all(b <= a + side for a, b in pairwise(starts))  # no gap
        if length >= side:
            assert starts[-1] + side == length
        else:
            assert starts == [0]
    for tile in plan.tiles:
        assert (tile.width, tile.height) == (plan.tiles[0].width, plan.tiles[0].width)
        scale = downsamples[tile.level]
        assert abs(tile.read_px[0] * scale - tile.width) <= 1  # read size and level-0 size name the same square
        assert tile.read_px[0] >= tile.out_px  # never enlarged
        assert abs(tile.width * 0.2 / tile.out_px - tile.mpp) < 1e-9
        assert tile.mpp == pytest.approx(mpp, rel=0.055, abs=0.2 * scale / tile_px)
        assert plan.position(tile) == divmod(tile.index, columns)
    assert len({t.index for t in plan.tiles}) == len(plan.tiles)


@pytest.mark.parametrize(
    ("mpp", "level", "read_px"),
    [(0.25, 0, 512), (0.26, 0, 532), (0.5, 1, 512), (0.51, 1, 512), (0.9, 1, 922), (1.0, 2, 512), (3.0, 2, 1536)],
)
def test_the_coarsest_level_that_is_fine_enough_is_read(mpp: float, level: int, read_px: int) -> None:
    slide = slide_of((20_000, 20_000), 0.25, (1.0, 2.0, 4.0))
    tile = plan_tiles(slide, None, tile_px=512, mpp=mpp).tiles[0]
    assert (tile.level, tile.read_px, tile.out_px) == (level, (read_px, read_px), 512)


def test_a_real_level_0_a_little_coarser_than_asked_is_used_as_it_is() -> None:
    tile = plan_tiles(slide_of((5000, 5000), 0.499), None, tile_px=512, mpp=0.486).tiles[0]
    assert tile.read_px == (512, 512)
    assert tile.mpp == pytest.approx(0.499)


@pytest.mark.parametrize(
    ("base", "mpp", "read_px"),
    [(0.2527, 0.5, 512), (0.2461, 0.5, 512), (0.1253, 0.5, 1024), (0.226, 0.5, 566), (0.34, 0.5, 376), (0.5, 0.5, 256)],
)
def test_a_near_whole_fraction_of_the_target_is_averaged_over_whole_pixels(
    base: float, mpp: float, read_px: int
) -> None:
    plan = plan_tiles(slide_of((9000, 9000), base), None, tile_px=256, mpp=mpp)
    assert {t.read_px for t in plan.tiles} == {(read_px, read_px)}
    assert plan.tiles[0].mpp == pytest.approx(base * read_px / 256, rel=1e-6)  # the tile says at which scale it is
    assert plan.tiles[0].mpp == pytest.approx(mpp, rel=0.0201)


def test_upsampling_is_refused_or_marked() -> None:
    slide = slide_of((5000, 5000), 0.5)
    with pytest.raises(SettingError, match=r"0\.25 µm/px, but the finest level of slide\.x has 0\.5"):
        plan_tiles(slide, None, tile_px=512, mpp=0.25)
    plan = plan_tiles(slide, None, tile_px=512, mpp=0.25, allow_upsample=True)
    assert plan.upsampled
    assert plan.tiles[0].read_px == (256, 256)
    assert plan.tiles[0].mpp == pytest.approx(0.25)
    assert "no detail is added" in plan.notes[0]


def test_a_slide_smaller_than_a_tile_gets_one_tile_and_a_note() -> None:
    plan = plan_tiles(slide_of((300, 100), 0.5), None, tile_px=512, mpp=0.5)
    assert [(t.x, t.y, t.width, t.height) for t in plan.tiles] == [(0, 0, 512, 512)]
    assert "smaller than a tile" in plan.notes[0]


def test_order_is_row_major_over_blocks_and_inside_them() -> None:
    plan = plan_tiles(slide_of((256 * 19, 256 * 11), 0.5), None, tile_px=256, mpp=0.5, overlap=0)
    assert plan.grid_shape == (11, 19)
    where = [plan.position(t) for t in plan.tiles]
    keys = [(r // BLOCK, c // BLOCK, r, c) for r, c in where]
    assert keys == sorted(keys)
    assert where[:9] == [(0, c) for c in range(8)] + [(1, 0)]
    assert plan.tiles[8].id == "t000019"


def test_limit_keeps_names_and_order() -> None:
    slide = slide_of((10_000, 10_000), 0.5)
    full = plan_tiles(slide, None, tile_px=256, mpp=0.5)
    some = plan_tiles(slide, None, tile_px=256, mpp=0.5, limit=100)
    assert (some.grid, some.foreground, some.selected) == (full.grid, full.foreground, 100)
    at = [full.tiles.index(t) for t in some.tiles]
    assert at == sorted(set(at))
    assert plan_tiles(slide, None, tile_px=256, mpp=0.5, limit=10**6).tiles == full.tiles


@pytest.mark.parametrize("columns", range(8, 41, 4))
@pytest.mark.parametrize("limit", [12, 24, 48])
def test_limit_shows_all_parts_of_the_slide_whatever_its_width(columns: int, limit: int) -> None:
    """A stride that fits the rows of the grid would take its tiles from two or three columns."""
    rows = 16
    slide = slide_of((columns * 256, rows * 256), 0.5)
    tiles = plan_tiles(slide, None, tile_px=256, mpp=0.5, limit=limit).tiles
    assert len({tile.x for tile in tiles}) >= min(columns, limit) / 2
    assert len({tile.y for tile in tiles}) >= min(rows, limit) / 2
    left, top = sum(tile.x < columns * 128 for tile in tiles), sum(tile.y < rows * 128 for tile in tiles)
    assert abs(left - limit / 2) <= max(3, limit / 8)
    assert abs(top - limit / 2) <= max(3, limit / 8)


@given(places=st.sets(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1), limit=st.integers(1, 60))
def test_as_many_tiles_as_asked_for_are_chosen_each_once(places: set[tuple[int, int]], limit: int) -> None:
    tiles = [Tile(n, x * 64, y * 64, 64, 64, 0, (64, 64), 64, 0.5) for n, (x, y) in enumerate(sorted(places))]
    chosen = spread(tiles, limit)
    assert len(chosen) == min(limit, len(tiles))
    numbers = [tile.index for tile in chosen]
    assert numbers == sorted(set(numbers))


def test_two_plans_are_equal_and_the_hash_tells_others_apart() -> None:
    slide = slide_of((5000, 4000), 0.5)
    plans = [plan_tiles(slide, None, tile_px=256, mpp=0.5, **more) for more in ({}, {}, {"overlap": 0.3}, {"limit": 9})]
    assert plans[0] == plans[1]
    assert len({p.sha256 for p in plans}) == 3


def test_every_foreground_cell_is_in_some_tile(memory_slide: Callable[..., tuple]) -> None:
    from tilers import find_foreground

    from .conftest import draw_cells

    rng = np.random.default_rng(5)
    centers = [(int(x), int(y)) for x, y in rng.uniform(0, (2400, 1700), (25, 2))]
    slide, _ = memory_slide(draw_cells(2400, 1700, centers), levels=2)
    foreground = find_foreground(slide)
    plan = plan_tiles(slide, foreground, tile_px=256, mpp=0.5, overlap=0.1)
    assert plan.foreground < plan.grid
    cell = foreground.cell
    covered = np.zeros((1700, 2400), bool)
    for t in plan.tiles:
        covered[t.y : t.y + t.height, t.x : t.x + t.width] = True
        assert t.cellularity is not None
        assert 0 < t.cellularity <= 1
    for r, c in np.argwhere(foreground.mask):
        assert covered[int(r * cell) : int((r + 1) * cell), int(c * cell) : int((c + 1) * cell)].all()
    assert all(covered[min(y, 1699), min(x, 2399)] for x, y in centers)


@pytest.mark.parametrize(
    "wrong", [{"tile_px": 8}, {"overlap": 0.95}, {"overlap": -0.1}, {"limit": 0}, {"mpp": 0.0}, {"mpp": float("nan")}]
)
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=str(next(iter(wrong)))):
        plan_tiles(slide_of((500, 500), 0.5), None, **({"tile_px": 256, "mpp": 0.5} | wrong))


def test_a_slide_without_mpp_cannot_be_planned() -> None:
    with pytest.raises(ResolutionUnknown, match=r"slide\.x.*--mpp"):
        plan_tiles(slide_of((500, 500), None), None, tile_px=256, mpp=0.5)
