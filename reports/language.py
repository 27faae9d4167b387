"""The words of a report in one language, for one reporting system; the texts are data (``wsi_chat/languages``).

Numbers, codes and evidence are the same in every language. A name or a sentence without a translation is shown in
English, never left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wsi_chat.errors import TerminologyError
from wsi_chat.remarks import Phrasing, catalogue, listed
from wsi_chat.schema import Count, Language, Remark, Report, SlideVerdict
from wsi_chat.terminology import System
from wsi_chat.terminology.translation import Translation


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
        self._catalogue = catalogue(language)
        self._names: Translation | None = system.zh if system is not None and language == "zh" else None
        self._phrasing = Phrasing(language, None if self._names is None else self._name)

    def __call__(self, key: str, /, **fields: object) -> str:
        """The text of ``section.key`` with its fields filled in."""
        section, _, name = key.partition(".")
        return self._phrasing.fill(self._catalogue[section][name], fields)

    def section(self, name: str) -> dict[str, str]:
        """Every text of a section, unfilled; for the templates."""
        return dict(self._catalogue[name])

    def remark(self, remark: str) -> str:
        """A remark in this language; one without words here, such as an older report's, as it is."""
        return self._phrasing.remark(remark)

    # ------------------------------------------------------------------------------------------ joining

    def listed(self, words: Sequence[str], *, last: str = "last") -> str:
        """``a``, ``a and b``, ``a, b and c``; ``last="or"`` for or."""
        joints = self._catalogue["listing"]
        return listed(words, between=joints["between"], last=joints[last])

    @property
    def between(self) -> str:
        """What stands between two parts of a line: a comma, or its Chinese counterpart."""
        return str(self._catalogue["comma"])

    @property
    def stop(self) -> str:
        return str(self._catalogue["stop"])

    @property
    def gap(self) -> str:
        """What stands between two sentences."""
        return str(self._catalogue["listing"]["gap"])

    def quoted(self, text: str) -> str:
        left, right = self._catalogue["quotes"]
        return f"{left}{text}{right}"

    # ------------------------------------------------------------------------------------------ names

    def _name(self, kind: str, code: str, name: str) -> str:
        """A name inside a remark, in the language of the report."""
        assert self._names is not None
        if kind in ("label", "cells"):
            return self.label(code, name) if kind == "label" else self.label_in_full(code, name)
        if kind == "system":
            return self._names.name
        known = {
            "category": self._names.categories,
            "component": self._names.components,
            "preparation": self._names.preparations,
        }
        return known[kind].get(code, name)

    def label(self, code: str, name: str) -> str:
        """The short name of a label; ``name`` is what the report holds."""
        found = self._names.labels.get(code) if self._names else None
        return found.name if found else name

    def label_of(self, code: str) -> str:
        """The short name of a label by its code alone; the code where the system does not have it."""
        try:
            name = code if self.system is None else self.system.label(code).name
        except TerminologyError:
            name = code
        return self.label(code, name)

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
        """The verdict's category with what cannot be excluded beside it, both axes where it has two; or nothing."""
        if not verdict.category:
            return ""
        codes = verdict.category.split("+")
        known = self._names.categories if self._names else {}
        coded = isinstance(verdict.category_name, Remark) and verdict.category_name.code != "verbatim"
        if not coded and all(code in known for code in codes):  # a report of schema 1.1
            return self.listed([known[code] for code in codes])
        return self.remark(verdict.category_name or verdict.category)

    def specimen(self, report: Report) -> str:
        code = report.specimen.code.strip().casefold().replace("_", "-").replace(" ", "-")
        return (self._names.specimens.get(code) if self._names else None) or report.specimen.name

    def system_name(self, report: Report) -> str:
        if self._names:
            return self._names.name
        held = self.system is not None and self.system.code == report.specimen.system
        return self.system.name if self.system is not None and held else report.specimen.system

    def adequacy_rule(self, rule: str) -> str:
        return self._names.adequacy if self._names and rule else rule

    def question(self, topic: str) -> str:
        return self._names.screen_topic if self._names and topic else topic

    def wording(self, status: str, system: System) -> str:
        """The reporting system's sentence for a verdict."""
        source = self._names.wording if self._names else system.wording
        text: str = getattr(source, status)
        return text

    def objections(self, text: str) -> str:
        """Why a sentence was replaced: ``kind: what was found``, several of them after a semicolon."""
        known = self._catalogue["objections"]
        reasons = []
        for part in filter(None, text.split("; ")):
            kind, _, found = part.partition(": ")
            reason = known.get(kind, kind)
            reasons.append(self("page.objection", reason=reason, found=found) if found else reason)
        return self.listed(reasons)

    def spaced(self, sentences: Iterable[str]) -> str:
        """Sentences one after another: with a space between them, or without in Chinese."""
        return self.gap.join(part for part in sentences if part)
