"""Thresholds with a guarantee: by hand, over resamples, and refused with the number that is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.conformal import Band, alarm_threshold, allowed, band, miss_threshold, needed, per_patient
from wsi_chat.errors import SettingError


@pytest.mark.parametrize(("rate", "n"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.5, 1), (0.3, 3)])
def test_the_fewest_cases(rate, n):
    assert needed(rate) == n
    assert allowed(rate, n) >= 0
    assert allowed(rate, n - 1) < 0


def test_a_threshold_by_hand():
    # n = 39, alpha = .05: (m + 1) / 40 <= .05 allows m = 1 miss, so the second lowest score is the threshold
    scores = np.arange(39) / 100
    assert allowed(0.05, 39) == 1
    assert miss_threshold(scores, 0.05) == 0.01
    assert (scores < miss_threshold(scores, 0.05)).sum() == 1
    assert miss_threshold(scores[:19], 0.05) == 0.0  # 19 allow no miss
    # the highest score may ring, the second highest may not
    assert alarm_threshold(scores, 0.05) == np.nextafter(0.37, 1)
    assert (scores >= alarm_threshold(scores, 0.05)).sum() == 1


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=9, max_size=60), st.floats(0.1, 0.9))
def test_the_bound_of_the_paper_holds_and_is_tight(scores, rate):
    n = len(scores)
    threshold = miss_threshold(scores, rate)
    risk = np.mean(np.array(scores) < threshold)
    assert n / (n + 1) * risk + 1 / (n + 1) <= rate + 1e-9
    above = [s for s in scores if s > threshold]
    if above:
        more = np.mean(np.array(scores) < min(above))
        assert n / (n + 1) * more + 1 / (n + 1) > rate - 1e-9


def test_the_miss_rate_on_new_cases_is_kept_on_average():
    rng = np.random.default_rng(0)
    missed, alarms = [], []
    for _ in range(2000):
        low = miss_threshold(rng.normal(1, 1, 25), 0.1)
        high = alarm_threshold(rng.normal(0, 1, 25), 0.1)
        missed.append(rng.normal(1, 1) < low)
        alarms.append(rng.normal(0, 1) >= high)
    # 25 cases allow one miss: the expected rate is 2 / 26
    assert np.mean(missed) == pytest.approx(2 / 26, abs=0.02)
    assert np.mean(alarms) == pytest.approx(2 / 26, abs=0.02)


def test_the_band_separates_three_calls():
    found = band(np.linspace(0.3, 0.9, 19), np.linspace(0.1, 0.5, 19), miss_rate=0.05, false_alarm_rate=0.05)
    assert found.low == pytest.approx(0.3)
    assert found.high == pytest.approx(0.5)
    assert [found.call(s) for s in (0.29, 0.3, 0.5, 0.51)] == ["normal", "indeterminate", "indeterminate", "abnormal"]
    apart = band(np.linspace(0.8, 0.9, 19), np.linspace(0.1, 0.2, 19), miss_rate=0.05, false_alarm_rate=0.05)
    assert apart == Band(0.8, 0.8)


def test_too_few_cases_are_refused_with_the_number():
    with pytest.raises(SettingError, match=r"needs 19 abnormal patients .* there are 12") as error:
        miss_threshold([0.5] * 12, 0.05)
    assert error.value.hint.startswith("Add 7 ")
    with pytest.raises(SettingError, match="normal patients"):
        alarm_threshold([0.5], 0.05)
    with pytest.raises(SettingError, match=r"rate is 1\.5"):
        needed(1.5)


def test_a_patient_counts_once_by_the_worst_slide():
    low, high = per_patient([0.9, 0.2, 0.7, 0.1], [True, True, False, False], ["a", "a", "a", "b"])
    assert (low, high) == ((0.2,), (0.1, 0.7))
    assert not math.isinf(low[0])
