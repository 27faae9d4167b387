"""Which statement of the scale is believed."""

from __future__ import annotations

import pytest

from tilers.properties import number, objective, tiff_resolution
from tilers.readers import Resolution
from tilers.resolution import resolve_mpp
from wsi_chat.errors import SettingError


def said(x: float, source: str = "vendor", y: float | None = None) -> Resolution:
    return Resolution(x, x if y is None else y, source)


def test_order_of_trust() -> None:
    both = [said(0.25, "aperio.MPP"), said(0.5, "tiff resolution tags")]
    assert resolve_mpp(both, objective_power=20, flag=0.3).source == "flag"
    assert resolve_mpp(both, objective_power=20, flag=None).source == "aperio.MPP"
    assert resolve_mpp(both[1:], objective_power=20, flag=None).value == 0.5
    derived = resolve_mpp([], objective_power=20, flag=None)
    assert (derived.value, derived.source) == (0.5, "objective power (derived)")
    assert "not measured" in derived.notes[0]
    unknown = resolve_mpp([], objective_power=None, flag=None)
    assert (unknown.value, unknown.source) == (None, "unknown")


@pytest.mark.parametrize("value", [352.78, 264.58, 0.049, 5.01, float("nan"), float("inf"), 0.0, -0.5])
def test_implausible_statements_are_passed_over_but_remembered(value: float) -> None:
    settled = resolve_mpp([said(value), said(0.5, "tags")], objective_power=None, flag=None)
    assert (settled.value, settled.source) == (0.5, "tags")
    assert "from vendor" in settled.implausible[0]
    assert resolve_mpp([said(value)], objective_power=None, flag=None).value is None


@pytest.mark.parametrize("value", [0.05, 5.0])
def test_the_limits_are_plausible(value: float) -> None:
    assert resolve_mpp([said(value)], objective_power=None, flag=None).value == value
    assert resolve_mpp([], objective_power=None, flag=value).value == value


@pytest.mark.parametrize("flag", [0.049, 5.1, 0.0, -1.0, float("nan")])
def test_an_implausible_flag_is_a_wrong_setting(flag: float) -> None:
    with pytest.raises(SettingError, match="--mpp"):
        resolve_mpp([said(0.5)], objective_power=None, flag=flag)


def test_pixels_that_are_not_square_are_noted_beyond_two_percent() -> None:
    assert resolve_mpp([said(0.50, y=0.505)], objective_power=None, flag=None).notes == ()
    noted = resolve_mpp([said(0.50, y=0.52)], objective_power=None, flag=None)
    assert noted.value == pytest.approx(0.51)
    assert "0.5 x 0.52" in noted.notes[0]


def test_tiff_tags_need_a_physical_unit() -> None:
    assert tiff_resolution(20000, 20000, "centimeter") == Resolution(0.5, 0.5, "tiff resolution tags")
    assert tiff_resolution("50800", "25400", 2) == Resolution(0.5, 1.0, "tiff resolution tags")
    assert tiff_resolution(20000, 20000, "none") is None
    assert tiff_resolution(20000, 20000, None) is None
    assert tiff_resolution(0, 0, "inch") is None


def test_numbers_as_vendors_write_them() -> None:
    assert number(" 0,25 ") == 0.25
    assert number("nan") is None
    assert number("n/a") is None
    assert objective("40x") == 40
    assert objective("0") is None
    assert objective(None) is None
