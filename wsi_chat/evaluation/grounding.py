"""How well boxes were found: one-to-one matching, precision and recall, AP, false alarms, counts.

Pure functions of boxes; the coordinates may be of any kind that found and true boxes share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_chat.evaluation.resampling import RESAMPLES, Estimate, draws, estimate, percentiles
from wsi_chat.schema import Box, LabelledBox, Record

IOUS = (0.1, 0.3, 0.5, 0.75)
MAIN_IOU = 0.5
SIZES = (("below 40 px", 40.0), ("40-80 px", 80.0), ("80-160 px", 160.0), ("160 px and more", math.inf))
"""Name and upper bound of each class of cell size; the side is the square root of the box's area."""


@dataclass(frozen=True, slots=True)
class GroundingCase:
    """One question 'where is every <target>' with the boxes found and the true ones, in the same coordinates.

    ``answered`` is False where the answer failed or could not be understood: its true boxes count as missed, and
    it is no correct 'none'. ``px`` is what one unit of the coordinates is in pixels, (horizontal, vertical).
    """

    image: str
    target: str
    found: tuple[LabelledBox, ...]
    truth: tuple[LabelledBox, ...]
    answered: bool = True
    px: tuple[float, float] = (1.0, 1.0)


class BoxScore(Record):
    """Boxes matched one to one at an IoU of at least ``iou`` (None: by centre). None: nothing to divide by."""

    iou: float | None
    hits: int
    found: int
    truth: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    ap: Estimate | None = None


class SizeRecall(Record):
    """How many of the true boxes of one size were found; a false box has no true size."""

    hits: int
    truth: int
    recall: Estimate


class Negatives(Record):
    """Questions about a class that the image does not show. ``denied``: answered, and rightly with no box."""

    questions: int
    denied: int
    false_alarms: int
    unanswered: int
    boxes: int
    false_alarm_rate: Estimate


class Counting(Record):
    """Number of boxes found against the true number, over the ``questions`` that were answered."""

    questions: int
    mean_absolute_error: Estimate
    bias: Estimate
    exact: Estimate


class GroundingScores(Record):
    """All of it. ``mean_iou``: over true boxes, 0 where none was matched. ``scored``: the answers gave scores.

    ``by_class`` and ``by_size`` are at an IoU of 0.5.
    """

    questions: int
    images: int
    unanswered: int
    at_iou: tuple[BoxScore, ...]
    centre: BoxScore
    mean_iou: Estimate
    scored: bool
    by_class: dict[str, BoxScore]
    by_size: dict[str, SizeRecall]
    negatives: Negatives
    counting: Counting


# -------------------------------------------------------------------------------------------- matching


def match(found: Sequence[Box], truth: Sequence[Box], *, iou: float = MAIN_IOU) -> list[tuple[int, int]]:
    """Pairs (found, true) with an IoU of at least ``iou``: as many as possible, and of those the best overlap.

    The number of pairs depends on no order.
    """

    def worth(a: Box, b: Box) -> float | None:
        shared = a.iou(b)
        return shared if shared >= iou and shared > 0 else None

    return _assign(found, truth, worth)


def shared_area(found: Sequence[Box], truth: Sequence[Box]) -> float:
    """The largest sum of IoUs that pairing the boxes one to one can give."""
    pairs = _assign(found, truth, lambda a, b: a.iou(b), most=False)
    return sum(found[i].iou(truth[j]) for i, j in pairs)


def match_centres(found: Sequence[Box], truth: Sequence[Box]) -> list[tuple[int, int]]:
    """Pairs in which the found box's centre lies inside the true box, as many as possible."""

    def worth(a: Box, b: Box) -> float | None:
        x, y = a.center
        return a.iou(b) if b.x0 <= x <= b.x1 and b.y0 <= y <= b.y1 else None

    return _assign(found, truth, worth)


def _assign(
    found: Sequence[Box], truth: Sequence[Box], worth: Callable[[Box, Box], float | None], *, most: bool = True
) -> list[tuple[int, int]]:
    from scipy.optimize import linear_sum_assignment

    if not found or not truth:
        return []
    # a pair more outweighs any gain in overlap: that is at most 1 for each of the other pairs
    bonus = min(len(found), len(truth)) + 1.0 if most else 0.0
    table = np.zeros((len(found), len(truth)))
    for i, a in enumerate(found):
        for j, b in enumerate(truth):
            value = worth(a, b)
            table[i, j] = 0.0 if value is None else bonus + value
    rows, columns = linear_sum_assignment(table, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if table[i, j] > 0]


# -------------------------------------------------------------------------------------------- scoring


def score_grounding(
    cases: Sequence[GroundingCase],
    *,
    ious: Sequence[float] = IOUS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> GroundingScores:
    """Score the answers to grounding questions.

    AP is not interpolated, and is computed at each IoU from the boxes' scores; where no box has one, all boxes
    rank alike and AP is precision times recall. Intervals are bootstrap intervals over images.

    Args:
        resamples: of the bootstrap; 0 gives no intervals and costs nothing.
    """
    groups = [case.image for case in cases]

    def ratio(numerator: Sequence[float], denominator: Sequence[float], names: Sequence[str] = groups) -> Estimate:
        return _ratio(names, numerator, denominator, resamples=resamples, seed=seed)

    matched = {iou: [match(_boxes(c.found), _boxes(c.truth), iou=iou) for c in cases] for iou in {*ious, MAIN_IOU}}
    centred = [match_centres(_boxes(c.found), _boxes(c.truth)) for c in cases]
    overlap = [shared_area(_boxes(c.found), _boxes(c.truth)) for c in cases]
    scored = any(found.score is not None for case in cases for found in case.found)

    def score(pairs: list[list[tuple[int, int]]], iou: float | None, chosen: Sequence[int]) -> BoxScore:
        some = [cases[n] for n in chosen]
        hits = [float(len(pairs[n])) for n in chosen]
        return _box_score(some, hits, iou, resamples=resamples, seed=seed)

    everything = range(len(cases))
    at_iou = [
        score(matched[iou], iou, everything).model_copy(
            update={"ap": _average_precision(cases, matched[iou], resamples=resamples * (iou == MAIN_IOU), seed=seed)}
        )
        for iou in sorted(ious)
    ]
    by_class = {}
    for target in sorted({case.target for case in cases}):
        chosen = [n for n in everything if cases[n].target == target]
        ap = _average_precision([cases[n] for n in chosen], [matched[MAIN_IOU][n] for n in chosen])
        by_class[target] = score(matched[MAIN_IOU], MAIN_IOU, chosen).model_copy(update={"ap": ap})
    asked = [n for n in everything if cases[n].answered]
    errors = [float(len(cases[n].found) - len(cases[n].truth)) for n in asked]
    names, ones = [groups[n] for n in asked], [1.0] * len(asked)
    return GroundingScores(
        questions=len(cases),
        images=len(set(groups)),
        unanswered=len(cases) - len(asked),
        at_iou=tuple(at_iou),
        centre=score(centred, None, everything),
        mean_iou=ratio(overlap, [float(len(case.truth)) for case in cases]),
        scored=scored,
        by_class=by_class,
        by_size=_by_size(cases, matched[MAIN_IOU], resamples=resamples, seed=seed),
        negatives=_negatives(cases, resamples=resamples, seed=seed),
        counting=Counting(
            questions=len(asked),
            mean_absolute_error=ratio([abs(error) for error in errors], ones, names),
            bias=ratio(errors, ones, names),
            exact=ratio([float(error == 0) for error in errors], ones, names),
        ),
    )


def _boxes(labelled: Sequence[LabelledBox]) -> list[Box]:
    return [one.box for one in labelled]


def _ratio(
    groups: Sequence[str], numerator: Sequence[float], denominator: Sequence[float], *, resamples: int, seed: int
) -> Estimate:

    rows = np.asarray([numerator, denominator], dtype=float).T.reshape(-1, 2)
    return estimate(groups, rows, lambda s: s[:, 0] / s[:, 1], resamples=resamples, seed=seed)


def _box_score(
    cases: Sequence[GroundingCase], hits: Sequence[float], iou: float | None, *, resamples: int, seed: int
) -> BoxScore:
    groups = [case.image for case in cases]
    found = [float(len(case.found)) for case in cases]
    truth = [float(len(case.truth)) for case in cases]

    def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Estimate:
        return _ratio(groups, numerator, denominator, resamples=resamples, seed=seed)

    return BoxScore(
        iou=iou,
        hits=int(sum(hits)),
        found=int(sum(found)),
        truth=int(sum(truth)),
        precision=ratio(hits, found),
        recall=ratio(hits, truth),
        f1=ratio([2 * hit for hit in hits], [f + t for f, t in zip(found, truth, strict=True)]),
    )


def _average_precision(
    cases: Sequence[GroundingCase], matched: Sequence[Sequence[tuple[int, int]]], *, resamples: int = 0, seed: int = 0
) -> Estimate:

    names, image = np.unique(np.asarray([case.image for case in cases], dtype=str), return_inverse=True)
    owner, flags, scores = [], [], []
    truth = np.zeros(len(names))
    for number, (case, pairs) in enumerate(zip(cases, matched, strict=True)):
        truth[image[number]] += len(case.truth)
        hit = {i for i, _ in pairs}
        for i, found in enumerate(case.found):
            owner.append(int(image[number]))
            flags.append(i in hit)
            # a box without a score ranks below every box that has one
            scores.append(-1.0 if found.score is None else found.score)
    hit_flags, ranks, places = np.asarray(flags, dtype=bool), np.asarray(scores), np.asarray(owner, dtype=int)
    whole = _ap(hit_flags, ranks, float(truth.sum()))
    if whole is None or resamples == 0 or len(names) < 2:
        return Estimate(value=whole)
    drawn = [
        _resampled(hit_flags, ranks, weights[:, places], weights @ truth)
        for weights in draws(len(names), resamples, seed)
    ]
    values = np.concatenate(drawn)
    return Estimate(value=whole, interval=percentiles(values))


def _ap(hits: NDArray[np.bool_], scores: NDArray[np.float64], truth: float) -> float | None:
    """scikit-learn's AP divides by the boxes that were hit; what no box hit belongs in there too."""
    from sklearn.metrics import average_precision_score

    if truth == 0:
        return None
    return float(average_precision_score(hits, scores)) * float(hits.sum()) / truth if hits.any() else 0.0


def _resampled(
    hits: NDArray[np.bool_], scores: NDArray[np.float64], weights: NDArray[np.float64], truth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same for many resamples at once: (b, boxes) weights and (b,) numbers of true boxes -> (b,)."""

    if not len(scores):
        return np.where(truth > 0, 0.0, np.nan)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = np.cumsum(weights[:, order], axis=1)[:, last]
    right = np.cumsum((weights * hits)[:, order], axis=1)[:, last]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(found > 0, right / found, 0.0)
        area: NDArray[np.float64] = (np.diff(right, axis=1, prepend=0.0) * precision).sum(axis=1) / truth
    return np.where(truth > 0, area, np.nan)


def _by_size(
    cases: Sequence[GroundingCase], matched: Sequence[Sequence[tuple[int, int]]], *, resamples: int, seed: int
) -> dict[str, SizeRecall]:
    groups = [case.image for case in cases]
    hits = {name: [0.0] * len(cases) for name, _ in SIZES}
    truth = {name: [0.0] * len(cases) for name, _ in SIZES}
    for number, (case, pairs) in enumerate(zip(cases, matched, strict=True)):
        reached = {j for _, j in pairs}
        for j, one in enumerate(case.truth):
            side = math.sqrt(one.box.area * case.px[0] * case.px[1])
            name = next(name for name, upper in SIZES if side < upper)
            truth[name][number] += 1
            hits[name][number] += j in reached
    return {
        name: SizeRecall(
            hits=int(sum(hits[name])),
            truth=int(sum(truth[name])),
            recall=_ratio(groups, hits[name], truth[name], resamples=resamples, seed=seed),
        )
        for name, _ in SIZES
    }


def _negatives(cases: Sequence[GroundingCase], *, resamples: int, seed: int) -> Negatives:
    empty = [case for case in cases if not case.truth]
    alarms = [float(bool(case.found)) for case in empty]
    return Negatives(
        questions=len(empty),
        denied=sum(case.answered and not case.found for case in empty),
        false_alarms=int(sum(alarms)),
        unanswered=sum(not case.answered for case in empty),
        boxes=sum(len(case.found) for case in empty),
        false_alarm_rate=_ratio(
            [case.image for case in empty], alarms, [1.0] * len(empty), resamples=resamples, seed=seed
        ),
    )
