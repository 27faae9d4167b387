"""Where tiles of empty glass are left out, what the report says of it, and the picture of the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsi_chat
from reports.mask import EMPTY, FOUND, read_mask
from wsi_chat.datasets.mosaic import write_pyramid
from wsi_chat.engines import ScriptedEngine
from wsi_chat.schema import Report
from wsi_chat.settings import Settings, fit_conditions

QUICK: dict[str, Any] = {"top_k": 0, "adequacy_tiles": 0, "format": "json", "gallery": 0, "controls": False}


def half_glass() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Cells at the left, empty glass at the right; 1,536 x 512 px."""
    canvas = np.full((512, 1536, 3), 238, np.uint8)
    canvas[40:472:48, 40:472:48] = (60, 50, 110)
    for shift in range(12):
        canvas[40 + shift : 472 : 48, 40:472] = (90, 70, 130)
    return canvas


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def analyze(*, slide: bool, **settings: Any) -> tuple[Report, Path]:
        path = tmp_path / ("slide.tiff" if slide else "field.png")
        if slide:
            write_pyramid(path, half_glass(), mpp=0.5)
        else:
            Image.fromarray(half_glass()).save(path)
        given = {**QUICK, "specimen": "cervix", "mpp": 0.5, "tile_px": 256, "tile_mpp": 0.5, **settings}
        engine = ScriptedEngine(lambda query: {"A": 0.9, "B": 0.1})
        result = wsi_chat.analyze(path, out=tmp_path / "out", engine=engine, **given)
        return result.report, result.folder

    return analyze


@pytest.mark.parametrize(
    ("slide", "settings", "masked"),
    [
        (True, {}, True),
        (False, {}, False),  # a picture of one field: every tile counts
        (False, {"mask": "on"}, True),
        (False, {"mask": True}, True),
        (True, {"mask": "off"}, False),
        (True, {"mask": False}, False),
        (True, {"specimen": "blood-smear"}, False),
    ],
)
def test_glass_is_left_out_on_slides_and_where_it_is_asked_for(
    run: Any, slide: bool, settings: dict[str, Any], masked: bool
) -> None:
    report, _ = run(slide=slide, **settings)
    funnel = report.funnel
    assert report.provenance.masked is masked
    assert (funnel.empty > 0) == masked
    assert funnel.grid == funnel.foreground + funnel.empty + funnel.outside
    assert funnel.screened == funnel.foreground
    said = [note for note in report.notes if "left out as empty glass" in note]
    assert bool(said) == masked
    if masked:
        assert f"{funnel.empty} were left out as empty glass and 0 as outside the scan" in said[0]


def test_a_field_of_nothing_but_glass_has_no_cells_though_nothing_is_masked(run: Any, tmp_path: Path) -> None:
    Image.fromarray(np.full((512, 512, 3), 240, np.uint8)).save(tmp_path / "glass.png")
    report = wsi_chat.analyze(
        tmp_path / "glass.png", out=tmp_path / "o", engine=ScriptedEngine({}), specimen="cervix", mpp=0.5, **QUICK
    ).report
    assert (report.verdict.status, report.verdict.grounds[0].rule) == ("unsatisfactory", "cells.none")


def test_the_mask_is_a_picture_in_the_run_folder(run: Any) -> None:
    _, folder = run(slide=True)
    with Image.open(folder / "mask.png") as picture:
        colours = np.asarray(picture.convert("RGB"))
    left, right = colours[:, : colours.shape[1] // 3], colours[:, -colours.shape[1] // 3 :]
    assert (left == (60, 110, 160)).all(axis=2).mean() > 0.2
    assert (right == (255, 255, 255)).all(axis=2).all()


def test_a_mask_that_is_read_back_says_where_it_lies(run: Any) -> None:
    report, folder = run(slide=True)
    mask = read_mask(folder / "mask.png")
    assert mask is not None
    assert mask.cell is not None
    rows, columns = mask.kinds.shape
    for cells, length in ((columns, report.slide.width), (rows, report.slide.height)):
        assert length <= cells * mask.cell < length + mask.cell, "the last cell may reach beyond the slide, by less"
    assert {EMPTY, FOUND} <= set(np.unique(mask.kinds).tolist())
    (folder / "mask.png").write_bytes(b"no picture")
    assert read_mask(folder / "mask.png") is None


def test_yes_and_no_of_earlier_versions_are_still_understood_and_conditions_of_fits_stay() -> None:
    assert [Settings(mask=value).mask for value in (True, "no", "auto", "on", "FALSE")] == [
        "on", "off", "auto", "on", "off",
    ]  # fmt: skip
    assert [fit_conditions({"mask": value})["mask"] for value in (True, "auto", "on", False, "off")] == [
        True, True, True, False, False,
    ]  # fmt: skip
