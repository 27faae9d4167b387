"""What a row asks: its kind of question, the class to locate, the options to choose from.

Told from the words alone, so that files of others with no more than prompt, predict and label can be scored. The
kinds are CytoChat's (mcq, ground, refer, describe, vqa, multi-turn) and EndoChat's paradigms (phrase, vqa, region,
ground, narrative).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal, get_args

from wsi_chat.dialects import dialects, get_dialect
from wsi_chat.dialects.grammars import POINT_PAIR
from wsi_chat.dialects.options import is_choice
from wsi_chat.terminology import specimens

Kind = Literal["mcq", "ground", "refer", "phrase", "describe", "vqa", "region", "narrative", "multi-turn"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ENDOCHAT: dict[str, Kind] = {
    "single_phrase": "phrase",
    "grounding": "ground",
    "visual_QA": "vqa",
    "region_based": "region",
    "detailed_description": "narrative",
}
"""``main_tag`` of EndoChat's test rows."""

BOX = re.compile(
    r"<\s*region\s*>|<\|box_start\|>|<box>|<loc[0-9]{4}>|bbox_2d|box_2d"
    rf"|\[\s*-?[0-9.]+\s*,\s*-?[0-9.]+\s*,\s*-?[0-9.]+\s*,\s*-?[0-9.]+\s*\]|{POINT_PAIR.pattern}",
    re.IGNORECASE,
)

_TURNS = re.compile(
    r"(?:<\|im_start\|>\s*user|<start_of_turn>\s*user|^\s*user|\n\s*USER:|^\s*USER:|\[INST\])\s*\n?", re.MULTILINE
)
_TURN_END = re.compile(
    r"(?:<\|im_end\|>|<end_of_turn>|\[/INST\]|\n\s*(?:<\|im_start\|>\s*)?assistant\s*$|\n\s*ASSISTANT:).*",
    re.DOTALL,
)
_MARKS = re.compile(
    r"<image>|<img>|<\|(?:vision_start|vision_end|image_pad|video_pad)\|>|<(?:/?img|IMG_CONTEXT|image_soft_token)>"
)

_GROUND = (
    re.compile(r"category:\s*\"?(?P<name>[^\"\n]+?)\"?\s*\.\s*Report", re.IGNORECASE),
    re.compile(r"belongs? to the following categor(?:y|ies):\s*\"(?P<name>[^\"\n]+)\"", re.IGNORECASE),
    re.compile(r"bounding box of every <\|object_ref_start\|>(?P<name>[^<]+)<\|object_ref_end\|>", re.IGNORECASE),
    re.compile(r"bounding box[^<]*<ref>(?P<name>[^<]+)</ref>", re.IGNORECASE),
    re.compile(r"^\s*locate (?:all|every)(?: the)? (?P<name>.+?)(?: in (?:the|this) image)?\s*\.", re.IGNORECASE),
    re.compile(r"^\s*locate (?:all|every)(?: the)? (?P<name>.+?)\s*$", re.IGNORECASE),
    re.compile(r"^\s*find every (?P<name>.+?) in (?:this|the) image", re.IGNORECASE),
    re.compile(r"^\s*detect all (?P<name>.+?) cells and mark", re.IGNORECASE),
    re.compile(
        r"^\s*where (?:are|is) the (?P<name>.+?)(?: located)?\?\s*(?:give|provide|please|output)", re.IGNORECASE
    ),
    re.compile(r"^\s*detect (?P<name>[^.?\n]+?)\s*$", re.IGNORECASE),
)
_BOX_WANTED = re.compile(
    r"bounding box|bbox coordinates|coordinates of|where is |where are |\bgrounding\b", re.IGNORECASE
)
_NONE_FOUND = re.compile(
    r"\A\s*(?:no .{1,60} (?:is|are) (?:found|seen|present|visible)\b|\[\s*\]|none\b)", re.IGNORECASE
)
_PHRASE = re.compile(r"(?:with|using|in) (?:a |one )?single (?:phrase|word)", re.IGNORECASE)
_REFER = re.compile(
    r"description of region|(?:what|which) (?:kind of cell|class|is in)|name the cell|class does the marked",
    re.IGNORECASE,
)
_DESCRIBE = re.compile(
    r"cytology diagnosis results|report say of this field|cytological finding in one sentence|state the diagnosis"
    r"|describe this field of a cytology|^\s*caption en\b",
    re.IGNORECASE,
)
_NARRATIVE = re.compile(
    r"\bin detail\b|detailed description|describe everything|describe the (?:image|picture|scene)", re.IGNORECASE
)
SENTENCE_WORDS = 4
"""A label of more words than this is a sentence, and no class name."""


def question_of(prompt: str) -> str:
    """The last question of a prompt: without chat template, system turn, earlier turns and image marks."""
    parts = _TURNS.split(prompt)
    last = parts[-1] if len(parts) > 1 else prompt
    last = _TURN_END.sub("", last) if len(parts) > 1 else last
    return _MARKS.sub("", last).strip()


def turns_in(prompt: str) -> int:
    """How many questions a prompt in a chat template holds; 1 for a bare question."""
    return max(1, len(_TURNS.findall(prompt)))


def recognise(question: str, label: str, *, tag: str = "", turns: int = 1, predict: str = "") -> Kind:
    """The kind of a question, from its words and its label.

    Args:
        question: as `question_of` gives it.
        tag: EndoChat's ``main_tag``, which decides where it is known.
        turns: of the conversation; free text in one of several turns is ``multi-turn``.
        predict: the answer: boxes in it show that boxes were asked for, where the label says that there are none.
    """
    if tag in ENDOCHAT:
        return ENDOCHAT[tag]
    if is_choice(question, label):
        return "mcq"
    if BOX.search(question) and not _target(question):
        short = len(label.split()) <= SENTENCE_WORDS and not label.strip().endswith(".")
        return "refer" if short and (_REFER.search(question) or label) else "region"
    if BOX.search(label):
        return "ground"
    if _PHRASE.search(question):
        return "phrase"
    located = _BOX_WANTED.search(question) or BOX.search(predict)
    if _target(question) or (located and _NONE_FOUND.search(label)):
        return "ground"
    if turns > 1:
        return "multi-turn"
    if _DESCRIBE.search(question):
        return "describe"
    return "narrative" if _NARRATIVE.search(question) else "vqa"


def _target(question: str) -> str:
    for pattern in _GROUND:
        found = pattern.search(question)
        if found:
            return " ".join(found["name"].split()).strip(" \"'")
    return ""


def target_of(question: str) -> str:
    """The class that a grounding question asks for, as a class code where the name is known, else its own words."""
    name = _target(question)
    return class_names().get(name.casefold(), name.casefold())


@cache
def class_names() -> dict[str, str]:
    """Every spelling of a class in the packaged reporting systems and dialects -> its code, in lower case."""
    spellings: dict[str, str] = {}
    for system in specimens():
        for label in system.labels:
            for name in (label.code, label.name, label.long_name, label.plural):
                spellings.setdefault(" ".join(str(name).casefold().split()), label.code)
    for name in dialects():
        spec = get_dialect(name).spec
        for alias, label_code in {**spec.aliases, **{label: label for label in spec.labels}}.items():
            spellings.setdefault(alias.casefold(), label_code)
    return spellings
