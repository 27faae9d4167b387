"""What a sentence mentions, as it can be compared: its numbers, and the categories and classes it names.

Used to hold a model's sentence against the finding that it is about; nothing here judges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any

import yaml

from wsi_chat.terminology import System, specimens

MARK = "§"  # stands for a name that was taken out of a sentence
IDS = re.compile(r"(?<![A-Za-z0-9])[ft]\d{3,}(?![A-Za-z0-9])")
_NUMBER = re.compile(
    r"(?P<sign>[<>≤≥≈~]\s*)?(?P<minus>(?<![\w\d])[-−])?"
    r"(?P<digits>\d{1,3}(?:[,\u202f\u2009\u00a0]\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"(?P<unit>\s*(?:%|percent\b|per cent\b|‰))?"
)
_SPACES = re.compile(r"[\s\u202f\u00a0_‐‑–-]+")


@cache
def lexicon(language: str) -> Mapping[str, Any]:
    """The words of one language that decide about a sentence; see ``lexicon.yaml``."""
    text = resources.files("reports").joinpath("lexicon.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    chosen: dict[str, Any] = data[language]
    return chosen


def numbers(text: str, language: str = "en") -> list[str]:
    """Every number of a sentence in its order, in one spelling: ``12 345`` and ``12,345`` alike, words as digits.

    Percent signs and signs of comparison belong to the number; ids of tiles and findings are no numbers.
    """
    words = lexicon(language)
    spelled = {name: value for value, name in enumerate(words["numerals"])} | dict(words["tens"])
    if spelled:
        pattern = rf"\b({'|'.join(spelled)})\b"
        text = re.sub(pattern, lambda match: str(spelled[match[0].casefold()]), text, flags=re.IGNORECASE)
    found = []
    for match in _NUMBER.finditer(IDS.sub(" ", text)):
        value = Decimal(re.sub(r"[^\d.]", "", match["digits"])).normalize()
        sign = (match["sign"] or "").strip() + ("-" if match["minus"] else "")
        found.append(f"{sign}{value:f}{'%' if match['unit'] else ''}")
    return found


@dataclass(frozen=True, slots=True)
class Names:
    """Names of categories and classes of every reporting system: how each is written, and what it stands for.

    ``groups`` maps a spelling to its group: spellings that mean one thing (``HSIL``, its full name, its Chinese
    name) share a group.
    """

    groups: Mapping[str, int]
    pattern: re.Pattern[str]

    def taken_out(self, text: str) -> tuple[list[int], str]:
        """The groups that a sentence names, in order, and the sentence with a mark in place of each name."""
        text = plain(text)
        found = [self.groups[match[0].casefold()] for match in self.pattern.finditer(text)]
        return found, self.pattern.sub(MARK, text)


def names_of(system: System) -> Names:
    """The names of this system and of every one that ships with the package."""
    return _names(system.model_dump_json())


@cache
def _names(system: str) -> Names:
    own = System.model_validate_json(system)
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents[name] != name:
            name = parents[name]
        return name

    for one in (own, *(other for other in specimens() if other.code != own.code)):
        for spellings in _spellings(one):
            for name in spellings:
                parents.setdefault(name, name)
            for name in spellings[1:]:
                parents[root(name)] = root(spellings[0])
    roots = sorted({root(name) for name in parents})
    groups = {name: roots.index(root(name)) for name in parents}
    ordered = sorted(groups, key=lambda name: (-len(name), name))
    return Names(groups, re.compile("|".join(map(_bounded, ordered)), re.IGNORECASE))


def _spellings(system: System) -> Iterable[list[str]]:
    """For each label and category of a system, the ways to write it, normalised."""
    chinese = system.zh
    for label in system.labels:
        names = [label.name, label.long_name, label.plural]
        if chinese is not None and label.code in chinese.labels:
            names += [chinese.labels[label.code].name, chinese.labels[label.code].long_name]
        if label.name.isupper() or "-" in label.name:
            names.append(label.code)
        yield _normal(names)
    for category in system.categories:
        names = [category.name, category.long_name]
        if chinese is not None and category.code in chinese.categories:
            text = chinese.categories[category.code]
            inner = re.search(r"（(.+)）$", text)
            names += [text, *([inner[1]] if inner else [])]
        yield _normal(names)


def _normal(names: Iterable[str]) -> list[str]:
    spelled = (plain(name).casefold().strip() for name in names)
    return list(dict.fromkeys(name for name in spelled if len(name) > 1))


def plain(text: str) -> str:
    """One kind of space between words, which stands for hyphens too."""
    return _SPACES.sub(" ", text)


def _bounded(name: str) -> str:
    """A pattern for a name: whole words in Latin letters, anywhere in Chinese."""
    start = r"(?<![A-Za-z0-9])" if name[0].isascii() and name[0].isalnum() else ""
    end = r"(?![A-Za-z0-9])" if name[-1].isascii() and name[-1].isalnum() else ""
    return f"{start}{re.escape(name)}{end}"
