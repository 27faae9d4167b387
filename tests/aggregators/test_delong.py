"""AUC and its intervals against hand-computed values, a brute-force definition, and a bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.intervals import auc, auc_delong, bootstrap, delong_variance, proportion
from wsi_chat.errors import SettingError


def test_a_hand_example():
    # positives 3, 1; negatives 2, 0: pairs won 3 of 4. V10 = (1, 1/2), V01 = (1/2, 1): each variance 1/8, over 2
    value, variance = delong_variance([1, 1, 0, 0], [3.0, 1.0, 2.0, 0.0])
    assert value == 0.75
    assert variance == pytest.approx(1 / 8)


def test_ties_count_one_half():
    assert auc([1, 0], [0.5, 0.5]) == 0.5
    assert auc([1, 1, 0, 0], [0.5, 0.9, 0.5, 0.1]) == pytest.approx(3.5 / 4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=4, max_size=25))
def test_midranks_give_the_definition_by_pairs(rows):
    truth = np.array([t for t, _ in rows])
    score = np.array([float(s) for _, s in rows])
    m, n = truth.sum(), (~truth).sum()
    if m < 2 or n < 2:
        return
    wins = (score[truth][:, None] > score[~truth]) + 0.5 * (score[truth][:, None] == score[~truth])
    value, variance = delong_variance(truth, score)
    assert value == pytest.approx(wins.mean())
    assert variance == pytest.approx(wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n)


def test_the_interval_agrees_with_a_bootstrap():
    rng = np.random.default_rng(4)
    truth = np.arange(300) % 3 == 0
    score = rng.normal(truth * 1.2, 1.0)
    found = auc_delong(truth, score)

    def of(drawn):
        return auc(truth[drawn], score[drawn])

    drawn = bootstrap(of, [str(i) for i in range(300)], resamples=600, seed=1)
    assert found.low == pytest.approx(drawn.low, abs=0.012)
    assert found.high == pytest.approx(drawn.high, abs=0.012)


def test_perfect_separation_is_no_certainty():
    found = auc_delong([1] * 5 + [0] * 9, [2.0] * 5 + [1.0] * 9)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 5))  # Clopper-Pearson of 5 of 5


def test_proportions_have_the_published_intervals():
    # Newcombe, Stat Med 1998;17:857, table I: 81 of 263
    wilson, exact = proportion(81, 263), proportion(81, 263, method="exact")
    assert (round(wilson.low, 4), round(wilson.high, 4)) == (0.2553, 0.3662)
    assert (round(exact.low, 4), round(exact.high, 4)) == (0.2527, 0.3676)
    assert math.isnan(proportion(0, 0).value)


def test_a_bootstrap_keeps_a_patients_slides_together():
    groups = ["a"] * 10 + ["b"] * 10
    value = np.array([0.0] * 10 + [1.0] * 10)
    found = bootstrap(lambda drawn: float(value[drawn].mean()), groups, resamples=200)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("truth", [[1, 1], [0, 0]])
def test_one_class_has_no_auc(truth):
    with pytest.raises(SettingError, match="both classes"):
        auc_delong(truth, [0.1, 0.2])
