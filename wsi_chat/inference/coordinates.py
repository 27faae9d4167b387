"""Moves the coordinates in a text along with its picture: from pixels as stored to pixels as sent, and back.

Only a dialect whose boxes are pixels of the image as sent needs it; normalised boxes hold at any size. Numbers are
replaced in place, so that all other bytes of a prompt or an answer stay as they are, also where a box is broken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from wsi_chat.dialects import Dialect, Frame
from wsi_chat.dialects.grammars import NUMBER

PLACES = {
    "region": re.compile(r"<\s*region\s*>[^<A-Za-z]*", re.IGNORECASE),
    "tokens": re.compile(r"<\|box_start\|>[^<]*"),
    "ref_box": re.compile(r"<box>[^<]*"),
    "json": re.compile(r"\[[^\[\]]*"),
    "list": re.compile(r"\[[^\[\]]*"),
}
"""Where the numbers of a box stand, by grammar; the closing mark may be missing. ``loc`` is never in pixels."""

ANSWER_DECIMALS = 2
FARTHEST = 1e6
"""A number beyond this is no coordinate of a picture, and is left as it was written."""


def moves(dialect: Dialect, frames: Sequence[Frame]) -> bool:
    """Whether a text about these pictures has coordinates that change with their size."""
    return (
        dialect.spec.coordinates == "sent"
        and dialect.spec.boxes in PLACES
        and any(frame.given != frame.sent for frame in frames)
    )


def to_sent(text: str, frame: Frame, dialect: Dialect) -> str:
    """A text whose boxes are pixels of the picture as stored, with boxes in pixels of the picture as sent."""
    scale = frame.sent[0] / frame.given[0], frame.sent[1] / frame.given[1]
    return _scaled(text, scale, dialect, decimals=dialect.spec.decimals)


def to_given(text: str, frame: Frame, dialect: Dialect) -> str:
    """The inverse of `to_sent`, to two decimals: an answer in pixels of the picture as stored."""
    scale = frame.given[0] / frame.sent[0], frame.given[1] / frame.sent[1]
    return _scaled(text, scale, dialect, decimals=max(ANSWER_DECIMALS, dialect.spec.decimals))


def _scaled(text: str, scale: tuple[float, float], dialect: Dialect, *, decimals: int) -> str:
    if scale == (1.0, 1.0):
        return text
    x, y = (scale[1], scale[0]) if dialect.spec.order == "yxyx" else scale
    boxes = dialect.spec.boxes

    def place(found: re.Match[str]) -> str:
        numbers = NUMBER.findall(found.group())
        if boxes in ("json", "list") and len(numbers) != 4 and found.end() < len(text):
            # a list in the prose, of options say
            return found.group()
        count = iter(range(len(numbers)))
        return NUMBER.sub(lambda n: _moved(n.group(), (x, y)[next(count) % 2], decimals), found.group())

    return PLACES[boxes].sub(place, text)


def _moved(number: str, scale: float, decimals: int) -> str:
    value = float(number) * scale
    if abs(value) > FARTHEST:
        return number
    return str(round(value)) if decimals == 0 else f"{value:.{decimals}f}".rstrip("0").rstrip(".")
