"""Rows of instruction data as they are to be asked: ShareGPT JSONL or a JSON array, named directly or by dataset_info.

A row that cannot be asked is said with its line and reason, and never stops the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi_chat.datasets.info import INFO, read_info
from wsi_chat.errors import SettingError
from wsi_chat.schema import Turn

IMAGE_MARK = "<image>"
CARRIED = ("main_tag", "sub_task", "sub_tag", "object", "dataset")
"""Columns of EndoChat's data that its evaluation reads; they are passed through."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a row keeps what, as ``dataset_info.json`` names it. The defaults are what `dataset build` writes."""

    messages: str = "messages"
    images: str = "images"
    system: str = "system"
    role: str = "role"
    content: str = "content"
    user: str = "user"
    assistant: str = "assistant"
    system_role: str = "system"


FROM_VALUE = Columns(messages="conversations", role="from", content="value", user="human", assistant="gpt")
"""The ShareGPT form of older data: ``{"conversations": [{"from": "human", "value": ...}]}``."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows. ``columns`` is None where each row shows by itself which form it has."""

    path: Path
    name: str
    columns: Columns | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation. ``line`` counts from 1 (array: place in it); ``images`` are as written in the row."""

    line: int
    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    carried: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> list[int]:
        """Places in ``turns`` of the user turns to answer: all, for a checked row."""
        return [place for place, turn in enumerate(self.turns) if turn.role == "user"]

    def label(self, place: int) -> str | None:
        """The true answer to the user turn at ``place``, None where the row has none."""
        return self.turns[place + 1].text if place + 1 < len(self.turns) else None

    def shown(self, place: int) -> int:
        """How many of the row's images have been shown by the end of the turn at ``place``."""
        return sum(turn.text.count(IMAGE_MARK) for turn in self.turns[: place + 1])


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be asked. ``asked``: its (prompt, label) pairs, as far as they could be read."""

    line: int
    id: str
    reason: str
    asked: tuple[tuple[str, str | None], ...] = (("", None),)
    images: tuple[str, ...] = ()
    carried: Mapping[str, Any] = field(default_factory=dict)


def find_data(dataset: str, folder: Path | None = None) -> DataFile:
    """A data set by the path of its file, or by its name in ``folder``'s dataset_info.json.

    Raises:
        SettingError: there is none of that name, or it is not in a ShareGPT form.
    """
    if dataset.endswith((".jsonl", ".json")):
        for path in (Path(dataset).expanduser(), (folder or Path()) / dataset):
            if path.is_file():
                return DataFile(path, path.stem, _listed_columns(path))
        raise SettingError(f"--dataset {dataset} is not a file.", hint="Give a .jsonl file, or a name of dataset_info.")
    where = folder or Path("data")
    entries = read_info(where)
    if dataset not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise SettingError(f"{where / INFO} names no data set {dataset!r}.", hint=f"It names: {known}.")
    columns = _columns(entries[dataset], where / INFO, dataset)
    path = where / str(entries[dataset]["file_name"])
    if not path.is_file():
        raise SettingError(f"{path}, which {where / INFO} names for {dataset!r}, is not a file.")
    return DataFile(path, dataset, columns)


def _listed_columns(path: Path) -> Columns | None:
    """The columns that a dataset_info.json beside the file names for it, if there is one."""
    info = path.parent / INFO
    if not info.is_file():
        return None
    for name, entry in read_info(path.parent).items():
        if isinstance(entry, dict) and entry.get("file_name") == path.name:
            return _columns(entry, info, name)
    return None


def _columns(entry: Any, info: Path, name: str) -> Columns | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise SettingError(f"{info}: {name} has no file_name.", hint="Name the JSONL file in it.")
    if entry.get("formatting") != "sharegpt":
        raise SettingError(
            f"{info}: {name} has the formatting {entry.get('formatting', 'alpaca')!r}.",
            hint='Conversations are read: write "formatting": "sharegpt".',
        )
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if not columns and not tags:
        return None
    plain = Columns() if columns.get("messages", "") == "messages" and not tags else FROM_VALUE
    return Columns(
        messages=str(columns.get("messages", plain.messages)),
        images=str(columns.get("images", plain.images)),
        system=str(columns.get("system", plain.system)),
        role=str(tags.get("role_tag", plain.role)),
        content=str(tags.get("content_tag", plain.content)),
        user=str(tags.get("user_tag", plain.user)),
        assistant=str(tags.get("assistant_tag", plain.assistant)),
        system_role=str(tags.get("system_tag", plain.system_role)),
    )


# -------------------------------------------------------------------------------------------- reading


def read_rows(data: DataFile) -> Iterator[Row | BadRow]:
    """Every row in the order of the file. Raises SettingError where the file as a whole cannot be read."""
    seen: set[str] = set()
    for line, record in _records(data.path):
        row = BadRow(line, str(line), record) if isinstance(record, str) else _row(line, record, data.columns)
        if row.id in seen and isinstance(row, Row):
            # two rows of one id would overwrite each other: the line is always unique
            row = Row(row.line, f"{row.id}@{line}", row.turns, row.images, row.carried)
        seen.add(row.id)
        yield row


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, object) of each row; a text instead of an object says why there is none."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
            stream.seek(0)
            if head.startswith(b"["):
                try:
                    content = json.loads(stream.read().decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    raise SettingError(f"{path} is not JSON: {error}.", hint="Give a JSON array or a JSONL.") from error
                yield from (
                    (n, item if isinstance(item, dict) else "is not an object") for n, item in enumerate(content, 1)
                )
                return
            for number, raw in enumerate(stream, start=1):
                if not raw.strip():
                    continue
                try:
                    record = json.loads(raw.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield number, f"is not JSON ({error})"
                    continue
                yield number, record if isinstance(record, dict) else "is not an object"
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error


def _row(line: int, record: Mapping[str, Any], columns: Columns | None) -> Row | BadRow:
    form = columns or (FROM_VALUE if "conversations" in record and "messages" not in record else Columns())
    own = record.get("id")
    id_ = str(own) if isinstance(own, (str, int)) and not isinstance(own, bool) and str(own) else str(line)
    carried = {name: record[name] for name in CARRIED if name in record}
    listed = record.get(form.images, record.get("image", []))
    images = [listed] if isinstance(listed, str) else listed
    if images is None:
        images = []

    def bad(reason: str, turns: list[Turn] | None = None) -> BadRow:
        pairs = _pairs(turns or [])
        names = tuple(str(image) for image in images) if isinstance(images, list) else ()
        return BadRow(line, id_, reason, pairs or (("", None),), names, carried)

    messages = record.get(form.messages)
    if not isinstance(messages, list) or not messages:
        return bad(f'has no list "{form.messages}"')
    roles = {form.user: "user", form.assistant: "assistant", form.system_role: "system", "system": "system"}
    turns: list[Turn] = []
    for place, turn in enumerate(messages, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get(form.content), str):
            return bad(f'turn {place} has no text "{form.content}"', turns)
        role = roles.get(str(turn.get(form.role)))
        if role is None:
            return bad(f"turn {place} has the {form.role} {turn.get(form.role)!r}", turns)
        turns.append(Turn(role, turn[form.content]))  # type: ignore[arg-type]
    if isinstance(record.get(form.system), str) and record[form.system] and turns[0].role != "system":
        turns.insert(0, Turn("system", record[form.system]))
    spoken = [turn.role for turn in turns[turns[0].role == "system" :]]
    if not spoken or spoken != ["user" if n % 2 == 0 else "assistant" for n in range(len(spoken))]:
        return bad(f"turns do not alternate from user to assistant: {', '.join(spoken) or 'none'}", turns)
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        return bad(f'"{form.images}" is not a list of paths', turns)
    marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if marks != len(images):
        return bad(f"has {marks} {IMAGE_MARK} marks and {len(images)} images", turns)
    return Row(line, id_, tuple(turns), tuple(images), carried)


def _pairs(turns: list[Turn]) -> tuple[tuple[str, str | None], ...]:
    """(prompt, label) of each user turn of a row that will not be asked."""
    following: list[Turn | None] = [*turns[1:], None]
    return tuple(
        (turn.text, after.text if after is not None and after.role == "assistant" else None)
        for turn, after in zip(turns, following, strict=False)
        if turn.role == "user"
    )
