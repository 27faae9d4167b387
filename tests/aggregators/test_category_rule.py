"""The category rule: monotone in its evidence, indifferent to order, and sure only as far as its findings are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators import call_category
from aggregators.support import at_least, chance
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, Finding
from wsi_chat.terminology import load_system

CERVIX = load_system("cervix")
SQUAMOUS = ("ascus", "lsil", "asch", "hsil", "scc")
ANY = [label.code for label in CERVIX.labels]


def found(label: str, n: int = 1, *, votes: int = 1, tiles: int | None = None, others: tuple[str, ...] = ()) -> Finding:
    entry = CERVIX.label(label)
    return Finding(
        id=f"f{n:04d}",
        label=label,
        name=entry.name,
        box=Box(n * 100, 0, n * 100 + 40, 40),
        abnormal=entry.abnormal,
        tile_ids=tuple(f"t{i:06d}" for i in range(tiles or votes)),
        votes=votes,
        other_labels=others,
    )


def call(*labels: str, **options):
    return call_category([found(label, n) for n, label in enumerate(labels)], CERVIX, status="abnormal", **options)


def grades(code: str | None) -> dict[str, int]:
    """Axis -> order of the categories given."""
    return {CERVIX.category(part).axis: CERVIX.category(part).order for part in (code or "").split("+") if part}


labels = st.lists(st.tuples(st.sampled_from(ANY), st.integers(1, 3)), max_size=12)


@settings(deadline=None, max_examples=150)
@given(labels, st.sampled_from(ANY), st.integers(1, 3))
def test_a_further_finding_never_lowers_a_category_nor_takes_an_axis_away(before, label, votes):
    findings = [found(code, n, votes=v) for n, (code, v) in enumerate(before)]
    more = [*findings, found(label, 99, votes=votes)]
    low = call_category(findings, CERVIX, status="abnormal")
    high = call_category(more, CERVIX, status="abnormal")
    assert all(grades(high.code).get(axis, -1) >= order for axis, order in grades(low.code).items())


@settings(deadline=None, max_examples=150)
@given(labels, st.integers(1, 3))
def test_a_further_finding_of_the_category_given_never_lowers_the_confidence_in_it(before, votes):
    findings = [found(code, n, votes=v) for n, (code, v) in enumerate(before)]
    first = call_category(findings, CERVIX, status="abnormal")
    for row in first.support:
        if row.chosen:
            label = CERVIX.category(row.code).from_labels[0]
            then = call_category([*findings, found(label, 99, votes=votes)], CERVIX, status="abnormal")
            after = {entry.code: entry for entry in then.support}[row.code]
            assert after.confidence >= row.confidence - 1e-12
            assert after.chosen


@settings(deadline=None, max_examples=80)
@given(labels, st.randoms())
def test_the_order_of_findings_changes_nothing(before, shuffler):
    findings = [found(code, n, votes=v) for n, (code, v) in enumerate(before)]
    mixed = list(findings)
    shuffler.shuffle(mixed)
    for status in ("abnormal", "normal"):
        assert call_category(mixed, CERVIX, status=status, age=50) == call_category(
            findings, CERVIX, status=status, age=50
        )


@pytest.mark.parametrize(
    ("seen", "code", "name"),
    [
        (["hsil", "ascus"], "asc-us", "ASC-US"),  # two are at least ASC-US; its wording leaves nothing open
        (["lsil", "lsil"], "lsil", "LSIL"),
        (["lsil", "asch"], "lsil", "LSIL; HSIL cannot be excluded"),
        (["asch", "hsil"], "asc-h", "ASC-H"),  # its name says already that HSIL cannot be excluded
        (["scc", "scc", "hsil"], "hsil", "HSIL"),
        (["scc", "hsil", "agc", "agc"], "hsil+agc", "HSIL; AGC"),
        (["abnormal"] * 9, None, None),
    ],
)
def test_the_gravest_grade_that_enough_findings_reach(seen, code, name):
    made = call(*seen)
    assert (made.code, made.name) == (code, name)


def test_what_is_left_open_is_marked_and_explained():
    made = call("lsil", "lsil", "asch")
    assert "HSIL is left open: 1 finding called ASC-H." in made.reason
    marks = {row.code: (row.chosen, row.open) for row in made.support}
    assert marks["lsil"] == (True, False)
    assert marks["asc-h"] == (False, False)
    assert "hsil" not in marks, "no finding of it"
    doubted = call_category([found("lsil", 1, others=("hsil",)), found("lsil", 2)], CERVIX, status="abnormal")
    assert doubted.name == "LSIL; HSIL cannot be excluded", "a tile called one of its cells HSIL"


@settings(deadline=None, max_examples=80)
@given(st.lists(st.floats(0, 1), max_size=8), st.integers(1, 5))
def test_the_tail_is_that_of_every_outcome_counted_out(chances, needed):
    exact = 0.0
    for outcome in product((True, False), repeat=len(chances)):
        weight = 1.0
        for hit, p in zip(outcome, chances, strict=True):
            weight *= p if hit else 1 - p
        exact += weight * (sum(outcome) >= needed)
    assert at_least(needed, chances) == pytest.approx(exact, abs=1e-9)


def test_agreement_of_tiles_raises_and_silence_lowers_a_finding(make_tile, make_verdict):
    box = Box(200, 200, 240, 240)
    once = found("hsil").model_copy(update={"box": box})
    thrice = once.model_copy(update={"votes": 3, "tile_ids": ("t000000", "t000001", "t000002")})
    assert chance(once, ()) == pytest.approx((1 + 0.38) / 3)
    assert chance(thrice, ()) == pytest.approx((3 + 0.38) / 5)
    silent = [make_verdict(make_tile(i, 0, 0), asked=("hsil",)) for i in range(4)]
    assert chance(once, silent) == pytest.approx((1 + 0.38) / 6)
    unasked = [make_verdict(make_tile(i, 0, 0), asked=("lsil",)) for i in range(4)]
    elsewhere = [make_verdict(make_tile(i, 220, 0), asked=("hsil",)) for i in range(4)]
    assert chance(once, [*unasked, *elsewhere]) == chance(once, ()), "not asked, or not shown whole: no evidence"


def test_the_confidence_says_what_it_is_and_follows_a_measured_precision():
    made = call("hsil", "hsil", "hsil")
    assert made.confidence_kind.startswith("uncalibrated: probability that at least 2 of 3 findings are right")
    better = call("hsil", "hsil", "hsil", precision={"hsil": 0.9})
    assert better.confidence > made.confidence
    assert better.confidence_kind.startswith("probability that")
    assert 0 < made.confidence < 1
    with pytest.raises(SettingError, match=r"precision of hsil is 1\.5"):
        call("hsil", precision=1.5)


@pytest.mark.parametrize(("age", "named"), [(None, False), (44, False), (45, True), (70, True)])
def test_endometrial_cells_are_named_only_from_the_age_that_was_supplied(age, named):
    findings = [found("endometrial", n) for n in range(2)]
    normal = call_category(findings, CERVIX, status="normal", age=age)
    assert (normal.code == "nilm+endometrial") == named
    assert normal.code.startswith("nilm")
    abnormal = call_category([*findings, found("hsil", 8), found("hsil", 9)], CERVIX, status="abnormal", age=age)
    assert (abnormal.code == "hsil+endometrial") == named


def test_nilm_needs_a_specimen_that_is_not_unsatisfactory():
    assert call_category([], CERVIX, status="normal", adequacy="satisfactory").code == "nilm"
    withheld = call_category([], CERVIX, status="normal", adequacy="unsatisfactory")
    assert withheld.code is None
    assert "too few cells" in withheld.reason


@pytest.mark.parametrize(("seen", "code"), [(1, None), (2, "shguc"), (4, "shguc"), (5, "hguc")])
def test_urine_goes_by_the_number_of_cells(seen, code):
    urine = load_system("urine")
    findings = [found("hsil", n).model_copy(update={"label": "hguc"}) for n in range(seen)]
    assert call_category(findings, urine, status="abnormal").code == code


def test_other_names_of_a_model_reach_the_category(make_tile, make_verdict, make_funnel):
    from aggregators import aggregate

    spots = [("HSIL", Box(10, 10, 60, 60)), ("high-grade squamous intraepithelial lesion", Box(200, 200, 250, 250))]
    rows = [make_verdict(make_tile(0), 0.9, [*spots, ("background", Box(300, 300, 350, 350))])]
    verdict = aggregate(rows, system=CERVIX, funnel=make_funnel(rows), bounds=Box(0, 0, 512, 512))
    assert verdict.category == "hsil"
    assert len(verdict.findings) == 2
    assert "left out" not in verdict.reason
