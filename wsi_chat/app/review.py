"""What reviewers decided, in ``review.sqlite`` of the slide's folder: who, when, and what was taken back.

A decision is only ever added, or marked as undone; the model's own answers are not touched. Every reviewer reads by
himself: no query mixes the decisions of two names unless it is asked to. Every row carries a checksum: a damaged file
is set aside, with every decision that is whole in it saved.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.database import Form, checksum_of_row, is_damage, is_empty, lenient_text, set_aside, version_of
from wsi_chat.errors import OutputError, SettingError
from wsi_chat.locks import has_locks
from wsi_chat.schema import Box

log = logging.getLogger(__name__)

VERSION = 2
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
    undone_at TEXT,
    checksum INTEGER
);
CREATE INDEX by_reviewer ON decisions (reviewer, number);
"""
COLUMNS = "number, reviewer, about, action, label, x0, y0, x1, y1, at, undone_at"
FORM = Form(
    application_id=0x77736352,
    version=VERSION,
    table=TABLE,
    other_hint="Move it elsewhere.",
    newer_hint="Upgrade wsi-chat.",
)


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
            with self._writing() as database:
                done = database.execute(
                    f"INSERT INTO decisions (reviewer, about, action, label, x0, y0, x1, y1, at) VALUES ({marks})", row
                )
                number = int(done.lastrowid or 0)
                _sign(database, number)
            return Decision(number, reviewer, about, action, label, box, row[-1])

    def draw(self, reviewer: str, label: str, box: Box) -> Decision:
        """Add a cell that the model missed; its id is new."""
        return self.decide(reviewer, "", "draw", label=label, box=box)

    def undo(self, reviewer: str) -> Decision | None:
        """Take a reviewer's last decision back; None where there is none. The row stays, marked."""
        with self._mutex:
            if self._database is None:
                return None
            with self._writing() as database:
                row = database.execute(
                    f"SELECT {COLUMNS} FROM decisions WHERE reviewer = ? AND undone_at IS NULL"
                    " ORDER BY number DESC LIMIT 1",
                    (reviewer,),
                ).fetchone()
                if row is None:
                    return None
                database.execute("UPDATE decisions SET undone_at = ? WHERE number = ?", (_now(), row[0]))
                _sign(database, row[0])
        return _decision(row)

    # ------------------------------------------------------------------------------------------ reading

    @property
    def version(self) -> tuple[int, int]:
        """Differs after every change, also by another process."""
        with self._mutex:
            if self._database is None:
                return 0, 0
            with self._reading() as database:
                other = database.execute("PRAGMA data_version").fetchone()[0]
                return int(other), database.total_changes

    def history(self, *, undone: bool = False) -> list[Decision]:
        """Every decision in order; with ``undone`` those too that were taken back."""
        with self._mutex:
            if self._database is None:
                return []
            where = "" if undone else "WHERE undone_at IS NULL"
            with self._reading() as database:
                rows = database.execute(f"SELECT {COLUMNS} FROM decisions {where} ORDER BY number").fetchall()
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
        """The database, made where there is none; in place of a damaged one a new one with what is whole of it."""
        try:
            return self._connected()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise self._refused(error) from error
            reason = error
        try:
            aside = set_aside(self.path)
            saved = _whole_rows(aside)
            database = self._connected()
            marks = ",".join("?" * (len(COLUMNS.split(",")) + 1))
            database.executemany(f"INSERT INTO decisions ({COLUMNS}, checksum) VALUES ({marks})", saved)
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from error
        number = f"{len(saved)} decision{'' if len(saved) == 1 else 's'}"
        log.warning("%s is damaged (%s); moved to %s, %s saved", self.path, reason, aside.name, number)
        return database

    def _connected(self) -> sqlite3.Connection:
        """Raises DatabaseError for damage among others, OutputError for another program's or a newer file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            place = self.path.absolute().as_uri()
            if not has_locks(self.path.parent):  # without this, SQLite refuses every statement there
                log.warning("%s: its file system has no locks; let only one page at a time write there", self.path)
                place += "?nolock=1"
            database = sqlite3.connect(place, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
        except OSError as error:
            raise self._refused(error) from error
        database.text_factory = lenient_text
        try:
            if is_empty(database):
                FORM.make(database)
            else:
                self._check(database)
        except (UnicodeDecodeError, MemoryError) as error:  # a damaged name in SQLite's own message, a damaged length
            database.close()
            raise sqlite3.DatabaseError(str(error)) from error
        except BaseException:
            database.close()
            raise
        return database

    def _check(self, database: sqlite3.Connection) -> None:
        version = FORM.check(database, self.path, thorough=True)
        try:
            if version < VERSION:
                _add_checksums(database)
            rows = database.execute(f"SELECT {COLUMNS}, checksum FROM decisions").fetchall()
        except sqlite3.OperationalError as error:  # tables of ours with other columns are damage
            raise sqlite3.DatabaseError(str(error)) from error
        bad = sum(not _is_whole(row) for row in rows)
        if bad:
            raise sqlite3.DatabaseError(f"the checksum of {bad} of {len(rows)} decisions is wrong")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The database while it is used; what SQLite refuses is raised as OutputError."""
        assert self._database is not None
        try:
            yield self._database
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._refused(error) from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """As `_reading`, within a transaction."""
        with self._reading() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

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


def _sign(database: sqlite3.Connection, number: int) -> None:
    """Write the checksum of a row anew."""
    row = database.execute(f"SELECT {COLUMNS} FROM decisions WHERE number = ?", (number,)).fetchone()
    database.execute("UPDATE decisions SET checksum = ? WHERE number = ?", (checksum_of_row(row), number))


def _is_whole(row: tuple[Any, ...]) -> bool:
    """Whether a row, its checksum last, is as it was written."""
    return bool(row[-1] == checksum_of_row(row[:-1]))


def _add_checksums(database: sqlite3.Connection) -> None:
    """Bring a file of the first version up to this one."""
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute("ALTER TABLE decisions ADD COLUMN checksum INTEGER")
        for (number,) in database.execute("SELECT number FROM decisions").fetchall():
            _sign(database, number)
        database.execute(f"PRAGMA user_version={VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def _whole_rows(path: Path) -> list[tuple[Any, ...]]:
    """Every row that is whole of a damaged file, read from its beginning and from its end, each as far as it goes.

    A file of the first version has no checksums: there a row is whole that can be read as a decision.
    """
    found: dict[int, tuple[Any, ...]] = {}
    for order in ("ASC", "DESC"):
        database = sqlite3.connect(path)
        database.text_factory = lenient_text
        try:
            signed = version_of(database) >= VERSION
            columns = f"{COLUMNS}, {'checksum' if signed else 'NULL'}"
            for row in database.execute(f"SELECT {columns} FROM decisions ORDER BY number {order}"):
                if _is_whole(row) if signed else _is_decision(row):
                    found[row[0]] = (*row[:-1], checksum_of_row(row[:-1]))
        except (sqlite3.Error, UnicodeDecodeError, MemoryError):  # the last: a length that cannot be
            continue  # as far as it goes
        finally:
            database.close()
    return [found[number] for number in sorted(found)]


def _is_decision(row: tuple[Any, ...]) -> bool:
    number, reviewer, about, action, label, *corners, at, undone_at, _ = row
    texts = (reviewer, about, action, label, at, undone_at or "")
    drawn = action == "draw"
    return (
        isinstance(number, int)
        and action in get_args(Action)
        and all(isinstance(text, str) and text.isprintable() for text in texts)
        and all(isinstance(corner, float) if drawn else corner is None for corner in corners)
    )


def _decision(row: tuple[Any, ...]) -> Decision:
    number, reviewer, about, action, label, x0, y0, x1, y1, at, undone_at = row
    box = None if x0 is None else Box(x0, y0, x1, y1)
    return Decision(number, reviewer, about, action, label, box, at, undone_at)
