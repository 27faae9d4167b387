"""What is wrong with a reporting system's file: where, which value, and the way out, one problem at a time."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from wsi_chat.terminology.fields import Misfit

_LONGEST = 60
_ENTRY = re.compile(r"([a-z_]+)\[(\d+)\]")


class Problem(NamedTuple):
    """``path`` from the root of the file (``labels[2].color``), empty for the whole of it."""

    path: str
    value: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path or 'the file'}: {self.message}{f' ({self.value})' if self.value else ''}"


def problems(
    error: ValidationError, model: type[BaseModel], content: Mapping[str, Any] | None = None
) -> tuple[Problem, ...]:
    """Every problem that validation found, in the order of the file.

    Args:
        content: of a file that extends another: entries of lists are then named by their codes, since their
            numbers are not those of the file.
    """
    known = sorted(_field_names(model, set()))
    found = [_problem(item, known) for item in error.errors(include_url=False)]
    return tuple(problem._replace(path=_by_code(problem.path, content or {})) for problem in found)


def _by_code(path: str, content: Mapping[str, Any]) -> str:
    """``labels[19].color`` as ``labels[new].color``, where that entry has the code ``new``."""
    match = _ENTRY.match(path)
    if match is None:
        return path
    entries, number = content.get(match[1]), int(match[2])
    entry = entries[number] if isinstance(entries, list) and number < len(entries) else None
    code = entry.get("code") if isinstance(entry, dict) else None
    return f"{match[1]}[{code}]{path[match.end() :]}" if isinstance(code, str) else path


def _problem(item: Mapping[str, Any], known: Sequence[str]) -> Problem:
    place, kind = _place(item["loc"]), item["type"]
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, Misfit):
        path = f"{place}.{cause.path}" if place and cause.path else place or cause.path
        return Problem(path, _shown(cause.value), str(cause), cause.hint)
    if kind == "missing":
        return Problem(place, "", "is missing", "Add it; the files of wsi_chat/terminology have it.")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"Write {near[0]!r}, or remove it." if near else "Remove it."
        return Problem(place, _shown(item["input"]), "is no field of a reporting system", hint)
    text = item["msg"].removeprefix("Value error, ")
    return Problem(place, f"got {_shown(item['input'])}", text[:1].lower() + text[1:], _way_out(kind, item))


def _way_out(kind: str, item: Mapping[str, Any]) -> str:
    context = item.get("ctx", {})
    if kind == "literal_error":
        return f"Choose one of: {context.get('expected', 'the values listed')}."
    if kind == "string_pattern_mismatch":
        return "Use small letters, digits and dashes."
    if kind == "string_type":
        return "Put the value in quotes: YAML reads it as something else than text."
    return "Correct the value."


def _place(location: Iterable[int | str]) -> str:
    """``('labels', 2, 'color')`` as ``labels[2].color``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _field_names(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[str]:
    """Names of all fields of a model and of the models within it."""
    seen.add(model)
    names = set(model.model_fields)
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            if inner not in seen:
                names |= _field_names(inner, seen)
    return names


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _models(part)
