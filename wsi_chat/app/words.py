"""The words of the page in one language; names of classes and verdicts are those of the report's own catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from reports.language import Words
from wsi_chat.remarks import LANGUAGES
from wsi_chat.schema import Language

if TYPE_CHECKING:
    from wsi_chat.terminology import System


class PageWords:
    """What the page says. ``report`` has the words of reports: verdicts, adequacy, class names, remarks."""

    def __init__(self, language: Language, system: System | None = None) -> None:
        self.language = language
        self.report = Words(language, system)
        self._texts = _texts(language)

    def __call__(self, key: str, /, **fields: object) -> str:
        """The text of ``section.key``, or of ``key``, with its fields filled in."""
        found: Any = self._texts
        for part in key.split("."):
            found = found[part]
        text = str(found)
        if "{n:" in text:
            return self.report_counting(text, **fields)
        return text.format(**fields) if fields else text

    def report_counting(self, text: str, **fields: object) -> str:
        """A text whose words follow a number: ``{n:slide|slides}``."""
        n = fields["n"]
        start, end = text.index("{n:"), text.index("}", text.index("{n:"))
        one, many = text[start + 3 : end].split("|")
        return (text[:start] + (one if n == 1 else many) + text[end + 1 :]).format(**fields)

    def section(self, name: str) -> dict[str, Any]:
        return dict(self._texts[name])

    def label(self, code: str, name: str) -> str:
        return self.report.label(code, name)


def language_of(wanted: str | None, default: Language) -> Language:
    """``zh`` for every Chinese tag, ``en`` for every English one, else the default."""
    base = (wanted or "").split("-")[0].casefold()
    return next((language for language in LANGUAGES if language == base), default)


@cache
def _texts(language: Language) -> Mapping[str, Any]:
    text = resources.files("wsi_chat.app").joinpath(f"languages/{language}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded
