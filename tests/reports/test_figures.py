"""Pixels of the overview, the heatmap and the gallery: missing is visible, places are right, bytes repeat."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from reports import draw_gallery, draw_heatmap, draw_overview, gallery_items
from reports.figures import rasterize
from wsi_chat.errors import OutputError
from wsi_chat.schema import Box, Tile, TileVerdict


def _tile(index, x, y, **values):
    values.setdefault("status", "screened" if values.get("p_screen") is not None else "unreadable")
    return TileVerdict(tile=Tile(index, x, y, 600, 600, 0, (600, 600), 512, 0.5), **values)


def _pixel(path, report, x, y, spread=40):
    """Median colour around a level-0 place of a drawn picture (the scan fills the top, left-aligned)."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    axes_h = image.shape[0] - 0.4 * 300  # without the legend strip
    scale = min(0.99 * image.shape[1] / report.slide.width, axes_h / report.slide.height)
    row, column = round(y * scale), round(x * scale + 0.005 * image.shape[1])
    half = max(2, round(spread * scale))
    return np.median(image[row - half : row + half, column - half : column + half].reshape(-1, 3), axis=0)


def test_a_missing_tile_looks_unlike_a_tile_with_probability_zero(abnormal, overview_rgb, tmp_path):
    tiles = [_tile(0, 0, 0, p_screen=0.0), _tile(1, 2400, 0), _tile(2, 4800, 0, p_screen=1.0)]
    path = draw_heatmap(overview_rgb, abnormal.report, tiles, tmp_path / "heatmap.png")
    zero, missing, one = (_pixel(path, abnormal.report, x + 300, 300, 150) for x in (0, 2400, 4800))
    blank = _pixel(path, abnormal.report, 4000, 5000)
    assert np.ptp(missing) <= 6, "missing is grey"
    for first, second in ((zero, missing), (zero, one), (missing, one), (zero, blank), (missing, blank)):
        assert np.abs(first - second).max() > 30
    assert one.sum() < missing.sum() < zero.sum(), "high is dark, low is light"


def test_heat_shows_the_highest_of_overlapping_tiles_and_misses_nothing(abnormal):
    report = abnormal.report
    heat, missing = rasterize(report, [_tile(0, 0, 0, p_screen=0.2), _tile(1, 480, 0), _tile(2, 960, 0, p_screen=0.9)])
    scale = heat.shape[1] / report.slide.width

    def at(x):
        return heat[10, round(x * scale)], missing[10, round(x * scale)]

    assert at(300) == (np.float32(0.2), False)
    assert at(540) == (np.float32(0.2), False), "covered by a tile that has an answer"
    assert np.isnan(at(780)[0])
    assert at(780)[1]
    assert at(1000) == (np.float32(0.9), False)
    assert np.isnan(at(3000)[0])
    assert not at(3000)[1], "no tile was planned there"


def test_findings_are_marked_where_they_are(abnormal, tmp_path):
    grey = np.full((480, 720, 3), 200, dtype=np.uint8)
    finding = abnormal.report.verdict.findings[0].model_copy(update={"box": Box(4000, 2000, 4080, 2080)})
    verdict = abnormal.report.verdict.model_copy(update={"findings": (finding,)})
    report = abnormal.report.model_copy(update={"verdict": verdict})
    path = draw_overview(grey, report, (), tmp_path / "overview.png")
    there, elsewhere = _pixel(path, report, 4040, 2050, 20), _pixel(path, report, 6000, 4000, 20)
    assert there[0] - there[2] > 100, "vermilion"
    assert np.abs(elsewhere - 200).max() <= 2


def test_pictures_repeat_byte_for_byte_and_carry_no_time(abnormal, overview_rgb, tmp_path):
    for draw in (draw_overview, draw_heatmap):
        first = draw(overview_rgb, abnormal.report, abnormal.tiles, tmp_path / "a.png").read_bytes()
        assert draw(overview_rgb, abnormal.report, abnormal.tiles, tmp_path / "b.png").read_bytes() == first
        assert b"tIME" not in first
        assert b"Software" not in first


@pytest.mark.parametrize(("width", "height"), [(40_000, 900), (900, 40_000)])
def test_slides_of_any_shape_can_be_drawn(width, height, abnormal, overview_rgb, tmp_path):
    slide = abnormal.report.slide.model_copy(update={"width": width, "height": height})
    report = abnormal.report.model_copy(update={"slide": slide})
    ring = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, 0.0)]
    for draw in (draw_overview, draw_heatmap):
        picture = Image.open(draw(overview_rgb, report, abnormal.tiles, tmp_path / "x.png", outline=[ring]))
        assert picture.width == 1020
        assert picture.height <= 740


# ------------------------------------------------------------------------------------------------ the gallery


def _grey(box, px):
    return np.full((px, px, 3), 190, dtype=np.uint8)


def test_the_gallery_shows_the_carrying_findings_first(abnormal, tmp_path):
    carrying = [name for name in abnormal.report.verdict.carrying if name.startswith("f")]
    items = draw_gallery(_grey, abnormal.report, tmp_path)
    assert [item.id for item in items[: len(carrying)]] == carrying
    assert len(items) == len(abnormal.report.verdict.findings)
    assert all((tmp_path / item.file).is_file() and item.drawn for item in items)
    by_id = {finding.id: finding for finding in abnormal.report.verdict.findings}
    for item in items:
        x, y = by_id[item.id].box.center
        assert item.position_mm == pytest.approx((x * 0.5 / 1000, y * 0.5 / 1000))
        assert item.field.width * 0.5 == pytest.approx(item.field_um)


def test_the_gallery_is_limited(make, tmp_path):
    crowded = make(hot=30, boxes_per_tile=9)
    assert len(crowded.report.verdict.findings) > 200
    assert len(draw_gallery(_grey, crowded.report, tmp_path, limit=12)) == 12
    assert len(list((tmp_path / "gallery").iterdir())) == 12


def test_the_field_is_square_holds_the_cell_and_stays_on_the_slide(make):
    for item in gallery_items(make(hot=30).report, limit=500):
        assert item.field.width == pytest.approx(item.field.height)
        assert item.field.intersection(item.box) == pytest.approx(item.box.area)
        assert item.field.x0 >= 0
        assert item.field.y0 >= 0
        assert item.field_um in (60.0, 120.0)


def test_an_unreadable_cell_is_reported_and_not_painted(abnormal, tmp_path):
    items = draw_gallery(lambda box, px: None, abnormal.report, tmp_path)
    assert items
    assert not any(item.drawn for item in items)
    assert not (tmp_path / "gallery").exists()


def test_an_earlier_runs_pictures_do_not_stand_for_todays_cells(abnormal, tmp_path):
    draw_gallery(_grey, abnormal.report, tmp_path)
    (tmp_path / "gallery" / "mine.png").write_bytes(b"a user's own file stays")
    draw_gallery(_grey, abnormal.report, tmp_path, limit=1)
    assert len(list((tmp_path / "gallery").glob("f*.png"))) == 1
    draw_gallery(lambda box, px: None, abnormal.report, tmp_path)
    assert [entry.name for entry in (tmp_path / "gallery").iterdir()] == ["mine.png"]


def test_ticks_and_scale_bar_leave_the_cell_alone(abnormal, tmp_path):
    item = draw_gallery(_grey, abnormal.report, tmp_path, limit=1)[0]
    image = np.asarray(Image.open(tmp_path / item.file)).astype(int)
    scale = 224 / item.field.width
    x0, y0 = (item.box.x0 - item.field.x0) * scale, (item.box.y0 - item.field.y0) * scale
    x1, y1 = (item.box.x1 - item.field.x0) * scale, (item.box.y1 - item.field.y0) * scale
    assert (image[round(y0) : round(y1), round(x0) : round(x1)] == 190).all()
    dark = (image.sum(axis=2) < 120).any(axis=0)
    bar = (image[212].sum(axis=1) < 120).nonzero()[0]
    assert len(bar) == pytest.approx(224 * 10 / item.field_um, abs=2), "10 um"
    assert dark.any()


def test_counted_classes_take_turns(make):
    items = gallery_items(make(specimen="blood-smear", boxes_per_tile=9).report)
    assert {item.name for item in items[:3]} == {"WBC", "RBC", "Platelet"}


def test_without_findings_the_carrying_fields_are_shown(make, tmp_path):
    case = make(boxes_per_tile=0)
    items = draw_gallery(_grey, case.report, tmp_path, tile_verdicts=case.tiles)
    assert [item.id for item in items] == [n for n in case.report.verdict.carrying if n.startswith("t")]
    assert all(item.field_um == 300 for item in items)


def test_an_unwritable_gallery_is_named(abnormal, tmp_path):
    (tmp_path / "gallery").write_text("in the way")
    with pytest.raises(OutputError, match="gallery/f"):
        draw_gallery(_grey, abnormal.report, tmp_path)
