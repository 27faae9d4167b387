"""One slide verdict from its tile verdicts: status, score, category, counts, and the reason in numbers.

What is missing is never normal. When a slide may be called normal is in `aggregators.rules`; an abnormal score stands
at any coverage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aggregators.adequacy import Supplied, TileSample, estimate
from aggregators.category import call_category
from aggregators.counts import count_findings
from aggregators.differential import differential
from aggregators.features import ImageFeatures, evidence_of
from aggregators.merge import merge_boxes, unknown_labels
from aggregators.pooling import find_pool
from aggregators.rules import FIRST, RULES, Circumstances, Evidence, Rule, distinct, unmet
from aggregators.support import PRECISION
from wsi_chat.errors import SettingError
from wsi_chat.remarks import together
from wsi_chat.schema import Box, Finding, Funnel, Ground, Remark, SlideVerdict, TileVerdict, VerdictStatus
from wsi_chat.terminology import System

if TYPE_CHECKING:
    from aggregators.fitted import Applied

STATES_SCORE = frozenset({"verdict.low_coverage", "verdict.low_coverage_below", "verdict.between"})
"""Reasons that name the score themselves, or that there is none."""


def aggregate(
    tile_verdicts: Iterable[TileVerdict],
    *,
    system: System,
    funnel: Funnel,
    bounds: Box,
    pool: str = "topk_logit",
    k: int = 10,
    threshold: float = 0.5,
    coverage_floor: float = 0.9,
    false_alarm: float = 0.01,
    cutoff: float = 0.5,
    sample: TileSample | None = None,
    supplied: Supplied | None = None,
    precision: Mapping[str, float] | float | None = None,
    applied: Applied | None = None,
    image: ImageFeatures | None = None,
    circumstances: Circumstances | None = None,
) -> SlideVerdict:
    """The slide's verdict.

    Status, in this order: what no evidence can be had of (`aggregators.rules.FIRST`); for a system that counts,
    ``counted`` (``indeterminate`` below the coverage floor, of screening or of counting); ``abnormal`` at or above the
    threshold, whatever the coverage; the first rule of `aggregators.rules.RULES` that is not met; else ``normal``.

    ``coverage`` is screened tiles over selected ones. Where fewer were selected than may hold cells (``--limit``), a
    slide without an abnormal score is ``indeterminate`` below the floor. Boxes are hints: on a slide below the
    threshold they change nothing but are counted in the reason.

    Args:
        tile_verdicts: of every selected tile, in any order.
        bounds: the slide in level-0 pixels.
        pool, k, false_alarm, cutoff: a name in `aggregators.POOLS` and its settings.
        threshold: score from which the slide is abnormal, 0..1.
        coverage_floor: fraction of the selected tiles, 0..1.
        sample: tiles in which normal cells were counted, to judge adequacy.
        supplied: what the user said of the specimen: preparation, age.
        precision: share of the model's boxes that are right, by class or for all; None takes a published one.
        applied: a fitted aggregator with its thresholds, which takes the place of ``pool`` and ``threshold``; one that
            nobody named is not applied to a slide unlike those of its fit, and the reason says so.
        image: image features of the tiles, for an aggregator that reads them.
        circumstances: controls, scope and whatever else a negative verdict depends on.

    Returns:
        The verdict; ``carrying`` holds the abnormal findings behind the category (else all abnormal ones, on an
        abnormal slide; organisms, on a normal one) and then the tiles that made the score, the highest first.

    Raises:
        SettingError: an unknown pool, a threshold or floor outside 0..1, or an aggregator that cannot read this.
    """
    scorer = find_pool(pool)
    for name, value in (("threshold", threshold), ("coverage_floor", coverage_floor)):
        if not 0.0 <= value <= 1.0:
            raise SettingError(f"{name} is {value}.", hint="Set it between 0 and 1.")
    verdicts = sorted(tile_verdicts, key=lambda verdict: verdict.tile.index)
    answered = [verdict for verdict in verdicts if verdict.p_screen is not None]
    ranked = sorted(answered, key=lambda v: (-_p(v), v.tile.index))
    coverage = min(1.0, len(answered) / funnel.selected) if funnel.selected else 0.0
    findings = merge_boxes(verdicts, system, bounds=bounds)
    hints = sum(finding.abnormal for finding in findings)
    chances = [_p(v) for v in answered]
    score, score_kind = scorer(chances, k=k, false_alarm=false_alarm, cutoff=cutoff, findings=hints)
    circumstances = circumstances or Circumstances()
    low, reading, unlike, stands_back = threshold, None, None, False
    if not system.screen.about_abnormality:
        score, score_kind = None, Remark("score.none")
    elif applied is not None:
        features = evidence_of(verdicts, findings, image=image)
        unlike = applied.aggregator.unlike(features)
        stands_back = applied.unasked and unlike is not None
        if not stands_back:
            low, threshold = applied.band.low, applied.band.high
            reading = applied.read(features)
        if reading is not None:
            score, score_kind = reading.score, reading.kind

    seen = Evidence(
        verdicts, ranked, findings, funnel, system, bounds, score, score_kind, threshold, low, coverage, coverage_floor,
        circumstances, unlike=unlike, stands_back=stands_back,
        forced=applied.forced if applied is not None and not stands_back else (),
    )  # fmt: skip
    supplied = supplied or Supplied()
    adequacy = estimate(
        system=system,
        funnel=funnel,
        status=_for_adequacy(seen),
        screened=len(answered),
        sample=sample,
        supplied=supplied,
        floor=coverage_floor,
        marked=hints,
    )
    call = judge(replace(seen, adequacy=adequacy))
    status = call.status
    category = call_category(
        findings,
        system,
        status=status,
        sampled=funnel.selected < funnel.foreground,
        tile_verdicts=verdicts,
        adequacy=adequacy.status,
        age=supplied.age,
        precision=PRECISION if precision is None else precision,
    )
    more = []
    if status == "abnormal" and not hints:
        more.append(Remark("verdict.score_alone"))
    if unlike is not None and stands_back and not any(ground.rule == "fit.unlike" for ground in call.grounds):
        more.append(Remark("verdict.not_applied", difference=unlike))
    strange = unknown_labels(verdicts, system)
    if strange:
        classes = [Remark("part.class_and_number", name=label, n=n) for label, n in strange.items()]
        more.append(Remark("verdict.unknown_classes", classes=classes))
    carrying = list(category.supporting)
    if status == "abnormal" and not carrying:
        carrying = [finding.id for finding in findings if finding.abnormal]
    if status in ("normal", "abnormal"):
        carrying += [verdict.tile.id for verdict in ranked[:k]]
    return SlideVerdict(
        status=status,
        reason=together(call.reason, *more),
        score=score,
        score_kind=score_kind,
        threshold=threshold if system.screen.about_abnormality else None,
        category=category.code,
        category_name=category.name,
        category_reason=together(category.reason, *seen.detail_gaps()),
        category_confidence=category.confidence,
        category_confidence_kind=category.confidence_kind,
        category_support=category.support,
        fitted=reading.fitted if reading else None,
        coverage=coverage,
        coverage_floor=coverage_floor,
        adequacy=adequacy,
        grounds=call.grounds,
        counts=count_findings(findings, verdicts, system),
        differential=differential(findings, verdicts, system),
        findings=findings,
        carrying=tuple(carrying),
    )


@dataclass(frozen=True, slots=True)
class Call:
    """What a slide is called, and why; ``grounds`` are the rules that a slide without a verdict does not meet."""

    status: VerdictStatus
    reason: Remark
    grounds: tuple[Ground, ...] = ()


def judge(seen: Evidence) -> Call:
    """Status and reason by the tables of `aggregators.rules`, in the order that `aggregate` documents."""
    first = unmet(FIRST, seen)
    if first:
        return _without_verdict(first)
    if seen.score is None:
        return _judge_counts(seen)
    ranked, sample = seen.ranked, seen.sample()
    top: dict[str, Any] = {"kind": seen.score_kind, "tile": ranked[0].tile.id, "p": _p(ranked[0]), "sample": sample}
    if seen.is_positive:
        score, threshold = distinct(seen.score, seen.threshold)
        gap = Remark("part.only_gap", gap=seen.gap()) if seen.coverage < seen.floor else ""
        return Call("abnormal", Remark("verdict.above", score=score, threshold=threshold, gap=gap, **top))
    found = unmet(RULES, seen)
    if found:
        return _without_verdict(found, seen.score_below())
    score, threshold = distinct(seen.score, seen.low)
    candidates = sum(finding.abnormal for finding in seen.findings)
    return Call("normal", Remark(
        "verdict.below", score=score, threshold=threshold, screened=len(ranked), selected=seen.funnel.selected,
        hints=Remark("part.hints", n=candidates) if candidates else "", **top,
    ))  # fmt: skip


def _without_verdict(found: Sequence[tuple[Rule, Ground]], score: Remark | str = "") -> Call:
    """The call of the first rule that is not met, with the reasons of all of them."""
    (rule, ground), *others = found
    if ground.reason.code in STATES_SCORE or rule.status == "unsatisfactory":
        score = ""
    reason = together(ground.reason, score, *(other.reason for _, other in others))
    return Call(rule.status, reason, tuple(each for _, each in found))


def _for_adequacy(seen: Evidence) -> VerdictStatus:
    """What adequacy must know of the slide: that it is empty, that it holds abnormal cells, or neither."""
    if not seen.funnel.foreground:
        return "unsatisfactory"
    if unmet(FIRST, seen):
        return "indeterminate"
    if seen.is_positive:
        return "abnormal"
    return "unsatisfactory" if seen.score is not None and seen.is_empty else "indeterminate"


def _judge_counts(seen: Evidence) -> Call:
    """The verdict of a system that counts; zero cells are a result only where the counting was answered."""
    found = unmet([rule for rule in RULES if rule.code == "coverage.answers"], seen)
    if found:
        return _without_verdict(found)
    status, reason = _count(seen)
    if status == "counted":
        return Call(status, reason)
    ground = Ground(rule="counts.missing", headline=Remark("headline.not_counted"), reason=reason, by_error=True)
    return Call(status, reason, (ground,))


def _count(seen: Evidence) -> tuple[VerdictStatus, Remark]:
    """The verdict of a system that counts; zero cells are a result only where the counting was answered."""
    tried = sum(verdict.status in ("detailed", "detail_failed") for verdict in seen.verdicts)
    done = sum(verdict.status == "detailed" for verdict in seen.verdicts)
    if not tried:
        return "indeterminate", Remark("verdict.not_counted", n=len(seen.ranked))
    if done == 0 or done / tried < seen.floor:
        return "indeterminate", Remark("verdict.few_counted", done=done, tried=tried, floor=seen.floor)
    totals = _totals(seen.findings, seen.system)
    counted = Remark("verdict.counted", done=done, screened=len(seen.ranked), totals=totals, sample=seen.sample())
    return "counted", together(counted, *seen.detail_gaps())


def _totals(findings: Sequence[Finding], system: System) -> list[Remark]:
    """How many cells of each class: those always asked for, others where any was marked; kinds behind their whole."""
    numbers = {label.code: sum(finding.label == label.code for finding in findings) for label in system.labels}
    totals = []
    for label in system.labels:
        kinds = [other for other in system.labels if other.kind_of == label.code and numbers[other.code]]
        n = sum(numbers[code] for code in system.kinds_of(label.code))
        if label.kind_of is not None or not (label.ask or n):
            continue
        name = Remark("name.label", code=label.code, name=label.noun(n))
        if not kinds:
            totals.append(Remark("part.number_and_class", n=n, name=name))
            continue
        parts = [
            Remark(
                "part.number_and_class", n=numbers[kind.code],
                name=Remark("name.label", code=kind.code, name=kind.noun(numbers[kind.code])),
            )
            for kind in kinds
        ]  # fmt: skip
        totals.append(Remark("part.number_and_kinds", n=n, name=name, kinds=parts))
    return totals


def _p(verdict: TileVerdict) -> float:
    return 0.0 if verdict.p_screen is None else verdict.p_screen
