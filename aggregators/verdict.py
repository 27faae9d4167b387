"""One slide verdict from its tile verdicts: status, score, category, counts, and the reason in numbers.

What is missing is never normal: an unread tile or a failed answer lowers the coverage, and below the floor a
slide without an abnormal score is ``indeterminate``. An abnormal score stands at any coverage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aggregators.adequacy import Supplied, TileSample, estimate
from aggregators.category import call_category
from aggregators.counts import count_findings
from aggregators.differential import differential
from aggregators.features import ImageFeatures, evidence_of
from aggregators.merge import merge_boxes, unknown_labels
from aggregators.pooling import find_pool
from aggregators.support import PRECISION
from wsi_chat.errors import SettingError
from wsi_chat.remarks import together
from wsi_chat.schema import Box, Finding, Funnel, Remark, SlideVerdict, TileVerdict, VerdictStatus
from wsi_chat.terminology import System

if TYPE_CHECKING:
    from aggregators.fitted import Applied


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
) -> SlideVerdict:
    """The slide's verdict.

    Status, in this order: ``unsatisfactory`` without foreground; ``indeterminate`` without a single screening
    answer; for a system that counts, ``counted`` (``indeterminate`` below the coverage floor, of screening or
    of counting); ``abnormal`` at or above the threshold, whatever the coverage; ``unsatisfactory`` where every
    tile is known to be empty; ``indeterminate`` below the coverage floor or within the band of a fitted
    aggregator; else ``normal``.

    Coverage is screened tiles over selected ones: whoever asked for fewer tiles (``--limit``) is judged by
    those, the reason then states the sampled fraction of the foreground, and a normal slide gets no category.
    Boxes are hints: on a slide below the threshold they change nothing but are counted in the reason.

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
    low, reading, unlike = threshold, None, None
    if not system.screen.about_abnormality:
        score, score_kind = None, Remark("score.none")
    elif applied is not None:
        evidence = evidence_of(verdicts, findings, image=image)
        unlike = applied.why_not(evidence)
        if unlike is None:
            low, threshold = applied.band.low, applied.band.high
            reading = applied.read(evidence)
        if reading is not None:
            score, score_kind = reading.score, reading.kind

    seen = _Evidence(
        verdicts, ranked, findings, funnel, system, score, score_kind, threshold, low, coverage, coverage_floor
    )
    status, reason = _judge(seen)
    sampled = funnel.selected < funnel.foreground
    supplied = supplied or Supplied()
    adequacy = estimate(
        system=system,
        funnel=funnel,
        status=status,
        screened=len(answered),
        sample=sample,
        supplied=supplied,
        floor=coverage_floor,
    )
    category = call_category(
        findings,
        system,
        status=status,
        sampled=sampled,
        tile_verdicts=verdicts,
        adequacy=adequacy.status,
        age=supplied.age,
        precision=PRECISION if precision is None else precision,
    )
    more = [] if unlike is None else [Remark("verdict.not_applied", difference=unlike)]
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
        reason=together(reason, *more),
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
        counts=count_findings(findings, verdicts, system),
        differential=differential(findings, verdicts, system),
        findings=findings,
        carrying=tuple(carrying),
    )


@dataclass(frozen=True, slots=True)
class _Evidence:
    """All that a verdict is drawn from; ``ranked`` are the tiles with an answer, the highest first."""

    verdicts: Sequence[TileVerdict]
    ranked: Sequence[TileVerdict]
    findings: Sequence[Finding]
    funnel: Funnel
    system: System
    score: float | None
    score_kind: Remark
    threshold: float
    low: float
    coverage: float
    floor: float

    def missing(self) -> Remark:
        """Why tiles have no screening answer, in numbers."""
        unreadable = sum(verdict.status == "unreadable" for verdict in self.verdicts)
        failed = sum(verdict.status == "screen_failed" for verdict in self.verdicts)
        rest = max(0, self.funnel.selected - len(self.ranked) - unreadable - failed)
        if rest:
            return Remark("part.missing_and_rest", unreadable=unreadable, failed=failed, rest=rest)
        return Remark("part.missing", unreadable=unreadable, failed=failed)

    def gap(self) -> Remark:
        return Remark(
            "part.gap", screened=len(self.ranked), selected=self.funnel.selected, coverage=self.coverage,
            floor=self.floor, missing=self.missing(),
        )  # fmt: skip

    def sample(self) -> Remark | str:
        """The sampled fraction of the foreground; empty where it is the whole."""
        chosen, whole = self.funnel.selected, self.funnel.foreground
        return "" if chosen >= whole else Remark("part.sample", chosen=chosen, all=whole, fraction=chosen / whole)

    def detail_gaps(self) -> list[Remark]:
        """Sentences on detailed tiles whose answers failed or were cut off."""
        tried = sum(verdict.status in ("detailed", "detail_failed") for verdict in self.verdicts)
        failed = sum(verdict.status == "detail_failed" for verdict in self.verdicts)
        short = sum(verdict.truncated for verdict in self.verdicts)
        gaps = []
        if failed:
            gaps.append(Remark("verdict.answers_failed", failed=failed, tried=tried))
        if short:
            gaps.append(Remark("verdict.answers_cut_off", n=short))
        return gaps


def _judge(seen: _Evidence) -> tuple[VerdictStatus, Remark]:
    """Status and reason, by the order that `aggregate` documents."""
    funnel, ranked, sample = seen.funnel, seen.ranked, seen.sample()
    if funnel.foreground == 0:
        return "unsatisfactory", Remark("verdict.no_cells", n=funnel.grid)
    if not ranked:
        return "indeterminate", Remark("verdict.no_answer", n=funnel.selected, missing=seen.missing())
    low = seen.coverage < seen.floor
    if seen.score is None:
        if low:
            return "indeterminate", Remark("verdict.low_coverage", gap=seen.gap(), sample=sample)
        return _count(seen)
    score, threshold = _distinct(seen.score, seen.threshold)
    top: dict[str, Any] = {"kind": seen.score_kind, "tile": ranked[0].tile.id, "p": _p(ranked[0]), "sample": sample}
    if seen.score >= seen.threshold:
        gap = Remark("part.only_gap", gap=seen.gap()) if low else ""
        return "abnormal", Remark("verdict.above", score=score, threshold=threshold, gap=gap, **top)
    if all(verdict.tile.cellularity == 0.0 for verdict in ranked):
        return "unsatisfactory", Remark("verdict.empty", n=len(ranked))
    if low:
        return "indeterminate", Remark(
            "verdict.low_coverage_below", gap=seen.gap(), score=score, threshold=threshold, sample=sample
        )
    if seen.score >= seen.low:
        return "indeterminate", Remark("verdict.between", score=score, low=seen.low, threshold=threshold, **top)
    score, threshold = _distinct(seen.score, seen.low)
    candidates = sum(finding.abnormal for finding in seen.findings)
    return "normal", Remark(
        "verdict.below", score=score, threshold=threshold, screened=len(ranked), selected=funnel.selected,
        hints=Remark("part.hints", n=candidates) if candidates else "", **top,
    )  # fmt: skip


def _count(seen: _Evidence) -> tuple[VerdictStatus, Remark]:
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
        name = Remark("name.label", code=label.code, name=label.name)
        if not kinds:
            totals.append(Remark("part.number_and_class", n=n, name=name))
            continue
        parts = [
            Remark(
                "part.number_and_class", n=numbers[kind.code],
                name=Remark("name.label", code=kind.code, name=kind.name),
            )
            for kind in kinds
        ]  # fmt: skip
        totals.append(Remark("part.number_and_kinds", n=n, name=name, kinds=parts))
    return totals


def _p(verdict: TileVerdict) -> float:
    return 0.0 if verdict.p_screen is None else verdict.p_screen


def _distinct(score: float, threshold: float) -> tuple[str, str]:
    """Both numbers with three decimals, or as many as it takes to tell them apart."""
    for digits in range(3, 17):
        texts = f"{score:.{digits}f}", f"{threshold:.{digits}f}"
        if texts[0] != texts[1] or score == threshold:
            return texts
    return repr(score), repr(threshold)
