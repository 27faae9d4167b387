"""Writes boxes the way a model family answers a grounding question: the inverse of `grammars`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """A box about to be written: its class in the model's words, and x0, y0, x1, y1 in model coordinates."""

    name: str
    corners: tuple[str, str, str, str]


Writer = Callable[[Sequence[Written], str], str]
"""(boxes, class asked for) -> the answer. No boxes gives the family's words for 'none'."""


def region_answer(boxes: Sequence[Written], asked: str) -> str:
    """``hsil 1 is located at <region>x0 y0 x1 y1</region>. hsil 2 is ...``; ``No hsil is found.`` for none."""
    count: Counter[str] = Counter()
    sentences = []
    for box in boxes:
        count[box.name] += 1
        sentences.append(f"{box.name} {count[box.name]} is located at <region>{' '.join(box.corners)}</region>.")
    return " ".join(sentences) or f"No {asked} is found."


def token_answer(boxes: Sequence[Written], asked: str) -> str:
    """``<|object_ref_start|>cell<|object_ref_end|><|box_start|>(x0,y0),(x1,y1)<|box_end|>``, one after another."""
    return "".join(
        f"<|object_ref_start|>{box.name}<|object_ref_end|>"
        f"<|box_start|>({box.corners[0]},{box.corners[1]}),({box.corners[2]},{box.corners[3]})<|box_end|>"
        for box in boxes
    ) or (f"No {asked} is found.")


def json_answer(boxes: Sequence[Written], asked: str) -> str:
    """``[{"bbox_2d": [x0, y0, x1, y1], "label": "..."}]``; ``[]`` for none."""
    rows = [
        f'{{"bbox_2d": [{", ".join(box.corners)}], "label": {json.dumps(box.name, ensure_ascii=False)}}}'
        for box in boxes
    ]
    return f"[{', '.join(rows)}]"


WRITERS: dict[str, Writer] = {"region": region_answer, "tokens": token_answer, "json": json_answer}
