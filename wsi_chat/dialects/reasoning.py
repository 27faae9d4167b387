"""What a model thinks before it answers is no part of the answer: all up to the end of its reasoning is dropped.

A block that is never closed leaves no answer: the model was cut off while it was still thinking.
"""

from __future__ import annotations

import re

_NAMES = r"think(?:ing)?|thought|reason(?:ing)?|analysis|reflection"
OPENED = re.compile(
    rf"<\s*(?:{_NAMES})\s*>|◁think▷|<\|begin_of_thought\|>|<seed:think>|<\|channel\|>\s*analysis\b", re.IGNORECASE
)
CLOSED = re.compile(
    rf"<\s*/\s*(?:{_NAMES})\s*>|◁/think▷|<\|end_of_thought\|>|</seed:think>"
    r"|<\|channel\|>\s*final\s*(?:<\|message\|>)?",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"<\s*answer\s*>(.*?)(?:<\s*/\s*answer\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_BOXED = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)", re.DOTALL)


def final_answer(text: str) -> str:
    """What follows the last closing mark of the reasoning, inside ``<answer>`` where there is one; stripped.

    The whole text where there is no reasoning; empty where the reasoning has no end.
    """
    if unfinished(text):
        return ""
    ends = list(CLOSED.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    marked = _ANSWER.search(rest) or _BOXED.search(rest)
    return (marked[1] if marked else rest).strip()


def has_reasoning(text: str) -> bool:
    """Whether a text holds the beginning or the end of a block of reasoning."""
    return OPENED.search(text) is not None or CLOSED.search(text) is not None


def unfinished(text: str) -> bool:
    """Whether reasoning begins in the text and does not end in it."""
    begun = [found.start() for found in OPENED.finditer(text)]
    ended = [found.start() for found in CLOSED.finditer(text)]
    return bool(begun) and (not ended or begun[-1] > ended[-1])
