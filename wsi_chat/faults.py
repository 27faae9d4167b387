"""What a settings model does not accept, in words: pydantic's own speak of inputs, parsing and types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

_NUMBERS = frozenset(
    {
        "int_parsing", "int_parsing_size", "int_type", "int_from_float", "float_parsing", "float_type", "finite_number",
        "greater_than", "greater_than_equal", "less_than", "less_than_equal",
    }
)  # fmt: skip
_KINDS = {
    "bool_parsing": "Give yes or no.",
    "bool_type": "Give yes or no.",
    "string_type": "Give a text.",
    "tuple_type": "Give a list.",
    "list_type": "Give a list.",
    "missing": "It must be given.",
    "extra_forbidden": "There is no such setting.",
    "too_short": "Give at least one.",
}
_LIMITS = {"gt": "above {:g}", "ge": "{:g} or more", "lt": "below {:g}", "le": "{:g} or less"}


def way_out(fault: Mapping[str, Any], field: FieldInfo | None) -> str:
    """What to give instead, as a sentence.

    Args:
        fault: one of `pydantic.ValidationError.errors`.
        field: the declaration that the value does not fit, which knows all its limits; None where there is none.
    """
    kind = fault["type"]
    if kind in _NUMBERS and field is not None:
        return _number(field)
    if kind == "literal_error":
        return f"Choose {_choices(fault, field)}."
    if kind in _KINDS:
        return _KINDS[kind]
    return f"{str(fault['msg']).removeprefix('Value error, ').removesuffix('.')}."


def _number(field: FieldInfo) -> str:
    """``Give a whole number from 1 to 64.``"""
    whole = int in (field.annotation, *get_args(field.annotation))
    found = {name: getattr(limit, name) for limit in field.metadata for name in _LIMITS if hasattr(limit, name)}
    if {"ge", "le"} <= set(found):
        limits = f" from {found['ge']:g} to {found['le']:g}"
    else:
        limits = " and".join(f" {_LIMITS[name].format(limit)}" for name, limit in found.items())
        limits = f", {limits.strip()}" if "ge" in found or "le" in found else limits
    return f"Give a {'whole ' if whole else ''}number{limits}."


def _choices(fault: Mapping[str, Any], field: FieldInfo | None) -> str:
    """``pdf, html or json``."""
    annotation = field.annotation if field is not None else None
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            *most, last = map(str, get_args(part))
            return f"{', '.join(most)} or {last}" if most else last
    return str((fault.get("ctx") or {}).get("expected", "another value"))
