"""Opening slides: size, scale and its source, regions, overview, fingerprint, privacy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tilers import open_slide
from tilers.reduce import UNREADABLE_RGB
from wsi_chat.errors import ResolutionUnknown, SettingError, SlideUnreadable
from wsi_chat.schema import Box

from .conftest import textured


def test_a_real_aperio_scan(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert slide.size == (2220, 2967)
        assert (slide.mpp, slide.mpp_source, slide.reader) == (0.499, "aperio.MPP", "openslide")
        assert slide.objective_power == 20
        record = slide.record("cmu")
    assert (record.width, record.height, record.levels, record.vendor) == (2220, 2967, 1, "aperio")


def test_properties_hold_nothing_personal(shared_data: Path) -> None:
    for name in ("CMU-1-Small-Region.svs", "boxes_0.dcm"):
        with open_slide(shared_data / "slides" / name) as slide:
            text = " ".join([*slide.properties, *slide.properties.values()]).lower()
        for personal in ("date", "user", "patient", "comment", "filename", "imageid", "b414003d", "uid", "serial"):
            assert personal not in text


def test_dicom_opens(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "boxes_0.dcm") as slide:
        assert slide.reader == "openslide"
        assert slide.mpp == 0.499
        assert slide.read_region(0, 0, 0, 16, 16).shape == (16, 16, 3)


def test_tiff_tags_give_the_mpp(tiff: Callable[..., Path]) -> None:
    with open_slide(tiff("a.tiff", textured(600, 400), mpp=0.25)) as slide:
        assert slide.mpp == pytest.approx(0.25, rel=1e-5)
        assert slide.mpp_source == "tiff resolution tags"


def test_the_flag_wins(tiff: Callable[..., Path]) -> None:
    with open_slide(tiff("a.tiff", textured(300, 300), mpp=0.25), mpp=0.4) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.4, "flag")


def test_an_implausible_flag_is_refused(tiff: Callable[..., Path]) -> None:
    with pytest.raises(SettingError, match="--mpp is 250"):
        open_slide(tiff("a.tiff", textured(300, 300)), mpp=250)


def test_dpi_defaults_are_no_resolution(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "boxes.tiff") as slide:
        assert slide.mpp is None
        assert slide.mpp_source == "unknown"
        with pytest.raises(ResolutionUnknown, match=r"boxes\.tiff.*352\.8.*--mpp"):
            slide.require_mpp()


def test_region_pixels_are_exact_at_every_level(tiff: Callable[..., Path]) -> None:
    image = textured(700, 520)
    with open_slide(tiff("a.tiff", image, levels=2)) as slide:
        assert slide.reader == "tiff"
        assert np.array_equal(slide.read_region(101, 57, 0, 300, 200), image[57:257, 101:401])
        half = image[:520, :700].reshape(260, 2, 350, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
        assert np.array_equal(slide.read_region(100, 56, 1, 120, 90), half[28:118, 50:170])


@pytest.mark.parametrize("reader", ["tiff", "tiffslide"])
@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_the_tiff_readers_agree(tiff: Callable[..., Path], reader: str, compression: str) -> None:
    path = tiff("a.tiff", textured(700, 520), levels=3, compression=compression)
    with open_slide(path, reader="openslide") as one, open_slide(path, reader=reader) as other:
        assert one.level_sizes == other.level_sizes
        assert one.mpp == pytest.approx(other.mpp)
        for x, y, level, w, h in (
            (0, 0, 0, 700, 520),
            (96, 64, 1, 130, 99),
            (-20, 500, 0, 90, 60),
            (16, 12, 2, 70, 80),
        ):
            assert np.array_equal(one.read_region(x, y, level, w, h), other.read_region(x, y, level, w, h))


def test_outside_the_slide_is_background_and_not_black(tiff: Callable[..., Path]) -> None:
    image = textured(300, 300)
    for reader in ("openslide", "tiff", "tiffslide"):
        with open_slide(tiff("a.tiff", image), reader=reader) as slide:
            got, scanned = slide.read_with_mask(-50, 280, 0, 100, 100)
        assert (got[:, :50] == 255).all()
        assert (got[20:] == 255).all()
        assert np.array_equal(got[:20, 50:], image[280:, :50])
        assert scanned is not None
        assert scanned.sum() == 20 * 50


def test_partly_transparent_pixels_are_mixed_with_the_background(memory_slide: Callable[..., tuple]) -> None:
    slide, _ = memory_slide(textured(64, 64))
    slide.background_rgb = (200, 100, 0)
    rgba = np.array([[[0, 0, 0, 0], [100, 100, 100, 255], [0, 200, 100, 51]]], np.uint8)
    got, scanned = slide._composite(rgba)
    assert got.tolist() == [[[200, 100, 0], [100, 100, 100], [160, 120, 20]]]
    assert scanned.tolist() == [[False, True, True]]


def test_a_latched_handle_is_reopened_once(memory_slide: Callable[..., tuple]) -> None:
    image = textured(300, 300)
    slide, faults = memory_slide(image)
    faults.once = 1
    assert np.array_equal(slide.read_region(0, 0, 0, 300, 300), image)
    assert faults.opened == 2
    assert faults.closed == 1


def test_a_damaged_region_raises_and_the_next_one_reads(memory_slide: Callable[..., tuple]) -> None:
    image = textured(300, 300)
    slide, faults = memory_slide(image)
    faults.bad = lambda x, y, w, h: x < 100
    with pytest.raises(SlideUnreadable, match=r"memory0\.mem: 50 x 60 px at \(10, 20\) of level 0.*damaged tile"):
        slide.read_region(10, 20, 0, 50, 60)
    assert np.array_equal(slide.read_region(150, 0, 0, 50, 50), image[:50, 150:200])


def test_overview_has_the_slides_proportions_and_means(memory_slide: Callable[..., tuple]) -> None:
    image = np.zeros((3000, 5000, 3), np.uint8)
    image[:1500, :2500] = (10, 20, 30)
    image[1500:, 2500:] = (200, 100, 50)
    slide, faults = memory_slide(image)
    overview = slide.overview(max_px=500)
    assert overview.shape == (300, 500, 3)
    assert (overview[:150, :250] == (10, 20, 30)).all()
    assert (overview[150:, 250:] == (200, 100, 50)).all()
    assert (overview[150:, :250] == 0).all()
    assert faults.largest <= 2048 * 2048


def test_overview_at_an_odd_ratio_averages_and_does_not_drift(memory_slide: Callable[..., tuple]) -> None:
    ramp = np.broadcast_to(np.linspace(0, 250, 3001)[None, :, None], (1000, 3001, 3)).astype(np.uint8)
    slide, _ = memory_slide(ramp)
    row = slide.overview(max_px=700)[100, :, 0].astype(float)
    wanted = (np.arange(700) + 0.5) / 700 * 250
    assert np.abs(row - wanted).max() < 1.5


def test_overview_marks_what_cannot_be_read(memory_slide: Callable[..., tuple]) -> None:
    slide, faults = memory_slide(np.full((2000, 2000, 3), 90, np.uint8))
    faults.bad = lambda x, y, w, h: x <= 1100 < x + w and y <= 900 < y + h
    overview = slide.overview(max_px=1000)
    marked = (overview == UNREADABLE_RGB).all(axis=2)
    assert marked[450, 550]
    assert 0 < marked.sum() <= 160 * 160
    assert (overview[~marked] == 90).all()


def test_crop_is_centred_where_it_was_asked(tiff: Callable[..., Path]) -> None:
    image = textured(600, 400)
    with open_slide(tiff("a.tiff", image, levels=2)) as slide:
        assert np.array_equal(slide.crop(Box(100, 50, 228, 178), 128), image[50:178, 100:228])
        half = slide.crop(Box(100, 50, 228, 178), 64).astype(int)
        wanted = image[50:178, 100:228].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(half - wanted).max() <= 1
        assert slide.crop(Box(0, 0, 40, 20), 200).shape == (100, 200, 3)
        beyond = slide.crop(Box(-64, -64, 64, 64), 128)
        assert (beyond[:64] == 255).all()


def test_fingerprint_is_the_contents_and_not_the_name(tiff: Callable[..., Path], tmp_path: Path) -> None:
    path = tiff("a.tiff", textured(300, 300))
    twin = Path(shutil.copy(path, tmp_path / "b.tiff"))
    other = tiff("c.tiff", textured(300, 300, seed=4))
    prints = []
    for each in (path, twin, other):
        with open_slide(each) as slide:
            prints.append(slide.fingerprint)
    assert prints[0] == prints[1] != prints[2]
    assert len(prints[0]) == 64


def test_fingerprint_of_a_large_file_reads_little_and_notices_its_end(tmp_path: Path) -> None:
    from tilers.fingerprint import fingerprint

    path = tmp_path / "large.bin"
    path.write_bytes(bytes(3 * 2**20))
    before = fingerprint(path, [(10, 10)])
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint(path, [(10, 10)]) != before
    assert fingerprint(path, [(10, 11)]) != fingerprint(path, [(10, 10)])


def test_closing_twice_is_harmless(tiff: Callable[..., Path]) -> None:
    slide = open_slide(tiff("a.tiff", textured(300, 300)))
    slide.close()
    slide.close()


def test_a_name_in_another_script(tiff: Callable[..., Path]) -> None:
    image = textured(300, 300)
    with open_slide(tiff("宫颈 涂片 – № 7.tiff", image)) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, 300, 300), image)
        assert "宫颈" in repr(slide)
