"""Logistic regression on the features of a slide: plain numbers that a person can read in aggregator.json."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from wsi_chat.schema import Record

Floats = NDArray[np.float64]

#: Inverse strengths of the L2 penalty that are tried; the inner folds choose.
GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class LogisticHead(Record):
    """Weights on standardised features: ``weights`` (classes, features), one row for two classes; ``bias``."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    penalty_c: float

    @model_validator(mode="after")
    def _shapes(self) -> LogisticHead:
        width = len(self.mean)
        if len(self.scale) != width or any(len(row) != width for row in self.weights):
            raise ValueError("weights, mean and scale must have one number for each feature")
        if len(self.bias) != len(self.weights) or min(self.scale, default=1.0) <= 0:
            raise ValueError("there must be one bias for each row of weights, and scales above 0")
        return self

    def log_probabilities(self, x: Floats) -> Floats:
        """(slides, features) -> (slides, classes), rows of log-probabilities."""
        from scipy.special import log_softmax

        rows = (x - np.array(self.mean)) / np.array(self.scale)
        # numbers far outside the cohort say nothing more than numbers at its edge
        logits = np.clip(rows, -8, 8) @ np.array(self.weights).T + np.array(self.bias)
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        return np.asarray(log_softmax(logits, axis=1))


def train_logistic(x: Floats, y: NDArray[np.intp], *, penalty_c: float, weights: Floats) -> LogisticHead:
    """Fit on standardised features with an L2 penalty.

    Args:
        x: (slides, features); y: (slides,) class indices 0..classes-1, each present.
        weights: (slides,) sample weights, mean 1.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    rows = np.clip((x - mean) / scale, -8, 8)
    with warnings.catch_warnings():
        # an unfinished fit is judged by the inner folds like any other
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=penalty_c, max_iter=1000).fit(rows, y, sample_weight=weights)
    return LogisticHead(
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(tuple(row) for row in model.coef_.tolist()),
        bias=tuple(model.intercept_.tolist()),
        penalty_c=penalty_c,
    )
