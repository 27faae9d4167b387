"""When a slide may be called normal: one case for every rule of the table, and that abnormal needs none of them."""

from __future__ import annotations

from typing import Any

import pytest

from aggregators import aggregate
from aggregators.rules import FIRST, RULES, Circumstances
from wsi_chat.schema import Box, CellSample, Controls, Remark, Scope, SlideVerdict
from wsi_chat.terminology import load_system

BOUNDS = Box(0, 0, 100_000, 100_000)
FAILED = {
    "void": Controls(answers=(), failures=(Remark("controls.glass", p=0.9),)),
    "missed": Controls(answers=(), failures=(Remark("controls.positive_missed", missed=1, n=2),)),
    "silent": Controls(answers=(), missing=3),
}
OUTSIDE = Scope(statement="For tests.", outside=Remark("scope.no_specimen"))


@pytest.fixture
def judge(make_tile, make_verdict, make_funnel):
    """The verdict on ten tiles of one probability; what else differs from a clean slide is given by name."""

    def run(
        p: float = 0.1, *, specimen: str | None = "cervix", bounds: Box = BOUNDS, focus: float | None = 100.0,
        cellularity: float = 0.3, failed: int = 0, foreground: int | None = None, unsure: int = 0,
        options: dict[str, Any] | None = None, **circumstances: Any,
    ) -> SlideVerdict:  # fmt: skip
        rows = []
        for index in range(10):
            tile = make_tile(index, 600 * index, 0, cellularity=cellularity)
            rows.append(make_verdict(tile, None if index < failed else p).model_copy(update={"focus": focus}))
        return aggregate(
            rows, system=load_system(specimen), funnel=make_funnel(rows, foreground=foreground, unsure=unsure),
            bounds=bounds, circumstances=Circumstances(**circumstances), **(options or {}),
        )  # fmt: skip

    return run


CASES: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "answers.none": ({"failed": 10}, "indeterminate", "no usable answer to 10 tiles", True),
    "controls.void": ({"controls": FAILED["void"]}, "indeterminate", "the model calls empty glass positive", True),
    "cells.empty": ({"cellularity": 0.0}, "unsatisfactory", "no cells", False),
    "coverage.answers": ({"failed": 2}, "indeterminate", "coverage: 8 of 10 tiles", True),
    "coverage.sampled": ({"foreground": 12}, "indeterminate", "sampled: 10 of 12 tiles", True),
    "slide.small": ({"bounds": Box(0, 0, 16, 16)}, "indeterminate", "too small: 16 × 16 px", True),
    "slide.dark": ({"dark": True}, "indeterminate", "dark background", True),
    "slide.resolution": (
        {"mpp": 2.0, "mpp_stated": 0.5}, "indeterminate", "resolution: 2 µm/px given, 0.5 in the file", True
    ),
    "slide.scale": ({"mpp": 0.5, "scale_assumed": True}, "indeterminate", "unknown resolution", True),
    "scope": ({"scope": OUTSIDE}, "indeterminate", "outside the model's scope", True),
    "controls.positive": ({"controls": FAILED["missed"]}, "indeterminate", "the model missed a positive control", True),
    "controls.unanswered": (
        {"controls": FAILED["silent"]}, "indeterminate", "3 of 0 control questions without an answer", True
    ),
    "slide.focus": ({"focus": 3.0}, "indeterminate", "out of focus", False),
    "cells.unsure": (
        {"cellularity": 0.0, "unsure": 10}, "indeterminate", "nothing stands out from the background", False
    ),
    "fit.settings": (
        {"other_settings": Remark("aggregator.other_settings", differences=["top_k"])}, "indeterminate",
        "not the settings of the fit", True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("code", CASES)
def test_a_slide_that_breaks_one_rule_is_not_normal(judge, code: str) -> None:
    given, status, headline, by_error = CASES[code]
    verdict = judge(**given)
    assert (verdict.status, verdict.grounds[0].rule) == (status, code)
    assert (verdict.grounds[0].headline, verdict.grounds[0].by_error) == (headline, by_error)
    assert verdict.grounds[0].reason in verdict.reason
    assert verdict.category is None


def test_a_slide_that_breaks_none_is_normal(judge) -> None:
    sound = Controls(answers=())
    inside = Scope(statement="For tests.", specimens={"cervix": "any"})
    verdict = judge(controls=sound, scope=inside, mpp=0.5, mpp_stated=0.52)
    assert (verdict.status, verdict.grounds) == ("normal", ())


def test_every_rule_of_the_tables_has_a_case_here_or_beside() -> None:
    elsewhere = {  # need a fitted aggregator or counted cells; below, in test_verdict.py and test_fitted_verdict.py
        "cells.none", "adequacy.unsatisfactory", "adequacy.abnormal_marked", "adequacy.unanswered", "fit.unlike",
        "fit.forced", "score.between",
    }  # fmt: skip
    assert {rule.code for rule in (*FIRST, *RULES)} == set(CASES) | elsewhere


@pytest.mark.parametrize("code", sorted(set(CASES) - {"answers.none", "controls.void"}))
def test_positive_evidence_stands_whatever_rule_a_negative_slide_would_break(judge, code: str) -> None:
    verdict = judge(0.95, **CASES[code][0])
    assert (verdict.status, verdict.grounds) == ("abnormal", ())


@pytest.mark.parametrize("failure", ["same_answer", "position", "glass"])
def test_a_model_that_does_not_look_has_no_positive_evidence_either(judge, failure: str) -> None:
    fields = {"same_answer": {"p": 0.9, "n": 4}, "position": {"turned": 2, "n": 2}, "glass": {"p": 0.9}}[failure]
    controls = Controls(answers=(), failures=(Remark(f"controls.{failure}", **fields),))
    assert judge(0.95, controls=controls).status == "indeterminate"
    assert judge(0.95, specimen="blood-smear", controls=controls).status == "indeterminate"


def test_every_reason_is_given_and_the_first_rule_decides(judge) -> None:
    verdict = judge(foreground=100, scope=OUTSIDE, focus=2.0)
    assert [ground.rule for ground in verdict.grounds] == ["coverage.sampled", "scope", "slide.focus"]
    assert all(ground.reason in verdict.reason for ground in verdict.grounds)


def test_too_few_cells_are_unsatisfactory_and_unanswered_counting_is_by_error(
    cervix, make_tile, make_verdict, make_funnel
) -> None:
    from aggregators import Frame, TileSample

    rows = [make_verdict(make_tile(i, 600 * i, 0), 0.1).model_copy(update={"focus": 100.0}) for i in range(10)]
    tiles = [row.tile for row in rows]
    asked = tuple(cervix.adequacy.asked_labels)

    def verdict(status: str, boxes: tuple[tuple[str, Box], ...] = ()) -> SlideVerdict:
        looked = [make_verdict(rows[0].tile, 0.1, boxes).model_copy(update={"focus": 100.0}), *rows[1:]]
        cells = tuple(CellSample(tile=tile, status=status, asked=asked) for tile in tiles)  # type: ignore[arg-type]
        sample = TileSample(cells, Frame(tiles, len(tiles), 600, BOUNDS))
        return aggregate(looked, system=cervix, funnel=make_funnel(looked), bounds=BOUNDS, sample=sample)

    few = verdict("counted")
    assert (few.status, few.grounds[0].rule, few.grounds[0].by_error) == (
        "unsatisfactory", "adequacy.unsatisfactory", False,
    )  # fmt: skip
    marked = verdict("counted", (("hsil", Box(10, 10, 40, 40)),))
    assert (marked.adequacy.status, marked.status) == ("satisfactory", "indeterminate")
    assert [(g.rule, g.by_error) for g in marked.grounds] == [("adequacy.abnormal_marked", False)]
    assert marked.category is None
    assert "1 cell of abnormal classes was marked" in marked.reason
    assert "fewer than the 5,000 that the rule asks for" in marked.reason, "what the count alone would say"
    organism = verdict("counted", (("candida", Box(10, 10, 40, 40)),))
    assert (organism.adequacy.status, organism.status) == ("unsatisfactory", "unsatisfactory")
    unanswered = verdict("failed")
    assert (unanswered.status, unanswered.grounds[0].rule) == ("indeterminate", "adequacy.unanswered")
    assert unanswered.grounds[0].by_error


def test_a_dark_background_says_nothing_where_no_stain_is_known(judge) -> None:
    assert judge(specimen=None, dark=True).status == "normal"


def test_a_focus_just_short_of_sharp_is_not_printed_as_sharp(judge) -> None:
    assert "a focus of only 9.98 (variance of the Laplacian; in focus from 10.00)" in judge(focus=9.98).reason


def test_an_unknown_resolution_spoils_a_negative_verdict_whatever_the_specimen(judge) -> None:
    verdict = judge(specimen=None, mpp=0.5, scale_assumed=True)
    assert (verdict.status, verdict.grounds[0].rule) == ("indeterminate", "slide.scale")
    assert "as if at 0.5 µm/px" in verdict.reason
    assert "--mpp" in verdict.reason
