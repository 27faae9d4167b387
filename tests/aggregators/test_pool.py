"""Pools: what holds for each of them, and the values that a wrong formula would miss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators import (
    POOLS,
    findings_share,
    fraction_above,
    maximum,
    mean,
    noisy_or_corrected,
    topk_mean_logit,
)
from aggregators.pooling import CLIP, find_pool
from wsi_chat.errors import SettingError

chance = st.floats(0.0, 1.0)
slides = st.lists(chance, min_size=1, max_size=40)
names = st.sampled_from(sorted(POOLS))


def score(name: str, p: list[float]) -> float:
    value, _ = POOLS[name](p, k=5, false_alarm=0.02, cutoff=0.5)
    assert value is not None
    return value


@settings(deadline=None)
@given(names, slides)
def test_every_score_is_a_number_from_0_to_1(name, p):
    assert 0.0 <= score(name, p) <= 1.0


@settings(deadline=None)
@given(names, slides, st.data())
def test_a_rising_tile_never_lowers_the_score(name, p, data):
    i = data.draw(st.integers(0, len(p) - 1))
    raised = [*p[:i], data.draw(st.floats(p[i], 1.0)), *p[i + 1 :]]
    assert score(name, raised) >= score(name, p) - 1e-12


@settings(deadline=None)
@given(names, slides, st.randoms(use_true_random=False))
def test_the_order_of_tiles_does_not_matter(name, p, random):
    shuffled = list(p)
    random.shuffle(shuffled)
    assert score(name, shuffled) == score(name, p)


@settings(deadline=None)
@given(st.sampled_from(["topk_logit", "mean", "max"]), slides)
def test_averages_lie_between_the_lowest_and_the_highest_tile(name, p):
    assert min(p) - CLIP - 1e-12 <= score(name, p) <= max(p) + CLIP + 1e-12


@settings(deadline=None)
@given(slides)
def test_corrected_noisy_or_is_at_most_the_plain_one_and_equals_it_without_false_alarms(p):
    plain = 1.0 - math.prod(1.0 - value for value in p)
    assert noisy_or_corrected(p, false_alarm=0.0) == pytest.approx(plain, abs=1e-9)
    assert noisy_or_corrected(p, false_alarm=0.05) <= plain + 1e-9


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(1e-6, 0.2))
def test_a_slide_whose_tiles_all_sit_at_the_false_alarm_rate_does_not_ring(n, rate):
    assert noisy_or_corrected([rate] * n, false_alarm=rate) == 0.0


def test_500_tiles_with_one_percent_false_alarms_do_not_ring_while_max_and_plain_noisy_or_do():
    rng = np.random.default_rng(0)
    normal = (rng.random((200, 500)) < 0.01).astype(float)
    corrected = [noisy_or_corrected(slide, false_alarm=0.01) for slide in normal]
    by_tile = [1.0 - math.prod(1.0 - max(0.0, (p - 0.01) / 0.99) for p in slide) for slide in normal]
    rings = 1.0 - 0.99**500
    assert rings == pytest.approx(0.993, abs=5e-4)
    assert np.mean([maximum(slide) >= 0.5 for slide in normal]) == pytest.approx(rings, abs=0.02)
    assert np.mean(np.array(by_tile) >= 0.5) > 0.95, "taking the rate off tile by tile is not enough"
    assert np.mean(np.array(corrected) >= 0.5) < 0.05
    abnormal = normal.copy()
    abnormal[:, :15] = 1.0
    assert np.mean([noisy_or_corrected(slide, false_alarm=0.01) >= 0.5 for slide in abnormal]) > 0.98


def test_graded_false_alarms_with_that_mean_do_not_ring_either():
    rng = np.random.default_rng(1)
    slides = rng.beta(0.05, 4.95, size=(200, 500))
    assert slides.mean() == pytest.approx(0.01, abs=5e-4)
    assert np.mean([noisy_or_corrected(slide, false_alarm=0.01) >= 0.5 for slide in slides]) < 0.03


def test_top_k_is_the_mean_of_logits_of_the_highest_tiles_only():
    p = [0.9, 0.8, 0.1] + [0.01] * 50
    logits = [math.log(value / (1 - value)) for value in (0.9, 0.8, 0.1)]
    assert topk_mean_logit(p, 3) == pytest.approx(1 / (1 + math.exp(-sum(logits) / 3)), abs=1e-12)
    assert topk_mean_logit(p, 1) == pytest.approx(0.9)


def test_one_saturated_tile_does_not_outvote_nine_normal_ones():
    assert topk_mean_logit([1.0] + [0.1] * 9, 10) < 0.5
    assert maximum([1.0] + [0.1] * 9) == 1.0


def test_zero_and_one_are_finite_and_stay_apart():
    low, high = topk_mean_logit([0.0] * 20), topk_mean_logit([1.0] * 20)
    assert (low, high) == (pytest.approx(CLIP), pytest.approx(1 - CLIP))
    assert noisy_or_corrected([1.0, 0.0], false_alarm=0.0) == 1.0
    assert noisy_or_corrected([0.0, 0.0]) == 0.0


def test_fewer_tiles_than_k_are_averaged_and_named():
    value, kind = POOLS["topk_logit"]([0.7, 0.7], k=10)
    assert value == pytest.approx(0.7)
    assert kind == "uncalibrated mean of the logits of 2 tiles, all that gave an answer, as a probability"
    assert POOLS["topk_logit"]([0.7] * 10, k=10)[1] == "uncalibrated top-10 mean of logits, as a probability"


def test_fraction_above_includes_the_cutoff():
    assert fraction_above([0.5, 0.4, 0.6, 0.1]) == 0.5
    assert fraction_above([0.5, 0.4, 0.6, 0.1], cutoff=0.6) == 0.25
    assert mean([0.0, 0.5, 1.0]) == 0.5


@pytest.mark.parametrize("name", sorted(POOLS))
def test_no_tiles_give_no_score(name):
    value, kind = POOLS[name]([], k=10, false_alarm=0.01, cutoff=0.5)
    assert value is None
    assert kind


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("name", sorted(POOLS))
def test_what_is_no_probability_is_refused(name, bad):
    with pytest.raises(SettingError, match=str(bad)):
        POOLS[name]([0.5, bad])


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: topk_mean_logit([0.5], 0), "k is 0"),
        (lambda: noisy_or_corrected([0.5], false_alarm=1.0), r"false_alarm is 1\.0"),
        (lambda: noisy_or_corrected([0.5], spread=-1.0), r"spread is -1\.0"),
        (lambda: fraction_above([0.5], cutoff=2.0), r"cutoff is 2\.0"),
        (lambda: find_pool("median"), "'median'.*topk_logit, mean, max, noisy_or, fraction_above"),
    ],
)
def test_wrong_settings_are_named_with_their_value(call, names):
    with pytest.raises(SettingError, match=names):
        call()


def test_the_count_of_findings_is_a_rising_score_that_crosses_one_half_at_k():
    assert [findings_share(n, 10) for n in (0, 10, 30)] == [0.0, 0.5, 0.75]
    assert POOLS["findings"]([0.5], k=10, findings=30) == (
        0.75,
        "uncalibrated count of merged abnormal findings (30), as n / (n + 10)",
    )
    with pytest.raises(SettingError, match="-1 findings"):
        findings_share(-1)
