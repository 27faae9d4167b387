"""Control answers, judged: what a model that does not look gives away, and what a sound one may do."""

from __future__ import annotations

import pytest

from aggregators.controls import as_expected, judge_controls
from wsi_chat.schema import ControlAnswer, Controls

EXPECTED = {"glass": "negative", "blurred": "negative", "noise": "negative", "positive": "positive", "swapped": "same"}


def answer(kind: str, p: float | None, before: float | None = None) -> ControlAnswer:
    return as_expected(
        ControlAnswer(kind=kind, name=kind, expected=EXPECTED[kind], p=p, p_before=before)  # type: ignore[arg-type]
    )


def codes(controls: Controls) -> list[str]:
    return [failure.code.removeprefix("controls.") for failure in controls.failures]


def controls(
    glass: float | None = 0.01, blurred: float | None = 0.02, noise: float | None = 0.03,
    positive: float | None = 0.97, swapped: tuple[tuple[float, float], ...] = ((0.2, 0.25), (0.9, 0.8)),
    screened: tuple[float, ...] = (0.1, 0.2, 0.9),
) -> Controls:  # fmt: skip
    """A sound model's answers unless told otherwise; ``swapped`` are pairs of (before, after)."""
    asked = [answer("glass", glass), answer("blurred", blurred), answer("noise", noise), answer("positive", positive)]
    return judge_controls([*asked, *(answer("swapped", after, before) for before, after in swapped)], screened)


def test_a_model_that_sees_passes() -> None:
    sound = controls()
    assert (sound.passed, sound.missing, codes(sound)) == (True, 0, [])
    assert all(each.as_expected for each in sound.answers)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"glass": 0.6}, ["glass"]),
        ({"positive": 0.4}, ["positive_missed"]),
        ({"swapped": ((0.0, 1.0), (0.0, 1.0))}, ["position"]),
        ({"swapped": ((0.1, 0.9), (0.2, 0.2))}, ["position"]),  # half of the tiles are enough
        ({"swapped": ((0.1, 0.9), (0.2, 0.2), (0.3, 0.3))}, []),  # one doubtful tile of three is not
        ({"swapped": ((0.45, 0.55), (0.4, 0.52))}, []),  # a doubt that crosses the half is no preference
        ({"noise": 0.9, "blurred": 0.8}, []),  # shown, but no sign of blindness
    ],
)
def test_what_fails(given: dict[str, object], expected: list[str]) -> None:
    assert codes(controls(**given)) == expected  # type: ignore[arg-type]


def test_noise_called_positive_is_shown_as_unexpected() -> None:
    assert [each.kind for each in controls(noise=0.9).answers if each.as_expected is False] == ["noise"]


@pytest.mark.parametrize("p", [0.5, 0.0, 1.0, 0.02])
def test_one_answer_to_everything_is_found_at_any_height(p: float) -> None:
    blind = controls(p, p, p, p, ((p, p),), (p, p, p))
    assert "same_answer" in codes(blind)


def test_the_letter_decides_is_no_same_answer_but_a_preference() -> None:
    always_a = controls(0.0, 0.0, 0.0, None, ((0.0, 1.0), (0.0, 1.0)), (0.0, 0.0))
    assert codes(always_a) == ["same_answer", "position"]
    assert always_a.missing == 1


def test_clean_glass_on_a_clean_slide_may_be_answered_almost_alike() -> None:
    # the embedded model's own answers to glass, blur, noise and empty tiles
    assert codes(controls(0.0009, 0.0008, 0.0011, 0.97, ((0.0009, 0.001),), (0.0009, 0.0009))) == []
    assert codes(controls(0.0009, 0.0008, 0.0011, None, ((0.0009, 0.001),), (0.0009, 0.0009))) == []


def test_answers_that_are_missing_are_counted_and_not_passed() -> None:
    gone = controls(glass=None, noise=None)
    assert (gone.missing, gone.passed, codes(gone)) == (2, False, [])
