"""Writes boxes the way a model family answers a grounding question: the inverse of `grammars`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """A box about to be written: its class in the model's words, its four numbers in the model's order."""

    name: str
    corners: tuple[str, ...]


Writer = Callable[[Sequence[Written], str, str], str]
"""(boxes, class asked for, JSON key of a box) -> the answer. No boxes gives the family's words for 'none'."""


def _none(asked: str) -> str:
    return f"No {asked} is found."


def region_answer(boxes: Sequence[Written], asked: str, key: str) -> str:
    """``hsil 1 is located at <region>x0 y0 x1 y1</region>. hsil 2 is ...``; ``No hsil is found.`` for none."""
    count: Counter[str] = Counter()
    sentences = []
    for box in boxes:
        count[box.name] += 1
        sentences.append(f"{box.name} {count[box.name]} is located at <region>{' '.join(box.corners)}</region>.")
    return " ".join(sentences) or _none(asked)


def token_answer(boxes: Sequence[Written], asked: str, key: str) -> str:
    """``<|object_ref_start|>cell<|object_ref_end|><|box_start|>(x0,y0),(x1,y1)<|box_end|>``, one after another."""
    return "".join(
        f"<|object_ref_start|>{box.name}<|object_ref_end|>"
        f"<|box_start|>({box.corners[0]},{box.corners[1]}),({box.corners[2]},{box.corners[3]})<|box_end|>"
        for box in boxes
    ) or _none(asked)


def json_answer(boxes: Sequence[Written], asked: str, key: str) -> str:
    """``[{"bbox_2d": [x0, y0, x1, y1], "label": "..."}]``; ``[]`` for none."""
    rows = [
        f'{{"{key}": [{", ".join(box.corners)}], "label": {json.dumps(box.name, ensure_ascii=False)}}}' for box in boxes
    ]
    return f"[{', '.join(rows)}]"


def loc_answer(boxes: Sequence[Written], asked: str, key: str) -> str:
    """``<loc0246><loc0229><loc0872><loc0904> cell ; <loc...`` (PaliGemma)."""
    return " ; ".join(
        "".join(f"<loc{corner:0>4}>" for corner in box.corners) + f" {box.name}" for box in boxes
    ) or _none(asked)


def ref_box_answer(boxes: Sequence[Written], asked: str, key: str) -> str:
    """``<ref>cell</ref><box>[[x0, y0, x1, y1], [...]]</box>``: one pair of tags per class (InternVL)."""
    classes: dict[str, list[str]] = {}
    for box in boxes:
        classes.setdefault(box.name, []).append(f"[{', '.join(box.corners)}]")
    lines = [f"<ref>{name}</ref><box>[{', '.join(found)}]</box>" for name, found in classes.items()]
    return "\n".join(lines) or _none(asked)


def list_answer(boxes: Sequence[Written], asked: str, key: str) -> str:
    """``[x0, y0, x1, y1]``, one after another; the class is the one asked for (EndoChat)."""
    return ", ".join(f"[{', '.join(box.corners)}]" for box in boxes) or _none(asked)


WRITERS: dict[str, Writer] = {
    "region": region_answer,
    "tokens": token_answer,
    "json": json_answer,
    "loc": loc_answer,
    "ref_box": ref_box_answer,
    "list": list_answer,
}
