"""How often a model's boxes are right, as the user measured it: what the confidence in a category rests on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wsi_chat.bounded import load_json
from wsi_chat.errors import DocumentError, SettingError
from wsi_chat.names import from_home

HINT = (
    "Give a share (--box-precision 0.7), one for each class (hsil=0.72,lsil=0.6), or the JSON of wsi-chat evaluate on a"
    " labelled data set."
)


def read_box_precision(given: str | None, *, known: Collection[str] = ()) -> Mapping[str, float] | float | None:
    """A share 0..1 for every class, or class -> share; None where nothing was given.

    Args:
        given: a number, ``class=number,...``, or the path of a JSON file of ``wsi-chat evaluate`` (its precision at
            an IoU of 0.5, by class).
        known: classes of the reporting system; a data set may hold others, what is written by hand may not.

    Raises:
        SettingError: neither of these, a share outside 0..1, a class that is not known, or a file that cannot be
            read or scored no boxes.
    """
    if given is None:
        return None
    text = given.strip()
    if text.lower().endswith(".json"):
        return _of_evaluation(from_home(text))
    if "=" not in text:
        return _share(text, given)
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    found = {name.strip().lower(): _share(value, given) for name, _, value in pairs}
    odd = sorted(set(found) - set(known)) if known else []
    if odd:
        raise SettingError(
            f"--box-precision {given}: the reporting system has no class {odd[0]!r}.",
            hint=f"Its classes: {', '.join(known)}.",
        )
    return found


def _share(text: str, given: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise SettingError(f"--box-precision {given}: {text.strip()!r} is no share between 0 and 1.", hint=HINT)
    return value


def _of_evaluation(path: Path) -> dict[str, float]:
    try:
        content: Any = load_json(path)
        classes = content["grounding"]["by_class"]
        given = {str(name).lower(): score["precision"]["value"] for name, score in classes.items() if score["found"]}
        if odd := [name for name, value in given.items() if isinstance(value, bool)]:
            raise TypeError(f"the precision of {odd[0]} is {given[odd[0]]}, not a number")
        found = {name: float(value) for name, value in given.items()}
    except DocumentError as error:
        raise SettingError(f"--box-precision {error.message}", hint=HINT) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"--box-precision {path} holds no scores of boxes: {error!r}.", hint=HINT) from error
    if not found or not all(0.0 <= value <= 1.0 for value in found.values()):
        raise SettingError(f"--box-precision {path} holds no precision of any class.", hint=HINT)
    return found
