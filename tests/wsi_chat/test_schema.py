"""Boxes, tiles and records: geometry and what they refuse."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wsi_chat.schema import Box, Finding, Funnel, Tile, TileVerdict

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x0, x1 = sorted((draw(numbers), draw(numbers)))
    y0, y1 = sorted((draw(numbers), draw(numbers)))
    return Box(x0, y0, x1, y1)


def test_iou_of_half_overlapping_squares_is_one_third() -> None:
    assert Box(0, 0, 10, 10).iou(Box(5, 0, 15, 10)) == pytest.approx(1 / 3)


def test_disjoint_boxes_share_nothing_even_when_both_gaps_are_negative() -> None:
    # the product of two negative gaps is positive: the mistake that a careless IoU makes
    assert Box(0, 0, 1, 1).iou(Box(5, 5, 6, 6)) == 0.0
    assert Box(0, 0, 1, 1).intersection(Box(5, 5, 6, 6)) == 0.0


@given(boxes(), boxes())
def test_iou_is_symmetric_and_between_zero_and_one(a: Box, b: Box) -> None:
    assert a.iou(b) == b.iou(a)
    assert 0.0 <= a.iou(b) <= 1.0 + 1e-9


@given(boxes())
def test_a_box_is_itself(a: Box) -> None:
    assert a.iou(a) == (pytest.approx(1.0) if a.area > 0 else 0.0)


@pytest.mark.parametrize("corners", [(2, 0, 1, 1), (0, 2, 1, 1), (math.nan, 0, 1, 1)])
def test_corners_out_of_order_or_not_numbers_are_refused(corners: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="corners"):
        Box(*corners)


def test_clipping_keeps_the_inside_and_drops_a_mere_edge() -> None:
    frame = Box(0, 0, 10, 10)
    assert Box(-5, 5, 5, 15).clipped(frame) == Box(0, 5, 5, 10)
    assert Box(10, 0, 12, 5).clipped(frame) is None


def test_a_tiles_pixels_map_to_level_zero_by_its_own_size() -> None:
    tile = Tile(index=3, x=1000, y=2000, width=512, height=512, level=1, read_px=(256, 256), out_px=256, mpp=0.5)
    assert tile.to_level0(Box(0, 0, 256, 256)) == tile.box
    assert tile.to_level0(Box(64, 128, 65, 130)) == Box(1128, 2256, 1130, 2260)
    assert tile.id == "t000003"


def test_a_probability_above_one_and_a_nan_are_refused() -> None:
    tile = Tile(0, 0, 0, 10, 10, 0, (10, 10), 10, 0.5)
    for wrong in (1.0001, -0.1, math.nan):
        with pytest.raises(ValidationError):
            TileVerdict(tile=tile, status="screened", p_screen=wrong)


def test_a_finding_without_a_vote_is_refused() -> None:
    with pytest.raises(ValidationError):
        Finding(id="f0001", label="hsil", name="HSIL", box=Box(0, 0, 1, 1), abnormal=True, tile_ids=(), votes=0)


def test_coverage_of_no_tiles_is_zero_not_one() -> None:
    nothing = dict.fromkeys(Funnel.model_fields, 0)
    assert Funnel(**nothing).coverage == 0.0
    assert Funnel(**{**nothing, "foreground": 20, "selected": 8, "screened": 6}).coverage == 0.75
