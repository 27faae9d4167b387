"""What has been answered so far: one SQLite row per answer, keyed by everything that determines it.

An answer that `put` has returned from survives SIGKILL at any instant: every one is committed at once to
SQLite's write-ahead log, which a killed process leaves with the operating system (a power cut may cost the last
moments, never the file). The first answer to a key stays; failed and empty ones are not kept, so they are asked
again. Every row carries a checksum: a damaged row counts as not answered, and a damaged file is set aside, with what
can be read of it saved.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from wsi_chat.atomic import scratch_folder
from wsi_chat.database import (
    Form,
    checksum_of_row,
    files_of_database,
    is_damage,
    is_empty,
    lenient_text,
    set_aside,
    version_of,
)
from wsi_chat.errors import OutputError
from wsi_chat.locks import lock_file
from wsi_chat.schema import Answer

log = logging.getLogger(__name__)

VERSION = 2

TABLE = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, task TEXT NOT NULL, text TEXT NOT NULL, status TEXT NOT NULL,
    finish_reason TEXT NOT NULL, probabilities TEXT, logprob REAL, seconds REAL NOT NULL,
    prompt_tokens INTEGER NOT NULL, new_tokens INTEGER NOT NULL, checksum INTEGER
) WITHOUT ROWID;
"""
COLUMNS = "key, task, text, status, finish_reason, probabilities, logprob, seconds, prompt_tokens, new_tokens"
FORM = Form(
    application_id=0x77736A31,  # "wsj1"
    version=VERSION,
    table=TABLE,
    other_hint="Choose another output folder.",
    newer_hint="Upgrade wsi-chat, or start over with --overwrite.",
)


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
        self._locks = True
        self._columns = _columns(VERSION)
        self._database: sqlite3.Connection | None = None
        if read_only:
            self._database = self._open_to_read()
            return
        self._lock = self._locked()
        try:
            if overwrite:
                for file in files_of_database(self.path):
                    file.unlink(missing_ok=True)
            self._database = self._open_to_write()
        except BaseException:
            self._unlock()
            raise

    # ------------------------------------------------------------------------------------------ opening

    def _open_to_write(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise self._refused(error) from error
            return self._started_anew(error)

    def _started_anew(self, error: sqlite3.DatabaseError) -> sqlite3.Connection:
        """A new journal in place of a damaged one, which is set aside, with every answer that is whole in it."""
        aside = set_aside(self.path)
        try:
            database = self._connected()
            rows = list(_whole_rows(aside))
            database.execute("BEGIN")
            database.executemany(f"INSERT OR IGNORE INTO answers VALUES ({_marks(11)})", rows)
            database.execute("COMMIT")
        except sqlite3.Error as again:
            raise self._refused(again) from again
        number = f"{len(rows)} answer{'' if len(rows) == 1 else 's'}"
        log.warning("journal %s is damaged (%s); moved to %s, %s saved", self.path, error, aside, number)
        return database

    def _connected(self) -> sqlite3.Connection:
        place: str = str(self.path)
        if not self._locks:  # nor has SQLite any there; this process is the only one that it may assume
            place = f"{self.path.absolute().as_uri()}?nolock=1"
        database = sqlite3.connect(
            place, uri=not self._locks, isolation_level=None, check_same_thread=False, timeout=30
        )
        database.text_factory = lenient_text
        try:
            if not self._locks:
                database.execute("PRAGMA locking_mode=EXCLUSIVE")
            fresh = is_empty(database)
            version = VERSION if fresh else self._check(database)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            if fresh:
                FORM.make(database)
            elif version < VERSION:
                _add_checksums(database)
        except BaseException:
            database.close()
            raise
        return database

    def _check(self, database: sqlite3.Connection) -> int:
        """The file's version. Raises DatabaseError for damage, OutputError for another program's or a newer file."""
        version = FORM.check(database, self.path)
        try:
            database.execute(f"SELECT {_columns(version)} FROM answers LIMIT 1").fetchall()
        except sqlite3.OperationalError as error:
            # tables of ours with other columns are damage, not a full disk
            raise sqlite3.DatabaseError(str(error)) from error
        return version

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
            database.text_factory = lenient_text
            self._columns = _columns(version_of(database))
            return database
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _refused(self, error: Exception) -> OutputError:
        return OutputError(
            f"journal {self.path} cannot be written: {error}",
            hint="Check the folder's permissions and the free space.",
        )

    def _unreadable(self, error: Exception) -> OutputError:
        return OutputError(f"journal {self.path} cannot be read: {error}", hint="Run wsi-chat analyze again.")

    # ------------------------------------------------------------------------------------------ locking

    def _locked(self) -> IO[bytes]:
        """The lock of the run folder's journal; the operating system releases it when the process ends."""
        path = self.path.with_name(self.path.name + ".lock")
        try:
            file = path.open("ab")
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._locks = lock_file(file)
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
        answers: dict[str, Answer] = {}
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            sql = f"SELECT {self._columns} FROM answers WHERE key IN ({_marks(len(part))})"
            answers.update((row[0], _answer(row)) for row in self._rows(sql, part) if _whole(row))
        return answers

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query; where the file turns out to be damaged, those of the journal that replaces it."""
        with self._mutex:
            try:
                return self._open.execute(sql, values).fetchall()
            except sqlite3.DatabaseError as error:
                self._replace_damaged(error)
                return self._open.execute(sql, values).fetchall()

    def _replace_damaged(self, error: sqlite3.DatabaseError) -> None:
        """Set a file that is damaged aside. Raises OutputError where the error is of another kind."""
        if self._read_only:
            raise self._unreadable(error) from error
        if not is_damage(error):
            raise self._refused(error) from error
        self._open.close()
        self._database = self._started_anew(error)

    def put(self, answer: Answer, *, replace: bool = False) -> bool:
        """Store an answer; on return it is safe. False where it was not stored: failed, empty, or known already.

        ``replace`` puts it in the place of an earlier answer to the same key.

        Raises OutputError where it cannot be written (disk full, read-only).
        """
        if answer.status == "failed" or (not answer.text.strip() and not answer.probabilities):
            return False
        if self._read_only:
            raise OutputError(f"journal {self.path} is open for reading only")
        chances = None if answer.probabilities is None else json.dumps(dict(answer.probabilities))
        # SQLite keeps no -0.0, which would not be the value of the checksum
        logprob = None if answer.logprob is None or math.isnan(answer.logprob) else float(answer.logprob) + 0.0
        row: tuple[Any, ...] = (
            answer.key,
            answer.task,
            answer.text,
            answer.status,
            answer.finish_reason,
            chances,
            logprob,
            float(answer.seconds),
            answer.prompt_tokens,
            answer.new_tokens,
        )
        row = (*row, checksum_of_row(row))
        with self._mutex:
            try:
                return self._insert(row, replace=replace)
            except sqlite3.DatabaseError as error:
                self._replace_damaged(error)
            try:
                return self._insert(row, replace=replace)
            except sqlite3.Error as error:
                raise self._refused(error) from error

    def _insert(self, row: tuple[Any, ...], *, replace: bool) -> bool:
        sql = f"INSERT OR {'REPLACE' if replace else 'IGNORE'} INTO answers VALUES ({_marks(len(row))})"
        if self._open.execute(sql, row).rowcount == 1:
            return True
        earlier = self._open.execute(f"SELECT {self._columns} FROM answers WHERE key = ?", row[:1]).fetchall()
        if all(_whole(one) for one in earlier):
            return False
        return self._open.execute(sql.replace("IGNORE", "REPLACE"), row).rowcount == 1

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
        rows = self._rows("SELECT task, count(*) FROM answers GROUP BY task ORDER BY task")
        return {str(task): int(number) for task, number in rows}

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM answers")[0][0])

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

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


# ---------------------------------------------------------------------------------------------- rows


def _columns(version: int) -> str:
    """What is read of a row; a journal of the first version has no checksums."""
    return f"{COLUMNS}, {'checksum' if version > 1 else 'NULL'}"


def _marks(count: int) -> str:
    return ",".join("?" * count)


def _whole(row: Sequence[Any]) -> bool:
    """Whether a row (with its checksum last, None where it never had one) is as it was written."""
    *values, checksum = row
    if checksum is not None:
        return bool(checksum == checksum_of_row(values))
    try:
        _answer(row)
    except (TypeError, ValueError):
        return False
    return all(isinstance(value, str) for value in values[:5]) and isinstance(values[7], float)


def _add_checksums(database: sqlite3.Connection) -> None:
    """Bring a journal of the first version up to this one; what was answered stays."""
    rows = database.execute(f"SELECT {COLUMNS} FROM answers").fetchall()
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute("ALTER TABLE answers ADD COLUMN checksum INTEGER")
        database.executemany(
            "UPDATE answers SET checksum = ? WHERE key = ?", [(checksum_of_row(row), row[0]) for row in rows]
        )
        database.execute("DROP TABLE IF EXISTS meta")
        database.execute(f"PRAGMA user_version={VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def _whole_rows(path: Path) -> Iterator[tuple[Any, ...]]:
    """Every row that can be read of a damaged journal and is whole, with its checksum; the file is left as it is.

    It is read from its beginning and from its end, each as far as it goes.
    """
    seen: set[str] = set()
    with scratch_folder(path.parent) as scratch:
        copy = scratch / "journal.sqlite"
        for tail in ("", "-wal"):
            part = path.with_name(path.name + tail)
            if part.is_file():
                shutil.copyfile(part, copy.with_name(copy.name + tail))
        for order in ("ASC", "DESC"):
            database = sqlite3.connect(copy)
            database.text_factory = lenient_text
            try:
                columns = _columns(version_of(database))
                for row in database.execute(f"SELECT {columns} FROM answers ORDER BY key {order}"):
                    if row[0] in seen:
                        break
                    if _whole(row):
                        seen.add(row[0])
                        yield (*row[:-1], checksum_of_row(row[:-1]))
            except (sqlite3.Error, UnicodeDecodeError, MemoryError):  # the last: a length that cannot be
                continue  # as far as it goes
            finally:
                database.close()


def _answer(row: Sequence[Any]) -> Answer:
    key, task, text, status, finish_reason, chances, logprob, seconds, prompt_tokens, new_tokens, _ = row
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
