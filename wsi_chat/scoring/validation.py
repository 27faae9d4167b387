"""Verdicts against labels: how well slides are told apart, at which threshold, how honest the scores are.

Slides without a verdict stay in every count: each figure is given among the decided slides, with the undecided
counted as wrong, and with them counted as referred. Intervals are 95 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.analysis.slide_score import SlideScore
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.schema import Report
from wsi_chat.scoring.fitting import LabelledSlide, conditions_of_report, evidence_of_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aggregators.fitted import Applied, FittedAggregator
    from aggregators.intervals import Estimate

DECIDED = ("normal", "abnormal")
NONE_GIVEN = "none given"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One slide: its truth and what was said of it. ``status`` is ``failed`` where there is no report."""

    id: str
    patient: str
    label: str
    positive: bool
    status: str
    score: float | None
    coverage: float | None
    category: str
    why: str
    category_truth: str = ""


class Judged(NamedTuple):
    """All outcomes, the threshold and band of scores, and the score's kind in words."""

    outcomes: tuple[Outcome, ...]
    low: float | None
    high: float | None
    kind: str
    classes: tuple[str, ...]


def judge(
    rows: Sequence[LabelledSlide],
    *,
    negative: str,
    score: SlideScore,
    category_column: str | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Judged:
    """What the reports say of each slide, or where ``score`` names an aggregator what that says.

    Raises:
        SettingError: a patient or a slide is among those of the fit; a slide was analyzed under other conditions
            and ``force`` is off; the reports' thresholds differ.
    """
    fitted = score.aggregator
    if fitted is not None:
        refuse_overlap(rows, fitted)
    outcomes = []
    bands: Counter[tuple[float | None, float | None]] = Counter()
    kinds: Counter[str] = Counter()
    for done, row in enumerate(rows):
        progress("judging", done, len(rows))
        outcome, band, kind = _outcome(row, negative, score, category_column)
        outcomes.append(outcome)
        if outcome.score is not None:
            bands[band] += 1
            kinds[kind] += 1
    progress("judging", len(rows), len(rows))
    if len(bands) > 1:
        seen = ", ".join(f"{high}" for _, high in sorted(bands, key=str))
        raise SettingError(f"the reports were drawn with different thresholds: {seen}.", hint="Analyze them alike.")
    low, high = next(iter(bands), (None, None))
    # a pool of fewer tiles than asked for has a kind of its own; the most frequent stands for all
    kind = kinds.most_common(1)[0][0] if kinds else "no slide has a score"
    return Judged(tuple(outcomes), low, high, kind, fitted.record.classes if fitted else ())


def refuse_overlap(rows: Sequence[LabelledSlide], fitted: FittedAggregator) -> None:
    """Refuse patients and slides that the aggregator was fitted on.

    Raises:
        SettingError: names them, five at most.
    """
    from aggregators.fit import hash_of_patient

    cohort = fitted.record.cohort
    known, pixels = set(cohort.patient_hashes), set(cohort.slide_fingerprints)
    shared = {row.patient for row in rows if hash_of_patient(row.patient) in known}
    same = {row.id for row in rows if row.report is not None and row.report.slide.fingerprint in pixels}
    for what, names in (("patient", sorted(shared)), ("slide", sorted(same))):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise SettingError(
                f"{len(names)} {what}{'s' if len(names) > 1 else ''} of this manifest took part in the fit:"
                f" {', '.join(names[:5])}{more}.",
                hint="Validate on patients that the aggregator has not seen: use --split, or another manifest.",
            )


def _outcome(
    row: LabelledSlide, negative: str, slide_score: SlideScore, category_column: str | None
) -> tuple[Outcome, tuple[float | None, float | None], str]:
    truth = row.sample.extra.get(category_column, "") if category_column else ""
    positive = row.label != negative
    if row.report is None or row.folder is None:
        lost = Outcome(row.id, row.patient, row.label, positive, "failed", None, None, "", row.problem, truth)
        return lost, (None, None), ""
    report, verdict = row.report, row.report.verdict
    status: str = verdict.status
    score, why, category = verdict.score, str(verdict.reason), verdict.category or ""
    low = verdict.fitted.low if verdict.fitted else verdict.threshold
    band, kind = (low, verdict.threshold), str(verdict.score_kind)
    applied = slide_score.under(conditions_of_report(report)).applied
    if applied is not None:
        try:
            status, score, category, kind = _applied(report, row.folder, applied)
            if len(applied.aggregator.record.classes) == 2 and status != verdict.status:
                category = ""  # the report drew it for another verdict
            why = f"by the aggregator; the report said {verdict.status}"
        except OutputError as error:
            status, score, category, kind, why = "failed", None, "", "", error.message
        band = (applied.band.low, applied.band.high)
    outcome = Outcome(row.id, row.patient, row.label, positive, status, score, verdict.coverage, category, why, truth)
    return outcome, band, kind


def _applied(report: Report, folder: SlideFolder, applied: Applied) -> tuple[Any, float | None, str, str]:
    """Status, score, category and kind by the aggregator, in the order that `aggregators.aggregate` documents."""
    verdict, funnel = report.verdict, report.funnel
    record = applied.aggregator.record
    if funnel.foreground == 0:
        return "unsatisfactory", None, "", ""
    reading = applied.read(evidence_of_folder(folder, report, image=record.image_features > 0))
    if reading is None:
        return "indeterminate", None, "", ""
    best = max(reading.fitted.classes, key=lambda name: reading.fitted.classes[name])
    category = best if len(record.classes) > 2 else verdict.category or ""
    status = applied.band.call(reading.score)
    if status != "abnormal":
        if verdict.status == "unsatisfactory":
            status = "unsatisfactory"
        elif verdict.coverage < verdict.coverage_floor:
            status = "indeterminate"
    return status, reading.score, category, reading.kind


def measure(judged: Judged, *, resamples: int = 1000, seed: int = 0, order: Sequence[str] = ()) -> dict[str, Any]:
    """Every figure of a validation, JSON-able; a figure that cannot be computed is None with a note.

    Args:
        order: categories from the least to the gravest, for the weights of kappa.
    """
    import numpy as np

    outcomes = judged.outcomes
    scored = [outcome for outcome in outcomes if outcome.score is not None]
    positive = np.array([outcome.positive for outcome in scored], dtype=bool)
    score = np.array([outcome.score for outcome in scored], dtype=np.float64)
    patients = [outcome.patient for outcome in scored]
    both = bool(positive.any() and not positive.all())
    calibrated = judged.kind.startswith("calibrated")
    notes = []
    if not both:
        notes.append("No AUC: the slides with a score are all of one class.")
    if not calibrated:
        notes.append("The score is uncalibrated, so its calibration error says little.")
    return {
        "slides": len(outcomes),
        "patients": len({outcome.patient for outcome in outcomes}),
        "positives": sum(outcome.positive for outcome in outcomes),
        "scored": len(scored),
        "score_kind": judged.kind,
        "threshold": {"normal_below": judged.low, "abnormal_from": judged.high},
        "status": dict(sorted(Counter(outcome.status for outcome in outcomes).items())),
        "auc": _auc(positive, score, patients, resamples, seed) if both else None,
        "at_threshold": {way: at_threshold(outcomes, way, resamples=resamples, seed=seed) for way in WAYS},
        "calibration": _calibration(positive, score, patients, resamples, seed) if both else None,
        "categories": categories(judged, resamples=resamples, seed=seed, order=order),
        "coverage": _coverage(outcomes),
        "undecided": [
            {"sample_id": o.id, "patient": o.patient, "label": o.label, "status": o.status, "why": o.why}
            for o in outcomes
            if o.status not in DECIDED
        ],
        "notes": notes,
    }


def _shown(estimate: Estimate) -> dict[str, Any]:
    """An estimate for JSON; NaN becomes None."""
    values = {key: None if math.isnan(v) else v for key, v in
              (("value", estimate.value), ("low", estimate.low), ("high", estimate.high))}  # fmt: skip
    return {**values, "method": estimate.method}


def _auc(
    positive: NDArray[np.bool_], score: NDArray[np.float64], patients: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    from aggregators.intervals import auc, auc_delong, bootstrap

    def of(drawn: NDArray[np.intp]) -> float:
        truth = positive[drawn]
        return auc(truth, score[drawn]) if truth.any() and not truth.all() else math.nan

    several = len(set(patients)) < len(patients)
    found = {"delong": _shown(auc_delong(positive, score)),
             "bootstrap": _shown(bootstrap(of, patients, resamples=resamples, seed=seed))}  # fmt: skip
    # DeLong takes slides for independent, which slides of one patient are not; a bootstrap without spread says nothing
    spread = found["bootstrap"]["low"] not in (None, found["bootstrap"]["high"])
    return {**found["bootstrap" if several and spread else "delong"], **found, "one_slide_per_patient": not several}


Way = Literal["decided", "undecided_wrong", "undecided_referred"]
WAYS: dict[Way, str] = {
    "decided": "slides called normal or abnormal only",
    "undecided_wrong": "slides without a call counted as wrong",
    "undecided_referred": "slides without a call counted as called abnormal",
}


def at_threshold(outcomes: Sequence[Outcome], way: Way, *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Sensitivity, specificity and balanced accuracy, the undecided slides counted as ``way`` says."""
    import numpy as np

    from aggregators.intervals import bootstrap, proportion

    used = [o for o in outcomes if way != "decided" or o.status in DECIDED]
    truth = np.array([o.positive for o in used], dtype=bool)
    right = np.array([_right(o, way) for o in used], dtype=bool)

    def share(of: NDArray[np.bool_]) -> dict[str, Any]:
        hits, trials = int(right[of].sum()), int(of.sum())
        wilson, exact = (proportion(hits, trials, method=m) for m in ("wilson", "exact"))
        return {"hits": hits, "slides": trials, **_shown(wilson), "exact_low": exact.low, "exact_high": exact.high}

    def balanced(drawn: NDArray[np.intp]) -> float:
        t, r = truth[drawn], right[drawn]
        return float((r[t].mean() + r[~t].mean()) / 2) if t.any() and not t.all() else math.nan

    found: dict[str, Any] = {"what": WAYS[way], "sensitivity": share(truth), "specificity": share(~truth)}
    if truth.any() and not truth.all():
        patients = [o.patient for o in used]
        found["balanced_accuracy"] = _shown(bootstrap(balanced, patients, resamples=resamples, seed=seed))
    return found


def _right(outcome: Outcome, way: Way) -> bool:
    if outcome.status in DECIDED:
        return (outcome.status == "abnormal") == outcome.positive
    return way == "undecided_referred" and outcome.positive


def _calibration(
    positive: NDArray[np.bool_], score: NDArray[np.float64], patients: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    from aggregators.calibration import calibration_curve, calibration_error
    from aggregators.intervals import bootstrap, proportion

    curve = []
    for entry in calibration_curve(score, positive):
        observed = proportion(round(entry.observed * entry.slides), entry.slides)
        curve.append({**entry._asdict(), "low": observed.low, "high": observed.high})
    error = bootstrap(
        lambda drawn: calibration_error(score[drawn], positive[drawn]), patients, resamples=resamples, seed=seed
    )
    return {
        "curve": curve,
        "expected_calibration_error": _shown(error),
        "brier": float(((score - positive) ** 2).mean()),
    }


def categories(judged: Judged, *, resamples: int, seed: int, order: Sequence[str] = ()) -> dict[str, Any] | None:
    """Confusion of categories and kappa, quadratic where an order is known; None where no true category is given.

    Truth is the category column, or with a head of more than two classes the label.
    """
    import numpy as np

    from aggregators.intervals import bootstrap

    many = len(judged.classes) > 2
    rows = [(o, o.label if many else o.category_truth) for o in judged.outcomes]
    rows = [(o, truth) for o, truth in rows if truth]
    if not rows:
        return None
    order = judged.classes if many else tuple(order)
    pairs = [(truth.casefold(), _category(o, truth, order)) for o, truth in rows]
    seen = {name for pair in pairs for name in pair} - {NONE_GIVEN}
    ranked = [name.casefold() for name in order if name.casefold() in seen]
    names = [*ranked, *sorted(seen - set(ranked))]
    columns = [*names, NONE_GIVEN]
    confusion = [[sum(p == (a, b) for p in pairs) for b in columns] for a in names]
    weights = "quadratic" if len(ranked) == len(names) else None
    given = [
        (names.index(a), names.index(b), o.patient) for (a, b), (o, _) in zip(pairs, rows, strict=True) if b in names
    ]
    found: dict[str, Any] = {"rows": names, "columns": columns, "confusion": confusion, "weights": weights or "none",
                             "without_category": len(rows) - len(given), "kappa": None}  # fmt: skip
    if len({a for a, _, _ in given} | {b for _, b, _ in given}) > 1:
        a, b = (np.array([g[i] for g in given]) for i in (0, 1))
        found["kappa"] = _shown(
            bootstrap(lambda drawn: _kappa(a[drawn], b[drawn], len(names), weights), [g[2] for g in given],
                      resamples=resamples, seed=seed)
        )  # fmt: skip
    return found


def _category(outcome: Outcome, truth: str, order: Sequence[str]) -> str:
    """The category given; of a pair (one on each axis) the one that is true, else the graver."""
    parts = [part.casefold() for part in outcome.category.split("+") if part]
    if outcome.status == "failed" or not parts:
        return NONE_GIVEN
    if truth.casefold() in parts:
        return truth.casefold()
    rank = [name.casefold() for name in order]
    return max(parts, key=lambda part: rank.index(part) if part in rank else -1)


def _kappa(a: NDArray[np.intp], b: NDArray[np.intp], count: int, weights: str | None) -> float:
    """Cohen's kappa; NaN where chance alone agrees fully."""
    import numpy as np
    from sklearn.metrics import cohen_kappa_score

    if len(np.union1d(a, b)) < 2:
        return math.nan
    return float(cohen_kappa_score(a, b, labels=list(range(count)), weights=weights))


def _coverage(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    values = sorted(o.coverage for o in outcomes if o.coverage is not None)
    if not values:
        return {"mean": None, "lowest": None, "reports": 0}
    return {"mean": sum(values) / len(values), "lowest": values[0], "reports": len(values)}
