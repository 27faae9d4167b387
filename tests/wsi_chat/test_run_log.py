"""run.log and -v: what a run says beside its results, and how much of it stderr shows."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_chat._version import __version__
from wsi_chat.analysis.run_log import _Line, hide_in_log, run_log
from wsi_chat.engines.protocol import failed
from wsi_chat.errors import EngineError, SlideUnreadable
from wsi_chat.names import Names, hiding
from wsi_chat.schema import Query

from .test_cli import run

log = logging.getLogger("tilers.test")


def test_lines_wait_for_the_folder_and_are_added_to_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with run_log(out):
        log.info("before the folder")
        assert not out.exists()
        out.mkdir()
        log.warning("after")
    with run_log(out):
        log.info("resumed")
        logging.getLogger("httpx").warning("of a library")
    log.warning("outside")
    text = (out / "run.log").read_text(encoding="utf-8")
    found = [line.split(" ", 1)[1] for line in text.splitlines() if "test:" in line]
    assert found == [
        "INFO tilers.test: before the folder", "WARNING tilers.test: after", "INFO tilers.test: resumed",
    ]  # fmt: skip


def test_the_levels_of_the_loggers_are_as_before(tmp_path: Path) -> None:
    before = logging.getLogger("wsi_chat").level
    with pytest.raises(RuntimeError), run_log(tmp_path):
        raise RuntimeError
    assert logging.getLogger("wsi_chat").level == before
    assert not [h for h in logging.getLogger("wsi_chat").handlers if type(h).__name__ == "_RunLog"]


def test_a_failed_answer_and_its_cause_are_logged(tmp_path: Path) -> None:
    with run_log(tmp_path):
        failed(Query("k", "screen", ()), "HTTP 503: overloaded")
    assert "no answer to a screen question: HTTP 503: overloaded" in (tmp_path / "run.log").read_text()


def test_an_error_that_ends_the_run_unforeseen_is_logged_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_log(tmp_path):
        raise KeyError("choices")
    with pytest.raises(EngineError), run_log(tmp_path):
        raise EngineError("the engine is closed")
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert (
        "ERROR wsi_chat.analysis.run_log: the run ended: an unexpected KeyError in wsi_chat.analysis.run_log: 'choices'"
        in text
    )
    assert text.count("Traceback") == 1
    assert "engine is closed" not in text  # said with its cause by the command that meets it


HOSTILE = "a.svs\n2026-01-01T00:00:00+0000 ERROR wsi_chat.forged: all is normal\r\x1b[2J\u2028\x85"
SHOWN = "a.svs␊2026-01-01T00:00:00+0000 ERROR wsi_chat.forged: all is normal␍␛[2J\ufffd\ufffd"


def test_a_name_with_line_breaks_is_no_line_of_the_log(tmp_path: Path) -> None:
    with run_log(tmp_path):
        log.warning("%s: damaged", HOSTILE)
        log.warning("two faults:\n  line 1\n  line 2")
        try:
            raise SlideUnreadable(HOSTILE)
        except SlideUnreadable:
            log.exception("it failed")
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    records = [line for line in text.split("\n") if line and not line.startswith("  ")]
    assert [line.split(" ", 2)[2] for line in records] == [
        f"wsi_chat.analysis.run_log: wsi-chat {__version__} begins",
        f"tilers.test: {SHOWN}: damaged",
        "tilers.test: two faults:",
        "tilers.test: it failed",
    ]
    assert text.splitlines()[3:5] == ["  line 1", "  line 2"]
    assert "  wsi_chat.errors.SlideUnreadable: a.svs\n  2026-01-01" in text
    assert "all is normal␍␛[2J\ufffd\ufffd" in text


@settings(deadline=None)
@given(st.text(st.sampled_from("a \n\r\t\x0b\x0c\x1c\x1e\x85\u2028\u2029\udcff:")))
def test_whatever_a_name_holds_a_record_is_one_line_and_a_traceback_is_indented(name: str) -> None:
    for arguments, error in (((name,), None), (("failed",), (ValueError, ValueError(name), None))):
        record = logging.LogRecord("tilers", logging.ERROR, "", 0, "%s", arguments, error)
        first, *more = _Line.of(record).shown(Names("")).splitlines()
        assert first.split(" ", 1)[1].startswith("ERROR tilers: ")
        assert [line for line in more if not line.startswith("  ")] == []


def test_a_pseudonym_stands_for_a_name_with_line_breaks_too(tmp_path: Path) -> None:
    with run_log(tmp_path):
        try:
            raise SlideUnreadable("Do\ne.svs: cut off")
        except SlideUnreadable:
            log.exception("Do\ne.svs: damaged")
        hide_in_log(Names("", hidden=hiding({"Do\ne.svs": "slide-1"})))
    text = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "tilers.test: slide-1: damaged\n" in text
    assert "\n  wsi_chat.errors.SlideUnreadable: slide-1: cut off\n" in text


def test_a_slide_that_fails_is_in_run_log_with_its_cause_and_on_stderr_in_short(tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_text("no slide")
    for command, source in (("analyze", tmp_path / "bad.svs"), ("cohort", tmp_path)):
        out = tmp_path / f"out-{command}"
        done = run(command, str(source), "-o", str(out), "--engine", "transformers")
        assert "Traceback" not in done.stderr
        text = (out / "run.log").read_text(encoding="utf-8")
        assert "bad.svs" in text
        assert "SlideUnsupported" in text
        assert "Traceback" in text


def test_v_shows_what_is_being_done(tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_text("no slide")
    quiet, loud = (run("analyze", str(tmp_path / "bad.svs"), "-o", str(tmp_path / "o"), *v) for v in ([], ["-v"]))
    assert "INFO: " not in quiet.stderr
    assert "INFO: wsi-chat" in loud.stderr
    assert quiet.stderr.count("error: ") == loud.stderr.count("error: ") == 1
