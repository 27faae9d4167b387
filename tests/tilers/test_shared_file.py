"""A file that threads read a little ahead gives the bytes that are asked for, with few system calls."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilers.readers.scanner_tiff import AHEAD_BYTES, SharedFile

CONTENT = np.random.default_rng(0).bytes(3 * AHEAD_BYTES)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shared") / "a.bin"
    path.write_bytes(CONTENT)
    return path


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.integers(0, len(CONTENT) + 50), st.integers(0, 2 * AHEAD_BYTES)), min_size=1, max_size=12
    )
)
def test_any_part_is_what_the_file_holds_there(path: Path, parts: list[tuple[int, int]]) -> None:
    file = SharedFile(path)
    assert [file.read(start, count) for start, count in parts] == [
        CONTENT[start : start + count] for start, count in parts
    ]
    file.close()


def test_what_lies_together_is_asked_for_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    pread = os.pread

    def counted(file: int, count: int, start: int) -> bytes:
        asked.append((count, start))
        return pread(file, count, start)

    monkeypatch.setattr(os, "pread", counted)
    file = SharedFile(path)
    step = AHEAD_BYTES // 8
    assert b"".join(file.read(start, step) for start in range(0, len(CONTENT), step)) == CONTENT
    assert asked == [(AHEAD_BYTES, n * AHEAD_BYTES) for n in range(3)]
    file.close()


def test_threads_read_ahead_each_for_itself(path: Path) -> None:
    file = SharedFile(path)
    read: dict[int, bytes] = {}

    def go(number: int) -> None:
        read[number] = b"".join(file.read(start, 999) for start in range(number, len(CONTENT), 999))

    threads: list[Any] = [threading.Thread(target=go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {number: CONTENT[number:] for number in range(4)}
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        file.read(0, 2 * AHEAD_BYTES)
