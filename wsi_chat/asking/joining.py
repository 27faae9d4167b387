"""The answers about several fields as one: cells counted once, the highest field, and what of it all was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aggregators import merge_boxes
from tilers.field import Field
from wsi_chat.asking.intent import Guess
from wsi_chat.asking.result import FieldAnswer
from wsi_chat.schema import Box, LabelledBox, TileVerdict
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
    text: str


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
    number = str(count) if count else "none"
    extent = f"{len(answers)} fields" if whole else f"{len(answers)} fields read, of {total}"
    text = f"{positive} in {number} of {extent}; the highest is {highest.id} with {p(highest):.3f}."
    if choice is None:
        text += " The fields that were not read or not answered are unknown."
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


def in_words(guessed: Guess, answers: Sequence[FieldAnswer], boxes: Sequence[LabelledBox]) -> str:
    """The answer in words: how many were located, or each text with the number of fields that gave it."""
    if guessed.task == "ground":
        where = "" if len(answers) == 1 else f" in {len(answers)} fields"
        return f"{len(boxes)} {guessed.target} located{where}." if boxes else f"No {guessed.target} located{where}."
    by_text: dict[str, list[str]] = {}
    for given in answers:
        by_text.setdefault(given.answer, []).append(given.id)
    if len(answers) == 1:
        return answers[0].answer
    ranked = sorted(by_text.items(), key=lambda item: -len(item[1]))
    return "\n".join(f"{len(ids)} of {len(answers)} fields: {text}" for text, ids in ranked)
