"""Scores of the recipe's own checks: box matching, F1, and the area under the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Labelled = tuple[str, Sequence[float]]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1; 0 for disjoint or degenerate boxes."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    shared = wide * high
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def matches(found: Sequence[Labelled], truth: Sequence[Labelled], threshold: float = 0.5) -> int:
    """Number of greedy one-to-one pairs of equal label with IoU of at least `threshold`, best pairs first."""
    pairs = [
        (iou, i, j)
        for i, (name, box) in enumerate(found)
        for j, (other, target) in enumerate(truth)
        if name == other and (iou := overlap(box, target)) >= threshold
    ]
    used_found: set[int] = set()
    used_truth: set[int] = set()
    for _, i, j in sorted(pairs, reverse=True):
        if i not in used_found and j not in used_truth:
            used_found.add(i)
            used_truth.add(j)
    return len(used_found)


def f1(hit: int, found: int, truth: int) -> float:
    """Harmonic mean of precision and recall; 0 where nothing was hit."""
    return 2 * hit / (found + truth) if hit else 0.0


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Area under the ROC curve with ties counted half; nan where one class is absent."""
    s, p = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if p.all() or not p.any():
        return float("nan")
    high, low = s[p][:, None], s[~p][None]
    return float(((high > low) + 0.5 * (high == low)).mean())
