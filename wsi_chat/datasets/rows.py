"""Rows of instruction data as they are asked, checked and trained on: JSON Lines or a JSON array, in three forms.

Conversations of role and content, of from and value, and single exchanges of instruction, input and output. A row
that cannot be used is named with its line and the reason, and never stops the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsi_chat.bounded import iter_json_records
from wsi_chat.datasets.info import ALPACA, FROM_VALUE, Columns, DataFile, DataSet
from wsi_chat.datasets.pictures import locate
from wsi_chat.errors import DocumentError
from wsi_chat.schema import Turn

IMAGE_MARK = "<image>"
CARRIED = ("main_tag", "sub_task", "sub_tag", "object", "dataset")
"""Columns of EndoChat's data that its evaluation reads; they are passed through."""


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation. ``line`` counts from 1 (array: place in it) on over all files; ``images`` are as written."""

    line: int
    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    carried: Mapping[str, Any] = field(default_factory=dict)
    file: DataFile = field(default_factory=lambda: DataFile(Path()))

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

    def picture(self, image: str) -> Path:
        """Where one of its images is. Raises SlideError where its name leads out of the data set's folder."""
        return locate(image, self.file.picture_folders, option="--media-dir")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be asked. ``asked``: its (prompt, label) pairs, as far as they could be read."""

    line: int
    id: str
    reason: str
    asked: tuple[tuple[str, str | None], ...] = (("", None),)
    images: tuple[str, ...] = ()
    carried: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draft:
    """A row as it is written, not judged yet: (role, text) of each turn, an unknown role under its own name."""

    turns: tuple[tuple[str, str], ...]
    images: tuple[str, ...]


class ShapeError(ValueError):
    """A row that is no conversation; ``turns`` and ``images`` are what could be read of it."""

    def __init__(self, reason: str, turns: tuple[tuple[str, str], ...] = (), images: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.turns, self.images = turns, images


# -------------------------------------------------------------------------------------------- files


def read_records(dataset: DataSet, *, blank: bool = False) -> Iterator[tuple[int, DataFile, Any | DocumentError]]:
    """(line, file, value or error) of each row; lines count on from file to file.

    Args:
        blank: give blank lines too, as errors.

    Raises:
        DocumentError: a file as a whole cannot be read.
    """
    before = 0
    for file in dataset.files:
        line = before
        for number, record in iter_json_records(file.path, blank=blank):
            line = before + number
            yield line, file, record
        before = line


def read_rows(dataset: DataSet) -> Iterator[Row | BadRow]:
    """Every row in the order of the files. Raises DocumentError where a file as a whole cannot be read."""
    known: set[str] = set()
    for line, file, record in read_records(dataset):
        if isinstance(record, DocumentError):
            row: Row | BadRow = BadRow(line, str(line), record.reason)
        else:
            row = _row(line, record, file)
        if row.id in known and isinstance(row, Row):
            # two rows of one id would overwrite each other: the line is always unique
            row = replace(row, id=f"{row.id}@{line}")
        known.add(row.id)
        yield row


# -------------------------------------------------------------------------------------------- rows


def read_draft(record: Any, columns: Columns | None) -> Draft:
    """The turns and images of a row, whatever is wrong with their order. Raises ShapeError."""
    if not isinstance(record, dict):
        raise ShapeError("is not an object")
    form = columns or _form(record)
    images = _images(record, form)
    if isinstance(record.get("videos"), list) and record["videos"]:
        raise ShapeError("holds videos, which are not read here")
    turns = _exchanges(record, form) if form.alpaca else _turns(record, form, images)
    system = record.get(form.system)
    if isinstance(system, str) and system and turns[0][0] != "system":
        turns = (("system", system), *turns)
    return Draft(turns, images)


def _form(record: Mapping[str, Any]) -> Columns:
    """The form that a row shows by itself."""
    if "messages" in record:
        first = record["messages"][0] if isinstance(record["messages"], list) and record["messages"] else None
        old = isinstance(first, dict) and "value" in first and "content" not in first
        return replace(FROM_VALUE, messages="messages") if old else Columns()
    if "conversations" in record:
        return FROM_VALUE
    return ALPACA if "instruction" in record and "output" in record else Columns()


def _images(record: Mapping[str, Any], form: Columns) -> tuple[str, ...]:
    listed = record.get(form.images, record.get("image"))
    if listed is None:
        return ()
    # one picture may stand by itself in "image", the column of LLaVA's data
    if isinstance(listed, str) and form.images not in record:
        return (listed,)
    if not isinstance(listed, list) or not all(isinstance(image, str) for image in listed):
        raise ShapeError(f'"{form.images}" is not a list of paths')
    return tuple(listed)


def _turns(record: Mapping[str, Any], form: Columns, images: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    messages = record.get(form.messages)
    if not isinstance(messages, list) or not messages:
        raise ShapeError(f'is not an object with a list "{form.messages}"', images=images)
    roles = {form.user: "user", form.assistant: "assistant", form.system_role: "system", "system": "system"}
    turns: tuple[tuple[str, str], ...] = ()
    for place, turn in enumerate(messages, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get(form.content), str):
            raise ShapeError(f'turn {place} has no text "{form.content}"', turns, images)
        role = str(turn.get(form.role))
        turns += ((roles.get(role, f"unknown role {role!r}"), turn[form.content]),)
    return turns


def _exchanges(record: Mapping[str, Any], form: Columns) -> tuple[tuple[str, str], ...]:
    """The turns of a row of instruction, input, output and history."""
    prompt, query = record.get(form.prompt), record.get(form.query) or ""
    answer, history = record.get(form.response), record.get(form.history) or []
    if not isinstance(prompt, str) or not isinstance(query, str) or not isinstance(answer, str | None):
        raise ShapeError(f'has no text "{form.prompt}" with its "{form.response}"')
    pairs = history if isinstance(history, list) else [history]
    turns: list[tuple[str, str]] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ShapeError(f'"{form.history}" is not a list of pairs of texts', tuple(turns))
        turns += [("user", pair[0]), ("assistant", pair[1])]
    turns.append(("user", f"{prompt}\n{query}" if query and prompt else prompt or query))
    return (*turns, ("assistant", answer)) if answer is not None else tuple(turns)


def _row(line: int, record: Any, file: DataFile) -> Row | BadRow:
    own = record.get("id") if isinstance(record, dict) else None
    id_ = str(own) if isinstance(own, (str, int)) and not isinstance(own, bool) and str(own) else str(line)
    carried = {name: record[name] for name in CARRIED if name in record} if isinstance(record, dict) else {}
    try:
        draft = read_draft(record, file.columns)
    except ShapeError as error:
        return BadRow(line, id_, str(error), _pairs(error.turns), error.images, carried)

    def bad(reason: str) -> BadRow:
        return BadRow(line, id_, reason, _pairs(draft.turns), draft.images, carried)

    strange = next((n for n, (role, _) in enumerate(draft.turns, start=1) if role not in ROLES), None)
    if strange is not None:
        return bad(f"turn {strange} has the {draft.turns[strange - 1][0]}")
    roles = [role for role, _ in draft.turns[draft.turns[0][0] == "system" :]]
    if not alternate(roles):
        return bad(f"turns do not alternate from user to assistant: {', '.join(roles) or 'none'}")
    marks = sum(text.count(IMAGE_MARK) for _, text in draft.turns)
    if marks != len(draft.images):
        return bad(f"has {marks} {IMAGE_MARK} marks and {len(draft.images)} images")
    turns = tuple(Turn(role, text) for role, text in draft.turns)  # type: ignore[arg-type]  # of ROLES, as checked
    return Row(line, id_, turns, draft.images, carried, file)


ROLES = ("system", "user", "assistant")


def alternate(roles: list[str]) -> bool:
    """Whether the turns after the system's go from user to assistant and back, beginning with the user."""
    return bool(roles) and roles == ["user" if n % 2 == 0 else "assistant" for n in range(len(roles))]


def _pairs(turns: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str | None], ...]:
    """(prompt, label) of each user turn of a row that will not be asked."""
    following: list[tuple[str, str] | None] = [*turns[1:], None]
    pairs = tuple(
        (text, after[1] if after is not None and after[0] == "assistant" else None)
        for (role, text), after in zip(turns, following, strict=False)
        if role == "user"
    )
    return pairs or (("", None),)
