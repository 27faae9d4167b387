"""The answers about several fields as one: cells counted once, the highest field, and what of it all was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aggregators import merge_boxes
from tilers.field import Field
from wsi_chat.asking.intent import Guess
from wsi_chat.asking.result import FieldAnswer
from wsi_chat.remarks import VERBATIM, FieldValue
from wsi_chat.schema import Box, LabelledBox, Remark, TileVerdict
from wsi_chat.terminology import Label, System


@dataclass(frozen=True, slots=True)
class Screened:
    """A screening question over several fields: how many are positive, the highest one, and the choice.

    ``choice`` is None where nothing positive was found in only a part of the fields: the rest is unknown.
    """

    positive: str
    positive_fields: int
    highest: FieldAnswer
    choice: str | None
    text: Remark


def screened(answers: Sequence[FieldAnswer], *, positive: str, total: int) -> Screened:
    """Join the answers to a screening question.

    Args:
        answers: the usable ones, at least one, each with its probabilities.
        positive: the option that counts as positive.
        total: fields that show all that was asked about.
    """

    def p(given: FieldAnswer) -> float:
        assert given.probabilities is not None
        return given.probabilities[positive]

    highest = max(answers, key=p)
    count = sum(given.answer == positive for given in answers)
    whole = len(answers) == total
    choice = positive if count else highest.answer if whole else None
    extent = Remark("ask.fields", n=total) if whole else Remark("ask.fields_read", n=len(answers), all=total)
    known: dict[str, FieldValue] = {
        "positive": positive, "count": str(count) if count else Remark("ask.none"), "extent": extent,
        "id": highest.id, "p": p(highest),
    }  # fmt: skip
    text = Remark("ask.screened_part", **known) if choice is None else Remark("ask.screened", **known)
    return Screened(positive, count, highest, choice, text)


def merged(seen: Sequence[tuple[Field, Sequence[LabelledBox]]], system: System, bounds: Box) -> list[LabelledBox]:
    """Boxes of several fields as cells, each once, by the rules of `aggregators.merge_boxes`.

    Classes that the reporting system does not have are merged as benign cells, not left out.
    """
    known = {label.code for label in system.labels}
    strange = dict.fromkeys(b.label for _, boxes in seen for b in boxes if b.label not in known)
    pattern = system.labels[0]
    more = tuple(
        Label.model_construct(**{**dict(pattern), "code": c, "name": c, "axis": "benign", "abnormal": False})
        for c in strange
    )
    wider = system.model_copy(update={"labels": (*system.labels, *more)})
    verdicts = [TileVerdict(tile=shown.tile, status="detailed", boxes=tuple(boxes)) for shown, boxes in seen if boxes]
    return [LabelledBox(found.label, found.box) for found in merge_boxes(verdicts, wider, bounds=bounds)]


def in_words(guessed: Guess, answers: Sequence[FieldAnswer], boxes: Sequence[LabelledBox]) -> list[Remark]:
    """The answer in words, a line each: how many were located, or each text with the number of fields that gave it."""
    if guessed.task == "ground":
        n, target, fields = len(boxes), guessed.target, len(answers)
        if fields == 1:
            return [Remark("ask.located", n=n, target=target) if n else Remark("ask.none_located", target=target)]
        if n:
            return [Remark("ask.located_in", n=n, target=target, fields=fields)]
        return [Remark("ask.none_located_in", target=target, fields=fields)]
    by_text: dict[str, list[str]] = {}
    for given in answers:
        by_text.setdefault(given.answer, []).append(given.id)
    if len(answers) == 1:
        return [Remark(VERBATIM, text=answers[0].answer)]
    ranked = sorted(by_text.items(), key=lambda item: -len(item[1]))
    return [Remark("ask.said_by", n=len(ids), all=len(answers), text=text) for text, ids in ranked]
