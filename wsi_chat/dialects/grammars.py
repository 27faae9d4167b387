"""Reads boxes out of answers, whatever state the text is in: any string in, never an exception.

Each grammar yields marks: what stood where a box should stand. `settle` turns marks into boxes inside the
model's coordinate range and counts every mark that could not be used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from wsi_chat.schema import Box


@dataclass(frozen=True, slots=True)
class Mark:
    """One place in an answer where a box was written (or begun): its label, its numbers, whether it was cut."""

    label: str = ""
    numbers: tuple[float, ...] | None = None
    cut: bool = False


Grammar = Callable[[str], Iterator[Mark]]

# a digit behind a letter is part of a name: a model that repeats "[x1, y1, x2, y2]" has written no box
NUMBER = re.compile(r"(?<![A-Za-z_0-9])[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
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
POINT_PAIR = re.compile(r"\(\s*-?[0-9.]+\s*,\s*-?[0-9.]+\s*\)\s*,\s*\(\s*-?[0-9.]+\s*,\s*-?[0-9.]+\s*\)")
"""A box as Qwen2-VL writes it between its special tokens, where these are left out."""
_POINTS = re.compile(r"\(\s*([^(),]{1,40},[^(),]{1,40})\)\s*,\s*\(\s*([^(),]{1,40},[^(),]{1,40})(?:\)|\Z)")

_POINTS_CUT = re.compile(r"\(\s*[-+]?[0-9.]+\s*,[^()]{0,40}(?:\)\s*,?\s*(?:\([^()]{0,40})?)?\Z")


def token_marks(text: str) -> Iterator[Mark]:
    """``<|object_ref_start|>cell<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>``.

    A server that leaves special tokens out returns ``cell(x1,y1),(x2,y2)``: read where no token is left.
    """
    if "<|box_" not in text:
        covered = 0
        for pair in _POINTS.finditer(text):
            covered = pair.end()
            yield Mark("", four_numbers(", ".join(pair.groups())), cut=not pair.group().endswith(")"))
        if _POINTS_CUT.search(text, covered):
            yield Mark(cut=True)
        return
    label = ""
    for found in _TOKEN_BOX.finditer(text):
        label = (found["label"] or label).strip()
        yield Mark(label, four_numbers(found["inside"] or ""), cut=found["cut"] is not None)


# ------------------------------------------------------------- bracketed lists (EndoChat, InternVL)

_LIST = re.compile(r"\[(?P<inside>[^\[\]]{0,200})(?P<closed>\])?")
_DIGIT = re.compile(r"[0-9]")
_TWO_PAIRS = re.compile(r"\[\s*\[([^\[\],]{1,40},[^\[\],]{1,40})\]\s*,\s*\[([^\[\],]{1,40},[^\[\],]{1,40})\]\s*\]")


def list_marks(text: str) -> Iterator[Mark]:
    """``[x1, y1, x2, y2]`` anywhere. A list without any digit is prose, not a box, unless the text ends in it."""
    # [[x1, y1], [x2, y2]] is one box written as two points
    text = _TWO_PAIRS.sub(r"[\1, \2]", text)
    for found in _LIST.finditer(text):
        cut = found["closed"] is None and found.end() == len(text)
        if cut or _DIGIT.search(found["inside"]):
            yield Mark("", four_numbers(found["inside"]) if found["closed"] or cut else None, cut=cut)


_TAG = re.compile(r"<ref>(?P<ref>[^<]{0,80})</ref>|<\s{0,3}(?P<close>/)?\s{0,3}box\s{0,3}>", re.IGNORECASE)


def ref_box_marks(text: str) -> Iterator[Mark]:
    """``<ref>cell</ref><box>[[x1, y1, x2, y2], [...]]</box>``; tags may be missing, the lists are what counts."""
    start, label, opened = 0, "", False
    for tag in [*_TAG.finditer(text), None]:
        between = text[start : tag.start() if tag else len(text)]
        marks = list(list_marks(between)) or list(token_marks(between))
        if not marks and (opened or (tag is not None and tag["close"])):
            # a box was announced or closed, and no list stands there
            marks = [Mark(numbers=four_numbers(between), cut=tag is None)]
        for mark in marks:
            yield Mark(label, mark.numbers, cut=mark.cut and tag is None)
        if tag is not None:
            start = tag.end()
            label = label if tag["ref"] is None else tag["ref"].strip()
            opened = tag["ref"] is None and not tag["close"]


# ------------------------------------------------------------------------- <loc> tokens (PaliGemma)

_LOCS = re.compile(r"(?:<loc[0-9]+>\s*)+")
_LOC = re.compile(r"<loc([0-9]+)>")
_LOC_CUT = re.compile(r"<(?:l(?:o(?:c[0-9]*)?)?)?\Z")


def loc_marks(text: str) -> Iterator[Mark]:
    """``<loc0246><loc0229><loc0872><loc0904> cell ; <loc...`` in the order of the dialect, four tokens a box."""
    severed = _LOC_CUT.search(text)
    ended = severed.start() if severed else len(text)
    covered = 0
    for run in _LOCS.finditer(text):
        covered = run.end()
        numbers = [float(number) for number in _LOC.findall(run.group())]
        label = re.split(r"[;<\n]", text[run.end() : run.end() + 80], maxsplit=1)[0].strip()
        for first in range(0, len(numbers), 4):
            four = tuple(numbers[first : first + 4])
            last = first + 4 >= len(numbers)
            whole = len(four) == 4
            yield Mark(label if last else "", four if whole else None, cut=not whole and last and run.end() >= ended)
    if severed and covered < severed.start():
        yield Mark(cut=True)


# ------------------------------------------------------------- JSON (Qwen2.5-VL, Qwen3-VL, MedGemma)

_JSON_KEY = re.compile(
    r"""(?:"(?:bbox_2d|bbox|box_2d|box)"|'(?:bbox_2d|bbox|box_2d|box)'|\b(?:bbox_2d|bbox|box_2d)\b)\s*:\s*"""
)
_BRACE = re.compile(r"[{}]")
OBJECT_CHARS = 2000
_JSON_LABEL = re.compile(
    r"""["'](?:label|class|category|name)["']\s*:\s*(?:"(?P<double>(?:[^"\\]|\\.){0,80})"|'(?P<single>[^']{0,80})')"""
)


def json_marks(text: str) -> Iterator[Mark]:
    """``[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]``, with prose or fences around it, cut or not.

    Numbers may be strings; a key may hold several boxes, or two corner points. Where no key is left, bare
    lists are read.
    """
    keys = list(_JSON_KEY.finditer(text))
    if not keys:
        yield from list_marks(text)
    for number, key in enumerate(keys):
        value = text[key.end() : keys[number + 1].start() if number + 1 < len(keys) else len(text)]
        # the object around the key: up to the nearest braces, and no further than one object is long
        start = text.rfind("{", max(0, key.start() - OBJECT_CHARS), key.start()) + 1
        brace = _BRACE.search(text, key.end(), key.end() + OBJECT_CHARS)
        label = _label(
            text[start or max(0, key.start() - OBJECT_CHARS) : brace.start() if brace else key.end() + OBJECT_CHARS]
        )
        last = number + 1 == len(keys)
        value = value.lstrip("\"' ")
        if not value.startswith("["):
            yield Mark(label, cut=last and not value)
            continue
        for mark in _boxes_of(value):
            yield Mark(label, mark.numbers, cut=mark.cut and last)


def _boxes_of(value: str) -> Iterator[Mark]:
    """The boxes in a JSON value that begins with ``[``: one list, a list of lists, or two points."""
    depth, end = 0, len(value)
    for place, letter in enumerate(value):
        depth += (letter == "[") - (letter == "]")
        if depth == 0 or letter in "{}":
            end = place + (depth == 0)
            break
    for mark in list(list_marks(value[:end])) or [Mark(cut=depth > 0)]:
        yield Mark(numbers=mark.numbers, cut=mark.cut and end == len(value))


def _label(text: str) -> str:
    named = _JSON_LABEL.search(text)
    if named is None:
        return ""
    try:
        return (
            str(json.loads(f'"{named["double"]}"')).strip() if named["double"] is not None else named["single"].strip()
        )
    except ValueError:
        return str(named["double"]).strip()


GRAMMARS: dict[str, Grammar] = {
    "region": region_marks,
    "tokens": token_marks,
    "json": json_marks,
    "loc": loc_marks,
    "ref_box": ref_box_marks,
    "list": list_marks,
}

# -------------------------------------------------------------------------------------------- settling


def settle(
    marks: Iterator[Mark],
    space: tuple[float, float],
    *,
    truncated: bool = False,
    order: Literal["xyxy", "yxyx"] = "xyxy",
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
        box = None if mark.cut and truncated else _ordered(mark.numbers, order)
        box = box.clipped(bounds) if box else None
        if box is None or (mark.label, box) in seen:
            dropped += 1
        else:
            seen[mark.label, box] = None
    return list(seen), dropped, truncated


def _ordered(numbers: tuple[float, ...] | None, order: str) -> Box | None:
    if numbers is None or not all(math.isfinite(number) for number in numbers):
        return None
    x0, y0, x1, y1 = (numbers[i] for i in ((1, 0, 3, 2) if order == "yxyx" else (0, 1, 2, 3)))
    return Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
