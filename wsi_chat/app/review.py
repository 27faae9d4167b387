"""What reviewers decided, in ``review.sqlite`` of the slide's folder: who, when, and what was taken back.

A decision is only ever added, or marked as undone; the model's own answers are not touched. Every reviewer reads by
himself: no query mixes the decisions of two names unless it is asked to.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.journal import has_locks
from wsi_chat.schema import Box

log = logging.getLogger(__name__)

APPLICATION_ID = 0x77736352
VERSION = 1
SLIDE = "slide"
"""What a decision about the slide as a whole is about."""
Action = Literal["accept", "reject", "relabel", "draw", "complete", "label"]
NAME = re.compile(r"\w[\w .,'-]{0,59}")
TABLE = """
CREATE TABLE decisions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    reviewer TEXT NOT NULL,
    about TEXT NOT NULL,
    action TEXT NOT NULL,
    label TEXT NOT NULL DEFAULT '',
    x0 REAL, y0 REAL, x1 REAL, y1 REAL,
    at TEXT NOT NULL,
    undone_at TEXT
);
CREATE INDEX by_reviewer ON decisions (reviewer, number);
"""
COLUMNS = "number, reviewer, about, action, label, x0, y0, x1, y1, at, undone_at"


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. ``about`` is a finding's id, a drawn cell's (r0001), a tile's, or ``slide``.

    ``accept``, ``reject`` and ``relabel`` (with a ``label``) are about a cell, ``draw`` adds one (``label``, ``box`` in
    level-0 pixels), ``complete`` says of a tile that every cell in it is marked, ``label`` gives the slide a class.
    """

    number: int
    reviewer: str
    about: str
    action: Action
    label: str
    box: Box | None
    at: str
    undone_at: str | None = None


def reviewer_name(given: str) -> str:
    """A reviewer's name as it is kept: one line, spaces single.

    Raises:
        SettingError: it is empty, longer than 60 characters, or holds signs that no name has.
    """
    name = unicodedata.normalize("NFC", " ".join(given.split()))
    if not NAME.fullmatch(name):
        raise SettingError(
            f"{given[:80]!r} is no reviewer's name.",
            hint="Use letters, digits, spaces and . , ' - (at most 60), beginning with a letter or digit.",
        )
    return name


class ReviewStore:
    """The decisions about one slide. Safe to use from several threads; the file is made by the first decision.

    Raises:
        OutputError: the file is another program's, a newer version's, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = SlideFolder(folder).review_path
        self._mutex = threading.Lock()
        self._database: sqlite3.Connection | None = self._open() if self.path.exists() else None

    # ------------------------------------------------------------------------------------------ deciding

    def decide(self, reviewer: str, about: str, action: Action, *, label: str = "", box: Box | None = None) -> Decision:
        """Write one decision down; it is on the disk on return.

        Raises:
            SettingError: the name is none, or a label or box is missing where the action needs it.
            OutputError: it cannot be written.
        """
        reviewer = reviewer_name(reviewer)
        if action in ("relabel", "draw", "label") and not label:
            raise SettingError(f"{action} of {about} names no class.", hint="Choose a class.")
        if (action == "draw") != (box is not None):
            raise SettingError(f"{action} of {about}: only a drawn cell has a box.", hint="Draw a rectangle.")
        corners = (None, None, None, None) if box is None else (box.x0, box.y0, box.x1, box.y1)
        with self._mutex:
            if self._database is None:
                self._database = self._open()
            about = about or self._free_id(self._database)
            row = (reviewer, about, action, label, *corners, _now())
            marks = ",".join("?" * len(row))
            try:
                done = self._database.execute(
                    f"INSERT INTO decisions (reviewer, about, action, label, x0, y0, x1, y1, at) VALUES ({marks})", row
                )
            except sqlite3.Error as error:
                raise self._refused(error) from error
            return Decision(int(done.lastrowid or 0), reviewer, about, action, label, box, row[-1])

    def draw(self, reviewer: str, label: str, box: Box) -> Decision:
        """Add a cell that the model missed; its id is new."""
        return self.decide(reviewer, "", "draw", label=label, box=box)

    def undo(self, reviewer: str) -> Decision | None:
        """Take a reviewer's last decision back; None where there is none. The row stays, marked."""
        with self._mutex:
            if self._database is None:
                return None
            row = self._database.execute(
                f"SELECT {COLUMNS} FROM decisions WHERE reviewer = ? AND undone_at IS NULL"
                " ORDER BY number DESC LIMIT 1",
                (reviewer,),
            ).fetchone()
            if row is None:
                return None
            try:
                self._database.execute("UPDATE decisions SET undone_at = ? WHERE number = ?", (_now(), row[0]))
            except sqlite3.Error as error:
                raise self._refused(error) from error
        return _decision(row)

    # ------------------------------------------------------------------------------------------ reading

    @property
    def version(self) -> tuple[int, int]:
        """Differs after every change, also by another process."""
        with self._mutex:
            if self._database is None:
                return 0, 0
            other = self._database.execute("PRAGMA data_version").fetchone()[0]
            return int(other), self._database.total_changes

    def history(self, *, undone: bool = False) -> list[Decision]:
        """Every decision in order; with ``undone`` those too that were taken back."""
        with self._mutex:
            if self._database is None:
                return []
            where = "" if undone else "WHERE undone_at IS NULL"
            rows = self._database.execute(f"SELECT {COLUMNS} FROM decisions {where} ORDER BY number").fetchall()
        return [_decision(row) for row in rows]

    def reviewers(self) -> tuple[str, ...]:
        """Everybody with a decision that stands, by first decision."""
        return tuple(dict.fromkeys(decision.reviewer for decision in self.history()))

    def by(self, reviewer: str) -> Mapping[str, Decision]:
        """What holds for one reviewer: the last decision about each thing. Of a drawn cell that was relabelled or
        rejected later it is the later one; `drawn` has the box."""
        return {d.about: d for d in self.history() if d.reviewer == reviewer}

    def drawn(self) -> dict[str, Decision]:
        """Cells drawn by anybody, by id, with their boxes and the label that they were drawn with."""
        return {d.about: d for d in self.history() if d.action == "draw"}

    # ------------------------------------------------------------------------------------------ the file

    def _free_id(self, database: sqlite3.Connection) -> str:
        """Ids of drawn cells are never given twice, not even after an undo."""
        rows = database.execute("SELECT about FROM decisions WHERE action = 'draw'").fetchall()
        taken = [int(row[0][1:]) for row in rows if row[0][1:].isdigit()]
        return f"r{max(taken, default=0) + 1:04d}"

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            place = self.path.absolute().as_uri()
            if not has_locks(self.path.parent):  # without this, SQLite refuses every statement there
                log.warning("%s: its file system has no locks; let only one page at a time write there", self.path)
                place += "?nolock=1"
            database = sqlite3.connect(place, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from error
        try:
            fresh = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            if fresh:
                database.executescript(
                    f"BEGIN;{TABLE}PRAGMA application_id={APPLICATION_ID};PRAGMA user_version={VERSION};COMMIT;"
                )
            else:
                self._check(database)
        except sqlite3.Error as error:
            database.close()
            raise self._refused(error) from error
        except BaseException:
            database.close()
            raise
        return database

    def _check(self, database: sqlite3.Connection) -> None:
        owner = database.execute("PRAGMA application_id").fetchone()[0]
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if owner != APPLICATION_ID:
            raise OutputError(f"{self.path} is a database of another program.", hint="Move it elsewhere.")
        if version > VERSION:
            raise OutputError(
                f"{self.path} was written by a newer wsi-chat (version {version}, this one reads {VERSION}).",
                hint="Upgrade wsi-chat.",
            )

    def _refused(self, error: Exception) -> OutputError:
        return OutputError(
            f"{self.path} cannot be used: {error}.", hint="Check the folder's permissions and the free space."
        )

    def close(self) -> None:
        with self._mutex:
            if self._database is not None:
                self._database.close()
                self._database = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _decision(row: tuple[Any, ...]) -> Decision:
    number, reviewer, about, action, label, x0, y0, x1, y1, at, undone_at = row
    box = None if x0 is None else Box(x0, y0, x1, y1)
    return Decision(number, reviewer, about, action, label, box, at, undone_at)
