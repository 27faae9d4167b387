"""The words of a report in one language, for one reporting system; what is said is data (``languages/*.yaml``).

Numbers, codes and evidence are the same in every language. A name or a sentence without a translation is shown in
English, never left out.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, get_args

import yaml

from reports.wording import number
from wsi_chat.errors import SettingError, TerminologyError
from wsi_chat.schema import Count, Language, Report, SlideVerdict

if TYPE_CHECKING:
    from wsi_chat.terminology import System
    from wsi_chat.terminology.translation import Translation

LANGUAGES: tuple[Language, ...] = get_args(Language)


class _Counting(string.Formatter):
    """``{n}`` writes a number as reports do; ``{n:tile|tiles}`` writes the word that fits it."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if "|" in format_spec:
            one, many = format_spec.split("|")
            return one if value == 1 else many
        if isinstance(value, int) and not format_spec:
            return number(value)
        return str(super().format_field(value, format_spec))


class Words:
    """What a report says in one language.

    Args:
        language: ``en`` or ``zh``.
        system: whose labels and categories are named; None where only the report's own words are needed.

    Raises:
        SettingError: a language that there is no catalogue for.
    """

    def __init__(self, language: Language = "en", system: System | None = None) -> None:
        self.language = language
        self.system = system
        self._catalogue = _catalogue(language)
        self._names: Translation | None = system.zh if system is not None and language == "zh" else None

    def __call__(self, key: str, /, **fields: object) -> str:
        """The text of ``section.key`` with its fields filled in."""
        section, _, name = key.partition(".")
        return _Counting().vformat(self._catalogue[section][name], (), fields)

    def section(self, name: str) -> dict[str, str]:
        """Every text of a section, unfilled; for the templates."""
        return dict(self._catalogue[name])

    # ------------------------------------------------------------------------------------------ joining

    def listed(self, words: Sequence[str], *, last: str = "last") -> str:
        """``a``, ``a and b``, ``a, b and c``; ``last="or"`` for or."""
        joints = self._catalogue["listing"]
        if len(words) < 2:
            return "".join(words)
        return f"{joints['between'].join(words[:-1])}{joints[last]}{words[-1]}"

    @property
    def between(self) -> str:
        """What stands between two parts of a line: a comma, or its Chinese counterpart."""
        return "，" if self.language == "zh" else ", "

    @property
    def stop(self) -> str:
        return str(self._catalogue["stop"])

    @property
    def gap(self) -> str:
        """What stands between two sentences."""
        return "" if self.language == "zh" else " "

    def quoted(self, text: str) -> str:
        left, right = self._catalogue["quotes"]
        return f"{left}{text}{right}"

    # ------------------------------------------------------------------------------------------ names

    def label(self, code: str, name: str) -> str:
        """The short name of a label; ``name`` is what the report holds."""
        found = self._names.labels.get(code) if self._names else None
        return found.name if found else name

    def label_in_full(self, code: str, name: str) -> str:
        """A label with its full name where that says more than the short one: ``HSIL（高级别鳞状上皮内病变）``."""
        found = self._names.labels.get(code) if self._names else None
        if found is None:
            return name
        if found.long_name.startswith(found.name):
            return found.long_name
        left, right = self._catalogue["parenthesis"]
        return f"{found.name}{left}{found.long_name}{right}"

    def noun(self, row: Count) -> str:
        """What the cells of a class are called in a sentence."""
        if self.system is not None:
            try:
                plural = self.system.label(row.label).plural
            except TerminologyError:
                pass
            else:
                return self.label_in_full(row.label, plural)
        return self("narrative.unknown_noun", name=repr(row.name))

    def category(self, verdict: SlideVerdict) -> str:
        """The verdict's category, both axes where it has two; empty without one."""
        if not verdict.category:
            return ""
        codes = verdict.category.split("+")
        known = self._names.categories if self._names else {}
        if all(code in known for code in codes):
            between: str = self._catalogue["listing"]["between"]
            return between.join(known[code] for code in codes)
        return verdict.category_name or verdict.category

    def specimen(self, report: Report) -> str:
        code = report.specimen.code.strip().casefold().replace("_", "-").replace(" ", "-")
        return (self._names.specimens.get(code) if self._names else None) or report.specimen.name

    def system_name(self, report: Report) -> str:
        return self._names.name if self._names else report.specimen.system

    def adequacy_rule(self, rule: str) -> str:
        return self._names.adequacy if self._names and rule else rule

    def question(self, topic: str) -> str:
        return self._names.screen_topic if self._names and topic else topic

    def wording(self, status: str, system: System) -> str:
        """The reporting system's sentence for a verdict."""
        source = self._names.wording if self._names else system.wording
        text: str = getattr(source, status)
        return text

    def program(self, text: str) -> str:
        """One of the program's own remarks; as it is where the language has no words for it."""
        for pattern, said in self._catalogue["program"]:
            match = re.fullmatch(pattern, text.strip())
            if match:
                return str(said).format(**match.groupdict())
        return text

    def objections(self, text: str) -> str:
        """Why a sentence was replaced: ``kind: what was found``, several of them after a semicolon."""
        known = self._catalogue["objections"]
        told = []
        for part in filter(None, text.split("; ")):
            kind, _, found = part.partition(": ")
            said = known.get(kind, kind)
            told.append(f"{said} ({found})" if found else said)
        return self.listed(told)

    def spaced(self, sentences: Iterable[str]) -> str:
        """Sentences one after another: with a space between them, or without in Chinese."""
        return self.gap.join(part for part in sentences if part)


@cache
def _catalogue(language: str) -> Mapping[str, Any]:
    if language not in LANGUAGES:
        raise SettingError(f"--language {language!r} is not known.", hint=f"Choose one of: {', '.join(LANGUAGES)}.")
    text = resources.files("reports").joinpath(f"languages/{language}.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data
