"""Reads boxes out of answers, whatever state the text is in: any string in, never an exception.

Each grammar yields marks: what stood where a box should stand. `settle` turns marks into boxes inside the
model's coordinate range and counts every mark that could not be used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wsi_chat.schema import Box


@dataclass(frozen=True, slots=True)
class Mark:
    """One place in an answer where a box was written (or begun): its label, its numbers, whether it was cut."""

    label: str = ""
    numbers: tuple[float, ...] | None = None
    cut: bool = False


Grammar = Callable[[str], Iterator[Mark]]

NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+(?:,[0-9]+)?")


def four_numbers(text: str) -> tuple[float, ...] | None:
    """The four numbers of a box, or None. ``10,5 20,5 30,5 40,5`` reads as decimal commas."""
    fields = text.split()
    if len(fields) == 4 and all(DECIMAL_COMMA.fullmatch(field) for field in fields):
        return tuple(float(field.replace(",", ".")) for field in fields)
    found = NUMBER.findall(text)
    return tuple(float(number) for number in found) if len(found) == 4 else None


# --------------------------------------------------------------------------------- <region> (CytoChat)

_OPEN = re.compile(r"<\s*region\s*>", re.IGNORECASE)
_CLOSE = re.compile(r"<\s*/\s*region\s*>", re.IGNORECASE)
_NAMED = re.compile(r"([^.;:<>\n]{1,80})\bis located at\s*$", re.IGNORECASE)
_INDEX = re.compile(r"\s+[0-9]{1,6}\s*$")
_ANNOUNCED = re.compile(r"\bis located at\b", re.IGNORECASE)
_LETTER = re.compile(r"[A-Za-z]")


def region_marks(text: str) -> Iterator[Mark]:
    """``hsil 1 is located at <region>x1 y1 x2 y2</region>.`` A closing tag may be missing before more text."""
    opens = list(_OPEN.finditer(text))
    covered = 0
    for number, opening in enumerate(opens):
        limit = opens[number + 1].start() if number + 1 < len(opens) else len(text)
        closing = _CLOSE.search(text, opening.end(), limit)
        named = _NAMED.search(text[max(covered, opening.start() - 120) : opening.start()])
        label = _INDEX.sub("", named.group(1)).strip() if named else ""
        yield from _lost(text[covered : opening.start()], used=1 if named else 0)
        if closing:
            yield Mark(label, four_numbers(text[opening.end() : closing.start()]))
            covered = closing.end()
        else:
            inside = _LETTER.split(text[opening.end() : limit], maxsplit=1)[0]
            covered = opening.end() + len(inside)
            yield Mark(label, four_numbers(inside), cut=covered == len(text))
    yield from _lost(text[covered:], last=True)


def _lost(between: str, *, used: int = 0, last: bool = False) -> Iterator[Mark]:
    """Locations announced, or tags closed, without a region: counted, since a box was meant."""
    announced = len(_ANNOUNCED.findall(between)) - used
    for number in range(max(announced, len(_CLOSE.findall(between)))):
        cut = last and number == announced - 1 and between.rstrip().lower().endswith("located at")
        yield Mark(cut=cut)


# --------------------------------------------------------------------------- special tokens (Qwen2-VL)

_TOKEN_BOX = re.compile(
    r"(?:<\|object_ref_start\|>(?P<label>[^<]{0,80})<\|object_ref_end\|>\s*)?"
    r"(?:<\|box_start\|>(?P<inside>[^<]{0,200})(?:<\|box_end\|>|(?P<cut>\Z))?|(?P<orphan><\|box_end\|>))"
)


def token_marks(text: str) -> Iterator[Mark]:
    """``<|object_ref_start|>cell<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>``."""
    label = ""
    for found in _TOKEN_BOX.finditer(text):
        label = (found["label"] or label).strip()
        yield Mark(label, four_numbers(found["inside"] or ""), cut=found["cut"] is not None)


# ------------------------------------------------------------------------- JSON (Qwen2.5-VL, Qwen3-VL)

_JSON_BOX = re.compile(
    r'(?:"(?:bbox_2d|bbox|box_2d|box)"|\b(?:bbox_2d|bbox|box_2d)\b)\s*:\s*'
    r'(?:\[(?P<inside>[^\[\]{}"]{0,200})(?:\]|(?P<cut>\Z))?)?'
)
_JSON_LABEL = re.compile(r'"label"\s*:\s*"((?:[^"\\]|\\.){0,80})"')


def json_marks(text: str) -> Iterator[Mark]:
    """``[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]``, with prose or fences around it, cut or not."""
    for found in _JSON_BOX.finditer(text):
        start = text.rfind("{", 0, found.start()) + 1
        stop = text.find("}", found.end())
        named = _JSON_LABEL.search(text[start : stop if stop >= 0 else len(text)])
        cut = found["cut"] is not None or (found.end() == len(text) and not found["inside"])
        yield Mark(named.group(1).strip() if named else "", four_numbers(found["inside"] or ""), cut=cut)


GRAMMARS: dict[str, Grammar] = {"region": region_marks, "tokens": token_marks, "json": json_marks}

# -------------------------------------------------------------------------------------------- settling


def settle(
    marks: Iterator[Mark], space: tuple[float, float], *, truncated: bool = False
) -> tuple[list[tuple[str, Box]], int, bool]:
    """(label, box in model coordinates) of every usable mark; how many were dropped; was the answer cut.

    Reversed corners are put in order; boxes are clipped to ``space`` (width, height). Dropped and counted:
    marks without four finite numbers, boxes with nothing inside the image, boxes without area, exact
    repetitions, and in a ``truncated`` answer the box at its end, whose last number may have lost digits.
    """
    bounds = Box(0, 0, *space)
    seen: dict[tuple[str, Box], None] = {}
    dropped = 0
    for mark in marks:
        truncated = truncated or (mark.cut and mark.numbers is None)
        box = None if mark.cut and truncated else _ordered(mark.numbers)
        box = box.clipped(bounds) if box else None
        if box is None or (mark.label, box) in seen:
            dropped += 1
        else:
            seen[mark.label, box] = None
    return list(seen), dropped, truncated


def _ordered(numbers: tuple[float, ...] | None) -> Box | None:
    if numbers is None or not all(math.isfinite(number) for number in numbers):
        return None
    x0, y0, x1, y1 = numbers
    return Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
