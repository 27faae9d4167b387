"""Reading reporting systems: those in this package by specimen code, a user's own by path.

A file that does not validate is an error that names the file, the field and the value; nothing is guessed.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

try:  # libyaml's parser is several times faster; PyYAML may have been built without it
    from yaml import CSafeLoader as _Loader
except ImportError:  # pragma: no cover
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

from wsi_chat.errors import SettingError, TerminologyError
from wsi_chat.terminology.system import System

_HERE = Path(__file__).parent
_UNSPECIFIED = "unspecified"
_SUFFIXES = (".yaml", ".yml")


def load_system(specimen: str | None) -> System:
    """The reporting system for a specimen.

    Args:
        specimen: a code that `specimens` lists (any case), a system's own code, the path of a YAML file
            (``.yaml`` or ``.yml``), or None where the specimen type was not given.

    Raises:
        SettingError: no system has this code; the message lists the codes.
        TerminologyError: the named file is missing, is not YAML, or does not validate.
    """
    if specimen is None:
        return load_system(_UNSPECIFIED)
    if specimen.lower().endswith(_SUFFIXES):
        return _read(Path(specimen).expanduser())
    wanted = specimen.strip().lower().replace("_", "-").replace(" ", "-")
    by_code = {code: system for system in specimens() for code in (system.code, *system.specimens)}
    if wanted in by_code:
        return by_code[wanted]
    choices = sorted(code for system in specimens() for code in system.specimens)
    near = difflib.get_close_matches(wanted, choices, n=1)
    raise SettingError(
        f"--specimen {specimen!r} is not known" + (f" (did you mean {near[0]!r}?)." if near else "."),
        hint=f"Choose one of: {', '.join(choices)}; or give the path of a .yaml file.",
    )


def specimens() -> list[System]:
    """Every system that ships with the package, by code.

    Raises:
        TerminologyError: a file of the package does not validate, or two systems claim one specimen code.
    """
    return list(_packaged())


@cache
def _packaged() -> tuple[System, ...]:
    systems = tuple(sorted((_read(path) for path in _HERE.glob("*.yaml")), key=lambda system: system.code))
    owner: dict[str, str] = {}
    for system in systems:
        for code in {system.code, *system.specimens}:
            if owner.setdefault(code, system.code) != system.code:
                raise TerminologyError(
                    f"specimen code {code!r} is claimed by {owner[code]} and {system.code}.",
                    hint="Give each specimen code to one system.",
                )
    return systems


def _read(path: Path) -> System:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TerminologyError(
            f"Reporting system {path}: cannot be read ({error}).", hint="Give the path of a UTF-8 YAML file."
        ) from error
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise TerminologyError(
            f"Reporting system {path}: not valid YAML ({' '.join(str(error).split())}).",
            hint="Mend the file at the place named.",
        ) from error
    if not isinstance(data, dict):
        raise TerminologyError(
            f"Reporting system {path}: holds {type(data).__name__}, not a mapping of fields.",
            hint="Start from a file of wsi_chat/terminology.",
        )
    try:
        return System.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = "; ".join(f"{_place(p['loc'])}: {p['msg']}" for p in problems[:3])
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise TerminologyError(
            f"Reporting system {path}: {first}{more}.", hint="Mend these fields and run again."
        ) from error


def _place(location: tuple[int | str, ...]) -> str:
    """``('labels', 2, 'color')`` as ``labels[2].color``; the whole file where it is empty."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.lstrip(".") or "the file"


class _StrictLoader(_Loader):
    """YAML without repeated keys, which plain YAML would let silently replace one another."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)
