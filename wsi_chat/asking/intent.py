"""Which task a question in plain words means, and which class it names. It says why, so that a wrong guess shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi_chat.schema import NOTHING, Remark, TaskName

if TYPE_CHECKING:
    from wsi_chat.dialects import Dialect
    from wsi_chat.terminology import System

SPOKEN = {
    "wbc": ("white blood cell", "white cell", "leukocyte"),
    "rbc": ("red blood cell", "red cell", "erythrocyte"),
    "platelet": ("thrombocyte",),
}
"""Classes of models beyond the reporting system in use, as people say them."""

_LOCATE = re.compile(
    r"^\W*(?:please\s+)?(?:locate|where|find|point|mark|outline|box|detect|show(?: me)?(?: all| the| where)|ground)\b",
    re.I,
)
_COUNT = re.compile(r"\bhow many\b|\bcount\b|\bnumber of\b", re.I)
_DESCRIBE = re.compile(r"\b(?:describe|description|diagnosis results?|write a report|report on|summari[sz]e)\b", re.I)
_PHRASE = re.compile(r"\b(?:single|one|short) (?:phrase|word)\b|\bin a phrase\b", re.I)
_THING = r"(?:this|that|it|these|here|the (?:region|box|cell|object)|(?:this|that|the) (?:region|box|cell|object))"
_REFER = re.compile(
    rf"^\W*what(?:'s| is| are| do you see)?(?: shown| seen)?(?: in)? {_THING}\W*$"
    r"|\bwhich cell is (?:it|this|that)\b|\bwhat (?:kind|type|class|sort) of cell\b"
    rf"|^\W*(?:name|classify|identify) {_THING}|brief description",
    re.I,
)
_SCREEN = re.compile(
    r"\b(?:is|are|was|were|any|anything|has|does)\b.*\babnormal(?:ity|ities)?\b"
    r"|\bnormal or abnormal\b|\bis (?:it|this) normal\b",
    re.I,
)
_ALL = re.compile(r"^\W*(?:please\s+)?(?:locate|find|detect|mark|box)\s+(?:all|every|the|any|each)?\s*(.+?)\W*$", re.I)


@dataclass(frozen=True, slots=True)
class Guess:
    """A task, the class that it asks for (ground), and what in the question points to it."""

    task: TaskName
    target: str = ""
    reason: Remark = NOTHING


def guess(
    question: str, *, dialect: Dialect, system: System, pointed: bool = False, choices: Sequence[str] = ()
) -> Guess:
    """The task that a question means.

    Args:
        pointed: the question comes with a region.
        choices: options to choose from, if any were given.
    """
    text = " ".join(question.split())
    if choices:
        return Guess("mcq", reason=Remark("guess.options"))
    if not text:
        if pointed:
            return Guess("refer", reason=Remark("guess.region_alone"))
        return Guess("describe", reason=Remark("guess.no_question"))
    plain = text.casefold().rstrip(" ?.!")
    if plain == system.screen.topic.casefold().rstrip(" ?.!"):
        return Guess("screen", reason=Remark("guess.screening", system=system.code))
    if is_known_question(text, dialect):
        return Guess("vqa", reason=Remark("guess.known"))
    target = find_label(text, dialect, system)
    if _PHRASE.search(text):
        return Guess("phrase", reason=Remark("guess.phrase"))
    if _LOCATE.search(text):
        named = target or _named(text)
        if named:
            return Guess("ground", named, reason=Remark("guess.where", target=repr(named)))
    if _COUNT.search(text) and target:
        return Guess("ground", target, reason=Remark("guess.how_many", target=repr(target)))
    if pointed and _REFER.search(text):
        return Guess("refer", reason=Remark("guess.in_region"))
    if _DESCRIBE.search(text):
        return Guess("describe", reason=Remark("guess.description"))
    if target and re.search(r"^\W*(?:is|are) there\b|\bpresent\b|\bdo you see\b|\bcan you see\b|\bany\b", text, re.I):
        if target == "abnormal" and not pointed and system.screen.about_abnormality:
            return Guess("screen", reason=Remark("guess.abnormal"))
        return Guess("ground", target, reason=Remark("guess.there", target=repr(target)))
    if _SCREEN.search(text) and system.screen.about_abnormality:
        if not pointed:
            return Guess("screen", reason=Remark("guess.abnormal"))
        if dialect.known_questions:
            return Guess("screen", reason=Remark("guess.abnormal_whole"))
    if pointed:
        return Guess("region", reason=Remark("guess.about_region"))
    return Guess("vqa", reason=Remark("guess.free"))


def _named(text: str) -> str:
    found = _ALL.match(text)
    return found.group(1).strip() if found else ""


def find_label(text: str, dialect: Dialect, system: System) -> str:
    """The class that a text names, as the model is asked for it; empty for none. The longest spelling wins.

    Chinese characters may stand beside it without a space.
    """
    plain = " ".join(text.casefold().split())
    for spelling, code in _spellings(dialect, system):
        if re.search(rf"(?<![a-z0-9_-]){re.escape(spelling)}(?![a-z0-9_-])", plain):
            return code
    return ""


def _spellings(dialect: Dialect, system: System) -> list[tuple[str, str]]:
    found: dict[str, str] = {}

    def add(spelling: str, code: str) -> None:
        spelling = spelling.casefold()
        for form in (spelling, f"{spelling}s", spelling.removesuffix(" cells"), f"{spelling} cells"):
            if form and form != "cell":
                found.setdefault(form, code)

    for label in system.labels:
        for spelling in (label.code, label.name, label.long_name, label.plural):
            add(spelling, label.code)
        chinese = system.zh.labels.get(label.code) if system.zh is not None else None
        if chinese is not None:
            found.setdefault(chinese.name.casefold(), label.code)
    for known in dialect.labels:
        for spelling in (known, *SPOKEN.get(known, ())):
            add(spelling, known)
    for spelling, code in (*dialect.spec.aliases.items(), *((n, c) for c, n in dialect.spec.names.items())):
        add(spelling, code)
    return sorted(found.items(), key=lambda item: -len(item[0]))


def is_known_question(question: str, dialect: Dialect) -> bool:
    """Whether a closed model was trained on this very question."""
    plain = " ".join(question.casefold().split())
    return plain in {known.casefold() for known in dialect.known_questions}


def out_of_grammar(guessed: Guess, question: str, dialect: Dialect) -> Remark | None:
    """What this model can be asked, where its answer to this question would mean nothing; None where it may."""
    closed = dialect.known_questions
    if closed and guessed.task in ("vqa", "region", "phrase") and not is_known_question(question, dialect):
        return Remark("guess.closed", known=[f"'{known}'" for known in closed])
    if guessed.task == "ground" and dialect.labels and guessed.target not in dialect.labels:
        return Remark("guess.not_trained", target=repr(guessed.target), classes=", ".join(dialect.labels))
    return None
