"""What an answer says of the slide: a grounding answer as level-0 boxes, and why an answer cannot be used.

The one place where an answer becomes boxes on a slide or a reason; screening, details, the cell sample, the second
look, `ask` and `chat` all read here, so that an answer that says nothing is nowhere taken for 'none found'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wsi_chat.dialects.dialect import Dialect
from wsi_chat.dialects.frame import Frame
from wsi_chat.schema import Answer, Box, LabelledBox
from wsi_chat.tasks import Ask

QUOTED = 80
"""Characters of an unusable answer that are quoted in a reason."""


@dataclass(frozen=True, slots=True)
class Grounding:
    """A grounding answer, read. ``boxes`` are level-0 pixels.

    ``dropped`` counts boxes that could not be used; ``truncated``: there may be more. ``error`` says why the answer
    is none, and is empty where it is one: then no boxes means that none was found.
    """

    boxes: tuple[LabelledBox, ...] = ()
    dropped: int = 0
    truncated: bool = False
    error: str = ""


def read_grounding(
    dialect: Dialect,
    answer: Answer,
    frame: Frame,
    target: str,
    *,
    to_level0: Callable[[Box], Box],
    bounds: Box,
    usable: Callable[[Box], bool] | None = None,
) -> Grounding:
    """The boxes of a grounding answer on the slide.

    Args:
        target: the class that was asked for; it names boxes that the model left unnamed.
        to_level0: from pixels of the picture that was shown to level-0 pixels.
        bounds: the slide in level-0 pixels; boxes are clipped to it, and dropped where nothing is left.
        usable: whether a box, in pixels of the picture, is to be taken at all; others are left out uncounted.
    """
    if answer.status == "failed":
        return Grounding(error=answer.error or "no answer")
    reading = dialect.read_boxes(answer, frame, target)
    truncated = reading.truncated or answer.status == "truncated"
    if not reading.understood:
        why = f"{answer.text[:QUOTED]!r} has neither a box nor words for none"
        return Grounding(dropped=reading.dropped, truncated=truncated, error=why)
    boxes, dropped = [], reading.dropped
    for found in reading.boxes:
        if usable is not None and not usable(found.box):
            continue
        box = to_level0(found.box).clipped(bounds)
        if box is None:
            dropped += 1
        else:
            boxes.append(LabelledBox(found.label, box, found.score))
    return Grounding(tuple(boxes), dropped, truncated)


def why_no_choice(answer: Answer) -> str:
    """Why `Dialect.read_choice` gave nothing for this answer, in words."""
    return answer.error or f"the answer {answer.text[:QUOTED]!r} names none of the options"


def is_usable(dialect: Dialect, answer: Answer, ask: Ask, frame: Frame) -> bool:
    """Whether an answer says anything to its question: a refusal, nonsense, an empty text or broken boxes do not.

    Broken boxes alone are an answer only where the engine says that a limit cut it off: asking again gives the same.
    """
    if answer.status == "failed":
        return False
    if ask.options:
        return dialect.read_choice(answer, ask) is not None
    if ask.task == "ground":
        reading = dialect.read_boxes(answer, frame, ask.target)
        nothing_but_scraps = reading.dropped > 0 and not reading.boxes and answer.status != "truncated"
        return reading.understood and not nothing_but_scraps
    return bool(dialect.read_text(answer))
