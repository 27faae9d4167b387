"""The options that the prompt of a multiple-choice question lists, as this project and others word such prompts.

Read from the words alone: CytoChat's ``[A.x, B.y]``, one option a line (``A. x``, ``(A) x``, ``A) x``), and all on one
line (``A) x B) y``). The letters must run from A without a gap.
"""

from __future__ import annotations

import re
from itertools import pairwise

from wsi_chat.dialects.choice import chosen_option
from wsi_chat.tasks import LETTERS

_BRACKETED = re.compile(
    r"(?:following options|options|choices|choose from|选项)\s*(?:are|is)?\s*[:：]?\s*\[(.*)\](?!.*\])",
    re.DOTALL | re.I,
)
_CHOOSE_FROM = re.compile(r"choose from\s*:\s*(.*?)(?:\.\s*Answer|\Z)", re.DOTALL | re.IGNORECASE)
_IN_LIST = re.compile(r"(?:^|,\s*)([A-Z])\.(.*?)(?=,\s*[A-Z]\.|$)", re.DOTALL)
_LINE = re.compile(
    r"^[ \t]*(?:[-*•][ \t]*)?(?:\*\*)?[(（\[]?([A-Z])(?:[.)）\]:：、．]|\*\*[.:)]?)(?:\*\*)?[ \t]*(\S.*?)[ \t]*$",
    re.MULTILINE,
)
_INLINE = re.compile(r"(?<![A-Za-z0-9])[(（\[]?([A-Z])(?:[.)）\]:：、．])\s*(?=\S)")
_AFTER_LAST = re.compile(
    r"\s*(?:[.。;；?？!！]\s*|\s)(?:answer\b|please\b|choose\b|select\b|respond\b|reply\b|give\b|output\b|only\b|just\b|请|答案|回答)"
    r".*|\n.*",
    re.IGNORECASE | re.DOTALL,
)
_CUE = re.compile(
    r"option'?s? letter|letter of the|with a (?:single )?letter|select the"
    r"|(?:best|correct|right) (?:option|answer|choice)"
    r"|multiple[- ]choice|choose|following options|^\s*(?:options|choices)\s*:|选项|选择|单选|多选|下列|哪一项|哪项",
    re.IGNORECASE | re.MULTILINE,
)
_TOPIC = re.compile(r"based on the image \[(.*?)\]\s*,\s*and select", re.DOTALL)
_HEADING = re.compile(r"\A\s*(?:question|q|问题|题目)\s*[:：]\s*", re.IGNORECASE)
_HINT = re.compile(r"\A\s*(?:hint|context|instruction)s?\s*[:：]", re.IGNORECASE)


def options_of(question: str) -> tuple[tuple[str, str], ...]:
    """(letter, text) of the options that a question lists in order, none for any other question."""
    bracketed = _BRACKETED.search(question) or _CHOOSE_FROM.search(question)
    if bracketed and (options := _ordered(_IN_LIST.findall(bracketed[1]))):
        return options
    return _ordered(_LINE.findall(question)) or _ordered(_in_one_line(question))


def is_choice(question: str, label: str) -> bool:
    """Whether a question is multiple-choice: it lists options, and its words or its true answer show a choice."""
    options = options_of(question)
    if not options:
        return False
    return _CUE.search(question) is not None or chosen_option(label, [text for _, text in options]) is not None


def topic_of(question: str) -> str:
    """What a choice is about: the text in brackets, else what stands before the options, hints left out."""
    found = _TOPIC.search(question)
    if found:
        return " ".join(found[1].split())
    lines = [line for line in question.split("\n") if line.strip() and not _HINT.match(line)]
    head = _HEADING.sub("", lines[0] if lines else "")
    head = re.split(r"choose from\s*:", head, maxsplit=1, flags=re.IGNORECASE)[0]
    inline = _INLINE.search(head)
    if inline and inline[1] == "A" and inline.start() > 0:
        head = head[: inline.start()]
    return " ".join(head.split())


def _ordered(listed: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The options where their letters run from A; of a longer list, the part that begins with the last A."""
    starts = [place for place, (letter, _) in enumerate(listed) if letter == "A"]
    if not starts:
        return ()
    options = tuple((letter, text.strip().rstrip(",，;；").strip()) for letter, text in listed[starts[-1] :])
    in_order = "".join(letter for letter, _ in options) == LETTERS[: len(options)]
    return options if len(options) >= 2 and in_order and all(text for _, text in options) else ()


def _in_one_line(question: str) -> list[tuple[str, str]]:
    marks = list(_INLINE.finditer(question))
    starts = [place for place, mark in enumerate(marks) if mark[1] == "A"]
    if not starts:
        return []
    run = [marks[starts[-1]]]
    for mark in marks[starts[-1] + 1 :]:
        if mark[1] == LETTERS[len(run)]:
            run.append(mark)
    listed = [(mark[1], question[mark.end() : following.start()]) for mark, following in pairwise(run)]
    last = run[-1]
    text = _AFTER_LAST.sub("", question[last.end() :], count=1)
    return [*listed, (last[1], text.strip().rstrip(".。"))]
