"""Synthetic slides: seamless at any block size, read by OpenSlide with the right mpp, the truth where it is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import zarr

from wsi_chat.datasets.render import ABNORMAL, ORGANISMS, SlideTruth, render_slide
from wsi_chat.datasets.render import scene as scenes
from wsi_chat.datasets.render.scene import Scene
from wsi_chat.terminology import load_system

SYSTEM = load_system("cervix")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SlideTruth]:
    path = tmp_path_factory.mktemp("slides") / "one.tiff"
    truth = render_slide(
        path, seed=4, width_px=1500, height_px=1301, mpp=0.4, recipe="hsil", abnormal_cells=5, tile=256
    )
    return path, truth


def scene(seed: int = 9) -> Scene:
    return Scene(seed, 1600, 1400, 0.5, "abnormal", 350.0, 12)


@pytest.mark.parametrize(("x", "y"), [(420, 380), (60, 420)], ids=["inside", "across the deposit's edge"])
def test_a_pixel_does_not_depend_on_the_block_it_is_drawn_in(x: int, y: int) -> None:
    width, height = 320, 256
    whole = scene().block(x, y, width, height)
    for side in (64, 100, 237):
        other, joined = scene(), np.zeros_like(whole)
        for top in reversed(range(0, height, side)):
            for left in range(0, width, side):
                wide, high = min(side, width - left), min(side, height - top)
                joined[top : top + high, left : left + wide] = other.block(x + left, y + top, wide, high)
        assert np.array_equal(joined, whole), f"seams with blocks of {side} px"
    assert whole.std() > 5, "the region must hold cells for this to mean anything"


def test_small_caches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by the caches; a scene that keeps almost nothing draws the same pixels."""
    expected = scene().block(500, 500, 256, 256)
    monkeypatch.setattr(scenes, "SPRITE_CACHE_BYTES", 200_000)
    monkeypatch.setattr(scenes, "SQUARE_CACHE", 3)
    poor = scene()
    assert np.array_equal(poor.block(500, 500, 256, 256), expected)
    assert poor.cached_bytes <= 2_000_000
    assert poor.cached_squares <= 4


def test_openslide_reads_size_levels_and_mpp(slide: tuple[Path, SlideTruth]) -> None:
    path, _ = slide
    with openslide.OpenSlide(path) as opened:
        assert opened.properties["openslide.vendor"] == "generic-tiff"
        assert opened.dimensions == (1500, 1301)
        assert opened.level_dimensions == ((1500, 1301), (375, 325), (93, 81))
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.4, rel=1e-3)
        assert float(opened.properties["openslide.mpp-y"]) == pytest.approx(0.4, rel=1e-3)


def test_the_file_holds_the_scene_across_tile_borders_and_levels(slide: tuple[Path, SlideTruth]) -> None:
    path, truth = slide
    drawn = Scene(4, 1500, 1301, 0.4, "hsil", 250.0, 5).block(600, 600, 300, 300).astype(float)
    with openslide.OpenSlide(path) as opened:
        stored = np.asarray(opened.read_region((600, 600), 0, (300, 300)).convert("RGB")).astype(float)
        quarter = np.asarray(opened.read_region((600, 600), 1, (75, 75)).convert("RGB")).astype(float)
    assert np.abs(stored - drawn).mean() < 3
    assert np.abs(stored - drawn).mean(axis=(0, 1)).max() < 4, "a colour channel is off"
    assert np.abs(quarter - drawn.reshape(75, 4, 75, 4, 3).mean(axis=(1, 3))).mean() < 3
    assert truth.counts["hsil"] == 5


def test_the_deposit_is_a_disc_on_a_bright_background(slide: tuple[Path, SlideTruth]) -> None:
    path, truth = slide
    x, y, radius = truth.deposit
    with openslide.OpenSlide(path) as opened:
        small = np.asarray(opened.read_region((0, 0), 1, opened.level_dimensions[1]).convert("RGB")).astype(float)
    rows, columns = np.mgrid[: small.shape[0], : small.shape[1]] * 4 + 2
    away = np.hypot(columns - x, rows - y)
    dark = small.min(axis=2) < 170
    assert dark[away < radius].mean() > 5 * max(dark[away > radius * 1.02].mean(), 1e-3)
    assert np.median(small[away > radius * 1.05]) > 200


def test_truth_names_every_abnormal_cell_where_it_is_drawn(slide: tuple[Path, SlideTruth]) -> None:
    path, truth = slide
    assert truth.abnormal
    assert [cell.label for cell in truth.cells if cell.label in ABNORMAL] == ["hsil"] * 5
    with openslide.OpenSlide(path) as opened:
        for cell in truth.cells:
            assert cell.nucleus is not None
            x0, y0, x1, y1 = (round(v) for v in cell.nucleus)
            kernel = np.asarray(opened.read_region((x0, y0), 0, (x1 - x0, y1 - y0)).convert("L"))
            assert kernel.mean() < 190
    collection = json.loads(path.with_name("one.truth.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(truth.cells)
    for feature, cell in zip(collection["features"], truth.cells, strict=True):
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1] == [cell.box[0], cell.box[1]]
        assert ring[2] == [cell.box[2], cell.box[3]]
        assert feature["properties"]["objectType"] == "annotation"
        assert feature["properties"]["classification"]["name"] == SYSTEM.label(cell.label).name
    assert len({feature["id"] for feature in collection["features"]}) == len(truth.cells)
    record = json.loads(path.with_name("one.truth.json").read_text())
    assert record["abnormal"] is True
    assert record["counts"]["hsil"] == 5
    assert sorted(p.name for p in path.parent.iterdir()) == ["one.tiff", "one.truth.geojson", "one.truth.json"]


def test_rendering_again_gives_the_same_file(tmp_path: Path) -> None:
    size = {"seed": 8, "width_px": 512, "height_px": 512, "recipe": "sparse", "density": 120.0}
    first = render_slide(tmp_path / "a.tiff", **size)
    second = render_slide(tmp_path / "b.tiff", **size)
    assert (tmp_path / "a.tiff").read_bytes() == (tmp_path / "b.tiff").read_bytes()
    assert first.cells == second.cells
    assert len([c for c in first.cells if c.label in ABNORMAL]) == 1


def test_normal_and_organism_slides_are_not_abnormal(tmp_path: Path) -> None:
    normal = render_slide(tmp_path / "n.tiff", seed=2, width_px=700, height_px=700)
    assert not normal.abnormal
    assert normal.cells == ()
    assert sum(normal.counts.values()) > 5
    organism = render_slide(tmp_path / "o.svs", seed=3, width_px=1000, height_px=1000, recipe="organism", density=500.0)
    assert not organism.abnormal
    assert organism.cells
    assert {cell.label for cell in organism.cells} <= set(ORGANISMS)


def test_ome_zarr_holds_the_same_pixels_and_scale(tmp_path: Path) -> None:
    render_slide(tmp_path / "z.ome.zarr", seed=6, width_px=600, height_px=500, recipe="lsil", abnormal_cells=2)
    root = zarr.open_group(tmp_path / "z.ome.zarr", mode="r")
    multiscale = root.attrs["ome"]["multiscales"][0]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 0.5, 0.5]
    assert root["1"].shape == (3, 125, 150)
    drawn = Scene(6, 600, 500, 0.5, "lsil", 250.0, 2).block(200, 100, 200, 200)
    assert np.array_equal(root["0"][:, 100:300, 200:400].transpose(1, 2, 0), drawn)
    assert json.loads((tmp_path / "z.truth.json").read_text())["counts"]["lsil"] == 2


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no format"):
        render_slide(tmp_path / "a.png", seed=0, width_px=64, height_px=64)
    with pytest.raises(ValueError, match="not a multiple of 16"):
        render_slide(tmp_path / "a.tiff", seed=0, width_px=64, height_px=64, tile=100)
    with pytest.raises(ValueError, match="recipe 'biopsy' is unknown"):
        render_slide(tmp_path / "a.tiff", seed=0, width_px=64, height_px=64, recipe="biopsy")
    assert list(tmp_path.iterdir()) == []
