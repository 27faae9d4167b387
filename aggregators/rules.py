"""When a slide may be called normal: an ordered table of rules, each with its status and its reason.

``normal`` is what is left where no rule speaks. ``abnormal`` needs positive evidence alone: of the rules, only those
without which there is no evidence at all come before it (no cells, no answers, a model whose controls void whatever it
says). Every rule that speaks is recorded; the first in the table's order decides the status.

What counts as by error (exit code 3): the run, and not the slide, is why there is no verdict. Tiles or answers are
missing, only a sample was looked at, the controls failed, or the slide is not what the model or its score was made for.
Whoever reads exit codes must not take such a slide for one that was examined. A score between the two thresholds, too
few cells and an empty slide are results about the slide, and are not errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aggregators.adequacy import ABNORMAL_MARKED
from aggregators.controls import VOIDS
from wsi_chat.schema import (
    Adequacy,
    Box,
    Controls,
    Finding,
    Funnel,
    Ground,
    Remark,
    Scope,
    TileVerdict,
    VerdictStatus,
)
from wsi_chat.terminology import System

LEAST_FOCUS = 10.0
"""Variance of the Laplacian that a tenth of the tiles reach on a slide in focus, at least. Ours: rendered and real
fields at 0.15 and 0.5 µm/px have 50 to 2,900, blurred by a Gaussian of 4 px at most 5."""
LEAST_AREA = 1 / 16
"""Of one tile that the whole scan must cover, at least: a quarter of its side. The rest is padding."""
MOST_APART = 1.5
"""Factor between the resolution that the user gives and the one that the file states."""
HEADLINES = {
    "controls.same_answer": "headline.same_answer",
    "controls.position": "headline.position",
    "controls.glass": "headline.glass",
    "controls.positive_missed": "headline.positive_missed",
}
"""Failures of the controls as they stand in a heading."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known of a run beyond its tiles.

    Attributes:
        controls: how the model answered questions of known answer; None where none were asked.
        scope: what the model was trained for; None where nobody says.
        other_settings: why the checkpoint's own aggregator does not score the slide; None where it does, or has none.
        dark: the background is dark, as in fluorescence or an inverted picture.
        mpp, mpp_stated: the resolution that the slide was read at level 0 with, and what the file states, µm/px; None
            where either is not known.
        scale_assumed: nobody knows the resolution, and ``mpp`` is the one that suits the model.
    """

    controls: Controls | None = None
    scope: Scope | None = None
    other_settings: Remark | None = None
    dark: bool = False
    mpp: float | None = None
    mpp_stated: float | None = None
    scale_assumed: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict is drawn from; ``ranked`` are the tiles with an answer, the highest first.

    ``threshold`` is the score from which a slide is abnormal, ``low`` that below which it may be normal; ``unlike``
    says in what the slide differs from those of the aggregator's fit, ``stands_back`` that the aggregator, which nobody
    named, was not applied therefore, ``forced`` what it was applied against.
    """

    verdicts: Sequence[TileVerdict]
    ranked: Sequence[TileVerdict]
    findings: Sequence[Finding]
    funnel: Funnel
    system: System
    bounds: Box
    score: float | None
    score_kind: Remark
    threshold: float
    low: float
    coverage: float
    floor: float
    circumstances: Circumstances = field(default_factory=Circumstances)
    unlike: Remark | None = None
    forced: tuple[Remark, ...] = ()
    stands_back: bool = False
    adequacy: Adequacy | None = None

    @property
    def is_positive(self) -> bool:
        """Whether the score reaches the threshold."""
        return self.score is not None and self.score >= self.threshold

    @property
    def is_empty(self) -> bool:
        """Whether every tile that was screened is empty glass, by the measure of the mask."""
        empty = bool(self.ranked) and all(verdict.tile.cellularity == 0.0 for verdict in self.ranked)
        return empty and not self.funnel.unsure

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

    def score_below(self) -> Remark:
        """That the score of what was screened is below the threshold, which is not enough to be normal."""
        assert self.score is not None
        score, threshold = distinct(self.score, self.threshold)
        return Remark("verdict.no_alarm", score=score, kind=self.score_kind, threshold=threshold)


Finds = Callable[[Evidence], tuple[Remark, Remark] | None]
"""Gives the headline and the reason where a rule is not met, else None."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition of ``normal``: what a slide that does not meet it is called, and whether that is by error."""

    code: str
    status: VerdictStatus
    by_error: bool
    finds: Finds


def _no_cells(seen: Evidence) -> tuple[Remark, Remark] | None:
    if seen.funnel.foreground:
        return None
    return Remark("headline.no_cells"), Remark("verdict.no_cells", n=seen.funnel.grid)


def _no_answer(seen: Evidence) -> tuple[Remark, Remark] | None:
    if seen.ranked or not seen.funnel.foreground:
        return None
    n = seen.funnel.selected
    return Remark("headline.no_answer", n=n), Remark("verdict.no_answer", n=n, missing=seen.missing())


def _control_failures(seen: Evidence, *, voiding: bool) -> tuple[Remark, Remark] | None:
    controls = seen.circumstances.controls
    failed = [f for f in controls.failures if (f.code in VOIDS) == voiding] if controls is not None else []
    return (Remark(HEADLINES[failed[0].code]), failed[0]) if failed else None


def _void(seen: Evidence) -> tuple[Remark, Remark] | None:
    return _control_failures(seen, voiding=True)


def _positive_missed(seen: Evidence) -> tuple[Remark, Remark] | None:
    return _control_failures(seen, voiding=False)


def _controls_unanswered(seen: Evidence) -> tuple[Remark, Remark] | None:
    controls = seen.circumstances.controls
    if controls is None or not controls.missing:
        return None
    numbers: dict[str, Any] = {"missing": controls.missing, "n": len(controls.answers)}
    return Remark("headline.controls_unanswered", **numbers), Remark("controls.unanswered", **numbers)


def _empty(seen: Evidence) -> tuple[Remark, Remark] | None:
    return (Remark("headline.no_cells"), Remark("verdict.empty", n=len(seen.ranked))) if seen.is_empty else None


def _coverage(seen: Evidence) -> tuple[Remark, Remark] | None:
    if seen.coverage >= seen.floor:
        return None
    headline = Remark("headline.coverage", screened=len(seen.ranked), selected=seen.funnel.selected)
    if seen.score is None:
        return headline, Remark("verdict.low_coverage", gap=seen.gap(), sample=seen.sample())
    score, threshold = distinct(seen.score, seen.threshold)
    return headline, Remark(
        "verdict.low_coverage_below", gap=seen.gap(), score=score, threshold=threshold, sample=seen.sample()
    )


def _sampled(seen: Evidence) -> tuple[Remark, Remark] | None:
    chosen, whole = seen.funnel.selected, seen.funnel.foreground
    if seen.score is None or chosen >= whole or len(seen.ranked) / whole >= seen.floor:
        return None
    numbers: dict[str, Any] = {"screened": len(seen.ranked), "all": whole}
    reason = Remark("verdict.sampled", **numbers, fraction=len(seen.ranked) / whole, floor=seen.floor)
    return Remark("headline.sampled", **numbers), reason


def _small(seen: Evidence) -> tuple[Remark, Remark] | None:
    side = seen.ranked[0].tile if seen.ranked else None
    if side is None or seen.bounds.area >= LEAST_AREA * side.width * side.height:
        return None
    size: dict[str, Any] = {"width": round(seen.bounds.width), "height": round(seen.bounds.height)}
    return Remark("headline.small", **size), Remark("verdict.small", **size, side=side.width)


def _dark(seen: Evidence) -> tuple[Remark, Remark] | None:
    if not seen.circumstances.dark or seen.system.kind == "generic":
        return None
    return Remark("headline.dark"), Remark("verdict.dark", system=_name(seen.system))


def _resolution(seen: Evidence) -> tuple[Remark, Remark] | None:
    mpp, stated = seen.circumstances.mpp, seen.circumstances.mpp_stated
    if mpp is None or stated is None or max(mpp / stated, stated / mpp) <= MOST_APART:
        return None
    numbers: dict[str, Any] = {"mpp": mpp, "stated": stated}
    return Remark("headline.resolution", **numbers), Remark("verdict.resolution", **numbers)


def _scale(seen: Evidence) -> tuple[Remark, Remark] | None:
    mpp = seen.circumstances.mpp
    if not seen.circumstances.scale_assumed or mpp is None:
        return None
    return Remark("headline.scale"), Remark("verdict.scale", mpp=mpp)


def _focus(seen: Evidence) -> tuple[Remark, Remark] | None:
    known = sorted(v.focus for v in seen.ranked if v.focus is not None and v.tile.cellularity != 0.0)
    if not known or (sharpest := known[int(0.9 * (len(known) - 1) + 0.5)]) >= LEAST_FOCUS:
        return None
    focus, least = distinct(sharpest, LEAST_FOCUS, digits=1)
    return Remark("headline.focus"), Remark("verdict.focus", focus=focus, least=least)


def _only_unsure(seen: Evidence) -> tuple[Remark, Remark] | None:
    if not seen.funnel.unsure or seen.funnel.unsure < seen.funnel.foreground:
        return None
    return Remark("headline.unsure"), Remark("verdict.unsure", n=seen.funnel.unsure)


def _scope(seen: Evidence) -> tuple[Remark, Remark] | None:
    scope = seen.circumstances.scope
    if scope is None or not scope.outside:
        return None
    return Remark("headline.scope"), Remark("verdict.scope", why=scope.outside, statement=scope.statement)


def _inadequate(seen: Evidence) -> tuple[Remark, Remark] | None:
    if seen.adequacy is None or seen.adequacy.status != "unsatisfactory":
        return None
    return Remark("headline.inadequate"), Remark("verdict.inadequate", reason=seen.adequacy.reason)


def _abnormal_marked(seen: Evidence) -> tuple[Remark, Remark] | None:
    """Boxes are hints: they save a specimen from being unsatisfactory, and never make it one that can be negative."""
    if seen.adequacy is None or seen.adequacy.reason.code != ABNORMAL_MARKED:
        return None
    return Remark("headline.abnormal_marked"), Remark("verdict.abnormal_marked", reason=seen.adequacy.reason)


def _adequacy_unanswered(seen: Evidence) -> tuple[Remark, Remark] | None:
    if seen.adequacy is None or seen.adequacy.reason.code != "adequacy.few_tiles":
        return None
    return Remark("headline.adequacy_unanswered"), Remark("verdict.inadequate", reason=seen.adequacy.reason)


def _unlike(seen: Evidence) -> tuple[Remark, Remark] | None:
    if seen.unlike is None:
        return None
    if seen.stands_back:
        return Remark("headline.unlike"), Remark("verdict.not_applied", difference=seen.unlike)
    return Remark("headline.unlike"), Remark("verdict.unlike", difference=seen.unlike)


def _other_settings(seen: Evidence) -> tuple[Remark, Remark] | None:
    why = seen.circumstances.other_settings
    return None if why is None else (Remark("headline.other_settings"), why)


def _forced(seen: Evidence) -> tuple[Remark, Remark] | None:
    if not seen.forced:
        return None
    return Remark("headline.forced"), Remark("verdict.forced", differences=list(seen.forced))


def _between(seen: Evidence) -> tuple[Remark, Remark] | None:
    if seen.score is None or not seen.low <= seen.score < seen.threshold:
        return None
    score, threshold = distinct(seen.score, seen.threshold)
    return Remark("headline.between"), Remark(
        "verdict.between", score=score, low=seen.low, threshold=threshold, kind=seen.score_kind,
        tile=seen.ranked[0].tile.id, p=seen.ranked[0].p_screen or 0.0, sample=seen.sample(),
    )  # fmt: skip


FIRST: tuple[Rule, ...] = (
    Rule("cells.none", "unsatisfactory", False, _no_cells),
    Rule("answers.none", "indeterminate", True, _no_answer),
    Rule("controls.void", "indeterminate", True, _void),
)
"""Rules that come before positive evidence: without them nothing was seen that could be evidence."""

RULES: tuple[Rule, ...] = (
    Rule("cells.empty", "unsatisfactory", False, _empty),
    Rule("coverage.answers", "indeterminate", True, _coverage),
    Rule("coverage.sampled", "indeterminate", True, _sampled),
    Rule("slide.small", "indeterminate", True, _small),
    Rule("slide.dark", "indeterminate", True, _dark),
    Rule("slide.resolution", "indeterminate", True, _resolution),
    Rule("slide.scale", "indeterminate", True, _scale),
    Rule("scope", "indeterminate", True, _scope),
    Rule("controls.positive", "indeterminate", True, _positive_missed),
    Rule("controls.unanswered", "indeterminate", True, _controls_unanswered),
    Rule("slide.focus", "indeterminate", False, _focus),
    Rule("adequacy.unsatisfactory", "unsatisfactory", False, _inadequate),
    Rule("adequacy.abnormal_marked", "indeterminate", False, _abnormal_marked),
    Rule("adequacy.unanswered", "indeterminate", True, _adequacy_unanswered),
    Rule("cells.unsure", "indeterminate", False, _only_unsure),
    Rule("fit.settings", "indeterminate", True, _other_settings),
    Rule("fit.unlike", "indeterminate", True, _unlike),
    Rule("fit.forced", "indeterminate", True, _forced),
    Rule("score.between", "indeterminate", False, _between),
)
"""Rules for a slide whose score does not reach the threshold, the deciding one first."""


def unmet(rules: Sequence[Rule], seen: Evidence) -> list[tuple[Rule, Ground]]:
    """The rules that a slide does not meet, in the table's order, each with its ground."""
    found = []
    for rule in rules:
        words = rule.finds(seen)
        if words is not None:
            headline, reason = words
            found.append((rule, Ground(rule=rule.code, headline=headline, reason=reason, by_error=rule.by_error)))
    return found


def _name(system: System) -> Remark:
    return Remark("name.system", code=system.code, name=system.name)


def distinct(score: float, threshold: float, *, digits: int = 3) -> tuple[str, str]:
    """Both numbers with ``digits`` decimals, or as many more as it takes to tell them apart."""
    for places in range(digits, 17):
        texts = f"{score:.{places}f}", f"{threshold:.{places}f}"
        if texts[0] != texts[1] or score == threshold:
            return texts
    return repr(score), repr(threshold)
