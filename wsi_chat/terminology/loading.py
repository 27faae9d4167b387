"""Reading reporting systems: those in this package by specimen code, a user's own by path.

A file that does not validate is an error that names the file, the key path, the value and the way out; nothing is
guessed. ``extends: cervix-tbs2014`` (a system of the package, or another file) takes every field that a file leaves
out from there, but for those that say which system it is: mappings are merged key by key, lists whose entries have
a ``code`` entry by entry, and all else is replaced.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wsi_chat.bounded import load_yaml
from wsi_chat.errors import DocumentError, SettingError, TerminologyError
from wsi_chat.names import from_home
from wsi_chat.terminology.problems import Problem, problems
from wsi_chat.terminology.system import System

_HERE = Path(__file__).parent
_UNSPECIFIED = "unspecified"
_SUFFIXES = (".yaml", ".yml")
# Which system a file is; never taken from the one that it extends.
_OWN = frozenset({"code", "name", "version", "specimens", "preparations"})


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
        return _read(from_home(specimen))
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
    systems = tuple(sorted((_read(path) for path in _HERE.glob("[!_]*.yaml")), key=lambda system: system.code))
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
    """A validated system. Raises TerminologyError, which names the first problems."""
    system, found = check_file(path)
    if system is not None:
        return system
    first = "; ".join(map(str, found[:3]))
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    raise TerminologyError(f"Reporting system {path}: {first}{more}.", hint=found[0].hint)


def check_file(path: Path) -> tuple[System | None, tuple[Problem, ...]]:
    """A system's file: the system, or all that is wrong with it.

    Raises:
        TerminologyError: the file, or one that it extends, is missing or is no YAML mapping.
    """
    content = _content(path)
    try:
        return System.model_validate(content), ()
    except ValidationError as error:
        return None, problems(error, System, content if "extends" in _parsed(path) else None)


def _content(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a file together with those of the files that it extends."""
    data = _parsed(path)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise TerminologyError(
            f"Reporting system {path}: extends: is no name ({base!r}).",
            hint="Name one reporting system or one .yaml file.",
        )
    chain = (*below, path.resolve())
    parent = _base(base, path)
    if parent.resolve() in chain:
        loop = " -> ".join(step.name for step in (*chain[chain.index(parent.resolve()) :], parent))
        raise TerminologyError(
            f"Reporting system {path}: extends: {base!r} leads back to itself ({loop}).",
            hint="Take extends out of one of these files.",
        )
    inherited = {key: value for key, value in _content(parent, chain).items() if key not in _OWN}
    merged: dict[str, Any] = _merged(inherited, data)
    return merged


def _base(name: str, path: Path) -> Path:
    """The file that ``extends`` means: a path from the file's own folder, or a system of this package."""
    if name.lower().endswith(_SUFFIXES):
        return path.parent / from_home(name)
    shipped = {file.stem: file for file in _HERE.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    raise TerminologyError(
        f"Reporting system {path}: extends: {name!r} is not known.",
        hint=f"Use one of: {', '.join(sorted(shipped))}; or the path of a .yaml file.",
    )


def _merged(base: Any, own: Any) -> Any:
    """The own value over the inherited one: mappings key by key, lists of coded entries code by code."""
    if isinstance(base, dict) and isinstance(own, dict):
        return base | {key: _merged(base[key], value) if key in base else value for key, value in own.items()}
    if _is_coded(base) and _is_coded(own):
        entries = {entry["code"]: entry for entry in base}
        codes = [entry["code"] for entry in own]
        if len(set(codes)) == len(codes):  # a code given twice is left for validation to name
            for entry in own:
                entries[entry["code"]] = _merged(entries.get(entry["code"], {}), entry)
            return list(entries.values())
        return [*base, *own]
    return own


def _is_coded(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("code"), str) for entry in value
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        data = load_yaml(path)
    except DocumentError as error:
        raise TerminologyError(f"Reporting system {error.message}", hint=error.hint) from error
    if not isinstance(data, dict):
        raise TerminologyError(
            f"Reporting system {path}: holds {type(data).__name__}, not a mapping of fields.",
            hint="Start from a file of wsi_chat/terminology.",
        )
    return data
