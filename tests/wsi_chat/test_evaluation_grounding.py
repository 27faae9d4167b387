"""Grounding metrics: hand-computed values, and what holds for any boxes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_chat.evaluation.grounding import GroundingCase, match, match_centres, score_grounding, shared_area
from wsi_chat.schema import Box, LabelledBox


def box(*corners: float, score: float | None = None) -> LabelledBox:
    return LabelledBox("hsil", Box(*corners), score)


def case(
    found: list[LabelledBox], truth: list[LabelledBox], *, image: str = "a", answered: bool = True, target: str = "hsil"
) -> GroundingCase:
    return GroundingCase(image, target, tuple(found), tuple(truth), answered)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x, y = draw(st.integers(0, 200)), draw(st.integers(0, 200))
    return Box(x, y, x + draw(st.integers(1, 90)), y + draw(st.integers(1, 90)))


lists = st.lists(boxes(), max_size=7)


def test_scores_by_hand() -> None:
    # a: one exact hit, one false box; b: its cell missed; c: rightly none; d: a false alarm
    scores = score_grounding(
        [
            case([box(0, 0, 10, 10), box(20, 20, 30, 30)], [box(0, 0, 10, 10)], image="a"),
            case([], [box(0, 0, 100, 100)], image="b"),
            case([], [], image="c", target="lsil"),
            case([box(0, 0, 4, 4)], [], image="d", target="lsil"),
        ]
    )
    at = {one.iou: one for one in scores.at_iou}
    assert (at[0.5].hits, at[0.5].found, at[0.5].truth) == (1, 3, 2)
    assert at[0.5].precision.value == pytest.approx(1 / 3)
    assert at[0.5].recall.value == pytest.approx(1 / 2)
    assert at[0.5].f1.value == pytest.approx(2 / 5)
    assert at[0.5].ap is not None
    # no box has a score: AP is precision times recall
    assert at[0.5].ap.value == pytest.approx(1 / 6)
    assert not scores.scored
    assert scores.mean_iou.value == pytest.approx(0.5)
    assert (scores.negatives.questions, scores.negatives.denied, scores.negatives.false_alarms) == (2, 1, 1)
    assert scores.negatives.false_alarm_rate.value == 0.5
    assert scores.counting.mean_absolute_error.value == pytest.approx(3 / 4)
    assert scores.counting.bias.value == pytest.approx(1 / 4)
    assert scores.counting.exact.value == pytest.approx(1 / 4)
    assert scores.by_class["lsil"].recall.value is None
    assert scores.by_size["below 40 px"].recall.value == 1.0
    assert scores.by_size["80-160 px"].recall.value == 0.0


def test_iou_thresholds_by_hand() -> None:
    # moved by 5 of 10: shared 50 of 150
    scores = score_grounding([case([box(0, 0, 10, 10)], [box(5, 0, 15, 10)])])
    assert [one.hits for one in scores.at_iou] == [1, 1, 0, 0]
    assert scores.mean_iou.value == pytest.approx(1 / 3)
    assert scores.centre.hits == 1


def test_ap_by_hand() -> None:
    # ranked: hit, false, hit, of 3 true cells: 1/3 * 1 + 1/3 * 2/3
    truth = [box(0, 0, 10, 10), box(50, 0, 60, 10), box(90, 0, 99, 10)]
    found = [box(0, 0, 10, 10, score=0.9), box(20, 20, 30, 30, score=0.8), box(50, 0, 60, 10, score=0.7)]
    ap = score_grounding([case(found, truth)], ious=(0.5,)).at_iou[0].ap
    assert ap is not None
    assert ap.value == pytest.approx(1 / 3 + 2 / 9)


def test_resampled_ap_is_that_of_scikit_learn() -> None:
    import numpy as np

    from wsi_chat.evaluation.grounding import _ap, _resampled

    rng = np.random.default_rng(3)
    hits, scores = rng.random(40) < 0.4, rng.integers(0, 8, 40) / 8
    whole = _ap(hits, scores, 30.0)
    drawn = _resampled(hits, scores, np.ones((2, 40)), np.asarray([30.0, 0.0]))
    assert drawn[0] == pytest.approx(whole)
    assert np.isnan(drawn[1])


def test_one_box_hits_one_cell_only() -> None:
    assert len(match([Box(0, 0, 10, 10)] * 3, [Box(0, 0, 10, 10)])) == 1


def test_matching_takes_as_many_pairs_as_there_are() -> None:
    # the best pair first would leave the second cell alone
    found = [Box(0, 0, 10, 10), Box(0, 0, 10, 8)]
    truth = [Box(0, 0, 10, 10), Box(0, 4, 10, 14)]
    assert len(match(found, truth, iou=0.4)) == 2


def test_an_unanswered_negative_is_no_correct_none() -> None:
    negatives = score_grounding([case([], [], answered=False), case([], [], image="b")]).negatives
    assert (negatives.denied, negatives.unanswered, negatives.false_alarms) == (1, 1, 0)


def test_unanswered_positives_are_missed_cells() -> None:
    scores = score_grounding([case([], [box(0, 0, 9, 9)], answered=False), case([box(0, 0, 9, 9)], [box(0, 0, 9, 9)])])
    assert scores.at_iou[2].recall.value == 0.5
    assert scores.unanswered == 1


def test_intervals_are_drawn_by_image() -> None:
    hit, miss = [box(0, 0, 9, 9)], [box(50, 50, 60, 60)]
    one = score_grounding([case(hit, hit), case(miss, hit)])
    two = score_grounding([case(hit, hit, image="a"), case(miss, hit, image="b")])
    assert one.at_iou[2].recall.interval is None
    interval = two.at_iou[2].recall.interval
    assert interval is not None
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_images_that_are_all_alike_give_no_interval() -> None:
    """Resampling them gives one value each time; an interval of no width would be surer than two images can be."""
    hit = [box(0, 0, 9, 9)]
    recall = score_grounding([case(hit, hit, image="a"), case(hit, hit, image="b")]).at_iou[2].recall
    assert (recall.value, recall.interval) == (1.0, None)


def test_nothing_asked_gives_no_number() -> None:
    scores = score_grounding([])
    assert scores.at_iou[0].f1.value is None
    assert scores.negatives.false_alarm_rate.value is None


@settings(deadline=None, max_examples=60)
@given(lists, lists, st.randoms(use_true_random=False))
def test_order_does_not_matter(found: list[Box], truth: list[Box], random: object) -> None:
    mixed, other = list(found), list(truth)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    random.shuffle(other)  # type: ignore[attr-defined]
    for iou in (0.1, 0.5):
        assert len(match(found, truth, iou=iou)) == len(match(mixed, other, iou=iou))
        assert len(match(found, truth, iou=iou)) == len(match(truth, found, iou=iou))
    assert shared_area(found, truth) == pytest.approx(shared_area(mixed, other))


@settings(deadline=None, max_examples=40)
@given(lists, lists)
def test_scores_stay_in_range_and_fall_with_iou(found: list[Box], truth: list[Box]) -> None:
    one = case([LabelledBox("hsil", b) for b in found], [LabelledBox("hsil", b) for b in truth])
    scores = score_grounding([one], resamples=0)
    hits = [at.hits for at in scores.at_iou]
    assert hits == sorted(hits, reverse=True)
    for at in scores.at_iou:
        for value in (at.precision.value, at.recall.value, at.f1.value):
            assert value is None or 0.0 <= value <= 1.0
        assert at.ap is not None
        assert at.ap.value is None or 0.0 <= at.ap.value <= 1.0


@settings(deadline=None, max_examples=40)
@given(st.lists(boxes(), min_size=1, max_size=7, unique=True))
def test_the_truth_scores_one(truth: list[Box]) -> None:
    true = [LabelledBox("hsil", b) for b in truth]
    scores = score_grounding([case(true, true)], resamples=0)
    for at in (*scores.at_iou, scores.centre):
        assert at.f1.value == 1.0
    assert scores.mean_iou.value == pytest.approx(1.0)
    assert scores.counting.exact.value == 1.0


@settings(deadline=None, max_examples=40)
@given(lists, lists)
def test_disjoint_boxes_never_match(found: list[Box], truth: list[Box]) -> None:
    far = [b.shifted(1000, 0) for b in truth]
    assert all(a.iou(b) == 0.0 for a in found for b in far)
    assert match(found, far, iou=0.0) == []
    assert match_centres(found, far) == []
