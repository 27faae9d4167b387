"""The journal: nothing that was stored is lost, nothing is stored that should be asked again, one writer."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsi_chat.errors import OutputError
from wsi_chat.journal import VERSION, Journal
from wsi_chat.schema import Answer

ANSWER = Answer(
    key="k1",
    task="screen",
    text="B",
    probabilities={"A": 0.1, "B": 0.9000000000000001},
    logprob=-0.1234567890123,
    seconds=0.5,
    prompt_tokens=120,
    new_tokens=1,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "with space ü" / "journal.sqlite"


@pytest.fixture(autouse=True)
def _folder(path: Path) -> None:
    path.parent.mkdir()


def test_an_answer_comes_back_bit_for_bit_after_reopening(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.put(ANSWER)
        assert journal.get("k1") == ANSWER
    with Journal(path) as journal:
        assert journal.get("k1") == ANSWER
        assert journal.get("k2") is None
        assert "k1" in journal
        assert len(journal) == 1


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(min_size=1).filter(str.strip),  # lone surrogates among them
    chances=st.none() | st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1),
    logprob=st.none() | st.floats(-1e6, 0),
)
def test_any_answer_survives(path: Path, text: str, chances: dict[str, float] | None, logprob: float | None) -> None:
    answer = replace(ANSWER, text=text, probabilities=chances, logprob=logprob, status="truncated")
    with Journal(path, overwrite=True) as journal:
        assert journal.put(answer)
    with Journal(path) as journal:
        assert journal.get("k1") == answer


def test_lone_surrogates_do_no_harm(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.put(replace(ANSWER, text="a\ud800b"))
        assert journal.get("k1") == replace(ANSWER, text="a\ufffdb")


def test_failed_and_empty_answers_are_asked_again(path: Path) -> None:
    with Journal(path) as journal:
        assert not journal.put(replace(ANSWER, status="failed", finish_reason="error"))
        assert not journal.put(replace(ANSWER, text=" \n", probabilities=None))
        assert journal.get("k1") is None
        assert journal.put(replace(ANSWER, text="cut", status="truncated", finish_reason="length"))
        assert len(journal) == 1


def test_the_first_answer_stays(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.put(ANSWER)
        assert not journal.put(replace(ANSWER, text="A"))
        found = journal.get("k1")
        assert found is not None
        assert found.text == "B"


def test_many_keys_at_once(path: Path) -> None:
    with Journal(path) as journal:
        for number in range(1200):
            journal.put(replace(ANSWER, key=f"k{number}"))
        found = journal.get_many(f"k{number}" for number in range(600, 1800))
        assert sorted(found) == sorted(f"k{number}" for number in range(600, 1200))
        assert all(answer.key == key for key, answer in found.items())


def test_overwrite_forgets(path: Path) -> None:
    with Journal(path) as journal:
        journal.put(ANSWER)
    with Journal(path, overwrite=True) as journal:
        assert len(journal) == 0


WRITER = """
import sys
from pathlib import Path
from wsi_chat.journal import Journal
from wsi_chat.schema import Answer
journal = Journal(Path(sys.argv[1]))
for n in range(len(journal), 10**6):
    journal.put(Answer(f"k{n}", "describe", "text " * (n % 300)  + str(n)))
    print(n, flush=True)
"""


def test_what_was_reported_as_stored_survives_a_kill(path: Path) -> None:
    stored = 0
    for rounds in (5, 60, 300):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _, line in zip(range(rounds), writer.stdout, strict=False):
            stored = max(stored, int(line) + 1)
        os.kill(writer.pid, signal.SIGKILL)
        for line in writer.stdout:
            # the last line may be cut off by the kill
            stored = max(stored, int(line) + 1) if line.endswith("\n") else stored
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        with Journal(path) as journal:
            found = journal.get_many(f"k{n}" for n in range(stored))
            assert len(found) == stored
            assert all(
                answer.text == "text " * (n % 300) + str(n) for n in range(stored) for answer in [found[f"k{n}"]]
            )
            assert stored <= len(journal) <= stored + 1
    assert stored >= 365


def test_a_second_writer_is_turned_away_and_let_in_later(path: Path) -> None:
    with Journal(path) as journal:
        journal.put(ANSWER)
        with pytest.raises(OutputError, match=r"another process is writing .*journal\.sqlite"):
            Journal(path)
        code = "import sys; from pathlib import Path; from wsi_chat.journal import Journal; Journal(Path(sys.argv[1]))"
        other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "another process is writing" in other.stderr
        with pytest.raises(OutputError, match="another process"):
            Journal(path, overwrite=True)
        assert journal.get("k1") == ANSWER
    with Journal(path) as journal:
        assert len(journal) == 1


def test_readers_look_on_while_a_writer_writes(path: Path) -> None:
    with pytest.raises(OutputError, match="there is no journal"):
        Journal(path, read_only=True)
    with Journal(path) as journal:
        journal.put(ANSWER)
        with Journal(path, read_only=True) as reader:
            assert reader.get("k1") == ANSWER
            journal.put(replace(ANSWER, key="k2"))
            assert len(reader) == 2
            with pytest.raises(OutputError, match="for reading only"):
                reader.put(replace(ANSWER, key="k3"))
    with Journal(path, read_only=True) as reader:
        assert len(reader) == 2


def test_threads_may_share_a_journal(path: Path) -> None:
    with Journal(path) as journal:

        def write(start: int) -> None:
            for number in range(start, start + 100):
                journal.put(replace(ANSWER, key=f"k{number}"))

        threads = [threading.Thread(target=write, args=(start,)) for start in (0, 100, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(journal) == 300


@pytest.mark.parametrize("damage", ["text", "middle", "tables"])
def test_a_damaged_journal_is_put_aside_and_named(path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    with Journal(path) as journal:
        for number in range(500):
            journal.put(replace(ANSWER, key=f"k{number}"))
    if damage == "text":
        path.write_text("this is no database, it only has its name " * 100)
    elif damage == "middle":
        content = bytearray(path.read_bytes())
        content[4096:-4096] = b"\xff" * (len(content) - 8192)
        path.write_bytes(content)
    else:
        database = sqlite3.connect(path)
        database.execute("ALTER TABLE answers RENAME COLUMN text TO words")
        database.close()
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING), Journal(path) as journal:
        assert len(journal) == 0
        assert journal.put(ANSWER)
    aside = path.with_name("journal.sqlite.damaged-1")
    assert aside.read_bytes() == before
    assert str(path) in caplog.text
    assert str(aside) in caplog.text
    with Journal(path) as journal:
        assert len(journal) == 1


def fill(path: Path, count: int = 500) -> None:
    with Journal(path) as journal:
        for number in range(count):
            journal.put(replace(ANSWER, key=f"k{number:04d}", text=f"answer {number} " * 20))


def test_a_changed_byte_in_an_answer_makes_it_unknown_and_no_other(path: Path) -> None:
    fill(path)
    content = path.read_bytes()
    assert content.count(b"answer 321 ") == 20
    path.write_bytes(content.replace(b"answer 321 ", b"answer 521 ", 1))
    with Journal(path) as journal:
        found = journal.get_many(f"k{number:04d}" for number in range(500))
        assert sorted({f"k{number:04d}" for number in range(500)} - set(found)) == ["k0321"]
        with Journal(path, read_only=True) as reader:
            assert reader.get("k0321") is None
        again = replace(ANSWER, key="k0321", text="asked again")
        assert journal.put(again)  # it takes the damaged one's place
        assert journal.get("k0321") == again
        assert len(journal) == 500


@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
def test_what_is_whole_in_a_damaged_journal_is_saved(path: Path, when: str, caplog: pytest.LogCaptureFixture) -> None:
    fill(path)
    open_already = Journal(path) if when == "while it is open" else None
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096  # one page of answers
    path.write_bytes(content)
    if open_already is not None:
        open_already._open.execute("PRAGMA shrink_memory")  # forget the pages that were read
    with caplog.at_level(logging.WARNING), Journal(path) if open_already is None else open_already as journal:
        found = journal.get_many(f"k{number:04d}" for number in range(500))
        assert 400 < len(found) < 500
        assert all(found[key].text == f"answer {int(key[1:])} " * 20 for key in found)
        assert journal.put(replace(ANSWER, key="k9999"))
        assert len(journal) == len(found) + 1
    assert path.with_name("journal.sqlite.damaged-1").is_file()
    assert f"{len(found)} answers saved" in caplog.text


def test_a_damaged_length_that_no_memory_holds_ends_what_is_read_of_a_journal_and_not_the_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says that memory is out where a row claims gigabytes: Python raises MemoryError, no sqlite3.Error."""
    fill(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    connect = sqlite3.connect

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> Any:
            rows = super().execute(sql, *values)
            return three_of(rows) if "ORDER BY key" in sql else rows

    def three_of(rows: Any) -> Iterator[Any]:
        for _ in range(3):
            yield next(rows)
        raise MemoryError

    monkeypatch.setattr(sqlite3, "connect", lambda *place, **how: connect(*place, factory=Connection, **how))
    with Journal(path) as journal:
        found = journal.get_many(f"k{number:04d}" for number in range(500))
    assert sorted(found) == ["k0000", "k0001", "k0002", "k0497", "k0498", "k0499"]


def test_a_journal_of_the_first_version_keeps_its_answers_and_gets_checksums(path: Path) -> None:
    database = sqlite3.connect(path)
    database.executescript(
        "CREATE TABLE answers (key TEXT PRIMARY KEY, task TEXT NOT NULL, text TEXT NOT NULL, status TEXT NOT NULL,"
        " finish_reason TEXT NOT NULL, probabilities TEXT, logprob REAL, seconds REAL NOT NULL,"
        " prompt_tokens INTEGER NOT NULL, new_tokens INTEGER NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
        "PRAGMA application_id=2004052529; PRAGMA user_version=1;"
    )
    values = ("k1", "screen", "B", "ok", "stop", '{"A": 0.1, "B": 0.9000000000000001}', -0.1234567890123, 0.5, 120, 1)
    database.execute("INSERT INTO answers VALUES (?,?,?,?,?,?,?,?,?,?)", values)
    database.commit()
    database.close()
    with Journal(path, read_only=True) as reader:
        assert reader.get("k1") == ANSWER
    for _ in range(2):
        with Journal(path) as journal:
            assert journal.get("k1") == ANSWER
            assert not journal.put(ANSWER)
    rows = sqlite3.connect(path).execute("SELECT checksum IS NULL FROM answers").fetchall()
    assert rows == [(0,)]


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS"])
def test_a_folder_without_locks_takes_a_journal_with_a_warning(
    path: Path, code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import errno
    import fcntl

    def flock(file: object, operation: int) -> None:
        raise OSError(getattr(errno, code), "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), Journal(path) as journal:
        assert journal.put(ANSWER)
    assert "has no locks" in caplog.text
    with Journal(path) as journal:
        assert journal.get("k1") == ANSWER


def test_a_journal_of_a_newer_version_is_left_alone(path: Path) -> None:
    Journal(path).close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version={VERSION + 1}")
    database.close()
    for _ in range(2):
        with pytest.raises(OutputError, match="written by a newer wsi-chat"):
            Journal(path)
    with Journal(path, overwrite=True) as journal:
        assert len(journal) == 0


def test_another_programs_database_is_left_alone(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(OutputError, match="database of another program"):
        Journal(path)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM theirs").fetchone() == (0,)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "absent" / "journal.sqlite")
    (tmp_path / "journal.sqlite").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "journal.sqlite")


def test_a_closed_journal_says_so(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    journal.close()
    with pytest.raises(OutputError, match="is closed"):
        journal.get("k1")


def test_a_full_disk_is_an_output_error(path: Path) -> None:
    with Journal(path) as journal:
        pages = journal._open.execute("PRAGMA page_count").fetchone()[0]
        journal._open.execute(f"PRAGMA max_page_count={pages}")
        many = [replace(ANSWER, key=f"k{number}", text="long " * 200) for number in range(200)]
        with pytest.raises(OutputError, match="cannot be written: database or disk is full"):
            list(map(journal.put, many))
