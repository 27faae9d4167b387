"""Results of other tests, as the user supplies them: one on the command line each, or a YAML file of them.

They are repeated word for word and marked as supplied; nothing is read from an image for them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wsi_chat.bounded import load_yaml
from wsi_chat.errors import DocumentError, SettingError
from wsi_chat.names import from_home

LONGEST = 200
MOST = 20
HINT = "Write --ancillary 'HPV 16 positive', or name a YAML file: a list of texts, or 'test: result' a line."


def read_ancillary(given: Iterable[str]) -> tuple[str, ...]:
    """The results as texts of one line; an entry that ends in .yaml or .yml is a file of them.

    Raises:
        SettingError: a file that cannot be read or holds something else; a text that is empty, too long, or not
            printable; too many of them.
    """
    found: list[str] = []
    for entry in given:
        name = entry.strip()
        found += _file(from_home(name)) if name.lower().endswith((".yaml", ".yml")) else [name]
    for text in found:
        if not text or len(text) > LONGEST or any(unicodedata.category(c).startswith("C") for c in text):
            raise SettingError(
                f"--ancillary: {text[:60]!r} is no result of one line of 1 to {LONGEST} printable characters.",
                hint=HINT,
            )
    if len(found) > MOST:
        raise SettingError(f"--ancillary: {len(found)} results, at most {MOST} can be stated.", hint=HINT)
    return tuple(dict.fromkeys(found))


def _file(path: Path) -> list[str]:
    try:
        data: Any = load_yaml(path)
    except DocumentError as error:
        raise SettingError(f"--ancillary {error.message}", hint=HINT) from error
    if isinstance(data, dict):
        data = (
            [f"{name}: {value}" for name, value in data.items() if isinstance(value, str | int | float)]
            if all(isinstance(value, str | int | float) for value in data.values())
            else None
        )
    if not isinstance(data, list) or not all(isinstance(entry, str | int | float) for entry in data):
        raise SettingError(f"--ancillary {path}: holds no list of results.", hint=HINT)
    return [str(entry).strip() for entry in data]
