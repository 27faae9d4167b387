"""The conversations that a checkpoint is trained on: found, checked and said in its dialect before it is loaded.

A data set is a ShareGPT JSONL as `wsi-chat dataset build` writes it. Its boxes are in the dialect that its
``build.json`` names; where there is none, in ``<region>`` tags and pixels of the picture, as CytoChat's are.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_chat.bounded import load_json
from wsi_chat.datasets.check import Checked, check_data
from wsi_chat.datasets.info import INFO, DataSet, find_data, read_info
from wsi_chat.datasets.pictures import load_picture
from wsi_chat.datasets.rows import Row, read_rows
from wsi_chat.datasets.translate import Exchange, Translator
from wsi_chat.dialects import Dialect, DialectSpec, get_dialect
from wsi_chat.dialects.frame import fit
from wsi_chat.errors import DocumentError, SettingError, SlideError, WsiChatError
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
    data: DataSet

    @property
    def sha256(self) -> str:
        """Of the bytes of its files, one after another."""
        digest = hashlib.sha256()
        for file in self.data.files:
            digest.update(file.path.read_bytes())
        return digest.hexdigest()


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


def find_dataset(name: str, folder: Path | None = None, *, media: Path | None = None) -> Source:
    """A data set by the path of its file, or by its name in ``folder``'s dataset_info.json; see `find_data`.

    Raises:
        SettingError: there is none, or its form is not read here.
    """
    data = find_data(name, folder, media=media)
    return Source(data.name, data.files[0].path, written_in(data.files[0].path.parent), data)


def written_in(folder: Path) -> Dialect:
    """The dialect that a data set was built in: of its build.json, else CytoChat's."""
    path = folder / "build.json"
    if not path.is_file():
        return get_dialect("cytochat")
    try:
        content = load_json(path)
        if content.get("finished") is False:
            raise SettingError(f"the build of {folder} was not finished.", hint="Run dataset build --overwrite again.")
        return Dialect(DialectSpec.model_validate(content["dialect"]))
    except DocumentError as error:
        raise SettingError(error.message, hint="Build the data set anew.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(f"{path} cannot be read: {error}.", hint="Build the data set anew.") from error


def validation_of(source: Source) -> Source | None:
    """The ``_val`` split that lies beside a ``_train`` split, if there is one."""
    folder = source.data.folder
    if not source.name.endswith("_train") or not (folder / INFO).is_file():
        return None
    name = f"{source.name.removesuffix('_train')}_val"
    return find_dataset(name, folder) if name in read_info(folder) else None


def read_conversations(
    source: Source, target: Dialect, *, skip_bad: bool = False
) -> tuple[list[Conversation], dict[str, int]]:
    """Every line of a data set, checked and said in ``target``; and what was left out, by kind of fault.

    Each picture is decoded once, so that a broken one is known before an hour of training.

    Raises:
        SettingError: the file has faults and ``skip_bad`` is off (the first are named with their lines), or
            nothing usable is left.
    """
    checked = check_data(source.data, dialect=source.dialect)
    faults = _faults(checked, source, skip_bad=skip_bad)
    translator = Translator(source.dialect, target)
    broken: dict[Path, str] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    found: list[Conversation] = []
    for row in read_rows(source.data):
        if row.line in faults or not isinstance(row, Row):
            continue  # a row that cannot be read is among the faults of the check
        number = row.line
        try:
            images = tuple(row.picture(image) for image in row.images)
            measured = tuple(_measured(image, sizes, broken) for image in images)
            said, exchanges = translator.turns(row.turns, measured)
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


def _measured(path: Path, sizes: dict[Path, tuple[int, int]], broken: dict[Path, str]) -> tuple[int, int]:
    if path not in sizes and path not in broken:
        try:
            sizes[path] = load_picture(path).size
        except SlideError as error:
            broken[path] = error.message
    if path in broken:
        raise SlideError(broken[path], hint="Replace the picture, or leave the line out with --skip-bad-lines.")
    return sizes[path]


def pictures(conversation: Conversation, target: Dialect) -> list[Image.Image]:
    """Its pictures as the target is sent them (RGB). Raises SlideError naming the line."""
    try:
        return [
            fit(load_picture(path), target.frame(size).sent)
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
