"""Sentences that the program itself writes: a code and fields, put into words from one catalogue per language.

A `Remark` is made where something is noticed, far below the reports. It reads as its English text, so that messages,
tables and report.json need no catalogue, and keeps its code and fields, so that a report in another language is
written from the same facts and not from the English sentence. The words are data: ``languages/en.yaml`` and
``languages/zh.yaml``, section ``remarks``.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import yaml

from wsi_chat.errors import SettingError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

FieldValue: TypeAlias = "str | bool | int | float | Remark | Sequence[FieldValue]"
NameOf: TypeAlias = Callable[[str, str, str], str]
"""(kind, code, English name) -> the name in the language; kinds are those of the section ``name``."""

VERBATIM = "verbatim"


class Remark(str):
    """A sentence, or a part of one, by the program: a string (its English text) with a ``code`` and ``fields``.

    The code is ``section.key`` under ``remarks`` in the catalogues; fields are texts, numbers, other remarks, or lists
    of those. ``Remark("verbatim", text=...)`` is a text that has no code, such as one from an older report.

    Raises:
        KeyError: the English catalogue has no such code, or the text needs a field that is not given.
    """

    __slots__ = ("code", "fields")

    code: str
    fields: Mapping[str, FieldValue]

    def __new__(cls, code: str, /, **fields: FieldValue) -> Remark:
        return cls.restored(Phrasing("en").text(code, fields), code, fields)

    @classmethod
    def restored(cls, text: str, code: str, fields: Mapping[str, FieldValue]) -> Remark:
        """A remark as it was written down: its text stays, even where the catalogue now says it in other words."""
        made = str.__new__(cls, text)
        made.code, made.fields = code, dict(fields)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Remark.restored, (str(self), self.code, self.fields)

    def __str__(self) -> str:
        return str.__str__(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            read_remark, serialization=core_schema.plain_serializer_function_ser_schema(str.__str__)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string"}


def put_otherwise(note: str | Remark, change: Callable[[str], str]) -> str | Remark:
    """The same remark with every text among its fields changed; a plain text is changed itself."""
    if not isinstance(note, Remark):
        return change(note)
    fields = {name: _changed(value, change) for name, value in note.fields.items()}
    return note if fields == note.fields else Remark(note.code, **fields)


def _changed(value: FieldValue, change: Callable[[str], str]) -> FieldValue:
    if isinstance(value, str):
        return put_otherwise(value, change)
    return [_changed(item, change) for item in value] if isinstance(value, Sequence) else value


def read_remark(value: object) -> Remark:
    """A remark from what a record holds: one as it is, a plain text verbatim, a mapping of text, code and fields.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, Remark):
        return value
    if isinstance(value, str):
        return Remark(VERBATIM, text=value)
    if isinstance(value, Mapping) and isinstance(value.get("code"), str) and isinstance(value.get("fields"), Mapping):
        fields = {str(name): _field(entry) for name, entry in value["fields"].items()}
        text = value.get("text")
        if not isinstance(text, str):
            text = Phrasing("en").text(value["code"], fields) if is_known(value["code"]) else value["code"]
        return Remark.restored(text, value["code"], fields)
    raise ValueError("a remark is a text, or a mapping of text, code and fields")


def _field(value: object) -> FieldValue:
    if isinstance(value, Mapping):
        return read_remark(value)
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Sequence):
        return tuple(_field(entry) for entry in value)
    raise ValueError(f"{value!r} cannot be a field of a remark")


def plain_fields(remark: Remark) -> dict[str, Any]:
    """The fields as JSON has them; a remark among them becomes a mapping of text, code and fields."""
    return {name: _plain(value) for name, value in remark.fields.items()}


def _plain(value: FieldValue) -> Any:
    if isinstance(value, Remark):
        return {"text": str(value), "code": value.code, "fields": plain_fields(value)}
    if isinstance(value, str | bool | int | float):
        return value
    return [_plain(entry) for entry in value]


def remarks_in(value: object, at: str = "") -> Iterator[tuple[str, Remark]]:
    """Every remark of a record (a pydantic model) with its place, e.g. ``verdict.adequacy.notes.0``."""
    fields = getattr(type(value), "model_fields", None)
    if isinstance(value, Remark):
        yield at, value
    elif fields is not None:
        for name in fields:
            yield from remarks_in(getattr(value, name), f"{at}.{name}" if at else name)
    elif isinstance(value, tuple):
        for place, entry in enumerate(value):
            yield from remarks_in(entry, f"{at}.{place}")


def put_back(data: dict[str, Any], at: str, remark: Mapping[str, Any]) -> None:
    """Replace the text at a place of ``data`` by a mapping of text, code and fields, as `read_remark` takes it.

    A place that is not there is passed over. What lies on the way is copied, so that the caller's data stays.
    """
    *path, last = at.split(".")
    holder: Any = data
    for step in path:
        key = _key(holder, step)
        if key is None or not isinstance(holder[key], dict | list | tuple):
            return
        entry = holder[key]
        holder[key] = dict(entry) if isinstance(entry, dict) else list(entry)
        holder = holder[key]
    key = _key(holder, last)
    if key is not None and isinstance(holder[key], str):
        holder[key] = {"text": holder[key], **remark}


def _key(holder: Any, step: str) -> Any:
    if isinstance(holder, list):
        return int(step) if step.isdecimal() and int(step) < len(holder) else None
    return step if step in holder else None


def together(*parts: Remark | str) -> Remark:
    """Several sentences as one remark; empty ones are left out, and a single one stays what it is."""
    said = [read_remark(part) for part in parts if part]
    return said[0] if len(said) == 1 else Remark("together.sentences", parts=said)


# ---------------------------------------------------------------------------------------------- putting into words


@cache
def catalogue(language: str) -> Mapping[str, Any]:
    """Everything that the program says in a language, by section.

    Raises:
        SettingError: a language that there is no catalogue for.
    """
    if language not in LANGUAGES:
        raise SettingError(f"--language {language!r} is not known.", hint=f"Choose one of: {', '.join(LANGUAGES)}.")
    text = resources.files("wsi_chat").joinpath(f"languages/{language}.yaml").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return data


def is_known(code: str, language: str = "en") -> bool:
    """Whether the catalogue of a language has words for a code."""
    section, _, key = code.partition(".")
    entry = catalogue(language)["remarks"].get(section)
    return key in entry if isinstance(entry, Mapping) else entry is not None and not key


class Phrasing(string.Formatter):
    """Fills the texts of one language's catalogue.

    ``{n}`` writes a number as reports do, ``{n:tile|tiles}`` the word that fits it, ``{p:percent}`` a fraction as
    percent. Lists: ``{parts}`` joins with commas, ``{parts:and}`` and ``{parts:or}`` with that word before the last,
    ``{parts:;}`` with semicolons, ``{parts:sentences}`` sentence after sentence. Other specs are Python's own.

    Args:
        name_of: how names of classes and categories are said; the English name by default.
    """

    def __init__(self, language: str, name_of: NameOf | None = None) -> None:
        self.language = language
        self._catalogue = catalogue(language)
        self._name_of = name_of

    def fill(self, template: str, fields: Mapping[str, Any]) -> str:
        """The template with its fields; between a Chinese character and a Latin one where two parts meet is a space."""
        filled = ""
        for literal, name, spec, conversion in self.parse(template):
            filled = _joined(filled, literal)
            if name is not None:
                value = self.convert_field(self.get_field(name, (), fields)[0], conversion)
                filled = _joined(filled, self.format_field(value, spec or ""))
        return filled

    def text(self, code: str, fields: Mapping[str, FieldValue]) -> str:
        """The words for a code. Raises KeyError where the catalogue has none, or a field is missing."""
        section, _, key = code.partition(".")
        entry = self._catalogue["remarks"][section]
        if section == "name" and self._name_of is not None:
            return self._name_of(key, str(fields["code"]), str(fields["name"]))
        return self.fill(entry[key] if key else entry, fields)

    def remark(self, remark: str) -> str:
        """A remark in this language: in its own words, or in English where the catalogue does not know it."""
        if not isinstance(remark, Remark) or remark.code == VERBATIM or not is_known(remark.code, self.language):
            return str(remark)
        try:
            return self.text(remark.code, remark.fields)
        except (KeyError, ValueError):  # fields of another version
            return str(remark)

    def format_field(self, value: Any, format_spec: str) -> str:
        if "|" in format_spec:
            one, many = format_spec.split("|")
            return one if value == 1 else many
        if isinstance(value, Remark):
            return str(value) if self.language == "en" else self.remark(value)
        if isinstance(value, str):
            return value
        if isinstance(value, Sequence):
            return self._listed([self.format_field(part, "") for part in value], format_spec)
        if format_spec == "percent":
            return percent(value)
        if isinstance(value, int) and not format_spec:
            return number(value)
        return str(super().format_field(value, format_spec))

    def _listed(self, words: Sequence[str], kind: str) -> str:
        joints = self._catalogue["listing"]
        if kind in ("and", "or"):
            return listed(words, between=joints["between"], last=joints["last" if kind == "and" else "or"])
        return str({"": joints["between"], ";": joints["semicolon"], "sentences": joints["gap"]}[kind]).join(words)


_SEAM = re.compile(r"[\u3400-\u9fff][A-Za-z0-9]|[A-Za-z0-9%][\u3400-\u9fff]")


def _joined(left: str, right: str) -> str:
    """Both texts, with a space where a Chinese character would touch a Latin letter or a digit; neither is changed."""
    return f"{left} {right}" if _SEAM.fullmatch(left[-1:] + right[:1]) else left + right


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 tile``, ``2 tiles``."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def listed(words: Sequence[str], *, between: str = ", ", last: str = " and ") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return "".join(words) if len(words) < 2 else f"{between.join(words[:-1])}{last}{words[-1]}"


def number(value: float) -> str:
    """A count or measure with a thin space between thousands: ``12 345``, ``0.87``."""
    if float(value).is_integer():
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.2f}"


def percent(fraction: float) -> str:
    """A fraction as percent, never rounded up to 100 nor down to 0 where it is neither: ``98.7 %``."""
    value = fraction * 100
    if 99.95 <= value < 100:
        return ">\u202f99.9\u202f%"
    if 0 < value < 0.05:
        return "<\u202f0.1\u202f%"
    return f"{value:.1f}".removesuffix(".0") + "\u202f%"
