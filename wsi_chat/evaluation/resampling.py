"""Bootstrap intervals over whole images: what is said of one image is not independent evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_chat.schema import Interval, Record

LEVEL = 0.95
RESAMPLES = 1000
CHUNK = 4_000_000
"""Weights drawn at once (8 bytes each), so that memory does not grow with the number of images."""


class Estimate(Record):
    """A metric and its bootstrap interval. ``value`` is None where it is not defined (nothing to divide by)."""

    value: float | None
    interval: Interval | None = None


def estimate(
    groups: Sequence[str],
    rows: NDArray[np.float64],
    metric: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A metric of column sums, with its percentile interval over resampled images.

    Args:
        groups: the image of each row.
        rows: (n, k) counts per row, added up over the rows of a resample.
        metric: (b, k) sums -> (b,) values, nan where undefined. It must not depend on the order of rows.
        resamples: 0 gives no interval; neither does a single image, nor images that are all alike: resampling cannot
            show then how far off the value may be.
    """

    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, index, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = float(metric(sums.sum(axis=0, keepdims=True))[0])
        if not np.isfinite(whole):
            return Estimate(value=None)
        if resamples == 0 or len(names) < 2:
            return Estimate(value=whole)
        drawn = np.concatenate([metric(weights @ sums) for weights in draws(len(names), resamples, seed)])
    finite = drawn[np.isfinite(drawn)]
    if not len(finite) or np.ptp(finite) == 0:
        return Estimate(value=whole)
    return Estimate(value=whole, interval=percentiles(drawn))


def draws(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is drawn, (b, images) at a time, ``resamples`` rows in all."""

    rng = np.random.default_rng(seed)
    step = max(1, min(resamples, CHUNK // max(images, 1)))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), size=size).astype(float)


def percentiles(values: NDArray[np.float64]) -> Interval | None:
    """The central ``LEVEL`` of the values that are defined; None where none is."""

    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high), level=LEVEL)
