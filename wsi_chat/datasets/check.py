"""Says what is wrong with a data set of conversations about pictures, line by line.

Reads every form that `wsi-chat infer` and `wsi-chat train` read, however broken, and never stops at the first problem.
Boxes are judged as they are written, before any reader would mend them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tilers.picture import picture_size
from wsi_chat.bounded import load_json
from wsi_chat.datasets.info import INFO, SUFFIXES, DataFile, DataSet, find_data, other_files
from wsi_chat.datasets.pictures import exists, file_sha256, locate
from wsi_chat.datasets.rows import IMAGE_MARK, ROLES, ShapeError, alternate, read_draft, read_records
from wsi_chat.dialects import Dialect, DialectSpec
from wsi_chat.dialects.choice import chosen_option
from wsi_chat.dialects.grammars import GRAMMARS
from wsi_chat.dialects.options import is_choice, options_of
from wsi_chat.errors import DocumentError, SettingError, SlideError
from wsi_chat.names import from_home

_TAIL = 1e-6
TAGS = {"region": "region>", "tokens": "<|box_", "json": "bbox_2d"}
"""What shows that a text holds boxes of a grammar, whatever the dialect; of the others only the dialect tells."""
_SPLIT = re.compile(r"(?:\A|[^a-z])(train|val|valid|validation|dev|test|eval)(?:\Z|[^a-z])")
_SPLITS = {"valid": "val", "validation": "val", "dev": "val", "eval": "val"}

_UNUSABLE = {"image_missing": "does not exist", "image_outside": "lies outside"}
"""Kind of problem -> what its message says."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``line`` counts from 1; 0 stands for the file as a whole."""

    line: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found. ``counts`` is kind -> how often."""

    file: str
    lines: int
    problems: tuple[Problem, ...]

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(problem.kind for problem in self.problems).items()))

    def payload(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        found = [asdict(problem) for problem in self.problems]
        return {"file": self.file, "lines": self.lines, "counts": self.counts, "problems": found}


def check_file(
    file: str | Path, *, folder: Path | None = None, media: Path | None = None, dialect: Dialect | None = None
) -> Checked:
    """`check_data` of a file, or of a data set by its name in ``folder``'s dataset_info.json.

    Args:
        media: folder of the pictures; default: as `find_data` says.

    Raises:
        SettingError: there is no such file or data set, or it cannot be read.
    """
    path = from_home(file)
    if not path.is_file() and path.suffix in SUFFIXES and folder is None:
        raise SettingError(f"{file} is not a file.", hint="Give a .jsonl or .json file.")
    alone = DataSet(path.stem, (DataFile(path, None, (media,) if media else ()),), path.parent)
    if path.is_file() and path.suffix not in SUFFIXES:
        return check_data(alone, dialect=dialect)
    try:
        dataset = find_data(str(file), folder, media=media)
    except SettingError as error:
        if not path.is_file():
            raise
        checked = check_data(alone, dialect=dialect)  # the list beside it is at fault, not the file
        if any(problem.kind == "info" for problem in checked.problems):
            return checked
        problem = Problem(0, "info", f"{INFO}: {error.message}")
        return Checked(checked.file, checked.lines, (*checked.problems, problem))
    return check_data(dataset, dialect=dialect)


def check_data(dataset: DataSet, *, dialect: Dialect | None = None) -> Checked:
    """Check every row and, where a ``dataset_info.json`` lists other splits, for leaks into them.

    Args:
        dialect: whose boxes the rows hold; default: the one in ``build.json`` beside them, else ``<region>`` in
            pixels of the picture, and of other grammars only what holds in any coordinates.

    Kinds: ``json``, ``shape``, ``role``, ``order``, ``empty``, ``marks``, ``image_missing``, ``image_unreadable``,
    ``image_outside``, ``box_unreadable``, ``box_reversed``, ``box_outside``, ``duplicate_line``,
    ``duplicate_option``, ``option``, ``split_leak``, ``info``.

    Raises:
        SettingError: a file cannot be read.
    """
    look = _Look(dialect or built_dialect(dataset.files[0].path.parent))
    problems: list[Problem] = []
    lines = 0
    try:
        for lines, file, record in read_records(dataset, blank=True):
            problems += (Problem(lines, kind, message) for kind, message in look.line(lines, file, record))
    except DocumentError as error:
        if not dataset.files[0].path.is_file() or lines:
            raise
        lines = 1
        problems.append(Problem(error.line, "json", error.reason))
    if lines == 0:
        problems.append(Problem(0, "empty", "the file has no line"))
    problems += _across(dataset, look.images)
    return Checked(str(dataset.path), lines, tuple(problems))


def built_dialect(folder: Path) -> Dialect | None:
    """The dialect that a data set's build.json states; None where there is none that can be read."""
    try:
        return Dialect(DialectSpec.model_validate(load_json(folder / "build.json")["dialect"]))
    except (DocumentError, ValueError, KeyError, TypeError, SettingError):
        return None


class _Look:
    """The state of one pass: rows met before, and the size of each picture."""

    def __init__(self, dialect: Dialect | None) -> None:
        self.dialect = dialect
        self.first: dict[bytes, int] = {}
        self.images: dict[Path, tuple[int, str]] = {}
        self._sizes: dict[Path, tuple[int, int] | str] = {}

    def line(self, number: int, file: DataFile, record: Any | DocumentError) -> Iterator[tuple[str, str]]:
        if isinstance(record, DocumentError):
            yield "json", record.reason
            return
        try:
            draft = read_draft(record, file.columns)
        except ShapeError as error:
            yield "shape", str(error)
            return
        canonical = json.dumps([draft.turns, draft.images]).encode("utf-8", "surrogatepass")
        first = self.first.setdefault(hashlib.sha256(canonical).digest(), number)
        if first != number:
            yield "duplicate_line", f"says the same as line {first}"
        turns = list(draft.turns)
        yield from _turns(turns)
        marks = sum(text.count(IMAGE_MARK) for _, text in turns)
        if marks != len(draft.images):
            yield "marks", f"has {marks} {IMAGE_MARK} marks and {len(draft.images)} images"
        sizes = []
        for image in draft.images:
            size = self._size(image, file, number)
            if isinstance(size, str):
                kind = next((kind for kind, sign in _UNUSABLE.items() if sign in size), "image_unreadable")
                yield kind, size
            else:
                sizes.append(size)
        for role, text in turns:
            if role == "user":
                yield from _options(text)
            yield from self._boxes(text, sizes if len(sizes) == len(draft.images) else [])
        yield from _chosen(turns)

    def _size(self, image: str, file: DataFile, number: int) -> tuple[int, int] | str:
        try:
            path = locate(image, file.picture_folders)
        except SlideError as error:
            return error.message
        self.images.setdefault(path, (number, image))
        if path not in self._sizes:
            try:
                self._sizes[path] = picture_size(path) if exists(path) else f"image {image} does not exist"
            except (SlideError, OSError, ValueError) as error:
                self._sizes[path] = f"image {image} cannot be read ({error})"
        return self._sizes[path]

    def _boxes(self, text: str, sizes: list[tuple[int, int]]) -> Iterator[tuple[str, str]]:
        for grammar in self._grammars(text):
            parse = GRAMMARS[grammar]
            space = self._space(grammar, sizes)
            for mark in parse(text):
                if mark.numbers is None:
                    yield "box_unreadable", f"a box is not four numbers: {_excerpt(text)}"
                    continue
                x0, y0, x1, y1 = mark.numbers
                shown = " ".join(f"{value:g}" for value in mark.numbers)
                if x1 <= x0 or y1 <= y0:
                    yield "box_reversed", f"box {shown} has its corners reversed or no area"
                far = space is not None and (max(x0, x1) > space[0] + _TAIL or max(y0, y1) > space[1] + _TAIL)
                if min(mark.numbers) < 0 or far:
                    frame = f"the frame of {space[0]:g} x {space[1]:g}" if space else "any frame"
                    yield "box_outside", f"box {shown} lies outside {frame}"

    def _grammars(self, text: str) -> list[str]:
        """The dialect's own grammar and those whose tags the text holds; "is located at" alone is prose."""
        low = text.lower()
        found = [grammar for grammar, tag in TAGS.items() if tag in low]
        own = self.dialect.spec.boxes if self.dialect else ""
        return [*found, own] if own and own not in TAGS else found

    def _space(self, grammar: str, sizes: list[tuple[int, int]]) -> tuple[float, float] | None:
        """The range of coordinates, None where it is not known; several pictures: the largest of them."""
        kind = self.dialect.spec.coordinates if self.dialect and self.dialect.spec.boxes == grammar else None
        if kind == "norm1000":
            return 1000, 1000
        if kind == "norm1":
            return 1, 1
        if not sizes or (kind is None and grammar != "region"):
            return None
        return max(width for width, _ in sizes), max(height for _, height in sizes)


def _turns(turns: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for place, (role, text) in enumerate(turns, start=1):
        if role not in ROLES:
            yield "role", f"turn {place} has the {role}, not one of {', '.join(ROLES)}"
        if not text.replace(IMAGE_MARK, "").strip():
            yield "empty", f"turn {place} says nothing"
    roles = [role for role, _ in (turns[1:] if turns[0][0] == "system" else turns)]
    if all(role in ROLES for role in roles) and (not alternate(roles) or len(roles) % 2):
        yield "order", f"turns do not alternate from user to assistant: {', '.join(roles) or 'none'}"


def _options(text: str) -> Iterator[tuple[str, str]]:
    options = options_of(text) or _repeated(text)
    for what in (0, 1):
        again = [value for value, n in Counter(option[what].casefold() for option in options).items() if n > 1]
        if again:
            yield "duplicate_option", f"option {again[0]!r} is listed twice"
            return


def _repeated(text: str) -> list[tuple[str, str]]:
    """Options in brackets whose letters are not in order, which therefore are no choice to any reader."""
    found = re.search(r"following options \[(.*)\](?!.*\])", text, re.DOTALL)
    return re.findall(r"(?:^|,\s*)([A-Z])\.(.*?)(?=,\s*[A-Z]\.|$)", found[1], re.DOTALL) if found else []


def _chosen(turns: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for (role, text), (next_role, answer) in pairwise(turns):
        asked = (role, next_role) == ("user", "assistant") and is_choice(text, "")
        options = options_of(text) if asked else ()
        if options and chosen_option(answer, [option for _, option in options]) is None:
            yield "option", f"the answer {_excerpt(answer)} is none of the options"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


# ------------------------------------------------------------------------------------------------ across splits


def _across(dataset: DataSet, images: dict[Path, tuple[int, str]]) -> Iterator[Problem]:
    if not (dataset.folder / INFO).is_file():
        return
    try:
        others = list(other_files(dataset))
    except SettingError as error:
        yield Problem(0, "info", f"{INFO} cannot be read ({error.message})")
        return
    for name in sorted({name for name, _, there in others if not there}):
        yield Problem(0, "info", f"{name} of {INFO} does not exist")
    splits = {split for file in dataset.files if (split := _split_of(file.path))}
    known: dict[Path, str] = {}
    mine = {digest: path for path in reversed(images) if (digest := _digest(path, known))}
    groups = {group for file in dataset.files for group in _groups(file.path)}
    for file in sorted({file.path: file for _, files, _ in others for file in files}.values(), key=lambda f: f.path):
        if not splits or _split_of(file.path) in (*splits, ""):
            continue
        shared = {digest for path in _images(file) if (digest := _digest(path, known)) in mine}
        for line, image in sorted(images[mine[digest]] for digest in shared):
            yield Problem(line, "split_leak", f"image {image} is in {file.path.name} too")
        for group in sorted(groups & _groups(file.path)):
            yield Problem(0, "split_leak", f"patient or slide {group} is in {file.path.name} too")


def _split_of(file: Path) -> str:
    """``train``, ``val`` or ``test`` where the file's name says it; empty elsewhere."""
    found = _SPLIT.search(file.stem.lower())
    return _SPLITS.get(found[1], found[1]) if found else ""


def _digest(path: Path, known: dict[Path, str]) -> str:
    """SHA-256 of a file's bytes; empty where it cannot be read (that is reported elsewhere)."""
    if path not in known:
        try:
            known[path] = file_sha256(path)
        except SlideError:
            known[path] = ""
    return known[path]


def _images(file: DataFile) -> Iterator[Path]:
    try:
        for _, _, record in read_records(DataSet("", (file,), file.path.parent)):
            try:
                draft = read_draft(record, file.columns)
                yield from (locate(image, file.picture_folders) for image in draft.images)
            except (ShapeError, SlideError):
                continue
    except DocumentError:
        return


def _groups(file: Path) -> set[str]:
    try:
        with file.with_suffix(".index.csv").open(encoding="utf-8", newline="") as stream:
            return {row["group"] for row in csv.DictReader(stream) if row.get("group")}
    except (OSError, ValueError, csv.Error):
        return set()
