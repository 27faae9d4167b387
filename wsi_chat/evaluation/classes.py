"""Answers that name one class: choices against their baselines, classes of regions, single phrases.

A row whose answer names nothing counts as wrong, and never drops out. Choices are only worth what they gain over
always giving the topic's most frequent answer or always the first option: where the order is fixed, a liking for
'A' looks like skill.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_chat.evaluation.resampling import RESAMPLES, Estimate, estimate
from wsi_chat.schema import Record

MOST_CLASSES = 300
"""Beyond so many classes (free phrases) only accuracy gets an interval."""
NOTHING = "(no class)"


@dataclass(frozen=True, slots=True)
class Named:
    """One answer: the true class, and the one named (None: none could be read). ``image`` groups the intervals."""

    image: str
    truth: str
    predicted: str | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """One multiple-choice answer; ``options`` in the order in which they were listed."""

    image: str
    topic: str
    options: tuple[str, ...]
    truth: str
    predicted: str | None


class ClassScores(Record):
    """``balanced_accuracy``: mean recall of the true classes. ``macro_f1``: over true and named classes."""

    rows: int
    unparsed: int
    classes: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    mcc: Estimate


class ChoiceScores(Record):
    """``majority``, ``always_first``: accuracy of answering without looking. ``gain``: accuracy over the better one.

    ``skill`` is that gain as a share of what was left to gain, None where nothing was. ``first_chosen`` and
    ``first_true`` are the shares of rows whose first option was chosen, and was right.
    """

    scores: ClassScores
    majority: float
    majority_balanced: float
    always_first: float
    always_first_balanced: float
    first_chosen: float
    first_true: float
    gain: Estimate
    skill: float | None


class Choices(Record):
    """All topics together (classes are a topic's options), and each by itself."""

    overall: ChoiceScores
    by_topic: dict[str, ChoiceScores]


def score_classes(rows: Sequence[Named], *, resamples: int = RESAMPLES, seed: int = 0) -> ClassScores:
    """Accuracy, balanced accuracy, macro-F1 and Matthews' correlation, by scikit-learn; intervals by image."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, recall_score

    truth = [row.truth for row in rows]
    predicted = [NOTHING if row.predicted is None else row.predicted for row in rows]
    names = sorted({*truth, *predicted} - {NOTHING})
    real = sorted(set(truth))
    groups = [row.image for row in rows]
    unparsed = sum(row.predicted is None for row in rows)
    hits = np.asarray([[float(a == b), 1.0] for a, b in zip(truth, predicted, strict=True)]).reshape(-1, 2)
    accuracy = estimate(groups, hits, lambda s: s[:, 0] / s[:, 1], resamples=resamples, seed=seed)
    if not rows:
        nothing = Estimate(value=None)
        return ClassScores(
            rows=0, unparsed=0, classes=0, accuracy=accuracy, balanced_accuracy=nothing, macro_f1=nothing, mcc=nothing
        )
    values = (
        float(accuracy_score(truth, predicted)),
        float(recall_score(truth, predicted, labels=real, average="macro", zero_division=0)),
        float(f1_score(truth, predicted, labels=names, average="macro", zero_division=0)),
        # with one class on both sides it is 0 by definition, and scikit-learn warns
        float(matthews_corrcoef(truth, predicted)) if len({*truth, *predicted}) > 1 else 0.0,
    )
    few = resamples if len(names) <= MOST_CLASSES else 0
    counts = _counts(truth, predicted, names) if few else np.zeros((len(rows), 1))
    metrics = (balanced, macro_f1, matthews)
    drawn = [estimate(groups, counts, metric, resamples=few, seed=seed).interval if few else None for metric in metrics]
    found = [Estimate(value=value, interval=interval) for value, interval in zip(values[1:], drawn, strict=True)]
    return ClassScores(
        rows=len(rows),
        unparsed=unparsed,
        classes=len(real),
        accuracy=accuracy.model_copy(update={"value": values[0]}),
        balanced_accuracy=found[0],
        macro_f1=found[1],
        mcc=found[2],
    )


def _counts(truth: Sequence[str], predicted: Sequence[str], names: Sequence[str]) -> NDArray[np.float64]:
    """Per row, one column per class and a last one for no class: is it true, was it said, both."""

    place = {name: n for n, name in enumerate((*names, NOTHING))}
    width = len(place)
    rows = np.zeros((len(truth), 3 * width))
    for n, (right, named) in enumerate(zip(truth, predicted, strict=True)):
        rows[n, place[right]] = 1
        rows[n, width + place[named]] = 1
        if right == named:
            rows[n, 2 * width + place[right]] = 1
    return rows


def _thirds(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    width = sums.shape[1] // 3
    return sums[:, :width], sums[:, width : 2 * width], sums[:, 2 * width :]


def _mean_where(values: NDArray[np.float64], defined: NDArray[np.bool_]) -> NDArray[np.float64]:

    mean: NDArray[np.float64] = np.where(defined, values, 0.0).sum(axis=1) / defined.sum(axis=1)
    return mean


def balanced(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Balanced accuracy of each row of class counts (see `_counts`)."""
    true, _, both = _thirds(sums)
    return _mean_where(both / true, true > 0)


def macro_f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Macro-F1 of each row of class counts; 'no class' is not counted as one."""
    true, predicted, both = (part[:, :-1] for part in _thirds(sums))
    return _mean_where(2 * both / (true + predicted), true + predicted > 0)


def matthews(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multi-class Matthews correlation of each row of class counts; 0 where it has no variance, as scikit-learn's."""

    true, predicted, both = _thirds(sums)
    n, right = true.sum(axis=1), both.sum(axis=1)
    top = right * n - (true * predicted).sum(axis=1)
    bottom = np.sqrt((n**2 - (predicted**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1)))
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), 0.0)


# -------------------------------------------------------------------------------------------- choices


def score_choices(rows: Sequence[Chosen], *, resamples: int = RESAMPLES, seed: int = 0) -> Choices:
    """Multiple choice, overall and per topic, beside what answering without looking would get."""
    topics = {topic: [row for row in rows if row.topic == topic] for topic in sorted({row.topic for row in rows})}
    return Choices(
        overall=_choice_scores(rows, resamples=resamples, seed=seed),
        by_topic={topic: _choice_scores(some, resamples=resamples, seed=seed) for topic, some in topics.items()},
    )


def _choice_scores(rows: Sequence[Chosen], *, resamples: int, seed: int) -> ChoiceScores:

    truth = Counter((row.topic, row.truth) for row in rows)
    usual: dict[str, str] = {}
    for (topic, option), _ in sorted(truth.items(), key=lambda item: (-item[1], item[0])):
        usual.setdefault(topic, option)
    lazy = score_classes([_named(row, usual[row.topic]) for row in rows], resamples=0)
    first = score_classes([_named(row, row.options[0]) for row in rows], resamples=0)
    scores = score_classes([_named(row, row.predicted) for row in rows], resamples=resamples, seed=seed)
    majority, always_first = lazy.accuracy.value or 0.0, first.accuracy.value or 0.0
    best = max(majority, always_first)
    ideal = [usual[row.topic] if majority >= always_first else row.options[0] for row in rows]
    gains = np.asarray(
        [[float(r.predicted == r.truth) - float(other == r.truth), 1.0] for r, other in zip(rows, ideal, strict=True)]
    ).reshape(-1, 2)
    gain = estimate([r.image for r in rows], gains, lambda s: s[:, 0] / s[:, 1], resamples=resamples, seed=seed)
    count = max(len(rows), 1)
    return ChoiceScores(
        scores=scores,
        majority=majority,
        majority_balanced=lazy.balanced_accuracy.value or 0.0,
        always_first=always_first,
        always_first_balanced=first.balanced_accuracy.value or 0.0,
        first_chosen=sum(row.predicted == row.options[0] for row in rows) / count,
        first_true=sum(row.truth == row.options[0] for row in rows) / count,
        gain=gain,
        skill=None if best >= 1 or gain.value is None else gain.value / (1 - best),
    )


def _named(row: Chosen, predicted: str | None) -> Named:
    """The choice as a class: two topics may both offer 'yes'."""
    return Named(row.image, f"{row.topic}\0{row.truth}", None if predicted is None else f"{row.topic}\0{predicted}")
