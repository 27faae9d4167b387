"""Says what is wrong with a ShareGPT JSONL of conversations about pictures, line by line.

Reads any file, however broken, and never stops at the first problem. Boxes are judged as they are written, before
any reader would mend them.
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

from wsi_chat.dialects import Dialect, DialectSpec
from wsi_chat.dialects.grammars import GRAMMARS
from wsi_chat.errors import SettingError, SlideError

IMAGE_MARK = "<image>"
ROLES = ("system", "user", "assistant")
MAX_LINE = 16 * 1024**2
_OPTIONS = re.compile(r"following options \[(.*)\](?!.*\])", re.DOTALL)
_OPTION = re.compile(r"(?:^|,\s*)([A-Z])\.(.*?)(?=,\s*[A-Z]\.|$)", re.DOTALL)
_TAIL = 1e-6
TAGS = {"region": "region>", "tokens": "<|box_", "json": "bbox_2d"}
"""What shows that a text holds boxes of a grammar, whatever the dialect; of the others only the dialect tells."""


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


def check_file(file: Path, *, dialect: Dialect | None = None) -> Checked:
    """Check a JSONL file and, where a ``dataset_info.json`` lies beside it, for leaks into the other splits.

    Args:
        dialect: whose boxes the file holds; default: the one in ``build.json`` beside it, else ``<region>`` in
            pixels of the picture, and of other grammars only what holds in any coordinates.

    Kinds: ``json``, ``shape``, ``role``, ``order``, ``empty``, ``marks``, ``image_missing``, ``image_unreadable``,
    ``box_unreadable``, ``box_reversed``, ``box_outside``, ``duplicate_line``, ``duplicate_option``, ``option``,
    ``split_leak``, ``info``.

    Raises:
        SettingError: the file is missing or cannot be read.
    """
    if not file.is_file():
        raise SettingError(f"{file} is not a file.", hint="Give a .jsonl file.")
    look = _Look(file.parent, dialect or _built_dialect(file.parent))
    problems: list[Problem] = []
    lines = 0
    try:
        for lines, raw in _raw_lines(file):
            problems += (Problem(lines, kind, message) for kind, message in look.line(lines, raw))
    except OSError as error:
        raise SettingError(f"{file} cannot be read: {error}.", hint="Check its permissions.") from error
    if lines == 0:
        problems.append(Problem(0, "empty", "the file has no line"))
    problems += _across(file, look.images)
    return Checked(str(file), lines, tuple(problems))


def _raw_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    with file.open("rb") as stream:
        number = 0
        while raw := stream.readline(MAX_LINE):
            number += 1
            if len(raw) == MAX_LINE and not raw.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
            yield number, raw


def _built_dialect(folder: Path) -> Dialect | None:
    try:
        content = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        return Dialect(DialectSpec.model_validate(content["dialect"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _Look:
    """The state of one pass: what was seen before, and the size of each picture."""

    def __init__(self, folder: Path, dialect: Dialect | None) -> None:
        self.folder, self.dialect = folder, dialect
        self.seen: dict[bytes, int] = {}
        self.images: dict[str, int] = {}
        self._sizes: dict[str, tuple[int, int] | str] = {}

    def line(self, number: int, raw: bytes) -> Iterator[tuple[str, str]]:
        if len(raw) == MAX_LINE:
            yield "json", f"is longer than {MAX_LINE // 1024**2} MiB"
            return
        try:
            record = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            yield "json", f"is not JSON ({error})" if raw.strip() else "is blank"
            return
        if not isinstance(record, dict) or not isinstance(record.get("messages"), list) or not record["messages"]:
            yield "shape", 'is not an object with a list "messages"'
            return
        images = record.get("images", [])
        if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
            yield "shape", '"images" is not a list of paths'
            return
        canonical = json.dumps([record["messages"], images], sort_keys=True).encode("utf-8", "surrogatepass")
        first = self.seen.setdefault(hashlib.sha256(canonical).digest(), number)
        if first != number:
            yield "duplicate_line", f"says the same as line {first}"
        turns = []
        for place, turn in enumerate(record["messages"], start=1):
            if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
                yield "shape", f'turn {place} has no text "content"'
                return
            turns.append((str(turn.get("role")), turn["content"]))
        yield from _turns(turns)
        marks = sum(text.count(IMAGE_MARK) for _, text in turns)
        if marks != len(images):
            yield "marks", f"has {marks} {IMAGE_MARK} marks and {len(images)} images"
        sizes = []
        for image in images:
            self.images.setdefault(image, number)
            size = self._size(image)
            if isinstance(size, str):
                yield ("image_missing" if "does not exist" in size else "image_unreadable"), size
            else:
                sizes.append(size)
        for role, text in turns:
            if role == "user":
                yield from _options(text)
            yield from self._boxes(text, sizes if len(sizes) == len(images) else [])
        yield from _chosen(turns)

    def _size(self, image: str) -> tuple[int, int] | str:
        from wsi_chat.datasets.sources import image_size

        if image not in self._sizes:
            try:
                path = self.folder / image
                self._sizes[image] = image_size(path) if path.is_file() else f"image {image} does not exist"
            except (SlideError, OSError, ValueError) as error:
                self._sizes[image] = f"image {image} cannot be read ({error})"
        return self._sizes[image]

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
            yield "role", f"turn {place} has the role {role!r}, not one of {', '.join(ROLES)}"
        if not text.replace(IMAGE_MARK, "").strip():
            yield "empty", f"turn {place} says nothing"
    spoken = [role for role, _ in (turns[1:] if turns[0][0] == "system" else turns)]
    wanted = ["user" if i % 2 == 0 else "assistant" for i in range(len(spoken))]
    if all(role in ROLES for role in spoken) and (spoken != wanted or len(spoken) % 2 or not spoken):
        yield "order", f"turns do not alternate from user to assistant: {', '.join(spoken) or 'none'}"


def _listed(text: str) -> list[tuple[str, str]]:
    found = _OPTIONS.search(text)
    return [(letter, option.strip()) for letter, option in _OPTION.findall(found[1])] if found else []


def _options(text: str) -> Iterator[tuple[str, str]]:
    options = _listed(text)
    for what in (0, 1):
        again = [value for value, n in Counter(option[what].casefold() for option in options).items() if n > 1]
        if again:
            yield "duplicate_option", f"option {again[0]!r} is listed twice"
            return


def _chosen(turns: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for (role, text), (next_role, answer) in pairwise(turns):
        options = _listed(text) if (role, next_role) == ("user", "assistant") else []
        said = answer.strip().rstrip(".")
        if options and said not in {f"{letter}.{option}".rstrip(".") for letter, option in options} | {
            value for option in options for value in option
        }:
            yield "option", f"the answer {_excerpt(answer)} is none of the options"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


# ------------------------------------------------------------------------------------------------ across splits


def _across(file: Path, images: dict[str, int]) -> Iterator[Problem]:
    info = file.parent / "dataset_info.json"
    if not info.is_file():
        return
    try:
        entries = json.loads(info.read_text(encoding="utf-8"))
        named = {str(entry["file_name"]) for entry in entries.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Problem(0, "info", f"dataset_info.json cannot be read ({type(error).__name__}: {error})")
        return
    yield from (Problem(0, "info", f"{name} of dataset_info.json does not exist") for name in sorted(named)
                if not (file.parent / name).is_file())  # fmt: skip
    if file.name not in named:
        yield Problem(0, "info", f"{file.name} is not named in dataset_info.json")
    known: dict[str, str] = {}
    mine = {digest: image for image in reversed(images) if (digest := _digest(file.parent / image, known))}
    groups = _groups(file)
    for name in sorted(named - {file.name}):
        other = file.parent / name
        shared = {d for image in _images(other) if (d := _digest(file.parent / image, known)) in mine}
        for image in sorted((mine[digest] for digest in shared), key=lambda image: images[image]):
            yield Problem(images[image], "split_leak", f"image {image} is in {name} too")
        for group in sorted(groups & _groups(other)):
            yield Problem(0, "split_leak", f"patient or slide {group} is in {name} too")


def _digest(path: Path, known: dict[str, str]) -> str:
    """SHA-256 of a file's bytes; empty where it cannot be read (that is reported elsewhere)."""
    key = str(path)
    if key not in known:
        try:
            with path.open("rb") as stream:
                known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        except (OSError, ValueError):
            known[key] = ""
    return known[key]


def _images(file: Path) -> Iterator[str]:
    try:
        for _, raw in _raw_lines(file):
            try:
                found = json.loads(raw.decode("utf-8"))["images"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(found, list):
                yield from (image for image in found if isinstance(image, str))
    except OSError:
        return


def _groups(file: Path) -> set[str]:
    try:
        with file.with_suffix(".index.csv").open(encoding="utf-8", newline="") as stream:
            return {row["group"] for row in csv.DictReader(stream) if row.get("group")}
    except (OSError, ValueError, csv.Error):
        return set()
