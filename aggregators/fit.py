"""Fitting a head on a labelled cohort: nested cross-validation, calibration, and thresholds on patients held out.

Three levels, each grouped by patient. Outer folds predict every slide by a head whose tuning, fitting and
calibration never saw its patient: these predictions are what is reported. Inner folds choose the head's strength
and give the held-out margins that its calibration is fitted on. Patients held out for thresholds are in neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aggregators.attention import AttentionHead, checkpoints, to_bytes, train_attention
from aggregators.calibration import Calibration, calibration_error, fit_calibration
from aggregators.conformal import band, needed, per_patient
from aggregators.features import Evidence, tile_features, verdict_features
from aggregators.fitted import (
    Aggregator,
    Conformal,
    CrossValidation,
    Figure,
    FittedAggregator,
    Fittings,
    HeadName,
    calibrated,
    feature_names,
    feature_set,
    margins,
)
from aggregators.folds import Fold, check_patients, grouped_folds, hold_out, patients_of_class
from aggregators.intervals import auc, auc_delong, bootstrap
from aggregators.logistic import GRID, LogisticHead, train_logistic
from wsi_chat.errors import SettingError
from wsi_chat.progress import Progress

Floats = NDArray[np.float64]

#: Patients of each class that a fit needs at the least, beside those held out for thresholds.
FEWEST = 10
#: Share of each class's patients that is held out for thresholds, where that is more than the rates need.
HELD_OUT = 0.3
FOLDS, INNER = 5, 3


@dataclass(frozen=True, slots=True)
class Cohort:
    """Labelled slides with their evidence, one entry each in every field.

    ``y`` are indices into ``classes``, whose first is the negative one; ``fingerprints`` name the slides' pixels.
    """

    ids: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    y: NDArray[np.intp]
    patients: tuple[str, ...]
    classes: tuple[str, ...]
    fingerprints: tuple[str, ...] = ()
    patients_given: bool = True
    left_out: tuple[str, ...] = ()

    def part(self, chosen: NDArray[np.intp]) -> Cohort:
        """The slides with these indices."""
        return Cohort(
            tuple(self.ids[i] for i in chosen),
            tuple(self.evidence[i] for i in chosen),
            self.y[chosen],
            tuple(self.patients[i] for i in chosen),
            self.classes,
            tuple(self.fingerprints[i] for i in chosen) if self.fingerprints else (),
            self.patients_given,
        )


class Options(NamedTuple):
    """How to fit; see `fit`."""

    head: HeadName
    labels: tuple[str, ...]
    image: int
    class_weight: Literal["balanced", "none"]
    seed: int
    folds: int
    inner: int


class Prediction(NamedTuple):
    """One slide's prediction from the outer folds."""

    sample_id: str
    label: str
    fold: int
    p: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted aggregator and the cross-validated predictions that its figures come from."""

    aggregator: FittedAggregator
    predictions: tuple[Prediction, ...] = field(repr=False)


class ImageSource(NamedTuple):
    """Whose image features a cohort has, and how many; nobody's by default."""

    width: int = 0
    kind: str = ""
    model: str = ""


class _Trained(NamedTuple):
    head: LogisticHead | AttentionHead
    calibration: Calibration
    chosen: float


def fit(
    cohort: Cohort,
    *,
    head: HeadName = "logistic",
    labels: Sequence[str] = (),
    image: bool = False,
    class_weight: Literal["balanced", "none"] = "balanced",
    miss_rate: float | None = None,
    false_alarm_rate: float | None = None,
    conditions: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    about: str = "",
    folds: int = FOLDS,
    inner: int = INNER,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Fit:
    """Fit a head with its calibration and, for ``miss_rate``, its thresholds.

    Args:
        labels: finding classes that are features, in order.
        image: use the tiles' image features too (attention head). They are standardised with the rest of a tile's
            features inside the head, on the slides it is trained on.
        miss_rate: expected share of abnormal patients called normal, at most; holds patients out for thresholds.
        false_alarm_rate: the same for normal patients called abnormal; slides between are indeterminate.
        conditions: what must be the same wherever the aggregator is applied.
        about: what slides these are, in a word or two before "slides" (``rendered``); every report says it.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        SettingError: the cohort has one class or more than seven, or too few patients of one; the message says how
            many are needed.
    """
    if image and head == "logistic":
        raise SettingError("image features are read by the attention head only.", hint="Add --head attention.")
    _check_size(cohort, folds)
    source = _image_source(cohort) if image else ImageSource()
    options = Options(head, tuple(labels), source.width, class_weight, seed, folds, inner)
    split = _split(cohort, miss_rate, false_alarm_rate, seed)
    check_patients(
        [cohort.patients[i] for i in split.train], [cohort.patients[i] for i in split.test], where="held-out patients"
    )
    training = cohort.part(split.train)
    inputs = _inputs(training, options)
    cv, predictions = _cross_validate(training, inputs, options, progress)
    trained = _train(inputs, training.y, training.patients, options)
    attention = trained.head if isinstance(trained.head, AttentionHead) else None
    conformal = (
        None
        if miss_rate is None
        else _conformal(cohort.part(split.test), trained, options, miss_rate, false_alarm_rate)
    )
    record = Aggregator(
        head=head,
        classes=cohort.classes,
        features=feature_set(head),
        feature_names=feature_names(head, labels, source.width),
        labels=tuple(labels),
        image_features=source.width,
        image_kind=source.kind,
        image_model=source.model,
        logistic=trained.head if isinstance(trained.head, LogisticHead) else None,
        weights_sha256=None if attention is None else hashlib.sha256(to_bytes(attention)).hexdigest(),
        calibration=trained.calibration,
        conformal=conformal,
        conditions=dict(conditions or {}),
        cohort=_fittings(cohort, len(split.test), " ".join(about.split())),
        cv=cv,
        seed=seed,
        class_weight=class_weight,
        versions=dict(versions or {}),
    )
    return Fit(FittedAggregator(record, attention), predictions)


def _image_source(cohort: Cohort) -> ImageSource:
    """The one source of image features that every slide has. Raises SettingError, naming a slide that differs."""
    hint = "Analyze every slide with --features and the same model; known answers are not asked again."
    sources = [
        None if slide.image is None else ImageSource(slide.image.width, slide.image.kind, slide.image.model)
        for slide in cohort.evidence
    ]
    first = max(sources, key=sources.count)
    for name, source in zip(cohort.ids, sources, strict=True):
        if source is None or first is None:
            raise SettingError(f"slide {name} has no image features.", hint=hint)
        if source != first:
            raise SettingError(
                f"slide {name} has {source.width} image features ({source.kind} of {source.model}), and others have"
                f" {first.width} ({first.kind} of {first.model}).",
                hint=hint,
            )
    assert first is not None
    return first


def _check_size(cohort: Cohort, folds: int) -> None:
    if not 2 <= len(cohort.classes) <= 7:
        raise SettingError(
            f"the labels have {len(cohort.classes)} class{'' if len(cohort.classes) == 1 else 'es'}"
            f" ({', '.join(cohort.classes) or 'no slide'}); a head takes 2 to 7.",
            hint="Add slides of another class, or name another --label-column.",
        )
    _need(cohort, dict.fromkeys(range(len(cohort.classes)), max(FEWEST, folds)), "")


def _need(cohort: Cohort, wanted: Mapping[int, int], why: str) -> None:
    have = patients_of_class(cohort.y, cohort.patients, len(cohort.classes))
    short = [
        f"{wanted[c]} patients of class {cohort.classes[c]!r} are needed{why}, and there are {have[c]}"
        for c in wanted
        if have[c] < wanted[c]
    ]
    if short:
        raise SettingError(f"the cohort is too small: {'; '.join(short)}.", hint="Add slides of other patients.")


def _split(cohort: Cohort, miss_rate: float | None, false_alarm_rate: float | None, seed: int) -> Fold:
    """The slides to fit on and those held out for thresholds (none without a rate)."""

    if miss_rate is None:
        if false_alarm_rate is not None:
            raise SettingError("--false-alarm-rate without --miss-rate.", hint="Give both, or --miss-rate alone.")
        return Fold(np.arange(len(cohort.y)), np.arange(0))
    binary = (cohort.y > 0).astype(np.intp)
    negatives, positives = patients_of_class(binary, cohort.patients, 2)
    want_pos, want_neg = needed(miss_rate), 0 if false_alarm_rate is None else needed(false_alarm_rate)
    two = Cohort(cohort.ids, cohort.evidence, binary, cohort.patients, ("normal", "abnormal"))
    why = f" ({want_pos} to keep a miss rate of {miss_rate:g}, {FEWEST} to fit)"
    _need(two, {1: want_pos + FEWEST}, why)
    if false_alarm_rate is not None:
        _need(
            two,
            {0: want_neg + FEWEST},
            f" ({want_neg} to keep a false-alarm rate of {false_alarm_rate:g}, {FEWEST} to fit)",
        )
    split = hold_out(
        cohort.y,
        cohort.patients,
        positives=max(want_pos, round(HELD_OUT * positives)),
        negatives=max(want_neg, round(HELD_OUT * negatives)),
        seed=seed,
    )
    _need(cohort.part(split.train), dict.fromkeys(range(len(cohort.classes)), FOLDS), " beside those held out")
    return split


def _inputs(cohort: Cohort, options: Options) -> Any:
    """What the head is trained on: an array (slides, features), or a list of arrays (tiles, features)."""

    if options.head == "logistic":
        return np.stack([verdict_features(evidence, options.labels) for evidence in cohort.evidence])
    return [tile_features(evidence, options.labels, image=options.image) for evidence in cohort.evidence]


def _take(inputs: Any, chosen: NDArray[np.intp]) -> Any:
    return [inputs[i] for i in chosen] if isinstance(inputs, list) else inputs[chosen]


def _weights(y: NDArray[np.intp], options: Options) -> Floats:
    """Sample weights, mean 1: every class weighs the same where they are balanced."""

    if options.class_weight == "none":
        return np.ones(len(y))
    counts = np.bincount(y)
    found: Floats = (len(y) / (np.count_nonzero(counts) * counts[y])).astype(np.float64)
    return found


def _heads(inputs: Any, y: NDArray[np.intp], options: Options, grid: Sequence[float]) -> Any:
    """Heads of each strength in ``grid``, in order."""
    weights = _weights(y, options)
    if options.head == "logistic":
        return (train_logistic(inputs, y, penalty_c=c, weights=weights) for c in grid)
    classes = int(y.max()) + 1
    epochs = [int(e) for e in grid]
    return train_attention(inputs, y, classes=classes, weights=weights, seed=options.seed, epochs=epochs)


def _train(inputs: Any, y: NDArray[np.intp], patients: Sequence[str], options: Options) -> _Trained:
    """Choose the strength on inner folds, calibrate on their held-out margins, and fit on everything given."""

    grid: Sequence[float] = GRID if options.head == "logistic" else checkpoints(len(y))
    classes = int(y.max()) + 1
    held_out = np.zeros((len(grid), len(y), classes))
    for fold in grouped_folds(y, patients, k=options.inner, seed=options.seed + 1):
        part = _take(inputs, fold.test)
        for g, head in enumerate(_heads(_take(inputs, fold.train), y[fold.train], options, grid)):
            held_out[g, fold.test] = head.log_probabilities(part)
    weights = _weights(y, options)
    losses = [-float((weights * logs[np.arange(len(y)), y]).mean()) for logs in held_out]
    best = int(np.argmin(losses))
    calibration = fit_calibration(margins(held_out[best]), y > 0)
    head = list(_heads(inputs, y, options, [grid[best]]))[-1]
    return _Trained(head, calibration, float(grid[best]))


def _cross_validate(
    cohort: Cohort, inputs: Any, options: Options, progress: Progress
) -> tuple[CrossValidation, tuple[Prediction, ...]]:
    from scipy.special import expit

    y, patients = cohort.y, cohort.patients
    logs = np.zeros((len(y), len(cohort.classes)))
    chances = np.zeros_like(logs)
    number = np.zeros(len(y), dtype=int)
    chosen = []
    outer = grouped_folds(y, patients, k=options.folds, seed=options.seed)
    for n, fold in enumerate(outer):
        progress("cross-validation", n, len(outer))
        trained = _train(_take(inputs, fold.train), y[fold.train], [patients[i] for i in fold.train], options)
        logs[fold.test] = trained.head.log_probabilities(_take(inputs, fold.test))
        chances[fold.test] = calibrated(logs[fold.test], trained.calibration)
        number[fold.test] = n + 1
        chosen.append(trained.chosen)
    progress("cross-validation", len(outer), len(outer))
    positive, p = y > 0, 1.0 - chances[:, 0]
    confusion = np.zeros((len(cohort.classes),) * 2, dtype=int)
    np.add.at(confusion, (y, chances.argmax(axis=1)), 1)
    recalls = confusion.diagonal() / confusion.sum(axis=1)
    cv = CrossValidation(
        folds=options.folds,
        inner_folds=options.inner,
        slides=len(y),
        auc=auc_figure(positive, p, patients, seed=options.seed),
        calibration_error_before=calibration_error(expit(margins(logs)), positive),
        calibration_error_after=calibration_error(p, positive),
        balanced_accuracy=float(recalls.mean()),
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
        chosen=tuple(chosen),
    )
    rows = zip(cohort.ids, y, number, p, strict=True)
    return cv, tuple(Prediction(i, cohort.classes[label], int(fold), float(v)) for i, label, fold, v in rows)


def auc_figure(positive: NDArray[np.bool_], p: Floats, patients: Sequence[str], *, seed: int = 0) -> Figure:
    """AUC with DeLong's interval, or bootstrapped by patient where patients have several slides."""

    found = auc_delong(positive, p)
    if len(set(patients)) == len(patients):
        return Figure(value=found.value, low=found.low, high=found.high, method=found.method)

    def of(drawn: NDArray[np.intp]) -> float:
        truth = positive[drawn]
        return auc(truth, p[drawn]) if 0 < truth.sum() < len(truth) else float("nan")

    clustered = bootstrap(of, patients, seed=seed)
    if np.isnan(clustered.low) or clustered.low == clustered.high:
        return Figure(value=found.value, low=found.low, high=found.high, method=found.method)
    return Figure(value=found.value, low=clustered.low, high=clustered.high, method=clustered.method)


def _conformal(
    cohort: Cohort, trained: _Trained, options: Options, miss_rate: float, false_alarm_rate: float | None
) -> Conformal:
    p = 1.0 - calibrated(trained.head.log_probabilities(_inputs(cohort, options)), trained.calibration)[:, 0]
    positive = cohort.y > 0
    scores = [min(1.0, max(0.0, float(value))) for value in p]
    positives, negatives = per_patient(scores, positive.tolist(), cohort.patients)
    # refuses here, and not when it is applied, what cannot be promised
    band(positives, negatives, miss_rate=miss_rate, false_alarm_rate=false_alarm_rate)
    both = 0 < positive.sum() < len(positive)
    return Conformal(
        positives=positives,
        negatives=negatives,
        miss_rate=miss_rate,
        false_alarm_rate=false_alarm_rate,
        auc=auc_figure(positive, p, cohort.patients, seed=options.seed) if both else None,
    )


def hash_of_patient(patient: str) -> str:
    """What an aggregator keeps of a patient's name: enough to refuse the same name in a validation."""
    return hashlib.sha256(f"wsi-chat patient\0{patient}".encode()).hexdigest()[:24]


def _fittings(cohort: Cohort, held_out: int, about: str) -> Fittings:
    rows = sorted(zip(cohort.fingerprints or cohort.ids, cohort.y.tolist(), cohort.patients, strict=True))
    return Fittings(
        fingerprint=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        about=about,
        slides=len(cohort.ids),
        patients=len(set(cohort.patients)),
        per_class={name: int((cohort.y == c).sum()) for c, name in enumerate(cohort.classes)},
        patients_given=cohort.patients_given,
        patient_hashes=tuple(sorted({hash_of_patient(patient) for patient in cohort.patients})),
        slide_fingerprints=tuple(sorted(set(cohort.fingerprints))),
        held_out=held_out,
        left_out=cohort.left_out,
    )
