"""Adequacy: the sample and its total against known deposits, and the rule of every system on counts that are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.adequacy import Supplied, TileSample, estimate
from aggregators.sampling import Frame, draw, strata, total
from wsi_chat.schema import Box, CellSample, LabelledBox, Tile
from wsi_chat.terminology import load_system

SIDE, STRIDE, ACROSS = 256, 192, 12
BOUNDS = Box(0, 0, (ACROSS - 1) * STRIDE + SIDE, (ACROSS - 1) * STRIDE + SIDE)
SQUAMOUS = ("superficial", "intermediate", "parabasal", "metaplastic")
ALL = (*SQUAMOUS, "endocervical")


def grid(across: int = ACROSS, *, cellularity: float | None = 1.0) -> tuple[Tile, ...]:
    return tuple(
        Tile(r * across + c, c * STRIDE, r * STRIDE, SIDE, SIDE, 0, (SIDE, SIDE), SIDE, 0.5, cellularity)
        for r in range(across)
        for c in range(across)
    )


TILES = grid()
FRAME = Frame(TILES, len(TILES), STRIDE, BOUNDS)


def cells(tile: Tile, n: int, label: str = "intermediate", *, frame: Frame = FRAME) -> tuple[LabelledBox, ...]:
    """So many cells with their centres in the tile's core."""
    x, y = frame.core(tile).center
    return tuple(LabelledBox(label, Box(x - 5 + i % 7, y - 5, x + 5 + i % 7, y + 5)) for i in range(n))


def sampled(per_tile: int, *, size: int = 16, label: str = "intermediate", **more) -> TileSample:
    rows = [
        CellSample(tile=t, status="counted", boxes=cells(t, per_tile, label), asked=ALL, **more)
        for t in draw(TILES, size, seed=0)
    ]
    return TileSample(tuple(rows), FRAME)


@pytest.fixture(scope="session")
def assess(cervix, make_funnel):
    def run(sample=None, *, status="normal", system=None, supplied=None, screened=144, marked=0):
        funnel = make_funnel([], foreground=len(TILES), selected=len(TILES))
        return estimate(
            system=system or cervix, funnel=funnel, status=status, screened=screened, sample=sample, supplied=supplied,
            marked=marked,
        )  # fmt: skip

    return run


# ------------------------------------------------------------------------------------- cores and the sample


@pytest.mark.parametrize(
    ("length", "side", "stride"), [(2368, 256, 192), (2300, 256, 192), (1000, 256, 256), (256, 256, 192)]
)
def test_cores_tile_the_slide_without_gap_or_overlap(length, side, stride):
    starts = sorted({min(k * stride, max(0, length - side)) for k in range(length // stride + 1)})
    frame = Frame((), 0, stride, Box(0, 0, length, length))
    ends = [frame.core(Tile(0, x, 0, side, side, 0, (side, side), side, 0.5)) for x in starts]
    assert ends[0].x0 == 0
    assert ends[-1].x1 == length
    assert all(a.x1 == pytest.approx(b.x0) for a, b in itertools.pairwise(ends))
    assert all(x <= core.x0 and core.x1 <= x + side for x, core in zip(starts, ends, strict=True))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 40), st.integers(0, 5), st.randoms())
def test_a_sample_is_as_large_as_asked_without_repeats_and_the_same_in_any_order(size, seed, shuffler):
    mixed = list(TILES)
    shuffler.shuffle(mixed)
    chosen = draw(TILES, size, seed=seed)
    assert len({tile.index for tile in chosen}) == len(chosen) == size
    assert draw(mixed, size, seed=seed) == chosen


def test_every_stratum_of_cellularity_is_in_the_sample():
    tiles = [Tile(i, 0, i, SIDE, SIDE, 0, (SIDE, SIDE), SIDE, 0.5, i / 100) for i in range(100)]
    chosen = draw(tiles, 16, seed=3)
    assert [sum(t in group for t in chosen) for group in strata(tiles, 16)] == [4, 4, 4, 4]
    assert len(draw(tiles, 500, seed=0)) == 100


def test_a_census_has_no_sampling_error():
    made = total({tile.index: 3.0 for tile in TILES}, FRAME, drawn=len(TILES))
    assert made.value == pytest.approx(3 * len(TILES))
    assert (made.interval.low, made.interval.high) == (pytest.approx(made.value), pytest.approx(made.value))
    assert made.area_fraction == pytest.approx(1.0)


def test_the_total_follows_the_foreground_and_not_the_number_of_tiles():
    half = tuple(
        Tile(t.index, t.x, t.y, SIDE, SIDE, 0, (SIDE, SIDE), SIDE, 0.5, 0.5 if t.index % 2 else 1.0) for t in TILES
    )
    frame = Frame(half, len(half), STRIDE, BOUNDS)
    size = {t.index: (t.cellularity or 0) * frame.core(t).area for t in half}
    counts = {t.index: 10 * size[t.index] / (STRIDE * STRIDE) for t in draw(half, 16, seed=1)}
    truth = 10 * sum(size.values()) / (STRIDE * STRIDE)
    assert total(counts, frame, drawn=16).value == pytest.approx(truth)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    held = 0
    for repeat in range(300):
        values = {t.index: float(v) for t, v in zip(TILES, rng.poisson(rng.gamma(1.0, 5.0, len(TILES))), strict=True)}
        made = total({t.index: values[t.index] for t in draw(TILES, 16, seed=repeat)}, FRAME, drawn=16)
        held += made.interval.low <= sum(values.values()) <= made.interval.high
    assert 0.90 <= held / 300 <= 0.99


def test_nothing_seen_is_not_nothing_there():
    made = total({t.index: 0.0 for t in draw(TILES, 16, seed=0)}, FRAME, drawn=16)
    assert made.value == made.interval.low == 0
    assert made.interval.high == pytest.approx(-math.log(0.025) / made.area_fraction)
    with pytest.raises(ValueError, match="no tile was counted"):
        total({}, FRAME, drawn=16)


# ------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("per_tile", "status", "words"),
    [
        (60, "satisfactory", "at least the 5,000"),
        (35, "not_assessed", "does not settle whether the rule's 5,000"),
        (10, "unsatisfactory", "fewer than the 5,000"),
        (0, "unsatisfactory", "fewer than the 5,000"),
    ],
)
def test_the_interval_decides_against_the_minimum_of_the_preparation(assess, per_tile, status, words):
    adequacy = assess(sampled(per_tile), supplied=Supplied(preparation="liquid-based"))
    assert (adequacy.status, adequacy.minimum) == (status, 5000)
    assert words in adequacy.reason
    assert adequacy.cells_estimate == pytest.approx(per_tile * len(TILES), rel=0.12)
    assert adequacy.counted == {**dict.fromkeys(ALL, 0), "intermediate": 16 * per_tile}
    assert (adequacy.tiles_drawn, adequacy.tiles_counted) == (16, 16)
    assert adequacy.sampled_area_fraction == pytest.approx(16 / len(TILES), rel=0.2)


def test_without_a_preparation_only_what_holds_for_all_is_said(assess):
    either = assess(sampled(60))
    assert either.status == "not_assessed"
    assert "liquid-based or conventional: --preparation" in either.reason
    assert assess(sampled(200)).status == "satisfactory"
    assert assess(sampled(10)).status == "unsatisfactory"
    conventional = Supplied(preparation="conventional")
    assert assess(sampled(45), supplied=conventional).status == "unsatisfactory", "below 8,000"
    assert assess(sampled(70), supplied=conventional).status == "not_assessed", "between 8,000 and 12,000"


def test_the_lower_bound_counts_where_the_user_says_that_it_applies(assess):
    lenient = Supplied(preparation="liquid-based", reduced_minimum=True)
    adequacy = assess(sampled(25), supplied=lenient)
    assert (adequacy.status, adequacy.minimum) == ("satisfactory", 2000)
    assert "laboratory's discretion" in adequacy.reason
    assert assess(sampled(8), supplied=lenient).status == "unsatisfactory"


def test_abnormal_cells_make_it_adequate_whatever_was_counted(assess):
    adequacy = assess(sampled(0), status="abnormal", marked=1)
    assert (adequacy.status, adequacy.reason.code) == ("satisfactory", "adequacy.abnormal_cells")
    assert adequacy.cells_estimate == 0


def test_a_score_without_a_marked_cell_makes_nothing_adequate(assess, cervix):
    """Two photographs of blood, read as cervix, were "satisfactory. Abnormal cells were called" with none marked."""
    few = assess(sampled(0), status="abnormal", marked=0)
    assert (few.status, few.reason.code) == ("not_assessed", "adequacy.score_alone")
    assert few.reason.fields["reason"].code == "adequacy.fewer"
    obscured = assess(sampled(200, p_obscured=0.9), status="abnormal", marked=0)
    assert (obscured.status, obscured.reason.fields["reason"].code) == ("not_assessed", "adequacy.obscured")
    assert assess(None, status="abnormal", marked=0).reason.code == "adequacy.not_asked"
    assert assess(sampled(200), status="abnormal", marked=0).reason.code == "adequacy.enough"
    strict = cervix.model_copy(update={"adequacy": cervix.adequacy.model_copy(update={"abnormal_is_adequate": False})})
    assert assess(sampled(0), system=strict, status="abnormal").status == "unsatisfactory"


def test_a_marked_abnormal_cell_saves_a_specimen_only_where_the_system_says_so(assess, cervix):
    assert cervix.adequacy.abnormal_is_adequate
    few = assess(sampled(0), marked=1)
    assert (few.status, few.reason.code) == ("satisfactory", "adequacy.abnormal_marked")
    assert few.reason.fields["reason"].code == "adequacy.fewer"
    obscured = assess(sampled(200, p_obscured=0.9), marked=2)
    assert obscured.reason.fields["reason"].code == "adequacy.obscured"
    assert assess(sampled(200), marked=1).reason.code == "adequacy.enough", "a count that suffices is the better reason"
    assert assess(sampled(0), status="unsatisfactory", marked=1).status == "unsatisfactory", "no cells at all"
    strict = cervix.model_copy(update={"adequacy": cervix.adequacy.model_copy(update={"abnormal_is_adequate": False})})
    assert assess(sampled(0), system=strict, marked=1).status == "unsatisfactory"


def test_tiles_without_an_answer_are_missing_and_never_empty(assess):
    rows = list(sampled(60).tiles)
    rows[0] = CellSample(tile=rows[0].tile, status="failed", error="no answer")
    supplied = Supplied(preparation="liquid-based")
    one = assess(TileSample(tuple(rows), FRAME), supplied=supplied)
    assert (one.status, one.tiles_counted) == ("satisfactory", 15)
    assert one.cells_estimate == pytest.approx(60 * len(TILES), rel=0.12), "the rest of the stratum stands for it"
    rows[1] = CellSample(tile=rows[1].tile, status="unreadable")
    two = assess(TileSample(tuple(rows), FRAME), supplied=supplied)
    assert two.status == "not_assessed"
    assert "only 14 of 16 sampled tiles" in two.reason
    assert (two.cells_estimate, two.cells_interval, two.method) == (None, None, ""), "nothing is estimated from too few"
    assert two.counted["intermediate"] == 14 * 60


def test_a_class_that_was_not_asked_is_no_count_of_zero(assess):
    rows = [row.model_copy(update={"asked": ("intermediate",)}) for row in sampled(10).tiles]
    adequacy = assess(TileSample(tuple(rows), FRAME))
    assert adequacy.status == "not_assessed"
    assert adequacy.cells_estimate is None
    assert "Transformation zone: not assessed" in adequacy.notes[0]


def test_answers_that_were_cut_off_never_make_a_specimen_unsatisfactory(assess):
    supplied = Supplied(preparation="liquid-based")
    short = assess(sampled(10, truncated=True), supplied=supplied)
    assert short.status == "not_assessed"
    assert "an answer was cut off" in short.reason
    assert assess(sampled(60, truncated=True), supplied=supplied).status == "satisfactory"


@pytest.mark.parametrize(("tiles_with", "word"), [(10, "present (10"), (3, "not settled"), (0, "not settled")])
def test_the_transformation_zone_is_a_note(assess, tiles_with, word):
    rows = [
        row.model_copy(update={"boxes": (*row.boxes, *(cells(row.tile, 1, "endocervical") if n < tiles_with else ()))})
        for n, row in enumerate(sampled(60).tiles)
    ]
    adequacy = assess(TileSample(tuple(rows), FRAME), supplied=Supplied(preparation="liquid-based"))
    assert adequacy.status == "satisfactory"
    assert word in adequacy.notes[0]


def test_a_fully_counted_deposit_without_a_transformation_zone_says_so(assess):
    adequacy = assess(sampled(60, size=len(TILES)), supplied=Supplied(preparation="liquid-based"))
    assert "absent or insufficient" in adequacy.notes[0]


@pytest.mark.parametrize(("hits", "status"), [(16, "unsatisfactory"), (12, "satisfactory"), (0, "satisfactory")])
def test_obscured_fields_count_where_they_were_asked_about(assess, hits, status):
    rows = [row.model_copy(update={"p_obscured": 0.9 if n < hits else 0.1}) for n, row in enumerate(sampled(60).tiles)]
    adequacy = assess(TileSample(tuple(rows), FRAME), supplied=Supplied(preparation="liquid-based"))
    assert adequacy.status == status
    assert adequacy.obscured_fraction == hits / 16
    assert assess(sampled(60)).obscured_fraction is None


def test_cells_are_counted_once_in_overlapping_tiles(assess):
    """A cell in the overlap is seen by two tiles and owned by one."""
    left, right = TILES[0], TILES[1]
    box = Box(right.x + 4, 100, right.x + 14, 110)  # inside both
    rows = [
        CellSample(tile=t, status="counted", boxes=(LabelledBox("parabasal", box),), asked=ALL) for t in (left, right)
    ]
    assert assess(TileSample(tuple(rows), FRAME)).counted["parabasal"] == 1


@pytest.mark.parametrize(("groups", "status"), [(6, "satisfactory"), (5, "unsatisfactory")])
def test_thyroid_needs_six_groups(assess, groups, status):
    thyroid = load_system("thyroid")
    rows = [
        CellSample(
            tile=t, status="counted", boxes=cells(t, n < groups, "follicular-group"), asked=("follicular-group",)
        )
        for n, t in enumerate(TILES)
    ]
    adequacy = assess(TileSample(tuple(rows), FRAME), system=thyroid)
    assert (adequacy.status, adequacy.unit, adequacy.minimum) == (status, "groups", 6)
    assert assess(TileSample(tuple(rows), FRAME), system=thyroid, status="abnormal", marked=1).status == "satisfactory"


def test_six_groups_seen_are_enough_whatever_the_interval(assess):
    rows = [
        CellSample(
            tile=t, status="counted", boxes=cells(t, 6 * (n == 0), "follicular-group"), asked=("follicular-group",)
        )
        for n, t in enumerate(draw(TILES, 100, seed=0))
    ]
    adequacy = assess(TileSample(tuple(rows), FRAME), system=load_system("thyroid"))
    assert adequacy.status == "satisfactory"
    assert adequacy.cells_interval.low < 6


@pytest.mark.parametrize("specimen", [None, "blood-smear", "urine", "serous", "breast"])
def test_a_system_without_a_rule_is_not_assessed_even_with_a_sample(assess, specimen):
    adequacy = assess(sampled(60), system=load_system(specimen))
    assert adequacy.status == "not_assessed"
    assert "has no adequacy rule that can be computed" in adequacy.reason
    assert adequacy.cells_estimate is None


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 80), min_size=16, max_size=16), st.integers(0, 15), st.integers(1, 60))
def test_more_cells_never_lower_the_estimate(assess, counts, where, more):
    tiles = draw(TILES, 16, seed=0)
    raised = [n + more * (i == where) for i, n in enumerate(counts)]
    made = [
        total({t.index: float(n) for t, n in zip(tiles, row, strict=True)}, FRAME, drawn=16) for row in (counts, raised)
    ]
    assert made[1].value > made[0].value
    assert all(m.interval.low <= m.value <= m.interval.high for m in made)
