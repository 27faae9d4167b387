"""One slide verdict from its tile verdicts: status, score, category, counts, and the reason in numbers.

What is missing is never normal: an unread tile or a failed answer lowers the coverage, and below the floor a
slide without an abnormal score is ``indeterminate``. An abnormal score stands at any coverage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aggregators.adequacy import estimate
from aggregators.category import call_category
from aggregators.counts import count_findings
from aggregators.merge import merge_boxes, unknown_labels
from aggregators.pool import find_pool
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, Finding, Funnel, SlideVerdict, TileVerdict, VerdictStatus

if TYPE_CHECKING:
    from wsi_chat.terminology import System


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
) -> SlideVerdict:
    """The slide's verdict.

    Status, in this order: ``unsatisfactory`` without foreground; ``indeterminate`` without a single screening
    answer; for a system that counts, ``counted`` (``indeterminate`` below the coverage floor); ``abnormal`` at
    or above the threshold, whatever the coverage; ``unsatisfactory`` where every tile is known to be empty;
    ``indeterminate`` below the coverage floor; else ``normal``.

    Coverage is screened tiles over selected ones: whoever asked for fewer tiles (``--limit``) is judged by
    those, and the reason of every verdict then states the sampled fraction of the foreground. Boxes are hints: on a
    slide below the threshold they change nothing but are counted in the reason.

    Args:
        tile_verdicts: of every selected tile, in any order.
        bounds: the slide in level-0 pixels.
        pool, k, false_alarm, cutoff: a name in `aggregators.POOLS` and its settings.
        threshold: score from which the slide is abnormal, 0..1.
        coverage_floor: fraction of the selected tiles, 0..1.

    Returns:
        The verdict; ``carrying`` holds the abnormal findings behind the category (else all abnormal ones, on an
        abnormal slide; organisms, on a normal one) and then the tiles that made the score, the highest first.

    Raises:
        SettingError: an unknown pool, or a threshold or floor outside 0..1.
    """
    scorer = find_pool(pool)
    for name, value in (("threshold", threshold), ("coverage_floor", coverage_floor)):
        if not 0.0 <= value <= 1.0:
            raise SettingError(f"{name} is {value}.", hint="Set it between 0 and 1.")
    verdicts = sorted(tile_verdicts, key=lambda verdict: verdict.tile.index)
    answered = [verdict for verdict in verdicts if verdict.p_screen is not None]
    ranked = sorted(answered, key=lambda v: (-_p(v), v.tile.index))
    coverage = min(1.0, len(answered) / funnel.selected) if funnel.selected else 0.0
    score, score_kind = scorer([_p(v) for v in answered], k=k, false_alarm=false_alarm, cutoff=cutoff)
    if not system.screen.about_abnormality:
        score, score_kind = None, "none: cells were counted, abnormality was not asked about"
    findings = merge_boxes(verdicts, system, bounds=bounds)

    status, reason = _judge(
        verdicts, ranked, findings, funnel, system, score, score_kind, threshold, coverage, coverage_floor
    )
    sampled = funnel.selected < funnel.foreground
    category = call_category(findings, system, status=status, sampled=sampled)
    strange = unknown_labels(verdicts, system)
    if strange:
        named = ", ".join(f"{label} ({n})" for label, n in strange.items())
        reason = f"{reason} Boxes with classes that the reporting system does not have were left out: {named}."
    carrying = list(category.supporting)
    if status == "abnormal" and not carrying:
        carrying = [finding.id for finding in findings if finding.abnormal]
    if status in ("normal", "abnormal"):
        carrying += [verdict.tile.id for verdict in ranked[:k]]
    return SlideVerdict(
        status=status,
        reason=reason,
        score=score,
        score_kind=score_kind,
        threshold=threshold if system.screen.about_abnormality else None,
        category=category.code,
        category_name=category.name,
        category_reason=category.reason,
        coverage=coverage,
        coverage_floor=coverage_floor,
        adequacy=estimate(system=system, funnel=funnel, status=status, screened=len(answered)),
        counts=count_findings(findings, verdicts, system),
        findings=findings,
        carrying=tuple(carrying),
    )


def _judge(
    verdicts: Sequence[TileVerdict],
    ranked: Sequence[TileVerdict],
    findings: Sequence[Finding],
    funnel: Funnel,
    system: System,
    score: float | None,
    score_kind: str,
    threshold: float,
    coverage: float,
    floor: float,
) -> tuple[VerdictStatus, str]:
    """Status and reason, by the order that `aggregate` documents."""
    if funnel.foreground == 0:
        return "unsatisfactory", f"No cells were found: none of the {_tiles(funnel.grid)} of the slide has any."
    if not ranked:
        return "indeterminate", (
            f"None of the {_tiles(funnel.selected)} to be screened has a usable answer: {_missing(verdicts, funnel)}."
        )
    low = coverage < floor
    gap = (
        f"{len(ranked)} of {_tiles(funnel.selected)} screened ({coverage:.1%}), below the coverage floor of"
        f" {floor:.0%}: {_missing(verdicts, funnel)}"
    )
    sample = ""
    if funnel.selected < funnel.foreground:
        share = funnel.selected / funnel.foreground
        sample = (
            f"; among the {funnel.selected} of {funnel.foreground} foreground tiles that were sampled ({share:.1%})"
        )
    if not system.screen.about_abnormality:
        if low:
            return "indeterminate", f"Only {gap}{sample}."
        detailed = sum(bool(verdict.asked) for verdict in verdicts)
        seen = ", ".join(
            f"{n} {label.name}"
            for label in system.labels
            for n in [sum(finding.label == label.code for finding in findings)]
        )
        return "counted", f"Cells counted in {detailed} of {_tiles(len(ranked))} screened: {seen}{sample}."
    assert score is not None  # every pool scores one tile or more
    at, line = _distinct(score, threshold)
    if score >= threshold:
        reason = f"The score {at} ({score_kind}) reaches the threshold {line}"
        reason += f"; highest tile {ranked[0].tile.id} at {_p(ranked[0]):.3f}{sample}"
        return "abnormal", f"{reason}; {gap}, so more may have been missed." if low else f"{reason}."
    if all(verdict.tile.cellularity == 0.0 for verdict in ranked):
        return "unsatisfactory", f"No cells were found: all {_tiles(len(ranked))} screened are empty."
    if low:
        return "indeterminate", f"Only {gap}; the score {at} of the rest is below the threshold {line}{sample}."
    reason = f"The score {at} ({score_kind}) is below the threshold {line}"
    reason += f"; highest tile {ranked[0].tile.id} at {_p(ranked[0]):.3f}"
    reason += f"; {len(ranked)} of {_tiles(funnel.selected)} screened{sample}"
    hints = sum(finding.abnormal for finding in findings)
    if hints:
        reason += f"; {hints} candidate box{'es' if hints > 1 else ''} of abnormal classes, which alone decide nothing"
    return "normal", f"{reason}."


def _missing(verdicts: Sequence[TileVerdict], funnel: Funnel) -> str:
    unreadable = sum(verdict.status == "unreadable" for verdict in verdicts)
    failed = sum(verdict.status == "screen_failed" for verdict in verdicts)
    answered = sum(verdict.p_screen is not None for verdict in verdicts)
    rest = max(0, funnel.selected - answered - unreadable - failed)
    text = f"{unreadable} could not be read, {failed} had no usable answer"
    return f"{text}, {rest} were not reached" if rest else text


def _tiles(n: int) -> str:
    return f"{n} tile{'' if n == 1 else 's'}"


def _p(verdict: TileVerdict) -> float:
    return 0.0 if verdict.p_screen is None else verdict.p_screen


def _distinct(score: float, threshold: float) -> tuple[str, str]:
    """Both numbers with three decimals, or as many as it takes to tell them apart."""
    for digits in range(3, 17):
        texts = f"{score:.{digits}f}", f"{threshold:.{digits}f}"
        if texts[0] != texts[1] or score == threshold:
            return texts
    return repr(score), repr(threshold)
