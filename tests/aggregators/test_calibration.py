"""Calibrations: known slopes, monotone curves, the rule that picks one, and the error's known values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregators.calibration import Calibration, calibration_curve, calibration_error, choose_method, fit_calibration
from wsi_chat.errors import SettingError


def test_platt_recovers_a_known_slope_and_intercept():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 20_000)
    truth = rng.random(20_000) < 1 / (1 + np.exp(-(0.7 * margin - 0.5)))
    found = fit_calibration(margin, truth, method="platt")
    assert found.slope == pytest.approx(0.7, abs=0.03)
    assert found.intercept == pytest.approx(-0.5, abs=0.05)


def test_platt_stays_finite_where_slides_are_told_apart_perfectly():
    found = fit_calibration([-2.0] * 10 + [2.0] * 10, [False] * 10 + [True] * 10)
    assert found.apply(2.0) == pytest.approx(11 / 12, abs=1e-3)  # Platt's target


def test_a_head_worse_than_chance_gives_everyone_the_share_of_the_cohort():
    found = fit_calibration([2.0] * 10 + [-2.0] * 30, [False] * 10 + [True] * 30)
    assert found.slope == 0.0
    assert found.apply([-5.0, 5.0]) == pytest.approx([0.74, 0.74], abs=0.02)


def test_the_rule_is_isotonic_from_a_thousand_slides_with_a_tenth_of_the_rarer_class():
    assert choose_method([True] * 500 + [False] * 499) == "platt"
    assert choose_method([True] * 500 + [False] * 500) == "isotonic"
    assert choose_method([True] * 99 + [False] * 2000) == "platt"


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(-9, 9), st.booleans()), min_size=4, max_size=40),
    st.sampled_from(["platt", "isotonic"]),
)
def test_every_calibration_is_monotone_within_0_and_1(rows, method):
    truth = [t for _, t in rows]
    if all(truth) or not any(truth):
        with pytest.raises(SettingError, match="both classes"):
            fit_calibration([m for m, _ in rows], truth, method=method)
        return
    found = fit_calibration([m for m, _ in rows], truth, method=method)
    p = found.apply(np.linspace(-12, 12, 101))
    assert (np.diff(p) >= -1e-12).all()
    assert p.min() >= 0
    assert p.max() <= 1
    assert Calibration.model_validate_json(found.model_dump_json()) == found


def test_an_isotonic_curve_that_falls_is_refused():
    with pytest.raises(ValidationError, match="must rise"):
        Calibration(method="isotonic", slides=5, x=(0.0, 1.0), y=(0.5, 0.4))


def test_calibration_error_by_hand():
    # two bins: predicted .1 and observed 0, predicted .9 and observed .5
    p = [0.1] * 4 + [0.9] * 4
    truth = [0, 0, 0, 0, 1, 1, 0, 0]
    assert calibration_error(p, truth, bins=2) == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)
    assert [b.slides for b in calibration_curve(p, truth, bins=2)] == [4, 4]
    assert calibration_error([0.5] * 100, [0, 1] * 50) == 0.0
