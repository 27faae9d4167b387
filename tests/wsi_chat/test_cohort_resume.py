"""Cohorts that are killed or interrupted, documents of earlier runs, and the command line around it all."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import wsi_chat
from wsi_chat import cli
from wsi_chat.analysis.earlier_documents import EarlierDocuments
from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.analysis.sample import Sample
from wsi_chat.cohort.page import page
from wsi_chat.cohort.result import CohortResult
from wsi_chat.cohort.run import analyze_slides
from wsi_chat.cohort.state import SlideState
from wsi_chat.engines import ScriptedEngine
from wsi_chat.errors import EngineError, WsiChatError
from wsi_chat.journal import Journal
from wsi_chat.schema import Query

# the command with an engine that writes down what it is asked before it answers
PROGRAM = """
import sys, time
import wsi_chat.engines as engines
log = sys.argv.pop(1)
def slowly(query):
    with open(log, "a") as file:
        file.write(query.tile_id + " " + query.key + "\\n")
    time.sleep(0.05)
    return {"A": 0.9, "B": 0.1} if query.choices else "No " + query.target + " is found."
engines.load_engine = lambda *a, **k: engines.ScriptedEngine(slowly)
from wsi_chat import cli
sys.argv[0] = "wsi-chat"
cli.main()
"""
QUICK = ["--limit", "8", "--coverage-floor", "0", "--top-k", "0", "--no-pdf", "--gallery", "0"]


def calm(query: Query) -> str | dict[str, float]:
    return {"A": 0.9, "B": 0.1} if query.choices else f"No {query.target} is found."


@pytest.fixture(autouse=True)
def _plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longest to draw, and are looked at elsewhere."""

    def grey(overview: object, report: object, tiles: object, path: Path, **options: object) -> None:
        from PIL import Image

        Image.new("RGB", (40, 30), "grey").save(path)

    monkeypatch.setattr("reports.draw_overview", grey)
    monkeypatch.setattr("reports.draw_heatmap", grey)


@pytest.fixture
def cohort(tmp_path: Path, small_slide: Path) -> Path:
    """A manifest of three slides with the same pixels under three names, two of them alike."""
    (tmp_path / "sub").mkdir()
    for name in ("a.tiff", "b.tiff", "sub/a.tiff"):
        (tmp_path / name).write_bytes(small_slide.read_bytes())
    path = tmp_path / "manifest.csv"
    path.write_text("wsi,mpp,label\na.tiff,0.5,n\nb.tiff,,p\nsub/a.tiff,,n\n")
    return path


def states(out: Path) -> list[str]:
    with (out / "summary.csv").open(encoding="utf-8-sig", newline="") as file:
        return [row["state"] for row in csv.DictReader(file)]


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def start(cohort: Path, log: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(log), "cohort", str(cohort), "-o", str(out), *QUICK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(process: subprocess.Popen[str], log: Path, count: int) -> None:
    while process.poll() is None and len(lines(log)) < count:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]


@pytest.mark.parametrize("score", [{"0.7": "0.7"}, "much", "nan", ["0.7"]])
def test_a_state_with_a_damaged_row_is_written_anew(
    score: object, cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The page made a number of whatever stood there, and every rerun ended in a traceback."""
    out = tmp_path / "out"
    options: dict[str, Any] = {"out": out, "limit": 2, "coverage_floor": 0.0, "top_k": 0, "format": "json"}
    first = wsi_chat.analyze_cohort([cohort.parent / "a.tiff"], engine=ScriptedEngine(calm), **options)
    path = SlideFolder(out / first.samples[0].slide_id).state_path
    sound = json.loads(path.read_text())
    path.write_text(json.dumps({**sound, "row": {**sound["row"], "score": score}}))
    again = wsi_chat.analyze_cohort([cohort.parent / "a.tiff"], engine=ScriptedEngine(calm), **options)
    assert again.counts == {"done": 1}
    assert json.loads(path.read_text())["row"]["score"] == sound["row"]["score"]
    assert "cannot be used and is written anew" in caplog.text


def test_a_cohort_killed_in_its_second_slide_and_interrupted_in_its_third_asks_nothing_twice(
    cohort: Path, tmp_path: Path
) -> None:
    log, out = tmp_path / "asked.txt", tmp_path / "out"
    killed = start(cohort, log, out)
    wait_for(killed, log, 12)  # eight questions a slide
    killed.kill()
    killed.communicate()
    first, *others = states(out)
    assert first in ("done", "running")  # its documents are written while the second slide is asked about
    assert others == ["running", "queued"]

    interrupted = start(cohort, log, out)
    wait_for(interrupted, log, 20)
    interrupted.send_signal(signal.SIGINT)
    _, shown = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130, shown
    assert "saved" in shown
    assert states(out) == ["done", "done", "queued"]

    finished = start(cohort, log, out)
    told, shown = finished.communicate(timeout=240)
    assert finished.returncode == 0, shown
    assert "3 slides: 3 done" in told
    assert "[3/3]" in shown
    assert states(out) == ["done"] * 3
    asked = Counter(lines(log))
    assert len(asked) == 8  # the same pixels on each slide
    # a question in flight at the kill or the interrupt was never answered: it alone may be asked again
    assert 24 <= sum(asked.values()) <= 26


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedEngine]:
    made: list[ScriptedEngine] = []

    def load(*args: object, **kwargs: object) -> ScriptedEngine:
        made.append(ScriptedEngine(calm))
        return made[-1]

    monkeypatch.setattr("wsi_chat.engines.load_engine", load)
    return made


def test_a_failed_slide_is_exit_3_and_one_engine_serves_all(
    cohort: Path, tmp_path: Path, scripted: list[ScriptedEngine]
) -> None:
    (tmp_path / "b.tiff").write_text("no slide")
    out = tmp_path / "out"
    done = CliRunner().invoke(cli.app, ["cohort", str(cohort), "-o", str(out), "--json", *QUICK])
    assert done.exit_code == 3, done.output
    payload = json.loads(done.stdout)
    assert payload["counts"] == {"done": 2, "failed": 1}
    assert [row["label"] for row in payload["slides"]] == ["n", "p", "n"]
    assert [line.split("  ")[1] for line in done.stderr.splitlines() if line.startswith("[")] == [
        "done", "FAILED", "done",
    ]  # fmt: skip
    assert len(scripted) == 1
    assert scripted[0].closed
    assert (out / "index.html").is_file()
    reason = next(row["reason"] for row in payload["slides"] if row["state"] == "failed")
    again = [CliRunner().invoke(cli.app, ["cohort", str(cohort), "-o", str(out), *more, *QUICK]) for more in (
        ["--retry-failed"], [],
    )]  # fmt: skip
    assert [done.stderr.count(reason) for done in again] == [1, 0]
    assert [done.stdout.count(reason) for done in again] == [0, 1], "once a run, at the end where it is from before"
    assert all("failed  " in done.stdout for done in again)
    assert json.loads((out / "run.json").read_text())["config"]["limit"] == 8


def test_a_rerun_counts_failed_slides_alone_and_retries_no_mere_sample(
    cohort: Path, tmp_path: Path, scripted: list[ScriptedEngine]
) -> None:
    (tmp_path / "b.tiff").write_text("no slide")
    command = ["cohort", str(cohort), "-o", str(tmp_path / "out"), *QUICK]
    at = command.index("--coverage-floor")
    del command[at : at + 2]
    command[command.index("--limit") + 1] = "4"
    first, second, third = (CliRunner().invoke(cli.app, [*command, *more]) for more in ([], [], ["--retry-failed"]))
    assert "3 slides: 2 indeterminate, 1 failed" in first.stdout
    assert "3 of 3 slides were finished earlier, 1 of them failed (--retry-failed does those again)\n" in second.stderr
    assert "2 of 3 slides were finished earlier\n" in third.stderr
    assert [line.split("  ")[1] for line in third.stderr.splitlines() if line.startswith("[")] == ["FAILED"]
    assert third.exit_code == 3, "a sample is no examined slide, whether it is repeated or not"


@pytest.mark.parametrize(
    ("text", "says"), [("wsi,mpp\na.tiff,1000\n", "'1000'"), ("name\na.tiff\n", "image_path"), ("", "empty")]
)
def test_a_bad_manifest_is_exit_2_before_anything_runs(
    cohort: Path, tmp_path: Path, scripted: list[ScriptedEngine], text: str, says: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cohort.write_text(text)
    monkeypatch.setattr(sys, "argv", ["wsi-chat", "cohort", str(cohort), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert "fix:" in shown
    assert not (tmp_path / "out").exists()
    assert scripted == []


def test_help_says_how_a_cluster_is_started() -> None:
    shown = " ".join(CliRunner().invoke(cli.app, ["cohort", "--help"]).output.replace("│", " ").split())
    assert "ray start --head" in shown
    assert "pip install 'wsi-chat[ray]'" in shown
    assert "--top-k" in shown


def test_an_unforeseen_exception_ends_one_slide_of_analyze_not_the_run(
    cohort: Path, tmp_path: Path, scripted: list[ScriptedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tilers

    real = tilers.find_foreground

    def find(slide: Any, **options: Any) -> Any:
        if slide.path.name == "b.tiff":
            raise IndexError("a library's own trouble")
        return real(slide, **options)

    monkeypatch.setattr("tilers.find_foreground", find)
    slides = [str(tmp_path / "b.tiff"), str(tmp_path / "a.tiff")]
    done = CliRunner().invoke(cli.app, ["analyze", *slides, "-o", str(tmp_path / "out"), "--json", *QUICK])
    assert done.exit_code == 3, done.output
    assert [row["file"] for row in json.loads(done.stdout)] == ["b.tiff", "a.tiff"]
    (trace,) = (tmp_path / "out").glob("b-*/error.log")
    said = "b.tiff failed: an unexpected IndexError in wsi_chat.analysis.preparation: a library's own trouble."
    assert done.stderr.count("IndexError") == 1  # it was said twice, and as "IndexError: ..." alone
    assert f"error: {said}\n  fix: Please report it, with the traceback in {trace}." in done.stderr
    assert "in find" in trace.read_text()
    assert states(tmp_path / "out") == ["failed", "done"]


# ------------------------------------------------------------------------------------------ earlier documents

RUN: dict[str, Any] = {"limit": 3, "coverage_floor": 0.0, "top_k": 0, "pdf": False, "gallery": 0}


def test_no_stale_verdict_stands_while_a_run_with_other_settings_is_under_way(
    small_slide: Path, tmp_path: Path
) -> None:
    first = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(calm), **RUN)
    (first.folder / "chat.md").write_text("a saved conversation")
    seen: list[bool] = []

    def look(query: Query) -> str | dict[str, float]:
        seen.append(any((first.folder / name).exists() for name in ("report.json", "heatmap.png", "maps.zarr")))
        with (tmp_path / "summary.csv").open(encoding="utf-8-sig", newline="") as file:
            assert [row["state"] for row in csv.DictReader(file)] == ["queued"]
        return calm(query)

    changed = {**RUN, "limit": 5}
    second = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(look), **changed)
    assert seen
    assert not any(seen)
    assert second.report.funnel.screened == 5
    assert (first.folder / "chat.md").exists()
    assert not (first.folder / "superseded").exists()


def test_a_run_with_other_settings_that_fails_leaves_the_old_verdict_set_aside_and_says_where(
    small_slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(calm), **RUN)
    before = (first.folder / "report.json").read_bytes()

    class Broken(ScriptedEngine):
        def answer(self, queries: Any) -> Any:
            raise EngineError("no memory")

    with pytest.raises(EngineError):
        wsi_chat.analyze(small_slide, out=tmp_path, engine=Broken({}), **{**RUN, "limit": 5})
    assert not (first.folder / "report.json").exists()
    assert (first.folder / "superseded" / "report.json").read_bytes() == before
    assert str(first.folder / "superseded") in caplog.text
    with (tmp_path / "summary.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [(row["state"], row["status"]) for row in csv.DictReader(file)] == [("failed", "")]


@pytest.fixture(scope="module")
def finished_run(small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    wsi_chat.analyze_cohort([small_slide], out=out, **RUN)
    return out


def _content(folder: Path, *, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Every file but locks, logs and the journal, whose very bytes may change when it is opened."""
    leave = (".lock", ".sqlite", "-wal", "-shm", "run.log", *but)
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(leave)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


CANNOT_BEGIN = [
    {"device": "foo"}, {"preparation": "foo"}, {"model": "no/such/folder"}, {"adapter": "no-such-folder"},
    {"dialect": "foo"}, {"box_precision": "7"}, {"gpus": "0,99", "limit": 4}, {"device": "foo", "overwrite": True},
]  # fmt: skip


@pytest.mark.parametrize("cohort", [False, True])
@pytest.mark.parametrize("bad", CANNOT_BEGIN, ids=str)
def test_a_setting_that_cannot_be_used_leaves_a_finished_run_as_it_was(
    bad: dict[str, Any], cohort: bool, small_slide: Path, finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished_run, out)
    before, answers = _content(out), _answers(out)
    assert answers
    run = wsi_chat.analyze_cohort if cohort else analyze_slides
    with pytest.raises(WsiChatError):
        run([small_slide], out=out, **{**RUN, **bad})
    assert _content(out) == before
    assert _answers(out) == answers


def _answers(out: Path) -> int:
    with Journal(next(out.glob("*/journal.sqlite")), read_only=True) as journal:
        return len(journal)


@pytest.mark.parametrize("bad", [{"z": "9"}, {"reader": "omezarr"}], ids=str)
@pytest.mark.parametrize("cohort", [False, True])
def test_a_slide_that_does_not_open_as_the_command_asks_keeps_its_documents(
    bad: dict[str, Any], cohort: bool, small_slide: Path, finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished_run, out)
    before = _content(out, but=("run.json", "state.json", "summary.csv", "index.html"))
    assert any(name.endswith("report.json") for name in before)
    run = wsi_chat.analyze_cohort if cohort else analyze_slides
    assert run([small_slide], out=out, **{**RUN, **bad}).states[0].status == "failed"
    assert _content(out, but=("run.json", "state.json", "summary.csv", "index.html")) == before


def test_a_file_that_is_no_longer_the_scan_takes_its_report_with_it(small_slide: Path, tmp_path: Path) -> None:
    """What it was is not what it is: the earlier verdict does not stand beside the failure."""
    slide = tmp_path / small_slide.name
    shutil.copy(small_slide, slide)
    first = wsi_chat.analyze(slide, out=tmp_path / "out", engine=ScriptedEngine(calm), **RUN)
    slide.write_bytes(slide.read_bytes()[:3000])
    with pytest.raises(WsiChatError):
        wsi_chat.analyze(slide, out=tmp_path / "out", engine=ScriptedEngine(calm), **RUN)
    assert not (first.folder / "report.json").exists()
    assert (first.folder / "superseded" / "report.json").exists()


def test_overwrite_forgets_no_answer_before_the_model_is_there(small_slide: Path, tmp_path: Path) -> None:
    wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(calm), **RUN)
    answers = _answers(tmp_path)

    def start() -> Any:
        raise EngineError("no memory for it")

    result = analyze_slides([small_slide], out=tmp_path, engine=start, overwrite=True, **{**RUN, "limit": 5})
    assert result.stopped_by is not None
    assert _answers(tmp_path) == answers
    assert next(tmp_path.glob("*/report.json"))


def test_the_same_run_again_keeps_its_documents_until_the_new_ones_are_there(small_slide: Path, tmp_path: Path) -> None:
    first = wsi_chat.analyze(small_slide, out=tmp_path, engine=ScriptedEngine(calm), **RUN)

    def look(query: Query) -> str | dict[str, float]:
        assert (first.folder / "report.json").exists()
        return calm(query)

    engine = ScriptedEngine(look)
    wsi_chat.analyze(small_slide, out=tmp_path, engine=engine, overwrite=True, **RUN)
    assert len(engine.asked) == 3


@pytest.mark.parametrize("text", ["{ half", "[]", '{"provenance": 3}', ""])
def test_half_a_report_agrees_with_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    earlier = EarlierDocuments(SlideFolder(tmp_path))
    earlier.expect("provenance", {"seed": 0})
    assert (tmp_path / "report.json").exists()  # the run that differs has not begun
    earlier.make_way()
    assert not (tmp_path / "report.json").exists()
    assert not earlier.there


# ------------------------------------------------------------------------------------------ the page


def test_the_page_is_self_contained_escaped_and_sortable(tmp_path: Path) -> None:
    samples = (
        Sample("<b>s1</b>", tmp_path / "x & y.svs", label='"<i>'),
        Sample("s2", tmp_path / "z.svs", patient="p2", extra={"score": "7", "site": "Lyon"}),
    )
    row = {"status": "abnormal", "score": "0.9000", "tiles_screened": 3, "tiles_selected": 4, "findings_abnormal": 2}
    found = (
        SlideState(slide_id="a-1", sample_id="<b>s1</b>", file="x & y.svs", status="done", row=row, seconds=1.5),
        SlideState(slide_id="b-2", sample_id="s2", file="z.svs", status="failed", reason="no <reader>"),
    )
    (tmp_path / "a-1").mkdir()
    (tmp_path / "a-1" / "report.pdf").write_bytes(b"")
    result = CohortResult(tmp_path, samples, found)
    text = page(result)
    assert "<b>s1" not in text
    assert "&lt;b&gt;s1&lt;/b&gt;" in text
    assert "no &lt;reader&gt;" in text
    assert 'href="a-1/report.pdf"' in text
    assert "b-2/report.pdf" not in text
    assert not re.search(r"(src|href)=\"https?:", text)
    assert 'data-v="0.9000"' in text
    assert "3 of 4" in text
    assert "Research use only" in text
    assert "done <b>1</b>" in text
    assert "failed <b>1</b>" in text
    rows = result.rows
    assert (rows[1]["manifest_score"], rows[1].get("score")) == ("7", None)  # the manifest's is not the model's
    assert rows[1]["site"] == "Lyon"


@pytest.mark.parametrize(
    ("status", "rules", "again"),
    [
        ("failed", "", True), ("done", "", False), ("done", "score.between", False),
        ("indeterminate", "coverage.answers", True), ("indeterminate", "coverage.sampled; controls.unanswered", True),
        ("indeterminate", "coverage.sampled", False), ("indeterminate", "scope; slide.scale", False),
        ("indeterminate", "", True),
    ],
)  # fmt: skip
def test_only_what_a_rerun_can_change_is_worth_repeating(status: Any, rules: str, *, again: bool) -> None:
    state = SlideState(slide_id="s", sample_id="s", file="s.svs", status=status, row={"rules": rules})
    assert state.worth_repeating == again
