"""The conversations that a checkpoint is trained on: found, checked and said in its dialect before it is loaded.

A data set is a ShareGPT JSONL as `wsi-chat dataset build` writes it. Its boxes are in the dialect that its
``build.json`` names; where there is none, in ``<region>`` tags and pixels of the picture, as CytoChat's are.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.datasets.check import Checked, check_file
from wsi_chat.datasets.info import INFO, read_info
from wsi_chat.datasets.translate import Exchange, Translator
from wsi_chat.dialects import Dialect, DialectSpec, get_dialect
from wsi_chat.dialects.frame import fit
from wsi_chat.errors import SettingError, SlideError, WsiChatError
from wsi_chat.schema import Turn

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

SHOWN = 5
HARMLESS = ("info", "duplicate_line")
"""Findings of the check that spoil no training: other files that the folder lacks, and a line that is there twice."""


@dataclass(frozen=True, slots=True)
class Source:
    """One data set: its file, its name, and the dialect in which it was written."""

    name: str
    file: Path
    dialect: Dialect

    @property
    def sha256(self) -> str:
        with self.file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of a data set in the target's words. ``sizes`` are the pictures' as stored, (width, height)."""

    file: Path
    line: int
    turns: tuple[Turn, ...]
    images: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    exchanges: tuple[Exchange, ...]

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def find_dataset(name: str, folder: Path | None = None) -> Source:
    """A data set by the path of its JSONL, or by its name in ``folder``'s dataset_info.json.

    Raises:
        SettingError: there is none, or it is not in the ShareGPT form of role and content.
    """
    if name.endswith((".jsonl", ".json")):
        file = Path(name).expanduser()
        if not file.is_file() and folder is not None:
            file = folder / name
        if not file.is_file():
            raise SettingError(
                f"data set {name} is not a file.", hint="Give a .jsonl file, or a name and --dataset-dir."
            )
        return Source(file.stem, file, written_in(file.parent))
    where = folder or Path()
    entries = read_info(where)
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise SettingError(f"{where / INFO} names no data set {name!r}.", hint=f"There are: {known}.")
    entry = entries[name]
    _check_entry(where / INFO, name, entry)
    file = where / str(entry["file_name"])
    if not file.is_file():
        raise SettingError(f"{file}, which {where / INFO} names for {name!r}, is not a file.")
    return Source(name, file, written_in(file.parent))


def _check_entry(path: Path, name: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise SettingError(f"{path}: {name} has no file_name.", hint="Name the JSONL file in it.")
    columns = entry.get("columns") or {}
    tags = entry.get("tags") or {}
    wanted = {"messages": "messages", "images": "images"}
    spoken = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    odd = [key for key, value in columns.items() if wanted.get(key) != value]
    odd += [key for key, value in tags.items() if key in spoken and spoken[key] != value]
    if entry.get("formatting", "sharegpt") != "sharegpt" or odd:
        raise SettingError(
            f"{path}: {name} is not in the form that is read here ({', '.join(odd) or entry.get('formatting')}).",
            hint='Write {"messages": [{"role": "user", "content": ...}, ...], "images": [...]} a line.',
        )


def written_in(folder: Path) -> Dialect:
    """The dialect that a data set was built in: of its build.json, else CytoChat's."""
    path = folder / "build.json"
    if not path.is_file():
        return get_dialect("cytochat")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("finished") is False:
            raise SettingError(f"the build of {folder} was not finished.", hint="Run dataset build --overwrite again.")
        return Dialect(DialectSpec.model_validate(content["dialect"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{path} cannot be read: {error}.", hint="Build the data set anew.") from error


def validation_of(source: Source) -> Source | None:
    """The ``_val`` split that lies beside a ``_train`` split, if there is one."""
    if not source.name.endswith("_train") or not (source.file.parent / INFO).is_file():
        return None
    name = f"{source.name.removesuffix('_train')}_val"
    return find_dataset(name, source.file.parent) if name in read_info(source.file.parent) else None


def read_conversations(
    source: Source, target: Dialect, *, skip_bad: bool = False
) -> tuple[list[Conversation], dict[str, int]]:
    """Every line of a data set, checked and said in ``target``; and what was left out, by kind of fault.

    Each picture is decoded once, so that a broken one is known before an hour of training.

    Raises:
        SettingError: the file has faults and ``skip_bad`` is off (the first are named with their lines), or
            nothing usable is left.
    """
    checked = check_file(source.file, dialect=source.dialect)
    faults = _faults(checked, source, skip_bad=skip_bad)
    translator = Translator(source.dialect, target)
    broken: dict[Path, str] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    found: list[Conversation] = []
    for number, record in _records(source.file):
        if number in faults:
            continue
        images = tuple(source.file.parent / image for image in record.get("images", []))
        try:
            measured = tuple(_measured(image, sizes, broken) for image in images)
            turns = tuple(Turn(turn["role"], turn["content"]) for turn in record["messages"])
            said, exchanges = translator.turns(turns, measured)
        except WsiChatError as error:
            if not skip_bad:
                raise SettingError(
                    f"{source.file}:{number}: {error.message}",
                    hint=error.hint or "Mend the line, or leave such lines out with --skip-bad-lines.",
                ) from error
            faults[number] = "unusable"
            continue
        found.append(Conversation(source.file, number, said, images, measured, exchanges))
    if not found:
        raise SettingError(f"{source.file}: no line of it can be used.", hint="See wsi-chat dataset check.")
    return found, dict(Counter(faults.values()))


def _faults(checked: Checked, source: Source, *, skip_bad: bool) -> dict[int, str]:
    """Line -> kind of fault of the lines to leave out. Raises SettingError where a fault cannot be left out."""
    bad = [problem for problem in checked.problems if problem.kind not in HARMLESS]
    for problem in checked.problems:
        if problem.kind in HARMLESS:
            log.warning("%s:%d: %s: %s", source.file, problem.line, problem.kind, problem.message)
    unavoidable = [problem for problem in bad if problem.line == 0]
    if bad and (not skip_bad or unavoidable):
        first = (unavoidable if skip_bad else bad)[:SHOWN]
        lines = "; ".join(f"line {p.line}: {p.message}" if p.line else p.message for p in first)
        more = f" (and {len(bad) - len(first)} more)" if len(bad) > len(first) else ""
        hint = f"See wsi-chat dataset check {source.file}"
        leave = "." if unavoidable else "; or leave those lines out with --skip-bad-lines."
        raise SettingError(f"{source.file} has {len(bad)} faults: {lines}{more}.", hint=hint + leave)
    return {problem.line: problem.kind for problem in reversed(bad)}


def _records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                yield number, json.loads(raw)
            except ValueError:
                # named by the check already, so it is among the faults
                yield number, {"messages": []}


def _measured(path: Path, sizes: dict[Path, tuple[int, int]], broken: dict[Path, str]) -> tuple[int, int]:
    if path not in sizes and path not in broken:
        try:
            sizes[path] = open_picture(path).size
        except SlideError as error:
            broken[path] = error.message
    if path in broken:
        raise SlideError(broken[path], hint="Replace the picture, or leave the line out with --skip-bad-lines.")
    return sizes[path]


def open_picture(path: Path) -> Image.Image:
    """A picture, decoded. Raises SlideError naming the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise SlideError(f"image {path} cannot be read: {error}") from error


def pictures(conversation: Conversation, target: Dialect) -> list[Image.Image]:
    """Its pictures as the target is sent them (RGB). Raises SlideError naming the line."""
    try:
        return [
            fit(open_picture(path), target.frame(size).sent)
            for path, size in zip(conversation.images, conversation.sizes, strict=True)
        ]
    except SlideError as error:
        raise SlideError(
            f"{conversation.place}: {error.message}", hint="It was readable when training began."
        ) from error


def scorable(conversations: Sequence[Conversation]) -> list[tuple[Conversation, Exchange]]:
    """The conversations of one exchange about one picture whose answer can be scored."""
    return [
        (talk, talk.exchanges[0])
        for talk in conversations
        if len(talk.exchanges) == 1 and len(talk.images) == 1 and talk.exchanges[0].kind
    ]
