"""What has been answered so far: one SQLite row per answer, keyed by everything that determines it.

An answer that `put` has returned from survives SIGKILL at any instant: every one is committed at once to
SQLite's write-ahead log, which a killed process leaves with the operating system (a power cut may cost the last
moments, never the file). The first answer to a key stays; failed and empty ones are not kept, so they are asked
again.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from wsi_chat.errors import OutputError
from wsi_chat.schema import Answer

log = logging.getLogger(__name__)

VERSION = 1
APPLICATION_ID = 0x77736A31  # "wsj1": tells a journal from another program's database

TABLES = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, task TEXT NOT NULL, text TEXT NOT NULL, status TEXT NOT NULL,
    finish_reason TEXT NOT NULL, probabilities TEXT, logprob REAL, seconds REAL NOT NULL,
    prompt_tokens INTEGER NOT NULL, new_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
COLUMNS = "key, task, text, status, finish_reason, probabilities, logprob, seconds, prompt_tokens, new_tokens"


class Journal:
    """The answers of one run folder; one writer at a time.

    Args:
        path: the SQLite file; made if absent.
        overwrite: forget what is there.
        read_only: for readers beside a running writer, or of a finished run; `put` is refused.

    Raises:
        OutputError: another process writes the same journal, a newer version wrote it, it cannot be written, or
            ``read_only`` and there is none.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, read_only: bool = False) -> None:
        self.path = Path(path)
        self._read_only = read_only
        self._mutex = threading.Lock()
        self._lock: IO[bytes] | None = None
        self._database: sqlite3.Connection | None = None
        if read_only:
            self._database = self._open_to_read()
            return
        self._lock = self._locked()
        try:
            if overwrite:
                for file in self._files():
                    file.unlink(missing_ok=True)
            self._database = self._open_to_write()
        except BaseException:
            self._unlock()
            raise

    # ------------------------------------------------------------------------------------------ opening

    def _files(self) -> list[Path]:
        return [self.path.with_name(self.path.name + tail) for tail in ("", "-wal", "-shm")]

    def _open_to_write(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.OperationalError as error:
            raise self._refused(error) from error
        except sqlite3.DatabaseError as error:
            aside = self._moved_aside()
            log.warning("journal %s is damaged (%s); moved to %s, starting anew", self.path, error, aside)
        try:
            return self._connected()
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def _connected(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            fresh = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            if not fresh:
                self._check(database)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            if fresh:
                database.executescript(
                    f"BEGIN;{TABLES}PRAGMA application_id={APPLICATION_ID};PRAGMA user_version={VERSION};COMMIT;"
                )
        except BaseException:
            database.close()
            raise
        return database

    def _check(self, database: sqlite3.Connection) -> None:
        """Raises DatabaseError for damage, OutputError for another program's or a newer file."""
        owner = database.execute("PRAGMA application_id").fetchone()[0]
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if owner != APPLICATION_ID:
            raise OutputError(f"{self.path} is a database of another program", hint="Choose another output folder.")
        if version > VERSION:
            raise OutputError(
                f"{self.path} was written by a newer wsi-chat (journal version {version}, this one reads {VERSION})",
                hint="Upgrade wsi-chat, or start over with --overwrite.",
            )
        verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        try:
            database.execute(f"SELECT {COLUMNS} FROM answers LIMIT 1").fetchall()
            database.execute("SELECT name, value FROM meta LIMIT 1").fetchall()
        except sqlite3.OperationalError as error:
            # tables of ours with other columns are damage, not a full disk
            raise sqlite3.DatabaseError(str(error)) from error

    def _open_to_read(self) -> sqlite3.Connection:
        if not self.path.is_file():
            raise OutputError(f"there is no journal {self.path}", hint="Run wsi-chat analyze first.")
        uri = self.path.absolute().as_uri()
        try:
            try:
                database = sqlite3.connect(f"{uri}?mode=ro", uri=True, check_same_thread=False, timeout=30)
                self._check(database)
            except sqlite3.OperationalError:
                # on read-only media the log's index cannot be made; then no writer can be there either
                database = sqlite3.connect(f"{uri}?immutable=1", uri=True, check_same_thread=False)
                self._check(database)
            return database
        except sqlite3.Error as error:
            raise OutputError(
                f"journal {self.path} cannot be read: {error}", hint="Run wsi-chat analyze again."
            ) from error

    def _moved_aside(self) -> Path:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        for file in self._files():
            if file.exists():
                file.rename(aside.with_name(aside.name + file.name.removeprefix(self.path.name)))
        return aside

    def _refused(self, error: Exception) -> OutputError:
        return OutputError(
            f"journal {self.path} cannot be written: {error}",
            hint="Check the folder's permissions and the free space.",
        )

    # ------------------------------------------------------------------------------------------ locking

    def _locked(self) -> IO[bytes]:
        """The lock of the run folder's journal; the operating system releases it when the process ends."""
        path = self.path.with_name(self.path.name + ".lock")
        try:
            file = path.open("ab")
        except OSError as error:
            raise self._refused(error) from error
        try:
            lock_file(file)
        except OSError as error:
            file.close()
            raise OutputError(
                f"another process is writing {self.path}",
                hint="Wait for it to finish, or choose another output folder.",
            ) from error
        return file

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ------------------------------------------------------------------------------------------ use

    @property
    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            raise OutputError(f"journal {self.path} is closed")
        return self._database

    def get(self, key: str) -> Answer | None:
        """The answer to a query's key, or None where it has none yet."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Key -> answer for those keys that have one."""
        wanted = list(keys)
        found: dict[str, Answer] = {}
        with self._mutex:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = self._open.execute(f"SELECT {COLUMNS} FROM answers WHERE key IN ({marks})", part)
                found.update((row[0], _answer(row)) for row in rows)
        return found

    def put(self, answer: Answer, *, replace: bool = False) -> bool:
        """Keep an answer; on return it is safe. False where it was not kept: failed, empty, or known already.

        ``replace`` puts it in the place of an earlier answer to the same key.

        Raises OutputError where it cannot be written (disk full, read-only).
        """
        if answer.status == "failed" or (not answer.text.strip() and not answer.probabilities):
            return False
        if self._read_only:
            raise OutputError(f"journal {self.path} is open for reading only")
        chances = None if answer.probabilities is None else json.dumps(dict(answer.probabilities))
        row = (
            answer.key,
            answer.task,
            # lone surrogates are legal in str and not in a database
            answer.text.encode("utf-8", "replace").decode("utf-8"),
            answer.status,
            answer.finish_reason,
            chances,
            answer.logprob,
            answer.seconds,
            answer.prompt_tokens,
            answer.new_tokens,
        )
        marks = ",".join("?" * len(row))
        with self._mutex:
            try:
                either = "REPLACE" if replace else "IGNORE"
                done = self._open.execute(f"INSERT OR {either} INTO answers ({COLUMNS}) VALUES ({marks})", row)
            except sqlite3.Error as error:
                raise self._refused(error) from error
        return done.rowcount == 1

    def forget(self, keys: Iterable[str]) -> None:
        """Take answers back: their questions count as never asked. Raises OutputError where that cannot be written."""
        rows = [(key,) for key in keys]
        with self._mutex:
            try:
                self._open.executemany("DELETE FROM answers WHERE key = ?", rows)
            except sqlite3.Error as error:
                raise self._refused(error) from error

    def tally(self) -> dict[str, int]:
        """How many answers there are to each task, by task."""
        with self._mutex:
            rows = self._open.execute("SELECT task, count(*) FROM answers GROUP BY task ORDER BY task").fetchall()
        return {str(task): int(number) for task, number in rows}

    def __len__(self) -> int:
        with self._mutex:
            return int(self._open.execute("SELECT count(*) FROM answers").fetchone()[0])

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    @property
    def meta(self) -> dict[str, Any]:
        """What was noted about the run (fingerprint, settings), as JSON values."""
        with self._mutex:
            rows = self._open.execute("SELECT name, value FROM meta ORDER BY name").fetchall()
        return {name: json.loads(value) for name, value in rows}

    def note(self, values: Mapping[str, Any]) -> None:
        """Write down JSON values about the run; a name that is there already is replaced."""
        if self._read_only:
            raise OutputError(f"journal {self.path} is open for reading only")
        rows = [(name, json.dumps(value, sort_keys=True)) for name, value in values.items()]
        with self._mutex:
            try:
                self._open.executemany("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", rows)
            except sqlite3.Error as error:
                raise self._refused(error) from error

    def close(self) -> None:
        """Close the file and let the next writer in. Safe to call twice."""
        with self._mutex:
            if self._database is not None:
                self._database.close()
                self._database = None
            self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _answer(row: tuple[Any, ...]) -> Answer:
    key, task, text, status, finish_reason, chances, logprob, seconds, prompt_tokens, new_tokens = row
    return Answer(
        key=key,
        task=task,
        text=text,
        status=status,
        finish_reason=finish_reason,
        probabilities=None if chances is None else json.loads(chances),
        logprob=logprob,
        seconds=seconds,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
    )


def lock_file(file: IO[bytes]) -> None:
    """Raises OSError at once where another process (or another journal of this one) holds the lock."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
