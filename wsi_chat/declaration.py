"""How a setting is declared: once, with all that its option, its key, its documentation and its use are made from.

Beside its type, default and limits a field of a settings model says what it is for, its unit, the panel of ``--help``
that lists it, and what it affects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationInfo, field_validator

ENV_PREFIX = "WSI_CHAT_"

Affects = Literal["answers", "documents", "speed"]
"""``answers``: what is asked and what the model is shown; ``documents``: what is made of the answers, the verdict
among it; ``speed``: neither, only how long it takes."""


def setting(
    default: Any,
    description: str,
    *,
    panel: str,
    affects: Affects,
    unit: str = "",
    unset: str = "",
    rare: bool = False,
    condition: bool = True,
    flags: str = "",
    **limits: Any,
) -> Any:
    """Declare one field of `Settings`.

    Args:
        default: its value where nobody gives one.
        description: one or two sentences, for ``--help`` and docs/settings.md alike.
        panel: the part of ``--help`` that lists it.
        affects: see `Affects`.
        unit: of a number, e.g. ``µm/px``; the placeholder of the option.
        unset: what a default of None means, in words.
        rare: set in a YAML file or the environment; ``--help`` does not list it.
        condition: of a setting that affects answers: an aggregator fitted under one value holds for that value
            alone. False for what the conditions of a fit name in other ways (the model by its revision).
        flags: the option's names where they are not ``--name``, or of a switch ``--name/--no-name``.
        **limits: as of `pydantic.Field`: ``ge``, ``gt``, ``le``, ``lt``.
    """
    about: dict[str, Any] = {
        "panel": panel, "affects": affects, "unit": unit, "unset": unset, "rare": rare,
        "condition": condition and affects == "answers", "flags": flags,
    }  # fmt: skip
    return Field(default, description=description, json_schema_extra=about, **limits)


class Strict(BaseModel):
    """A settings model in which yes and no are no numbers: pydantic reads ``limit: true`` of a YAML file as 1."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[info.field_name or ""].annotation
        wanted = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and wanted & {int, float} and bool not in wanted:
            written = "true" if value else "false"
            raise ValueError(
                f"Write a number, or leave the setting out: {written} (also written yes, no, on or off) is none"
            )
        return value


@dataclass(frozen=True, slots=True)
class Declared:
    """One setting as it was declared; see `setting` for what the fields mean."""

    name: str
    annotation: Any
    default: Any
    description: str
    limits: str
    panel: str
    affects: Affects
    unit: str
    unset: str
    rare: bool
    condition: bool
    flags: str

    @property
    def option(self) -> str:
        """Its name on the command line, ``--top-k``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """Its name in the environment, ``WSI_CHAT_TOP_K``."""
        return f"{ENV_PREFIX}{self.name.upper()}"

    @property
    def choices(self) -> tuple[str, ...]:
        """What it may be, where that is one of a few words; of a list, each part of it."""
        for part in (self.annotation, *get_args(self.annotation)):
            if get_origin(part) is Literal:
                return get_args(part)
        return ()

    @property
    def default_text(self) -> str:
        """The default as a user would write it, or what it means to leave the setting out."""
        if self.default is None or self.default == ():
            return self.unset or "none"
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        if isinstance(self.default, tuple):
            return ",".join(self.default)
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@cache
def declared_in(model: type[BaseModel]) -> Mapping[str, Declared]:
    """Every setting of a model by its name, in the order of its declaration."""
    found = {}
    for name, field in model.model_fields.items():
        about: Any = field.json_schema_extra
        limits = [
            f"{sign} {getattr(limit, kind):g}"
            for limit in field.metadata
            for kind, sign in _SIGNS.items()
            if hasattr(limit, kind)
        ]
        found[name] = Declared(
            name, field.annotation, field.default, field.description or "", " and ".join(limits), **about
        )
    return found
