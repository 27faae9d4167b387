"""Slide verdicts: which status follows from which evidence, and that the reason says so in numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators import POOLS, aggregate
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, SlideVerdict
from wsi_chat.terminology import load_system

BOUNDS = Box(0, 0, 100_000, 100_000)
CELL = Box(10, 10, 60, 60)


@pytest.fixture(scope="session")
def slide(make_tile, make_verdict):
    """Verdicts from a list of probabilities; None is a failed answer, ``'x'`` an unreadable tile."""

    def build(chances, *, boxes=None, asked=(), about=True, cellularity=0.3):
        rows = []
        for i, p in enumerate(chances):
            tile = make_tile(i, 600 * i, 0, cellularity=cellularity)
            found = [(label, box.shifted(600 * i, 0)) for label, box in (boxes or {}).get(i, [])]
            status = "unreadable" if p == "x" else None
            chance = None if p == "x" else p
            rows.append(make_verdict(tile, chance, found, status=status, asked=asked, about_abnormality=about))
        return rows

    return build


@pytest.fixture(scope="session")
def judge(cervix, make_funnel):
    def run(rows, *, system=None, foreground=None, **options) -> SlideVerdict:
        funnel = make_funnel(rows, foreground=foreground)
        return aggregate(rows, system=system or cervix, funnel=funnel, bounds=BOUNDS, **options)

    return run


def test_a_high_score_is_abnormal_and_names_its_numbers(slide, judge):
    verdict = judge(slide([0.05] * 90 + [0.9] * 10))
    assert verdict.status == "abnormal"
    assert verdict.score == pytest.approx(0.9)
    assert verdict.score_kind == "uncalibrated top-10 mean of logits, as a probability"
    assert verdict.reason == (
        "The score 0.900 (uncalibrated top-10 mean of logits, as a probability) reaches the threshold 0.500;"
        " highest tile t000090 at 0.900. The score alone flags the slide: no cell of an abnormal class was marked."
    )
    assert (verdict.coverage, verdict.coverage_floor, verdict.threshold) == (1.0, 0.9, 0.5)
    assert verdict.carrying == tuple(f"t{i:06d}" for i in range(90, 100))


def test_a_low_score_over_enough_tiles_is_normal_and_nilm(slide, judge):
    verdict = judge(slide([0.1] * 95 + [None] * 5))
    assert verdict.status == "normal"
    assert (verdict.category, verdict.category_name) == ("nilm", "NILM")
    assert "95 of 100 tiles screened" in verdict.reason
    assert "adequacy was not assessed" in verdict.category_reason
    assert verdict.coverage == 0.95


def test_the_threshold_itself_is_abnormal_and_numbers_that_round_alike_are_told_apart(slide, judge):
    assert judge(slide([0.5] * 10), pool="mean").status == "abnormal"
    verdict = judge(slide([0.49996] * 10), pool="mean")
    assert verdict.status == "normal"
    assert "0.49996 (" in verdict.reason
    assert "the threshold 0.50000;" in verdict.reason


def test_missing_tiles_are_never_normal(slide, judge):
    verdict = judge(slide([0.1] * 80 + [None] * 13 + ["x"] * 7))
    assert verdict.status == "indeterminate"
    assert verdict.category is None
    assert "80 of 100 tiles screened (80.0%), below the coverage floor of 90%" in verdict.reason
    assert "7 could not be read, 13 had no usable answer" in verdict.reason


def test_the_floor_itself_is_enough_coverage(slide, judge):
    assert judge(slide([0.1] * 9 + [None])).status == "normal"
    assert judge(slide([0.1] * 9 + [None]), coverage_floor=0.91).status == "indeterminate"


def test_abnormal_evidence_stands_below_the_floor_and_says_so(slide, judge):
    verdict = judge(slide([0.95] * 20 + ["x"] * 80))
    assert verdict.status == "abnormal"
    assert "only 20 of 100 tiles screened (20.0%), below the coverage floor of 90%" in verdict.reason
    assert "so more may have been missed. The score alone flags" in verdict.reason


@pytest.mark.parametrize("name", sorted(POOLS))
@pytest.mark.parametrize("missing", [None, "x"])
def test_a_slide_without_one_answer_is_indeterminate_under_every_pool(slide, judge, name, missing):
    verdict = judge(slide([missing] * 12), pool=name)
    assert (verdict.status, verdict.score, verdict.coverage) == ("indeterminate", None, 0.0)
    assert "None of the 12 tiles" in verdict.reason
    assert ("12 could not be read" if missing == "x" else "12 had no usable answer") in verdict.reason


@pytest.mark.parametrize("specimen", [None, "cervix", "blood-smear"])
def test_a_blank_slide_is_unsatisfactory(judge, specimen, make_funnel):
    system = load_system(specimen)
    verdict = aggregate([], system=system, funnel=make_funnel([], grid=64), bounds=BOUNDS)
    assert verdict.status == "unsatisfactory"
    assert verdict.reason == "No cells were found: none of the 64 tiles of the slide has any."
    assert verdict.adequacy.status == "unsatisfactory"
    assert verdict.category is None
    assert (verdict.score, verdict.coverage) == (None, 0.0)


def test_empty_tiles_asked_without_a_mask_are_not_normal(slide, judge):
    assert judge(slide([0.1] * 10, cellularity=0.0)).status == "unsatisfactory"
    assert judge(slide([0.1] * 10, cellularity=None)).status == "normal"


def test_tiles_that_were_never_reached_lower_the_coverage(slide, cervix, make_funnel):
    rows = slide([0.1] * 10)
    funnel = make_funnel(rows, foreground=20, selected=20)
    verdict = aggregate(rows, system=cervix, funnel=funnel, bounds=BOUNDS)
    assert (verdict.status, verdict.coverage) == ("indeterminate", 0.5)
    assert "10 were not reached" in verdict.reason


def test_a_limited_run_without_an_alarm_is_a_sample_and_not_normal(slide, judge):
    verdict = judge(slide([0.1] * 50), foreground=400)
    assert verdict.status == "indeterminate"
    assert [(ground.rule, ground.headline, ground.by_error) for ground in verdict.grounds] == [
        ("coverage.sampled", "sampled: 50 of 400 tiles", True)
    ]
    assert "Only 50 of the 400 tiles that may hold cells were screened (12.5%)" in verdict.reason
    assert "Only 1 of the 400 tiles that may hold cells was screened" in judge(slide([0.1]), foreground=400).reason
    assert verdict.category is None, "NILM speaks for the whole specimen"
    assert verdict.adequacy.sampled_area_fraction == 0.125
    assert judge(slide([0.1] * 50), foreground=55).status == "normal", "50 of 55 is above the floor"
    assert judge(slide([0.9] * 50), foreground=400).status == "abnormal", "positive evidence stands at any coverage"


# ------------------------------------------------------------------------------------- category


def _hits(**counts):
    """Tile index -> boxes: each class in as many tiles as given, one per tile, from tile 0 on."""
    labels = [label for label, n in counts.items() for _ in range(n)]
    return {i: [(label, CELL)] for i, label in enumerate(labels)}


@pytest.mark.parametrize(
    ("found", "category", "name"),
    [
        ({"hsil": 2, "lsil": 5}, "hsil", "HSIL"),  # the gravest with support, not the most frequent
        ({"hsil": 1, "lsil": 2}, "lsil", "LSIL; HSIL cannot be excluded"),  # one box makes no category
        ({"scc": 2, "asch": 2}, "hsil", "HSIL"),  # carcinoma needs three; two are at least as grave as HSIL
        ({"scc": 3, "asch": 2}, "scc", "SCC"),
        ({"agc": 2}, "agc", "AGC"),
        ({"agc": 2, "ascus": 2}, "asc-us+agc", "ASC-US; AGC"),  # both axes
        ({"hsil": 1, "lsil": 1}, "lsil", "LSIL; HSIL cannot be excluded"),  # both are at least LSIL
        ({"hsil": 1}, None, None),
        ({"candida": 9}, None, None),
        ({}, None, None),
    ],
)
def test_the_category_of_an_abnormal_cervical_slide(slide, judge, found, category, name):
    verdict = judge(slide([0.9] * 12, boxes=_hits(**found)))
    assert verdict.status == "abnormal"
    assert (verdict.category, verdict.category_name) == (category, name)


def test_a_category_lists_its_evidence_and_its_absence_says_why(slide, judge):
    verdict = judge(slide([0.9] * 12, boxes=_hits(lsil=1, hsil=2)))
    assert verdict.carrying[:2] == ("f0002", "f0003")
    assert verdict.carrying[2] == "t000000"
    assert "HSIL: 2 findings (at least 2 needed)" in verdict.category_reason
    short = judge(slide([0.9] * 12, boxes=_hits(hsil=1, agc=1)))
    assert short.category_reason == "No category has enough findings: HSIL 1 of 2 needed, AGC 1 of 2 needed."
    assert short.carrying[:2] == ("f0001", "f0002")
    none = judge(slide([0.9] * 12))
    assert "No abnormal cell was located" in none.category_reason


def test_boxes_on_a_slide_below_the_threshold_change_nothing_but_are_said(slide, judge):
    verdict = judge(slide([0.1] * 12, boxes=_hits(hsil=5)))
    assert (verdict.status, verdict.category) == ("normal", "nilm")
    assert "5 candidate boxes of abnormal classes, not sufficient for an abnormal verdict" in verdict.reason
    assert "candidate" not in judge(slide([0.1] * 12)).reason


def test_organisms_are_notes_of_a_negative_slide(slide, judge):
    verdict = judge(slide([0.1] * 12, boxes=_hits(candida=2, trichomonas=1)))
    assert verdict.category == "nilm"
    assert "Candidate organisms: Trichomonas (1), Candida (2)." in verdict.category_reason
    assert verdict.carrying[:3] == ("f0001", "f0002", "f0003")


def test_without_a_specimen_type_there_is_a_verdict_but_no_category(slide, judge):
    rows = slide([0.9] * 12, boxes={0: [("abnormal", CELL)]})
    verdict = judge(rows, system=load_system(None))
    assert (verdict.status, verdict.category) == ("abnormal", None)
    assert "specimen type was not given" in verdict.category_reason
    assert verdict.carrying[0] == "f0001"
    assert verdict.adequacy.status == "not_assessed"
    assert judge(slide([0.1] * 12), system=load_system(None)).category is None


def test_failed_and_cut_off_details_are_said_beside_the_category(slide, judge):
    rows = slide([0.9] * 12, boxes=_hits(hsil=4))
    rows[0] = rows[0].model_copy(update={"status": "detail_failed"})
    rows[1] = rows[1].model_copy(update={"truncated": True})
    reason = judge(rows).category_reason
    assert "In 1 of 4 tiles looked at in detail an answer failed." in reason
    assert "In 1 tile an answer was cut off, so more may be there." in reason


def test_classes_outside_the_system_are_named_in_the_reason(slide, judge):
    verdict = judge(slide([0.1] * 12, boxes=_hits(rbc=2)))
    assert verdict.findings == ()
    assert verdict.reason.endswith("does not have were left out: rbc (2).")


# ------------------------------------------------------------------------------------- adequacy, counts


def test_adequacy_is_what_can_be_known(slide, judge):
    assert judge(slide([0.9] * 12)).adequacy.status == "not_assessed", "no abnormal cell was marked"
    abnormal = judge(slide([0.9] * 12, boxes=_hits(hsil=1))).adequacy
    assert abnormal.status == "satisfactory"
    assert "any abnormal cell makes" in abnormal.reason
    normal = judge(slide([0.1] * 12)).adequacy
    assert normal.status == "not_assessed"
    assert "was not asked to count" in normal.reason
    assert "5,000" in normal.rule
    assert normal.cells_estimate is None


def test_a_class_that_was_looked_for_and_not_seen_differs_from_one_never_asked(slide, judge):
    verdict = judge(slide([0.9] * 12, boxes=_hits(hsil=3), asked=("hsil", "lsil")))
    rows = {row.label: row for row in verdict.counts}
    assert (rows["hsil"].seen, rows["hsil"].asked) == (3, True)
    assert rows["hsil"].finding_ids == ("f0001", "f0002", "f0003")
    assert (rows["lsil"].seen, rows["lsil"].asked) == (0, True)
    assert (rows["scc"].seen, rows["scc"].asked) == (0, False)
    assert "abnormal" not in rows, "not asked by default, not asked here, not found"


def test_blood_is_counted_without_a_word_on_abnormality(slide, judge, blood):
    boxes = {0: [("wbc", CELL), ("rbc", CELL.shifted(200, 0))], 1: [("rbc", CELL)]}
    rows = slide([0.9, 0.8], boxes=boxes, asked=("wbc", "rbc", "platelet"), about=False)
    verdict = judge(rows, system=blood)
    assert (verdict.status, verdict.score, verdict.threshold) == ("counted", None, None)
    assert (
        verdict.reason == "Cells counted in 2 of 2 tiles screened: 1 white blood cell, 2 red blood cells, 0 platelets."
    )
    assert [(row.label, row.seen, row.asked) for row in verdict.counts] == [
        ("wbc", 1, True),
        ("rbc", 2, True),
        ("platelet", 0, True),
    ]
    assert verdict.category is None
    assert not any(finding.abnormal for finding in verdict.findings)


def test_blood_below_the_floor_or_without_counting_answers_is_not_counted(slide, judge, blood):
    asked = ("wbc", "rbc", "platelet")
    rows = slide([0.9] * 5 + [None] * 5, asked=asked, about=False)
    assert judge(rows, system=blood).status == "indeterminate"
    screened = slide([0.9] * 5, about=False)
    assert judge(screened, system=blood).status == "indeterminate"
    assert "none of the 5 tiles was looked at" in judge(screened, system=blood).reason
    failed = [row.model_copy(update={"status": "detail_failed"}) for row in slide([0.9] * 5, about=False)]
    verdict = judge(failed, system=blood)
    assert verdict.status == "indeterminate"
    assert "only 0 of 5 tiles" in verdict.reason


# ------------------------------------------------------------------------------------- settings, invariants


def test_the_order_of_tiles_changes_nothing(slide, judge):
    rows = slide([0.9, 0.1, None, "x", 0.7, 0.9] * 3, boxes=_hits(hsil=2))
    assert judge(rows[::-1]) == judge(rows)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(st.none(), st.just("x"), st.floats(0, 1)), max_size=25),
    st.sampled_from(sorted(POOLS)),
    st.integers(0, 20),
    st.sampled_from([None, "cervix", "blood-smear"]),
)
def test_normal_needs_answers_for_the_floor_and_a_score_below_the_threshold(
    slide, judge, chances, pool, more, specimen
):
    system = load_system(specimen)
    rows = slide(chances, about=system.screen.about_abnormality)
    verdict = judge(rows, system=system, foreground=len(rows) + more, pool=pool)
    answered = sum(isinstance(p, float) for p in chances)
    assert SlideVerdict.model_validate_json(verdict.model_dump_json()) == verdict
    if verdict.status == "normal":
        assert answered >= 0.9 * len(chances) > 0
        assert verdict.score < 0.5
    if specimen == "blood-smear":
        assert verdict.status in ("counted", "indeterminate", "unsatisfactory")
    assert verdict.reason.strip().endswith(".")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "median"}, "'median' is not known"),
        ({"threshold": 1.5}, r"threshold is 1\.5"),
        ({"coverage_floor": -0.1}, r"coverage_floor is -0\.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"k": 0}, "k is 0"),
    ],
)
def test_wrong_settings_are_refused_even_without_tiles(judge, options, message):
    with pytest.raises(SettingError, match=message):
        judge([], **options)


def test_a_category_that_graver_findings_support_names_the_classes_behind_it(slide, judge):
    """'HSIL: 2' beside a findings row 'HSIL 1' read as a contradiction."""
    verdict = judge(slide([0.9] * 12, boxes=_hits(hsil=1, scc=1)))
    assert verdict.category == "hsil"
    assert (
        "HSIL: 2 findings of this grade or a graver one (HSIL 1, SCC 1; at least 2 needed)" in verdict.category_reason
    )
    support = {row.code: (row.findings, row.own) for row in verdict.category_support}
    assert support["hsil"] == (2, 1)
    assert support["lsil"] == (2, 0), "supported by graver cells, and none of its own was marked"
