"""SQLite files of ours: whose they are and of which version, whether they are damaged, and how they are set aside.

The journal of answers and the decisions of reviewers are such files. Every row carries a checksum.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_chat.errors import OutputError

DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


@dataclass(frozen=True, slots=True)
class Form:
    """What tells a file of one kind from others, and how a new one is made.

    ``application_id`` is the kind's own mark, ``version`` the newest one that this program reads; ``table`` makes the
    tables. ``other_hint`` and ``newer_hint`` are the ways out of another program's file and of a newer one.
    """

    application_id: int
    version: int
    table: str
    other_hint: str
    newer_hint: str

    def make(self, database: sqlite3.Connection) -> None:
        """Make the tables in an empty database."""
        marks = f"PRAGMA application_id={self.application_id};PRAGMA user_version={self.version};"
        database.executescript(f"BEGIN;{self.table}{marks}COMMIT;")

    def check(self, database: sqlite3.Connection, path: Path, *, thorough: bool = False) -> int:
        """The version of a file, which is ours and hangs together.

        Args:
            thorough: compare the indices with the tables too.

        Raises:
            sqlite3.DatabaseError: it is damaged. OutputError: another program made it, or a newer version of this one.
        """
        owner, version = database.execute("PRAGMA application_id").fetchone()[0], version_of(database)
        if owner != self.application_id:
            raise OutputError(f"{path} is a database of another program.", hint=self.other_hint)
        if version > self.version:
            raise OutputError(
                f"{path} was written by a newer wsi-chat (version {version}, this one reads {self.version}).",
                hint=self.newer_hint,
            )
        try:
            verdict = database.execute(f"PRAGMA {'integrity' if thorough else 'quick'}_check(1)").fetchone()[0]
        except (UnicodeDecodeError, MemoryError) as error:  # a damaged name in SQLite's own message, a damaged length
            raise sqlite3.DatabaseError(str(error)) from error
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        return version


def files_of_database(path: Path) -> list[Path]:
    """A database and the files that SQLite keeps beside it, there or not."""
    return [path.with_name(path.name + tail) for tail in ("", "-wal", "-shm")]


def set_aside(path: Path) -> Path:
    """Move a damaged file out of the way, ``NAME.damaged-1``, with what SQLite keeps beside it; returns where it is."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for file in files_of_database(path):
        if file.exists():
            file.rename(aside.with_name(aside.name + file.name.removeprefix(path.name)))
    return aside


def is_empty(database: sqlite3.Connection) -> bool:
    """Whether a database has no tables. Raises DatabaseError for damage."""
    try:
        return bool(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0)
    except UnicodeDecodeError as error:  # a damaged name within SQLite's own message
        raise sqlite3.DatabaseError(str(error)) from error


def version_of(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def lenient_text(content: bytes) -> str:
    """A stored text; damaged UTF-8 is no error here, its row's checksum tells."""
    return content.decode("utf-8", "surrogateescape")


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether a file is damaged, and not merely locked, full or out of reach."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return not isinstance(error, sqlite3.OperationalError)  # our own verdict on a file
    return (code & 0xFF) in DAMAGE


def checksum_of_row(values: Sequence[Any]) -> int:
    """CRC-32 of a row's values as ASCII JSON, which is the same on every machine."""
    return zlib.crc32(json.dumps(list(values), default=repr).encode("ascii"))
