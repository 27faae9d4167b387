"""A file that makes a library abort, never end or swell does so in the process that opens it on trial."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tilers.bad_readers import open_bad
from tilers import open_slide
from tilers import trial as trials
from tilers.readers import register_reader, registered_by_name, unregister_reader
from tilers.remote import RemotePath
from tilers.trial import Trial, needs_trial, wanted
from wsi_chat.errors import SettingError, SlideUnreadable, SlideUnsupported

Write = Callable[[str, str], Path]


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    """A trial of its own with small limits, asked by `open_slide`."""
    made = Trial(work_seconds=3, wait_seconds=60, memory=2**30)
    monkeypatch.setattr("tilers.opening.the_trial", made)
    register_reader("bad", open_bad, suffixes=(".bad",))
    yield made
    unregister_reader("bad")
    made.close()


@pytest.fixture
def bad(tmp_path: Path) -> Write:
    def write(when: str, what: str) -> Path:
        path = tmp_path / f"{when}-{what}.bad"
        path.write_text(f"{when} {what}")
        return path

    return write


@pytest.mark.parametrize("when", ["open", "read"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("abort", "ended it by SIGABRT"),
        ("crash", "ended it by SIGSEGV"),
        ("exit", "ended it with exit code 3"),
        ("killed", "ended it by SIGKILL"),
        ("swell", "wanted more than 1 GiB of memory"),
        ("loop", "took more than 3 s of processor time or 60 s by the clock"),
    ],
)
def test_what_a_file_does_to_the_process_is_said_and_this_process_lives(
    when: str, what: str, said: str, trial: Trial, bad: Write
) -> None:
    path = bad(when, what)
    with pytest.raises(SlideUnreadable) as caught:
        open_slide(path, trial=True)
    during = {"open": "the reader bad opened it", "read": "the reader bad read from its level 1"}[when]
    assert caught.value.message == (
        f"{path.name} is refused: opened on trial, in a process of its own, it {said} while {during}."
    )
    assert "trial: false" in caught.value.hint
    assert "WSI_CHAT_TRIAL=false" in caught.value.hint
    with open_slide(bad("read", "nothing"), trial=True) as slide:  # the next one is none the worse
        assert slide.read_region(0, 0, 0, 4, 4).tolist() == np.full((4, 4, 3), 128).tolist()


def test_the_end_of_a_process_is_waited_for_without_sleeping(
    trial: Trial, bad: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libfaketime makes every `time.sleep` fail with "Invalid argument": a slide failed by it once."""

    def fails(seconds: float) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(time, "sleep", fails)
    with pytest.raises(SlideUnreadable, match="ended it with exit code 3"):
        open_slide(bad("open", "linger"), trial=True)


def test_a_file_that_waits_for_ever_is_refused_by_the_clock(trial: Trial, bad: Write) -> None:
    hasty = Trial(work_seconds=100, wait_seconds=2)
    with pytest.raises(SlideUnreadable, match="took more than 100 s of processor time or 2 s by the clock"):
        hasty.check(bad("open", "sleep"), registered=registered_by_name())
    hasty.close()


def test_what_a_reader_prints_is_no_answer(trial: Trial, bad: Write) -> None:
    for what in ("print", "nothing"):
        with open_slide(bad("read", what), trial=True) as slide:
            assert slide.reader == "bad"
    with pytest.raises(SlideUnreadable, match="SIGABRT"):
        open_slide(bad("open", "abort"), trial=True)


def test_sigterm_and_interrupts_are_meant_for_the_parent(trial: Trial, bad: Write) -> None:
    with open_slide(bad("read", "nothing"), trial=True):
        assert trial._child is not None
        os.kill(trial._child.pid, 15)
        os.kill(trial._child.pid, 2)
    with open_slide(bad("read", "else"), trial=True):
        assert (trial.started, trial.tried) == (1, 2)


def test_a_large_parent_is_not_taken_for_a_large_child() -> None:
    """Linux hands on to a process the most memory that its parent had, as ru_maxrss: each slide got a process anew."""
    ask = "from tilers.trial_child import _peak; print(_peak())"
    parent = (
        "import subprocess, sys; held = b'x' * 400_000_000; "
        f"print(subprocess.run([sys.executable, '-c', {ask!r}], capture_output=True, text=True, check=True).stdout)"
    )
    said = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True).stdout
    assert 1_000_000 < int(said) < 400_000_000


def test_one_process_serves_all_slides_and_each_is_tried_once(trial: Trial, bad: Write) -> None:
    paths = [bad("read", f"n{i}") for i in range(5)]
    for path in paths * 2:
        with open_slide(path, trial=True) as slide, slide.clone():
            pass
    assert (trial.started, trial.tried) == (1, 5)
    dead = bad("open", "abort")
    for _ in range(3):
        with pytest.raises(SlideUnreadable):
            open_slide(dead, trial=True)
    assert (trial.started, trial.tried) == (2, 6)  # died once in the shared process, once in one of its own
    dead.write_text("read nothing ")  # another file under the same name
    with open_slide(dead, trial=True):
        assert trial.tried == 7


def test_a_slide_is_not_refused_for_what_the_one_before_did_to_the_process(trial: Trial, bad: Write) -> None:
    with open_slide(bad("read", "poison"), trial=True):
        pass
    with open_slide(bad("read", "nothing"), trial=True) as slide:
        assert slide.reader == "bad"
    assert trial.started == 2


def test_a_process_that_ended_while_nothing_was_asked_is_started_again(trial: Trial, bad: Write) -> None:
    with open_slide(bad("read", "one"), trial=True):
        pass
    assert trial._child is not None
    os.kill(trial._child.pid, 9)
    with open_slide(bad("read", "two"), trial=True):
        pass
    assert trial.started == 2


def test_where_no_process_can_be_started_slides_are_opened_without(
    trial: Trial, bad: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trials, "_START", "import sys; sys.exit(7)  # {work} {wait} {memory}")
    for what in ("one", "two"):
        with open_slide(bad("read", what), trial=True) as slide:
            assert slide.reader == "bad"
    assert [record.message for record in caplog.records if "cannot be opened on trial" in record.message] == [
        f"slides cannot be opened on trial: {sys.executable} -c ... ended it with exit code 7 before it was ready; "
        "a file that makes a library abort will end the run"
    ]
    assert trial.started == 1


def test_an_interrupt_ends_the_trial_and_the_next_answer_is_the_next_slide_s(
    trial: Trial, bad: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(bad("read", "nothing"), trial=True):
        pass
    assert trial._child is not None
    first = trial._child
    with monkeypatch.context() as patch:
        patch.setattr(trial, "_ask", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_slide(bad("read", "else"), trial=True)
    assert first.poll() == -9
    with pytest.raises(SlideUnreadable, match="SIGABRT"):
        open_slide(bad("open", "abort"), trial=True)


def _interrupted(child: object, request: bytes) -> None:
    raise KeyboardInterrupt


def test_what_else_is_wrong_with_a_file_is_no_matter_of_the_trial(trial: Trial, tmp_path: Path) -> None:
    path = tmp_path / "text.svs"
    path.write_text("no slide at all")
    with pytest.raises(SlideUnsupported, match="it is a text file"):
        open_slide(path, trial=True)
    assert trial.tried == 1


def test_what_is_tried_and_what_is_not(trial: Trial, tmp_path: Path, shared_data: Path) -> None:
    Image.new("RGB", (40, 30), "grey").save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), "grey").save(tmp_path / "b.jpg")
    for path in (tmp_path / "a.png", tmp_path):  # a picture, and a folder of them
        assert not needs_trial(path)
        with open_slide(path, mpp=0.5, trial=True):
            assert trial.started == 0
    (tmp_path / "c.png").write_bytes(b"II*\0")  # a TIFF by any other name
    assert needs_trial(tmp_path / "c.png")
    (tmp_path / "a.png").rename(tmp_path / "a.mrxs")  # OpenSlide goes by this suffix
    assert needs_trial(tmp_path / "a.mrxs")
    assert needs_trial(shared_data / "slides" / "CMU-1-Small-Region.svs")
    assert not needs_trial(RemotePath("https://localhost:1/a.svs"))


def test_trials_are_on_unless_the_caller_or_the_environment_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSI_CHAT_TRIAL", raising=False)
    assert [wanted(None), wanted(True), wanted(False)] == [True, True, False]
    monkeypatch.setenv("WSI_CHAT_TRIAL", "No")
    assert [wanted(None), wanted(True)] == [False, True]
    monkeypatch.setenv("WSI_CHAT_TRIAL", "perhaps")
    with pytest.raises(SettingError, match="'perhaps' is neither yes nor no"):
        wanted(None)


def test_only_a_reader_that_can_be_imported_by_name_reaches_the_other_process(trial: Trial) -> None:
    register_reader("nameless", lambda path: open_bad(path))
    try:
        assert registered_by_name() == {"bad": ("tests.tilers.bad_readers", "open_bad", (".bad",))}
    finally:
        unregister_reader("nameless")


def test_the_process_ends_with_its_parent_however_that_ends(tmp_path: Path, shared_data: Path) -> None:
    script = (
        "import sys, os, signal\nfrom tilers import open_slide\nfrom tilers.trial import trial\n"
        "open_slide(sys.argv[1], trial=True)\nprint(trial._child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(shared_data / "slides" / "boxes.tiff")], capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == -9
    child = int(done.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _lives(child):
        time.sleep(0.05)
    assert not _lives(child)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
