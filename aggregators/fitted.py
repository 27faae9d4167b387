"""A fitted aggregator: what aggregator.json says, read back only when it is whole, and applied to a slide.

The folder holds aggregator.json (with the SHA-256 of itself), for the attention head attention.safetensors, and
cv.csv. Nothing is pickled. An aggregator remembers under which conditions its slides were analyzed and is not
applied under others unless it is told to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from aggregators.attention import AttentionHead, from_bytes, to_bytes
from aggregators.calibration import Calibration
from aggregators.conformal import Band, band
from aggregators.features import (
    TILE_FEATURES,
    VERDICT_FEATURES,
    Evidence,
    tile_feature_names,
    tile_features,
    verdict_feature_names,
    verdict_features,
)
from aggregators.logistic import LogisticHead
from wsi_chat.atomic import write_bytes, write_text
from wsi_chat.bounded import load_json
from wsi_chat.errors import DocumentError, SettingError
from wsi_chat.remarks import read_remark
from wsi_chat.schema import Fitted, Probability, Record, Remark

FILE, WEIGHTS = "aggregator.json", "attention.safetensors"
HeadName = Literal["logistic", "attention"]
HEADS: dict[HeadName, Remark] = {"logistic": Remark("head.logistic"), "attention": Remark("head.attention")}
METHODS = {"platt": Remark("method.platt"), "isotonic": Remark("method.isotonic")}
FAR = 5.0
"""Standard deviations of the fit's slides beyond which a slide is unlike them. Ours: no rendered one of 146 had 4.3."""
_AGAIN = "Fit it again with wsi-chat fit."


class Figure(Record):
    """A figure with its 95 % interval, None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""


class CrossValidation(Record):
    """Nested, grouped by patient: every slide predicted by a head and a calibration that never saw its patient."""

    folds: int
    inner_folds: int
    slides: int
    auc: Figure
    calibration_error_before: float
    calibration_error_after: float
    balanced_accuracy: float
    confusion: tuple[tuple[int, ...], ...] = Field(description="rows truth, columns highest probability")
    chosen: tuple[float, ...] = Field(description="what the inner folds chose: penalty C, or epochs")


class Conformal(Record):
    """Scores of patients that neither head nor calibration saw: lowest of abnormal, highest of normal slides."""

    positives: tuple[Probability, ...]
    negatives: tuple[Probability, ...]
    miss_rate: float | None = None
    false_alarm_rate: float | None = None
    auc: Figure | None = Field(default=None, description="of the held-out slides")


class Fittings(Record):
    """The slides that an aggregator stands on. Patients are kept as hashes, to refuse them in a validation."""

    fingerprint: str = Field(description="SHA-256 over slide fingerprints, labels and patients")
    about: str = Field(default="", max_length=60, description="what slides these are, in words before 'slides'")
    slides: int
    patients: int
    per_class: dict[str, int]
    patients_given: bool
    patient_hashes: tuple[str, ...]
    slide_fingerprints: tuple[str, ...]
    held_out: int = Field(default=0, description="slides kept for the thresholds")
    left_out: tuple[str, ...] = Field(default=(), description="slides that could not be used, and why")


class Aggregator(Record):
    """Everything of aggregator.json. ``classes`` start with the negative one."""

    format: Literal["wsi-chat aggregator"] = "wsi-chat aggregator"
    version: Literal[1] = 1
    head: HeadName
    classes: tuple[str, ...] = Field(min_length=2, max_length=7)
    features: str
    feature_names: tuple[str, ...]
    labels: tuple[str, ...]
    image_features: int = Field(default=0, ge=0, description="of a tile; 0: none are read")
    image_kind: str = Field(default="", description="how they are made of what the vision tower gives")
    image_model: str = Field(default="", description="whose they are")
    logistic: LogisticHead | None = None
    weights_sha256: str | None = None
    calibration: Calibration
    conformal: Conformal | None = None
    conditions: dict[str, Any] = Field(description="of the fit; a list names every value that its slides had")
    cohort: Fittings
    cv: CrossValidation
    seed: int
    class_weight: Literal["balanced", "none"]
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Aggregator:
        if (self.head == "logistic") != (self.logistic is not None) or (self.head == "attention") != bool(
            self.weights_sha256
        ):
            raise ValueError("the head's weights are missing")
        if self.logistic and len(self.logistic.weights) != (1 if len(self.classes) == 2 else len(self.classes)):
            raise ValueError("the head has another number of classes")
        if bool(self.image_features) != bool(self.image_kind and self.image_model):
            raise ValueError("it does not say whose image features it reads")
        if self.feature_names != feature_names(self.head, self.labels, self.image_features):
            raise ValueError("the features are not those of this version of wsi-chat")
        return self


def feature_names(head: HeadName, labels: Sequence[str], image: int = 0) -> tuple[str, ...]:
    """The names of the features that a head takes."""
    return verdict_feature_names(labels) if head == "logistic" else tile_feature_names(labels, image)


def feature_set(head: HeadName) -> str:
    """Name and version of the features that a head takes."""
    return VERDICT_FEATURES if head == "logistic" else TILE_FEATURES


def _shown(wanted: object) -> str:
    """A setting's value as the command line has it: on and off for a switch, no setting at all as none."""
    if isinstance(wanted, list):
        return " or ".join(map(_shown, wanted))
    if wanted is None:
        return "none"
    return {True: "on", False: "off"}[wanted] if isinstance(wanted, bool) else repr(wanted)


@dataclass(frozen=True)
class FittedAggregator:
    """An aggregator that can be applied: its record and, for the attention head, its weights."""

    record: Aggregator
    attention: AttentionHead | None = None

    @cached_property
    def sha256(self) -> str:
        """Of everything in aggregator.json; names the aggregator in reports."""
        return _digest(self.record)

    def probabilities(self, slides: Sequence[Evidence]) -> NDArray[np.float64]:
        """(slides, classes) calibrated probabilities; rows sum to 1, column 0 is the negative class.

        Raises:
            SettingError: a slide has no screened tile, lacks image features, or its probabilities are no numbers, as
                with weights that are out of all bounds.
        """
        logs = head_log_probabilities(
            self.record.logistic if self.attention is None else self.attention,
            slides,
            self.record.labels,
            image=self.record.image_features,
        )
        found = calibrated(logs, self.record.calibration) if np.isfinite(logs).all() else logs
        if not np.isfinite(found).all():
            raise SettingError(f"--aggregator: the weights of {FILE} give a slide no probability (NaN).", hint=_AGAIN)
        return found

    def meets(self, key: str, value: object) -> bool:
        """Whether a run's value of a condition is that of the fit, or one of several that the fit's slides had."""
        mine = self.record.conditions.get(key)
        if key == "adapter":  # until version 0.2 with the folders above it
            value, mine = _name(value), [_name(each) for each in mine] if isinstance(mine, list) else _name(mine)
        return value in mine if isinstance(mine, list) else value == mine

    def differences(self, conditions: Mapping[str, Any]) -> list[Remark]:
        """What differs from the conditions of the fit, as phrases that name both values."""
        mine = self.record.conditions
        return [
            Remark("aggregator.condition", setting=key, value=_shown(conditions.get(key)), fitted=_shown(mine.get(key)))
            for key in sorted(set(mine) | set(conditions))
            if not self.meets(key, conditions.get(key))
        ]

    def unlike(self, evidence: Evidence) -> Remark | None:
        """The feature in which a slide lies farthest outside the fit's slides, in words; None up to `FAR` deviations.

        Known of the logistic head alone, whose record has the mean and the spread of every feature.
        """

        head = self.record.logistic
        if head is None or len(evidence.p) == 0:
            return None
        found = verdict_features(evidence, self.record.labels)
        away = np.abs((found - np.array(head.mean)) / np.array(head.scale))
        worst = int(away.argmax())
        if away[worst] <= FAR:
            return None
        return Remark(
            "aggregator.difference", feature=self.record.feature_names[worst], found=float(found[worst]),
            mean=head.mean[worst], scale=head.scale[worst],
        )  # fmt: skip

    def thresholds(self, *, miss_rate: float | None, false_alarm_rate: float | None) -> tuple[Band, Remark] | None:
        """The thresholds that keep the rates, and what they promise; None where no rate is asked for.

        Rates that are None are those given when it was fitted.

        Raises:
            SettingError: it was fitted without patients held out, or with too few of them.
        """
        conformal = self.record.conformal
        if miss_rate is None and conformal is not None:
            miss_rate = conformal.miss_rate
        if false_alarm_rate is None and conformal is not None:
            false_alarm_rate = conformal.false_alarm_rate
        if miss_rate is None:
            if false_alarm_rate is not None:
                raise SettingError("--false-alarm-rate without --miss-rate.", hint="Give both, or --miss-rate alone.")
            return None
        if conformal is None:
            raise SettingError(
                f"--miss-rate {miss_rate:g}: the aggregator was fitted without patients held out for thresholds.",
                hint="Fit it again with --miss-rate.",
            )
        chosen = band(conformal.positives, conformal.negatives, miss_rate=miss_rate, false_alarm_rate=false_alarm_rate)
        if false_alarm_rate is None:
            return chosen, Remark("guarantee.misses", rate=miss_rate, n=len(conformal.positives))
        return chosen, Remark(
            "guarantee.misses_and_alarms", rate=miss_rate, n=len(conformal.positives), alarms=false_alarm_rate,
            normal=len(conformal.negatives),
        )  # fmt: skip

    def save(self, folder: Path) -> Path:
        """Write the folder's files; returns aggregator.json. Raises OutputError."""
        if self.attention is not None:
            write_bytes(folder / WEIGHTS, to_bytes(self.attention))
        payload = {**_said(self.record), "sha256": self.sha256}
        return write_text(folder / FILE, json.dumps(payload, indent=1, ensure_ascii=False) + "\n")


def _about(slides: str) -> Remark | str:
    """What the slides of the fit were, to stand before the word slides."""
    if slides == "rendered":
        return Remark("about.rendered")
    return Remark("about.given", about=slides) if slides else ""


def _said(record: Aggregator) -> dict[str, Any]:
    """What aggregator.json says; without image features as it was before there were any, so that its hash stays."""
    unused = set() if record.image_features else {"image_kind", "image_model"}
    return record.model_dump(mode="json", exclude=unused)


def _digest(record: Aggregator) -> str:
    text = json.dumps(_said(record), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load_fitted(folder: Path | str) -> FittedAggregator:
    """The aggregator of a folder that `FittedAggregator.save` wrote.

    Raises:
        SettingError: a file is missing, cut off, edited, or of another version; the message names it.
    """
    path = Path(folder) / FILE
    try:
        payload = load_json(path)
    except DocumentError as error:
        if error.missing:
            hint = "Name the folder that wsi-chat fit wrote with -o."
            raise SettingError(f"--aggregator {folder}: there is no {FILE}.", hint=hint) from error
        raise SettingError(f"{path} is cut off or damaged: it {error.reason}.", hint=_AGAIN) from error
    stated = payload.pop("sha256", None) if isinstance(payload, dict) else None
    try:
        record = Aggregator.model_validate(payload)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "the file"
        raise SettingError(f"{path}: {place}: {first['msg']}.", hint=_AGAIN) from error
    try:
        is_signed = stated == _digest(record)
    except UnicodeEncodeError:  # half a surrogate pair, which no file of ours holds
        is_signed = False
    if not is_signed:
        raise SettingError(f"{path} was changed after it was written: its SHA-256 does not fit.", hint=_AGAIN)
    if record.head == "logistic":
        return FittedAggregator(record)
    try:
        data = path.with_name(WEIGHTS).read_bytes()
    except OSError as error:
        raise SettingError(f"{path.with_name(WEIGHTS)}: {error.strerror}.", hint=_AGAIN) from error
    if hashlib.sha256(data).hexdigest() != record.weights_sha256:
        raise SettingError(f"{path.with_name(WEIGHTS)} is not the file that {FILE} names.", hint=_AGAIN)
    head = from_bytes(data, classes=len(record.classes), features=len(record.feature_names))
    return FittedAggregator(record, head)


def head_log_probabilities(
    head: LogisticHead | AttentionHead | None, slides: Sequence[Evidence], labels: Sequence[str], *, image: int = 0
) -> NDArray[np.float64]:
    """(slides, classes) log-probabilities as the head gives them, before calibration."""

    if isinstance(head, LogisticHead):
        return head.log_probabilities(np.stack([verdict_features(slide, labels) for slide in slides]))
    assert head is not None
    for slide in slides:
        if len(slide.p) == 0:
            raise SettingError("a slide without a screened tile has no features.", hint="Leave the slide out.")
    return head.log_probabilities([tile_features(slide, labels, image=image) for slide in slides])


def margins(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log odds of 'not negative' from (slides, classes) log-probabilities: what is calibrated and thresholded."""
    from scipy.special import logsumexp

    return np.asarray(logsumexp(logs[:, 1:], axis=1) - logs[:, 0])


def calibrated(logs: NDArray[np.float64], calibration: Calibration) -> NDArray[np.float64]:
    """Calibrated class probabilities: 'not negative' is calibrated and shared out among its classes as before."""
    from scipy.special import softmax

    positive = np.clip(calibration.apply(margins(logs)), 0.0, 1.0)
    return np.concatenate([1.0 - positive[:, None], positive[:, None] * softmax(logs[:, 1:], axis=1)], axis=1)


@dataclass(frozen=True, slots=True)
class Reading:
    """One slide as an aggregator reads it: a calibrated score 0..1, its kind in words, and the band to judge it."""

    score: float
    kind: Remark
    band: Band
    fitted: Fitted


@dataclass(frozen=True, slots=True)
class Applied:
    """An aggregator with the thresholds that a run asked for. ``forced`` are differences passed over.

    ``unasked``: nobody named it, so it is not applied to a slide that is unlike those of its fit.
    """

    aggregator: FittedAggregator
    band: Band
    guarantee: Remark | str = ""
    forced: tuple[Remark, ...] = ()
    unasked: bool = False

    def read(self, evidence: Evidence) -> Reading | None:
        """The slide's reading; None for a slide without a screened tile."""
        if len(evidence.p) == 0:
            return None
        record = self.aggregator.record
        row = self.aggregator.probabilities([evidence])[0]
        # 1 - p(negative) and not the sum of the others, so that both add up to one
        score = min(1.0, max(0.0, float(1.0 - row[0])))
        if self.forced:
            kind = Remark("score.forced", head=HEADS[record.head])
        else:
            kind = Remark(
                "score.calibrated", method=METHODS[record.calibration.method], n=record.calibration.slides,
                about=_about(record.cohort.about), head=HEADS[record.head],
            )  # fmt: skip
        classes = {name: min(1.0, max(0.0, float(p))) for name, p in zip(record.classes, row, strict=True)}
        fitted = Fitted(
            head=record.head,
            aggregator=self.aggregator.sha256,
            calibration=record.calibration.method,
            classes=classes,
            low=self.band.low,
            guarantee=read_remark("" if self.forced else self.guarantee),
            forced=self.forced,
        )
        return Reading(score, kind, self.band, fitted)


def _name(value: object) -> object:
    return Path(value).name if isinstance(value, str) else value
