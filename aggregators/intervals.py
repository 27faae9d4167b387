"""Figures with their intervals: AUC after DeLong, proportions after Wilson and Clopper-Pearson, bootstrap by patient.

Intervals are two-sided. A slide that gave no score is no row here: whoever calls decides how it counts and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi_chat.errors import SettingError


class Estimate(NamedTuple):
    """A figure and its interval; ``method`` names how the interval was made."""

    value: float
    low: float
    high: float
    method: str


def auc_delong(positive: ArrayLike, score: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Area under the ROC curve with DeLong's variance, computed from midranks.

    DeLong et al., Biometrics 1988;44:837; in O(n log n) after Sun & Xu, IEEE Signal Process Lett 2014;21:1389.
    The interval is symmetrical on the logit scale, where it keeps its level near 1 (Pepe 2003, section 5.2.4).
    An AUC of exactly 0 or 1 has no estimated variance; the Clopper-Pearson interval of min(positives, negatives)
    all-or-none trials stands in for it, which is wide for few slides as it should be.

    Args:
        positive: (n,) truth, True or 1 for abnormal.
        score: (n,) finite; higher is more abnormal.

    Raises:
        SettingError: one class is missing, or a score is not a number.
    """
    from scipy.stats import norm

    value, v_pos, v_neg = _components(positive, score)
    variance = sum(v.var(ddof=1) / len(v) if len(v) > 1 else 0.25 for v in (v_pos, v_neg))
    if variance == 0.0 or value in (0.0, 1.0):
        trials = min(len(v_pos), len(v_neg))
        exact = proportion(round(value * trials), trials, level=level, method="exact")
        return Estimate(value, exact.low, exact.high, "Clopper-Pearson, for want of variance")
    center = math.log(value / (1.0 - value))
    half = float(norm.ppf(0.5 + level / 2)) * math.sqrt(variance) / (value * (1.0 - value))
    low, high = (float(1.0 / (1.0 + np.exp(-x))) for x in (center - half, center + half))
    return Estimate(value, low, high, "DeLong")


def delong_variance(positive: ArrayLike, score: ArrayLike) -> tuple[float, float]:
    """The AUC and DeLong's variance of it, as in `auc_delong`. Needs two slides of each class."""
    value, v_pos, v_neg = _components(positive, score)
    return value, float(v_pos.var(ddof=1) / len(v_pos) + v_neg.var(ddof=1) / len(v_neg))


def auc(positive: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve; ties count one half."""
    return _components(positive, score)[0]


def _components(positive: ArrayLike, score: ArrayLike) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """AUC and DeLong's structural components of the positive and of the negative slides."""
    from scipy.stats import rankdata

    truth = np.asarray(positive).astype(bool)
    values = np.asarray(score, dtype=np.float64)
    if truth.shape != values.shape or not np.isfinite(values).all():
        raise SettingError("scores must be numbers, one for each slide.", hint="Leave out slides without a score.")
    above, below = values[truth], values[~truth]
    m, n = len(above), len(below)
    if m == 0 or n == 0:
        raise SettingError(f"an AUC needs both classes: {m} positive, {n} negative.", hint="Add slides of the other.")
    ranks = rankdata(values)
    v_pos = (ranks[truth] - rankdata(above)) / n
    v_neg = 1.0 - (ranks[~truth] - rankdata(below)) / m
    return float(v_pos.mean()), v_pos, v_neg


def proportion(
    hits: int, trials: int, *, level: float = 0.95, method: Literal["wilson", "exact"] = "wilson"
) -> Estimate:
    """A proportion with the Wilson score or the Clopper-Pearson (``exact``) interval; NaN and 0..1 for no trials."""
    from scipy.stats import binomtest

    name = {"wilson": "Wilson", "exact": "Clopper-Pearson"}[method]
    if trials == 0:
        return Estimate(math.nan, 0.0, 1.0, name)
    bounds = binomtest(hits, trials).proportion_ci(level, method=method)
    return Estimate(hits / trials, float(bounds.low), float(bounds.high), name)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    groups: Sequence[str],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap that draws whole groups (patients), so that slides of one patient stay together.

    Args:
        statistic: of the indices of the drawn slides; NaN where it cannot be computed (left out).
        groups: the patient of each slide.
    """

    names, index = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index))[:-1])
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = rng.integers(len(names), size=len(names))
        value = statistic(np.concatenate([members[g] for g in drawn]))
        if not math.isnan(value):
            values.append(value)
    point = statistic(np.arange(len(index)))
    label = f"bootstrap by patient, {resamples} resamples"
    if len(values) < resamples / 2:
        return Estimate(point, math.nan, math.nan, label)
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(point, float(low), float(high), label)
