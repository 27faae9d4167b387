"""Holds what a model wrote against the findings: every sentence says what its finding says, or it is replaced.

A pure function of the text, the template's sentences and the names of the reporting system. It rather replaces a
good sentence than lets a wrong one pass: numbers must be the finding's in the finding's order, names of categories
and classes the same, ids of the finding's own evidence, denials as many, and no word may be surer than the verdict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reports.check_terms import IDS, Names, lexicon, names_of, numbers, plain
from wsi_chat.schema import Language, Sentence
from wsi_chat.terminology import System

Kind = Literal[
    "number", "category", "evidence", "ancillary", "certainty", "negation", "quantity", "advice", "invention",
    "omission", "form", "missing", "truncated",
]  # fmt: skip
LONGEST = 600  # characters of a sentence
NEW_WORDS = 4  # words of a sentence that neither its finding nor the neutral list has
NEW_CHARACTERS = 14  # the same for Chinese characters
REMARKS = 3
REMARK_LENGTH = 240
_LINE = re.compile(r"^\s*(?:\*\*)?(?:S|fact\s*)?(\d{1,3})\s*[.):|、．]\s*(.+?)\s*$", re.IGNORECASE)
_REMARK = re.compile(r"^\s*\+\s*(.+?)\s*$")
_CITED = re.compile(r"\s*\[([^\[\]]*)\]\s*$")
_ENDS = (".", "。", "!", "！", "”", '"', ")", "）", "]")


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a sentence cannot stand, and what in it is to blame."""

    kind: Kind
    found: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.found}" if self.found else self.kind


@dataclass(frozen=True, slots=True)
class Written:
    """A line of a model's narrative. ``number`` is the finding that it is about (from 1), None for a remark."""

    number: int | None
    text: str
    cited: tuple[str, ...] = ()
    whole: bool = True


def read_lines(text: str, *, truncated: bool = False) -> list[Written]:
    """The numbered lines (``3. ...``) and remarks (``+ ... [t000042]``) of an answer; anything else is left out.

    Args:
        truncated: the answer was cut off, so that its last line may be incomplete.
    """
    written: list[Written] = []
    lines = text.splitlines()
    for position, line in enumerate(lines):
        numbered, remark = _LINE.match(line), _REMARK.match(line)
        if not numbered and not remark:
            continue
        body = numbered[2] if numbered else remark[1] if remark else ""
        cited: tuple[str, ...] = ()
        match = _CITED.search(body)
        if match:
            cited = tuple(part for part in re.split(r"[\s,;，；、]+", match[1]) if part)
            body = body[: match.start()]
        whole = not (truncated and position == len(lines) - 1)
        written.append(Written(int(numbered[1]) if numbered else None, body.strip(" *"), cited, whole))
    return written


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks sentences in one language for one reporting system."""

    system: System
    language: Language
    names: Names

    @classmethod
    def of(cls, system: System, language: Language) -> Checker:
        return cls(system, language, names_of(system))

    def sentence(self, text: str, finding: Sentence, *, cited: Sequence[str] = ()) -> tuple[Objection, ...]:
        """What is wrong with a sentence that says what ``finding`` says; empty where it may stand."""
        text = text.strip()
        formal = self._form(text)
        if formal:
            return formal
        mentioned = [*cited, *IDS.findall(text)]
        strange = sorted(set(mentioned) - set(finding.evidence))
        objections = [Objection("evidence", name) for name in strange]
        objections += self._numbers(text, finding.text)
        named, rest = self.names.taken_out(IDS.sub(" ", text))
        expected, known = self.names.taken_out(IDS.sub(" ", finding.text))
        if Counter(named) != Counter(expected):
            objections.append(Objection("category", self._differing(text, named, expected)))
        objections += self._classes(rest, known)
        if finding.evidence == ("ancillary",):
            objections += self._supplied(text, finding.text)
        else:
            objections += self._prohibited(text, finding.text)
        objections += self._new(rest, known)
        return tuple(dict.fromkeys(objections))

    def remark(self, text: str, *, cited: Sequence[str], shown: Collection[str]) -> tuple[Objection, ...]:
        """What is wrong with a remark on what pictures show: only looks of cells, of pictures that were given."""
        text = text.strip()
        formal = self._form(text)
        if formal:
            return formal
        if len(text) > REMARK_LENGTH:
            return (Objection("form", f"{len(text)} characters"),)
        objections = [Objection("evidence", name) for name in sorted({*cited, *IDS.findall(text)} - set(shown))]
        if not cited:
            objections.append(Objection("evidence", "none"))
        objections += [Objection("number", value) for value in numbers(text, self.language)]
        named, rest = self.names.taken_out(IDS.sub(" ", text))
        if named:
            objections.append(Objection("category", self._differing(text, named, [])))
        words = lexicon(self.language)
        denial = re.search(words["negation"], rest, re.IGNORECASE)
        if denial:
            objections.append(Objection("negation", denial[0]))
        objections += self._classes(rest, "")
        objections += self._prohibited(text, "")
        if not re.search(words["morphology"], rest, re.IGNORECASE):
            objections.append(Objection("invention", "not about cells"))
        return tuple(dict.fromkeys(objections))

    # ------------------------------------------------------------------------------------------ the parts

    def _form(self, text: str) -> tuple[Objection, ...]:
        if not text or not any(character.isalpha() for character in text):
            return (Objection("form", "empty"),)
        if len(text) > LONGEST:
            return (Objection("form", f"{len(text)} characters"),)
        if any(not character.isprintable() and character not in "\u202f\u00a0\u2009" for character in text):
            return (Objection("form", "control character"),)
        if not text.endswith(_ENDS):
            return (Objection("form", "no end"),)
        chinese = sum("\u4e00" <= character <= "\u9fff" for character in text)
        if (self.language == "zh") != (chinese > 3):
            return (Objection("form", "another language"),)
        return ()

    def _numbers(self, text: str, finding: str) -> list[Objection]:
        written, expected = numbers(text, self.language), numbers(finding, self.language)
        if written == expected:
            return []
        extra = list((Counter(written) - Counter(expected)).elements())
        lost = list((Counter(expected) - Counter(written)).elements())
        if not extra and not lost:
            return [Objection("number", f"{', '.join(written)} in another order")]
        if not extra:
            return [Objection("omission", ", ".join(lost))]
        return [Objection("number", ", ".join(extra))]

    def _differing(self, text: str, named: Sequence[int], expected: Sequence[int]) -> str:
        """The name that makes the difference, as written; or that one is left out."""
        extra = Counter(named) - Counter(expected)
        text = plain(IDS.sub(" ", text))
        for match in self.names.pattern.finditer(text):
            if extra[self.names.groups[match[0].casefold()]]:
                return match[0]
        return "left out"

    def _classes(self, rest: str, known: str) -> list[Objection]:
        """Both sentences without their names: denials as many, and no class of words where the finding has none."""
        words = lexicon(self.language)
        objections = []
        if known:
            denied, meant = (
                len(re.findall(words["negation"], self._without_kept(part), re.IGNORECASE)) for part in (rest, known)
            )
            if denied != meant:
                objections.append(Objection("negation", f"{denied} denials for {meant}"))
        for group in words["classes"]:
            objections += _class(group, rest, known)
        return objections

    @staticmethod
    def _without_kept(text: str) -> str:
        return re.sub(r"\bnot read from the slide\b", " ", text, flags=re.IGNORECASE)

    def _prohibited(self, text: str, finding: str) -> list[Objection]:
        """What the reporting system says that no image shows; the finding's own words do not count."""
        broken = set(self.system.violations(text)) if text else set()
        own = {item.code for item in self.system.violations(finding)} if finding else set()
        return [
            Objection("ancillary" if item.ancillary else "invention", item.text)
            for item in sorted(broken, key=lambda item: item.code)
            if item.code not in own
        ]

    @staticmethod
    def _supplied(text: str, finding: str) -> list[Objection]:
        """A result that the user supplied is repeated word for word."""
        result = re.split(r"[:：]\s*", finding, maxsplit=1)[-1].rstrip(".。")
        return [] if result.casefold() in text.casefold() else [Objection("ancillary", "not as supplied")]

    def _new(self, rest: str, known: str) -> list[Objection]:
        """Too many words that the finding does not have make a statement of their own."""
        neutral = re.compile(lexicon(self.language)["neutral"], re.IGNORECASE)
        if self.language == "zh":
            new = [c for c in rest if "\u4e00" <= c <= "\u9fff" and c not in known and not neutral.match(c)]
            return [Objection("invention", "".join(new))] if len(new) > NEW_CHARACTERS else []
        have = {word[:5] for word in re.findall(r"[a-z]{4,}", known.casefold())}
        new = [
            word
            for word in re.findall(r"[a-z]{4,}", rest.casefold())
            if word[:5] not in have and not neutral.match(word)
        ]
        return [Objection("invention", ", ".join(new))] if len(new) > NEW_WORDS else []


def _class(group: dict[str, Any], rest: str, known: str) -> list[Objection]:
    pattern = re.compile(group["terms"], re.IGNORECASE)
    used = [match[0].casefold() for match in pattern.finditer(rest)]
    known_words = {match[0].casefold() for match in pattern.finditer(known)}
    objections = []
    if group.get("forbid"):
        strange = [word for word in used if word not in known_words] if group.get("exact") or not known_words else []
        objections += [Objection(group["kind"], word.strip()) for word in strange]
    if group.get("keep"):
        lost = sorted(known_words - set(used)) if group.get("exact") else sorted(known_words) if not used else []
        objections += [Objection("omission", word) for word in lost]
    return objections


def check_narrative(
    written: Sequence[Written],
    findings: Sequence[Sentence],
    *,
    system: System,
    language: Language,
    shown: Collection[str] = (),
    remark: str = "{text}",
) -> tuple[Sentence, ...]:
    """The narrative that may stand: for each finding the model's sentence, or the template's where it failed.

    Args:
        written: the model's lines, in any order; a second line for one finding is left out.
        findings: the template's sentences, which are what the lines are numbered by (from 1).
        shown: ids of the tiles and findings whose pictures the model was given; remarks may cite no others.
        remark: how a remark is introduced, with ``{tile}`` and ``{text}``.

    Returns:
        As many sentences as findings, in their order, with the remarks that passed after them. A replaced one has
        source ``template_after_check`` and the reasons in ``replaced``; remarks that fail are left out.
    """
    checker = Checker.of(system, language)
    by_number: dict[int, Written] = {}
    for line in written:
        if line.number is not None:
            by_number.setdefault(line.number, line)
    settled = [_settled(checker, by_number.get(n), finding) for n, finding in enumerate(findings, start=1)]
    remarks: list[Sentence] = []
    for line in written:
        if line.number is not None or len(remarks) >= REMARKS or not line.whole:
            continue
        if not checker.remark(line.text, cited=line.cited, shown=shown):
            text = remark.format(tile=", ".join(line.cited), text=line.text)
            remarks.append(Sentence(text=text, evidence=tuple(dict.fromkeys(line.cited)), source="model"))
    return (*settled, *remarks)


def _settled(checker: Checker, line: Written | None, finding: Sentence) -> Sentence:
    if line is None:
        objections: tuple[Objection, ...] = (Objection("missing"),)
    elif not line.whole:
        objections = (Objection("truncated"),)
    else:
        objections = checker.sentence(line.text, finding, cited=line.cited)
    if line is None or objections:
        replaced = "; ".join(str(objection).replace(";", ",") for objection in objections)
        return finding.model_copy(update={"source": "template_after_check", "replaced": replaced})
    return Sentence(text=line.text.strip(), evidence=finding.evidence, source="model")
