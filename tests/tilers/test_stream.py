"""The stream: the same pixels as one read per tile, in order, within memory, and only damaged tiles are lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tilers import TileStream, find_foreground, focus_score, open_slide, plan_tiles
from tilers.stream import resample
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box

from .conftest import draw_cells, textured, write_tiff


def tile_threads() -> int:
    return sum(t.name.startswith("tiles") for t in threading.enumerate())


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=[Phase.generate]
)
@given(
    tile_px=st.integers(64, 200),
    mpp=st.sampled_from([0.5, 0.63, 1.0, 1.37, 2.0]),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    block=st.integers(1, 8),
    workers=st.integers(1, 3),
    megabytes=st.sampled_from([5, 40]),
)
@pytest.mark.parametrize("reader", ["openslide", "memory0"])
def test_streamed_pixels_equal_direct_reads_in_plan_order(
    slides: dict[str, Path],
    reader: str,
    tile_px: int,
    mpp: float,
    overlap: float,
    block: int,
    workers: int,
    megabytes: int,
) -> None:
    with open_slide(slides[reader], reader=reader) as slide:
        plan = plan_tiles(slide, None, tile_px=tile_px, mpp=mpp, overlap=overlap)
        stream = TileStream(slide, plan, workers=workers, block=block, max_bytes=megabytes * 2**20)
        seen = []
        for patch in stream:
            seen.append(patch.tile)
            tile = patch.tile
            direct = slide.read_region(tile.x, tile.y, tile.level, *tile.read_px)
            assert patch.status == "ok"
            assert patch.pixels is not None
            assert patch.pixels.shape == (tile_px, tile_px, 3)
            assert np.array_equal(patch.pixels, resample(direct, tile_px))
            assert patch.focus == focus_score(patch.pixels)
    assert tuple(seen) == plan.tiles
    assert tile_threads() == 0


@pytest.fixture
def slides(tmp_path: Path, memory_slide: Callable[..., tuple]) -> dict[str, Path]:
    image = textured(808, 600)
    slide, _ = memory_slide(image, levels=2)
    return {"openslide": write_tiff(tmp_path / "a.tiff", image, levels=3), "memory0": slide.path}


def test_between_the_pixels_of_a_level_the_difference_is_below_a_pixel(tmp_path: Path) -> None:
    yy, xx = np.mgrid[0:1203, 0:1501] / 40
    smooth = (128 + 60 * np.stack([np.sin(xx), np.cos(yy), np.sin(xx + yy)], axis=2)).astype(np.uint8)
    with open_slide(write_tiff(tmp_path / "a.tiff", smooth, levels=3)) as slide:
        assert slide.level_downsamples[2] == pytest.approx(4.006, abs=1e-3)
        plan = plan_tiles(slide, None, tile_px=100, mpp=2.0)
        stream = TileStream(slide, plan)
        for patch in stream:
            direct = slide.read_region(patch.tile.x, patch.tile.y, 2, 100, 100).astype(int)
            assert np.abs(patch.pixels - direct).max() <= 4  # a whole pixel makes 12
        assert len(stream._blocks) == len(plan) / 2


def test_the_number_of_workers_does_not_change_what_is_read_together(memory_slide: Callable[..., tuple]) -> None:
    slide, _ = memory_slide(np.broadcast_to(np.uint8(200), (4000, 4000, 3)))
    plan = plan_tiles(slide, None, tile_px=512, mpp=0.5)
    blocks = [[b.tiles for b in TileStream(slide, plan, workers=n)._blocks] for n in (1, 2, 3)]
    assert blocks[0] == blocks[1] == blocks[2]


def test_a_real_scan_streams_exactly(shared_data: Path) -> None:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide:
        plan = plan_tiles(slide, find_foreground(slide), tile_px=224, mpp=1.0, limit=40)
        with TileStream(path, plan) as stream:
            patches = list(stream)
        assert [p.tile for p in patches] == list(plan.tiles)
        for p in patches:
            direct = slide.read_region(p.tile.x, p.tile.y, p.tile.level, *p.tile.read_px)
            assert np.array_equal(p.pixels, resample(direct, 224))


@pytest.mark.parametrize("width", [2_000, 12_000])
def test_no_read_is_larger_than_the_bound_however_wide_the_slide(
    memory_slide: Callable[..., tuple], width: int
) -> None:
    slide, faults = memory_slide(np.broadcast_to(np.uint8(200), (1500, width, 3)))
    plan = plan_tiles(slide, None, tile_px=256, mpp=0.5)
    faults.most_bytes = 16 * 2**20 // 4  # two workers, one block waiting, one in the consumer's hands
    patches = sum(p.status == "ok" for p in TileStream(slide, plan, max_bytes=16 * 2**20))
    assert patches == len(plan)
    assert len(faults.reads) < len(plan) / 3  # and tiles are read together all the same


def test_reading_runs_only_a_little_ahead(memory_slide: Callable[..., tuple]) -> None:
    slide, faults = memory_slide(np.broadcast_to(np.uint8(200), (2000, 12_000, 3)))
    plan = plan_tiles(slide, None, tile_px=256, mpp=0.5)
    stream = TileStream(slide, plan, max_bytes=16 * 2**20)
    patches = iter(stream)
    next(patches)
    time.sleep(0.3)
    assert len(faults.reads) <= 4
    stream.close()
    assert len(faults.reads) <= 4
    assert tile_threads() == 0
    assert faults.opened - faults.closed == 1  # the caller's own handle


def test_sparse_tiles_are_not_read_with_the_glass_between_them(memory_slide: Callable[..., tuple]) -> None:
    slide, faults = memory_slide(draw_cells(4000, 4000, [(300, 300), (3500, 350), (2000, 3700)]))
    plan = plan_tiles(slide, find_foreground(slide), tile_px=256, mpp=0.5)
    faults.reads.clear()
    assert all(p.status == "ok" for p in TileStream(slide, plan))
    read = sum(w * h for _, _, w, h in faults.reads)
    assert read <= 1.1 * len(plan) * 256 * 256


def test_overlaps_are_decoded_once_inside_a_block(memory_slide: Callable[..., tuple]) -> None:
    slide, faults = memory_slide(textured(2000, 2000))
    plan = plan_tiles(slide, None, tile_px=256, mpp=0.5, overlap=0.5)
    list(TileStream(slide, plan))
    assert sum(w * h for _, _, w, h in faults.reads) < 0.5 * len(plan) * 256 * 256


def test_only_the_damaged_tiles_are_unreadable(memory_slide: Callable[..., tuple]) -> None:
    image = textured(2000, 1500)
    slide, faults = memory_slide(image)
    plan = plan_tiles(slide, None, tile_px=256, mpp=0.5)
    spot = Box(900, 700, 901, 701)
    faults.bad = lambda x, y, w, h: Box(x, y, x + w, y + h).intersection(spot) > 0
    for patch in TileStream(slide, plan):
        t = patch.tile
        if t.box.intersection(spot) > 0:
            assert (patch.status, patch.pixels, patch.focus) == ("unreadable", None, None)
            assert "damaged tile" in patch.error
        else:
            assert np.array_equal(patch.pixels, image[t.y : t.y + 256, t.x : t.x + 256])


def test_a_corrupt_tile_in_a_real_scan_costs_only_what_it_covers(shared_data: Path, tmp_path: Path) -> None:
    import tifffile

    whole = shared_data / "slides" / "CMU-1-Small-Region.svs"
    data = bytearray(whole.read_bytes())
    with tifffile.TiffFile(whole) as file:
        page = file.pages[0]
        at = page.dataoffsets[25]  # row 2, column 5 of 240 px tiles
        assert page.tilewidth == 240
    data[at : at + 400] = bytes(range(200)) * 2
    path = tmp_path / "corrupt.svs"
    path.write_bytes(data)
    hurt = Box(5 * 240, 2 * 240, 6 * 240, 3 * 240)
    with open_slide(path) as slide, open_slide(whole) as sound:
        plan = plan_tiles(slide, None, tile_px=224, mpp=0.5)
        near = [t for t in plan.tiles if 700 <= t.x <= 1800 and t.y <= 1000]
        for patch in TileStream(slide, plan, tiles=near):
            t = patch.tile
            if t.box.intersection(hurt) > 0:
                assert patch.status == "unreadable"
            else:
                assert np.array_equal(patch.pixels, sound.read_region(t.x, t.y, 0, 224, 224))


def test_a_hiccup_is_retried_and_leaves_no_trace(memory_slide: Callable[..., tuple]) -> None:
    image = textured(1000, 1000)
    slide, faults = memory_slide(image)
    plan = plan_tiles(slide, None, tile_px=256, mpp=0.5)
    faults.once = 2
    for patch in TileStream(slide, plan, workers=2):
        t = patch.tile
        assert np.array_equal(patch.pixels, image[t.y : t.y + 256, t.x : t.x + 256])


def test_a_file_that_vanishes_makes_tiles_unreadable_and_not_a_crash(memory_slide: Callable[..., tuple]) -> None:
    slide, faults = memory_slide(textured(1000, 1000))
    plan = plan_tiles(slide, None, tile_px=256, mpp=0.5)
    faults.fail_opening = True
    patches = list(TileStream(slide, plan))
    assert [p.tile for p in patches] == list(plan.tiles)
    assert {p.status for p in patches} == {"unreadable"}
    assert "the disk went away" in patches[0].error


def test_a_defect_in_a_reader_thread_is_recorded(
    memory_slide: Callable[..., tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, _ = memory_slide(textured(600, 600))
    plan = plan_tiles(slide, None, tile_px=256, mpp=0.5)

    def broken(pixels: object) -> float:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("tilers.stream.focus_score", broken)
    patches = list(TileStream(slide, plan))
    assert {(p.status, p.error) for p in patches} == {("unreadable", "ZeroDivisionError: a defect")}


def test_chosen_tiles_come_in_the_order_asked(memory_slide: Callable[..., tuple]) -> None:
    image = textured(2000, 2000)
    slide, _ = memory_slide(image)
    plan = plan_tiles(slide, None, tile_px=256, mpp=0.5)
    chosen = [plan.tiles[i] for i in (40, 3, 77, 4, 41, 0)]
    patches = list(TileStream(slide, plan, tiles=chosen))
    assert [p.tile for p in patches] == chosen
    assert all(np.array_equal(p.pixels, image[p.tile.y :, p.tile.x :][:256, :256]) for p in patches)


def test_two_passes_are_identical(memory_slide: Callable[..., tuple]) -> None:
    slide, _ = memory_slide(textured(1300, 900))
    plan = plan_tiles(slide, None, tile_px=200, mpp=0.7)
    stream = TileStream(slide, plan, workers=3)
    one, two = list(stream), list(stream)
    assert all(np.array_equal(a.pixels, b.pixels) and a.focus == b.focus for a, b in zip(one, two, strict=True))


def test_a_slide_smaller_than_a_tile_is_padded_with_background(memory_slide: Callable[..., tuple]) -> None:
    image = textured(100, 60)
    slide, _ = memory_slide(image)
    (patch,) = TileStream(slide, plan_tiles(slide, None, tile_px=256, mpp=0.5))
    assert np.array_equal(patch.pixels[:60, :100], image)
    assert (patch.pixels[60:] == 255).all()
    assert (patch.pixels[:, 100:] == 255).all()


def test_an_empty_plan_yields_nothing(memory_slide: Callable[..., tuple]) -> None:
    slide, _ = memory_slide(np.full((600, 600, 3), 255, np.uint8))
    plan = plan_tiles(slide, find_foreground(slide), tile_px=256, mpp=0.5)
    assert list(TileStream(slide, plan)) == []


def test_a_tile_that_does_not_fit_the_memory_bound_is_a_setting_error(memory_slide: Callable[..., tuple]) -> None:
    slide, _ = memory_slide(np.broadcast_to(np.uint8(200), (3000, 3000, 3)))
    plan = plan_tiles(slide, None, tile_px=2048, mpp=0.5)
    with pytest.raises(SettingError, match="max_bytes"):
        TileStream(slide, plan, max_bytes=40 * 2**20)
    assert len(list(TileStream(slide, plan, max_bytes=120 * 2**20))) == len(plan)


def test_focus_falls_with_blur() -> None:
    import cv2

    sharp = draw_cells(256, 256, [(60, 60), (150, 170)])
    blurred = cv2.GaussianBlur(sharp, (0, 0), 3)
    assert focus_score(sharp) > 5 * focus_score(blurred)
    assert focus_score(np.full((64, 64, 3), 90, np.uint8)) == 0.0


@pytest.mark.parametrize("size", [(507, 507), (300, 300), (257, 400), (512, 512), (256, 256), (200, 200)])
def test_a_fraction_of_a_pixel_is_averaged_as_opencv_does_it(size: tuple[int, int]) -> None:
    import cv2

    yy, xx = np.mgrid[0 : size[0], 0 : size[1]] / 9
    read = (128 + 60 * np.stack([np.sin(xx), np.cos(yy), np.sin(xx + yy)], axis=2)).astype(np.uint8)
    small = resample(read, 256)
    method = cv2.INTER_AREA if min(size) >= 256 else cv2.INTER_LINEAR
    wanted = cv2.resize(read, (256, 256), interpolation=method)
    gap = np.abs(small.astype(int) - wanted)
    assert small.shape == (256, 256, 3)
    assert small.flags.c_contiguous
    assert small.base is None or small.base is not read
    assert gap.max() <= 3
    assert gap.mean() < 0.5


def test_focus_is_the_variance_of_the_laplacian_in_whole_numbers() -> None:
    import cv2

    pixels = textured(97, 61)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.int64)
    framed = np.pad(grey, 1, mode="reflect")
    edges = framed[:-2, 1:-1] + framed[2:, 1:-1] + framed[1:-1, :-2] + framed[1:-1, 2:] - 4 * grey
    assert focus_score(pixels) == pytest.approx(edges.var(), rel=1e-9)
