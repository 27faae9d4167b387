"""Control questions, judged: whether a model's answers depend on what it is shown.

A laboratory runs slides of known result beside the unknown ones. Here the known tiles are glass, a blurred tile, noise
and, where there are any, positive ones; some tiles are asked again with the options in the other order. What fails:

======================== ============================================================ =====================
code                     what was seen                                                what it takes away
======================== ============================================================ =====================
controls.same_answer     one answer to everything that was shown                      any verdict
controls.position        the letter stays where the options change places             any verdict
controls.glass           empty glass is called positive                               any verdict
controls.positive_missed a positive control is called negative                        a negative verdict
======================== ============================================================ =====================

A blurred tile or noise that is called positive is shown and fails nothing by itself: it is no sign of blindness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from wsi_chat.schema import ControlAnswer, Controls, Remark

MOST = 12
"""Control questions a slide, at most."""

POSITIVE = 0.5
"""Probability from which a tile's answer is positive."""

LEAST_SPREAD = 0.05
"""Range of the answers' logits below which they are one answer. Ours: the embedded model's answers to glass and noise
of different kinds alone span 0.5; a model that does not look spans nothing but its rounding errors."""

CLIP = 1e-6

VOIDS = frozenset({"controls.same_answer", "controls.position", "controls.glass"})
"""Failures that leave no verdict at all: a positive answer of such a model is no evidence either."""


def judge_controls(answers: Sequence[ControlAnswer], screened: Sequence[float]) -> Controls:
    """What the control answers say of the model.

    Args:
        answers: the control questions in the order they were asked.
        screened: the positive option's probability of every screened tile of the slide, 0..1.
    """
    failures = [
        failure
        for failure in (
            _same_answer(answers, screened), _position(answers), _glass(answers), _positive_missed(answers),
        )
        if failure is not None
    ]  # fmt: skip
    return Controls(
        answers=tuple(answers), failures=tuple(failures), missing=sum(answer.p is None for answer in answers)
    )


def as_expected(answer: ControlAnswer) -> ControlAnswer:
    """The answer with `as_expected` filled in; a swapped one is as expected where it is on the same side of the half
    or has moved by less than a quarter."""
    if answer.p is None:
        return answer
    positive = answer.p >= POSITIVE
    if answer.expected == "same":
        before = answer.p_before if answer.p_before is not None else answer.p
        fits = positive == (before >= POSITIVE) or abs(answer.p - before) < 0.25
    else:
        fits = positive == (answer.expected == "positive")
    return answer.model_copy(update={"as_expected": fits})


def _same_answer(answers: Sequence[ControlAnswer], screened: Sequence[float]) -> Remark | None:
    """One answer to glass, noise, blur and every tile. Swapped questions do not count: there the letter decides."""
    shown = [answer.p for answer in answers if answer.kind != "swapped" and answer.p is not None]
    chances = [*shown, *screened]
    if len(shown) < 2 or not screened:
        return None
    logits = [math.log(p / (1 - p)) for p in (min(1 - CLIP, max(CLIP, p)) for p in chances)]
    if max(logits) - min(logits) >= LEAST_SPREAD:
        return None
    return Remark("controls.same_answer", p=median(chances), n=len(chances))


def _position(answers: Sequence[ControlAnswer]) -> Remark | None:
    """The answer turns with the order of the options on at least half of the tiles that were asked again."""
    again = [answer for answer in answers if answer.kind == "swapped" and answer.p is not None]
    turned = sum(answer.as_expected is False for answer in again)
    if not turned or 2 * turned < len(again):
        return None
    return Remark("controls.position", turned=turned, n=len(again))


def _glass(answers: Sequence[ControlAnswer]) -> Remark | None:
    wrong = [answer for answer in answers if answer.kind == "glass" and answer.as_expected is False]
    return Remark("controls.glass", p=wrong[0].p or 0.0) if wrong else None


def _positive_missed(answers: Sequence[ControlAnswer]) -> Remark | None:
    known = [answer for answer in answers if answer.kind == "positive" and answer.p is not None]
    missed = sum(answer.as_expected is False for answer in known)
    return Remark("controls.positive_missed", missed=missed, n=len(known)) if missed else None
