"""YAML and JSON that somebody else wrote, read within bounds: size, depth, number of values, aliases, and so time.

Every failure is a `DocumentError` that names the file and, where it is known, the line. Only regular files are opened:
a pipe or a device is refused before a byte of it is read. Nothing here builds any object but plain data.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import yaml
from yaml.composer import Composer

try:  # libyaml's parser is several times faster; PyYAML may have been built without it
    from yaml import CSafeLoader
except ImportError:
    CSafeLoader = None  # type: ignore[assignment,misc]

from wsi_chat.errors import DocumentError

MIB = 1024**2
YAML_BYTES = 1 * MIB
YAML_DEPTH = 32
YAML_NODES = 50_000
"""Values in a YAML file, each alias counted as often as what it stands for: some seconds of work at most."""
JSON_BYTES = 64 * MIB
JSON_DEPTH = 64
DATA_BYTES = 1024 * MIB
"""Of a JSON document that is a data set: the largest COCO file in use has half of it."""
LINE_BYTES = 16 * MIB
NUMBER_LENGTH = 64
"""Characters of a number. Longer ones say nothing, cost quadratic time, and fail where they are shown or converted."""

_LONG_NUMBER = re.compile(f"[0-9]{{{NUMBER_LENGTH}}}")


# -------------------------------------------------------------------------------------------- files


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """A regular file, opened for reading bytes.

    Raises:
        DocumentError: it is missing (``missing`` is True), cannot be opened, or is a folder, a pipe or a device.
    """
    try:
        # without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        reason = "cannot be read (it is not a regular file)"
        raise DocumentError(path, reason, hint="Give a file, not a folder, a pipe or a device.")
    with os.fdopen(handle, "rb") as file:
        yield file


def read_bytes(path: Path, *, limit: int = JSON_BYTES) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. Raises DocumentError."""
    with open_regular(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise _unreadable(path, error) from error
    if len(data) > limit:
        raise DocumentError(path, f"is larger than {_size(limit)}", hint="Check that it is the right file.")
    return data


def read_text(path: Path, *, limit: int = JSON_BYTES) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, of at most ``limit`` bytes. Raises DocumentError."""
    return _decoded(path, read_bytes(path, limit=limit))


def _decoded(path: Path | str, data: bytes, *, line: int = 0) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            path, f"cannot be read (byte {error.start} is not UTF-8 text)", line=line, hint="Save it as UTF-8."
        ) from error


def _unreadable(path: Path, error: OSError | ValueError) -> DocumentError:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return DocumentError(
        path, f"cannot be read ({reason})", missing=missing, hint="Check the path and the permissions."
    )


def _size(limit: int) -> str:
    return f"{limit // MIB} MiB" if limit >= MIB else f"{limit} bytes"


# -------------------------------------------------------------------------------------------- JSON


def load_json(path: Path, *, limit: int = JSON_BYTES, depth: int = JSON_DEPTH) -> Any:
    """The content of a JSON file. Raises DocumentError; ``missing`` is True where there is no such file."""
    return parse_json(read_text(path, limit=limit), path, depth=depth)


def parse_json(text: str | bytes, source: Path | str, *, line: int = 0, depth: int = JSON_DEPTH) -> Any:
    """The value of a JSON text. ``source`` and ``line`` name it in errors. Raises DocumentError."""
    if isinstance(text, bytes):
        text = _decoded(source, text, line=line)
    try:
        value = json.loads(text, parse_int=_whole) if _LONG_NUMBER.search(text) else json.loads(text)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if line or error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise DocumentError(source, f"is not JSON ({error.msg}, {where})", line=line) from error
    except RecursionError as error:
        raise _too_deep(source, line, depth) from error
    except ValueError as error:
        raise DocumentError(source, str(error), line=line) from error
    if text.count("[") + text.count("{") > depth and _deeper(value, depth):
        raise _too_deep(source, line, depth)
    return value


def _whole(digits: str) -> int:
    if len(digits) > NUMBER_LENGTH:
        raise ValueError(f"holds a number of {len(digits)} digits")
    return int(digits)


def _too_deep(source: Path | str, line: int, depth: int) -> DocumentError:
    return DocumentError(source, f"is nested more than {depth} levels deep", line=line)


def _deeper(value: object, depth: int) -> bool:
    """Whether lists and mappings nest deeper than ``depth``; without recursion."""
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def iter_json_lines(path: Path, *, blank: bool = False) -> Iterator[tuple[int, Any | DocumentError]]:
    """(line from 1, value) of each line of a JSON Lines file; for a line that is not JSON, the error, not raised.

    Blank lines are passed over, or with ``blank`` given as errors. Memory is bounded by the longest line.

    Raises:
        DocumentError: the file cannot be opened or read.
    """
    with open_regular(path) as file:
        for number, raw in _raw_lines(path, file):
            if raw is not None and not raw.strip():
                if blank:
                    yield number, DocumentError(path, "is blank", line=number)
                continue
            if raw is None:
                yield number, DocumentError(path, f"is longer than {_size(LINE_BYTES)}", line=number)
                continue
            try:
                value = parse_json(raw, path, line=number)
            except DocumentError as error:
                yield number, error
                continue
            yield number, value


def _raw_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    number = 0
    try:
        while raw := file.readline(LINE_BYTES + 1):
            number += 1
            long = len(raw) > LINE_BYTES and not raw.endswith(b"\n")
            while long and (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None if long else raw
    except OSError as error:
        raise _unreadable(path, error) from error


def iter_json_records(path: Path, *, blank: bool = False) -> Iterator[tuple[int, Any | DocumentError]]:
    """(place from 1, value) of each row of a data set: a JSON array, one object, or JSON Lines, told by its beginning.

    The place is the line of a JSON Lines file and the position in an array. ``blank``: as in `iter_json_lines`.

    Raises:
        DocumentError: the file cannot be opened or read, or an array is not JSON as a whole.
    """
    with open_regular(path) as file:
        try:
            head = file.readline(LINE_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
            while not head and (more := file.readline(LINE_BYTES)):
                head = more.lstrip(b" \t\r\n")
        except OSError as error:
            raise _unreadable(path, error) from error
    if head.startswith(b"["):
        yield from enumerate(load_json(path, limit=DATA_BYTES), start=1)
    elif head.strip() == b"{":  # an object written over several lines
        content = load_json(path, limit=DATA_BYTES)
        yield 1, content
    else:
        yield from iter_json_lines(path, blank=blank)


# -------------------------------------------------------------------------------------------- YAML


def load_yaml(path: Path, *, limit: int = YAML_BYTES) -> Any:
    """The content of a YAML file, None where it is empty. Raises DocumentError; ``missing``: there is no such file.

    A key that a mapping gives twice is an error: plain YAML would let the second silently replace the first.
    """
    return parse_yaml(read_text(path, limit=limit), path)


def parse_yaml(text: str, source: Path | str) -> Any:
    """The value of a YAML text, read as `load_yaml` reads a file. ``source`` names it in errors."""
    loader: _BoundedLoader | None = None
    try:
        loader = _BoundedLoader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        if not isinstance(error, _OutOfBoundsError):
            reason = f"is not YAML ({reason})"
        raise DocumentError(source, reason, line=mark.line + 1 if mark else 0) from error
    except yaml.YAMLError as error:
        raise DocumentError(source, f"is not YAML ({' '.join(str(error).split())})") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        # PyYAML's own constructors let these pass: a month 99, '@@' as base64, a number without digits
        raise DocumentError(source, f"holds a value that cannot be read ({error})") from error
    finally:
        if loader is not None:
            loader.dispose()


class _OutOfBoundsError(yaml.MarkedYAMLError):
    """YAML that is well formed, and not what is read here."""


if CSafeLoader is None:
    _Loader = yaml.SafeLoader
else:

    class _Loader(Composer, CSafeLoader):  # type: ignore[no-redef]
        """Composes in Python, where depth and number of values can be watched, from what libyaml parses."""

        def __init__(self, text: str) -> None:
            CSafeLoader.__init__(self, text)
            Composer.__init__(self)


class _BoundedLoader(_Loader):
    """A loader of plain data that keeps within the bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0
        self._weights: dict[str, int] = {}
        self._unfinished: set[str] = set()

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        anchor = event.anchor
        if isinstance(event, yaml.AliasEvent):
            if anchor in self._unfinished:
                raise self._refused(f"holds an alias *{anchor} inside what it stands for", event)
            self._count(self._weights.get(anchor, 1), event)
            return super().compose_node(parent, index)
        before = self._nodes
        self._count(1, event)
        self._depth += 1
        if self._depth > YAML_DEPTH:
            raise self._refused(f"is nested more than {YAML_DEPTH} levels deep", event)
        if anchor is not None:
            self._unfinished.add(anchor)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None:
            self._unfinished.discard(anchor)
            self._weights[anchor] = self._nodes - before
        return node

    def _count(self, number: int, event: Any) -> None:
        self._nodes += number
        if self._nodes > YAML_NODES:
            raise self._refused(f"holds more than {YAML_NODES} values, aliases included", event)

    @staticmethod
    def _refused(reason: str, place: Any) -> yaml.MarkedYAMLError:
        return _OutOfBoundsError(problem=reason, problem_mark=place.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        known: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue
            if key in known:
                raise self._refused(f"gives the key {key!r} twice", key_node)
            known.add(key)
        return super().construct_mapping(node, deep)

    def _number(self, node: yaml.ScalarNode) -> int | float:
        if len(node.value) > NUMBER_LENGTH:
            raise self._refused(f"holds a number of {len(node.value)} characters", node)
        whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _BoundedLoader._number)
_BoundedLoader.add_constructor("tag:yaml.org,2002:float", _BoundedLoader._number)
