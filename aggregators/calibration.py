"""From a head's score to a probability: Platt scaling or isotonic regression, and how far off the result is.

Rule: isotonic from `ISOTONIC_FROM` labelled slides with at least a tenth of them in the rarer class, Platt below
(scikit-learn's guide on calibration warns of isotonic over-fitting below about 1,000 cases). Both never fall when
the score rises. Probabilities are those of the cohort: with another share of abnormal slides they shift.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from wsi_chat.errors import SettingError
from wsi_chat.schema import Record

Floats = NDArray[np.float64]

ISOTONIC_FROM = 1000


class Calibration(Record):
    """A monotone map from a head's margin (log odds) to a probability, fitted on ``slides`` held-out margins.

    Platt: ``1 / (1 + exp(-(slope * margin + intercept)))``. Isotonic: linear between the points (``x``, ``y``),
    flat outside.
    """

    method: Literal["platt", "isotonic"]
    slides: int = Field(ge=2)
    slope: float = Field(default=1.0, ge=0.0)
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _monotone(self) -> Calibration:
        if self.method == "isotonic":
            rising = all(a <= b for values in (self.x, self.y) for a, b in pairwise(values))
            if not self.x or len(self.x) != len(self.y) or not rising or not 0 <= self.y[0] <= self.y[-1] <= 1:
                raise ValueError("the points of an isotonic calibration must rise within 0..1")
        return self

    def apply(self, margin: ArrayLike) -> Floats:
        """Probabilities for margins, the same shape."""
        from scipy.special import expit

        values = np.asarray(margin, dtype=np.float64)
        if self.method == "platt":
            return np.asarray(expit(self.slope * values + self.intercept))
        return np.interp(values, self.x, self.y)


def choose_method(positive: ArrayLike) -> Literal["platt", "isotonic"]:
    """Platt or isotonic, by the rule of this module."""

    truth = np.asarray(positive).astype(bool)
    rarer = min(int(truth.sum()), int((~truth).sum()))
    return "isotonic" if len(truth) >= ISOTONIC_FROM and rarer >= ISOTONIC_FROM / 10 else "platt"


def fit_calibration(
    margin: ArrayLike, positive: ArrayLike, *, method: Literal["auto", "platt", "isotonic"] = "auto"
) -> Calibration:
    """Fit a calibration on margins of slides that the head was not fitted on.

    Platt scaling takes smoothed targets (n+ + 1)/(n+ + 2) and 1/(n- + 2) (Platt 1999), so that a cohort that is
    told apart perfectly does not get an infinite slope; a slope below 0 (a head that is worse than chance) is set
    to 0, and every slide then gets the cohort's share of abnormal ones.

    Args:
        margin: (n,) log odds; positive: (n,) truth.

    Raises:
        SettingError: one class is missing.
    """
    from sklearn.isotonic import IsotonicRegression

    values = np.asarray(margin, dtype=np.float64)
    truth = np.asarray(positive).astype(bool)
    if truth.all() or not truth.any():
        raise SettingError("a calibration needs slides of both classes.", hint="Add slides of the other class.")
    chosen = choose_method(truth) if method == "auto" else method
    if chosen == "isotonic":
        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(values, truth.astype(float))
        x, y = (tuple(float(v) for v in points) for points in (curve.X_thresholds_, curve.y_thresholds_))
        return Calibration(method="isotonic", slides=len(values), x=x, y=tuple(np.clip(y, 0, 1).tolist()))
    slope, intercept = _platt(values, truth)
    return Calibration(method="platt", slides=len(values), slope=slope, intercept=intercept)


def _platt(margin: Floats, truth: NDArray[np.bool_]) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    n_pos, n_neg = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (n_pos + 1) / (n_pos + 2), 1 / (n_neg + 2))
    scale = float(margin.std()) or 1.0
    column = (margin / scale)[:, None]
    model = LogisticRegression(C=1e9, max_iter=2000).fit(
        np.concatenate([column, column]),
        np.repeat([1, 0], len(margin)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope = float(model.coef_[0, 0]) / scale
    if slope > 0.0:
        return slope, float(model.intercept_[0])
    share = float(target.mean())
    return 0.0, float(np.log(share) - np.log1p(-share))


class Bin(NamedTuple):
    """A bin of a calibration curve: mean predicted probability, observed share of positives, slides."""

    predicted: float
    observed: float
    slides: int


def calibration_curve(p: ArrayLike, positive: ArrayLike, *, bins: int = 10) -> tuple[Bin, ...]:
    """Bins of equal numbers of slides (ties stay together), from the lowest probability up."""

    values = np.asarray(p, dtype=np.float64)
    truth = np.asarray(positive).astype(float)
    if not len(values):
        return ()
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, values, side="right")
    curve = []
    for i in np.unique(place):
        chosen = place == i
        curve.append(Bin(float(values[chosen].mean()), float(truth[chosen].mean()), int(chosen.sum())))
    return tuple(curve)


def calibration_error(p: ArrayLike, positive: ArrayLike, *, bins: int = 10) -> float:
    """Expected calibration error: mean |observed - predicted| over the slides' bins, 0..1.

    Naeini et al., AAAI 2015, with bins of equal numbers of slides. Few slides in a bin inflate it: a perfectly
    calibrated score has an error of about 0.4 / sqrt(slides per bin).
    """
    curve = calibration_curve(p, positive, bins=bins)
    total = sum(b.slides for b in curve)
    return sum(b.slides * abs(b.observed - b.predicted) for b in curve) / total if total else float("nan")
