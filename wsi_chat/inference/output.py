"""The file of answers: one JSON line each, appended as they arrive, mended after a kill, put in order at the end.

A line that `append` has returned from survives SIGKILL at any instant: it is with the operating system; once a
second, and at the end, it is forced to the disk. Only whole lines count: the rest of a cut-off one is removed.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from wsi_chat.atomic import replacing
from wsi_chat.bounded import parse_json
from wsi_chat.errors import DocumentError, OutputError
from wsi_chat.locks import lock_file

SYNC_SECONDS = 1.0
HEAD = b'{"prompt": "'
Place = tuple[int, int]
"""Line of the data set, and number of the answer within the row from 1: what a line of the file answers."""


class AnswerFile:
    """The answers of one run; one writer at a time.

    Args:
        path: the JSONL file; made if absent.
        overwrite: forget what is there.

    Raises:
        OutputError: another process writes it, it cannot be written, or it is not a file of answers that infer wrote.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self.known: dict[Place, str] = {}
        """Answers that are there: place -> key. Failed ones are not among them, so that they are asked again."""
        self.truncated: set[Place] = set()
        """Those among them that were cut off."""
        self._where: dict[Place, tuple[int, int]] = {}
        self._synced = time.monotonic()
        # an engine may pull its questions, and so write down rows that cannot be asked, from a thread of its own
        self._mutex = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._lock()
            if overwrite:
                self._file.truncate(0)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            lock_file(self._file)
        except OSError as error:
            raise OutputError(
                f"another process is writing {self.path}", hint="Wait for it to finish, or choose another --save-name."
            ) from error

    def _refused(self, error: Exception) -> OutputError:
        return OutputError(
            f"{self.path} cannot be written: {error}", hint="Check the folder's permissions and the free space."
        )

    def _read(self) -> None:
        """Index the whole lines, and cut off what follows the last of them."""
        self._file.seek(0)
        start = 0
        for number, raw in enumerate(self._file, start=1):
            row = self._whole(raw)
            if row is None:
                if raw.endswith(b"\n") or not _cut_off(raw):
                    raise OutputError(
                        f"{self.path}:{number} is not an answer that wsi-chat infer wrote",
                        hint="Choose another --save-name, or --overwrite the file.",
                    )
                break
            place = (int(row["line"]), int(row["turn"]))
            self._where[place] = (start, len(raw))
            self.known.pop(place, None)
            self.truncated.discard(place)
            if row.get("status") == "truncated":
                self.truncated.add(place)
            if row.get("status") != "failed":
                self.known[place] = str(row["key"])
            start += len(raw)
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() != start:
            self._file.truncate(start)
        self._end = start

    @staticmethod
    def _whole(raw: bytes) -> dict[str, Any] | None:
        if not raw.endswith(b"\n"):
            return None
        try:
            row = parse_json(raw, "")
        except DocumentError:
            return None
        good = isinstance(row, dict) and all(isinstance(row.get(name), int) for name in ("line", "turn"))
        return row if good and isinstance(row.get("key"), str) else None

    # ------------------------------------------------------------------------------------------ use

    def forget(self, place: Place) -> None:
        """Leave out an answer that belongs to another run or to a row that has changed since."""
        self.known.pop(place, None)
        self._where.pop(place, None)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one answer; a later one to the same place takes the place of an earlier one."""
        raw = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        with self._mutex:
            try:
                self._file.write(raw)
                self._file.flush()
                if time.monotonic() - self._synced >= SYNC_SECONDS:
                    os.fsync(self._file.fileno())
                    self._synced = time.monotonic()
            except OSError as error:
                raise self._refused(error) from error
            self._where[int(row["line"]), int(row["turn"])] = (self._end, len(raw))
            self._end += len(raw)

    def __len__(self) -> int:
        return len(self._where)

    @property
    def places(self) -> set[Place]:
        """Every place that has a line, failed ones too."""
        return set(self._where)

    def put_in_order(self) -> None:
        """Replace the file by one in the order of the data set, in one step: killed at any instant, it is whole."""
        places = sorted(self._where)
        spans = [self._where[place] for place in places]
        in_order = all(a[0] + a[1] == b[0] for a, b in zip([(0, 0), *spans], spans, strict=False))
        if in_order and sum(size for _, size in spans) == self._end:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise self._refused(error) from error
            return
        with replacing(self.path) as scratch, scratch.open("wb") as sorted_file:
            for start, size in spans:
                self._file.seek(start)
                sorted_file.write(self._file.read(size))
            sorted_file.flush()
            os.fsync(sorted_file.fileno())

    def close(self) -> None:
        """Force it to the disk and let the next writer in. Safe to call twice."""
        if not self._file.closed:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cut_off(raw: bytes) -> bool:
    """Whether this is the beginning of one of our lines, and not a file of another program without a last newline."""
    if not (raw.startswith(HEAD) or HEAD.startswith(raw)):
        return False
    try:
        parse_json(raw, "")
    except DocumentError:
        return True
    return b'"key": "' in raw
