"""The run folder: ids that never collide, files that are whole, rows that are kept."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from wsi_chat.analysis.run_folder import RunFolder, SlideFolder, open_folder
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.analysis.summary import row_of_failure, write_summary
from wsi_chat.app.source import read_summary
from wsi_chat.errors import OutputError, SlideUnsupported


def test_same_named_slides_in_two_folders_have_two_ids(tmp_path: Path) -> None:
    first, second = slide_id(tmp_path / "a" / "slide.svs"), slide_id(tmp_path / "b" / "slide.svs")
    assert first != second
    assert first.startswith("slide-")
    assert len(first) == len("slide-") + 8
    assert first == slide_id(tmp_path / "a" / "slide.svs")


@pytest.mark.parametrize(
    ("name", "stem"),
    [("x.ome.zarr", "x-"), ("x.y.svs", "x.y-"), ("a b/c.tiff", "c-"), ("ü 涂片.svs", "ü_涂片-"), ("noext", "noext-")],
)
def test_ids_are_safe_file_names(tmp_path: Path, name: str, stem: str) -> None:
    assert slide_id(tmp_path / name).startswith(stem)


def test_a_folder_that_is_a_file_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"-o .*out"):
        open_folder(tmp_path / "out")
    with pytest.raises(OutputError):
        open_folder(tmp_path / "out" / "below")


def test_summary_keeps_earlier_rows_and_replaces_repeated_ones(tmp_path: Path) -> None:
    error = SlideUnsupported("no reader", hint="convert it")
    rows = [row_of_failure(name, f"{name}.svs", str(error), error) for name in "ab"]
    write_summary(RunFolder(tmp_path), rows)
    write_summary(RunFolder(tmp_path), [row_of_failure("b", "b.svs", "worse, much", error)])
    with (tmp_path / "summary.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["state"], row["reason"]) for row in rows] == [
        ("a.svs", "failed", "no reader. convert it"),
        ("b.svs", "failed", "worse, much"),
    ]
    assert not list(tmp_path.glob(".*"))


def test_run_json_remembers_every_slide_and_survives_damage(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_record(config={"top_k": 1}, origin={}, slides={"a-1": "/x/a.svs"})
    path = RunFolder(tmp_path).write_record(config={"top_k": 2}, origin={"top_k": "flag"}, slides={"b-2": "/x/b.svs"})
    assert json.loads(path.read_text())["slides"] == {"a-1": "/x/a.svs", "b-2": "/x/b.svs"}
    assert json.loads(path.read_text())["config"] == {"top_k": 2}
    path.write_text("{ half")
    RunFolder(tmp_path).write_record(config={}, origin={}, slides={"c-3": "/x/c.svs"})
    assert json.loads(path.read_text())["slides"] == {"c-3": "/x/c.svs"}


# ------------------------------------------------------------------------------------------ what stands where


def test_a_run_folder_tells_finished_slides_from_begun_ones_and_from_anything_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert not run.is_run
    assert run.slides() == ()
    run.open().write_record(config={}, origin={}, slides={"a-1": tmp_path / "a.svs"})
    for name, file in (("a-1", "report.json"), ("b-2", "journal.sqlite"), ("notes", "todo.txt"), (".hidden", "x")):
        (run.path / name).mkdir()
        (run.path / name / file).write_text("")
    assert run.is_run
    assert [folder.id for folder in run.slides()] == ["a-1", "b-2"]
    assert [folder.id for folder in run.finished_slides()] == ["a-1"]
    assert run.slide("a-1").slide_file() == tmp_path / "a.svs"
    assert run.slide("a-1").slide_file(tmp_path / "moved.svs") == tmp_path / "moved.svs"
    assert run.slide("b-2").slide_file() is None
    assert run.slide(tmp_path / "a.svs").id == slide_id(tmp_path / "a.svs")


@pytest.mark.parametrize("text", ["{ half", "[]", '{"slides": 3}', '{"slides": {"a-1": 7}}', "[" * 100_000])
def test_a_damaged_run_json_knows_no_slide_and_raises_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert RunFolder(tmp_path).slide_files == {}
    assert RunFolder(tmp_path).slide("a-1").slide_file() is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "does not exist"),
        ({"s": None}, "is not a slide's run folder"),
        ({"s/journal.sqlite": ""}, "has not finished"),
        ({"s/a-1/report.json": "{}", "s/b-2/report.json": "{}"}, "is a whole run, not one slide of it"),
        ({"s/report.json": "{ half"}, "report.json"),
        ({"s/state.json": "{}", "s/superseded/report.json": "{}"}, "the run that was to replace it has not finished"),
    ],
)
def test_why_there_is_no_report_to_read_is_named(tmp_path: Path, content: dict[str, str | None], reason: str) -> None:
    for name, text in content.items():
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            place.mkdir()
        else:
            place.write_text(text)
    with pytest.raises(OutputError, match=reason) as caught:
        SlideFolder(tmp_path / "s").read_report()
    assert caught.value.hint


def test_damaged_tiles_are_an_output_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "tiles.parquet").write_bytes(b"PAR1 and then nothing PAR1")
    with pytest.raises(OutputError, match=r"tiles\.parquet cannot be read"):
        SlideFolder(tmp_path).tiles_table()


def test_text_that_a_spreadsheet_would_run_is_defused_and_numbers_are_not(tmp_path: Path) -> None:
    row = {"slide_id": "a-1", "file": "=cmd|' /C calc'!A0.svs", "reason": "@SUM(1)", "score": "-0.5", "error": "-"}
    for _ in range(2):  # rows that are read back and written again stay as they are
        write_summary(RunFolder(tmp_path), [row])
        write_summary(RunFolder(tmp_path), [])
    with (tmp_path / "summary.csv").open(encoding="utf-8-sig", newline="") as file:
        (found,) = csv.DictReader(file)
    assert (found["file"], found["reason"]) == ("'=cmd|' /C calc'!A0.svs", "'@SUM(1)")
    assert (found["score"], found["error"]) == ("-0.5", "-")


@pytest.mark.parametrize("slide", ["-dash-0123abcd", "--limit-0123abcd", "-1-0123abcd", "_cmd-0123abcd"])
def test_a_slide_whose_id_begins_like_a_formula_keeps_one_row(tmp_path: Path, slide: str) -> None:
    run = RunFolder(tmp_path)
    write_summary(run, [{"slide_id": slide, "file": "=a.svs", "state": "queued", "label": "n"}])
    write_summary(run, [{"slide_id": "other-1", "file": "b.svs", "state": "done"}])
    write_summary(run, [{"slide_id": slide, "file": "=a.svs", "state": "done"}])
    text = run.summary_path.read_text(encoding="utf-8-sig")
    assert not re.search(r"^[-=]", text, re.M), "no cell is a formula"
    rows = read_summary(tmp_path)
    assert [(row["slide_id"], row["file"], row["state"]) for row in rows] == [
        (slide, "=a.svs", "done"), ("other-1", "b.svs", "done"),
    ]  # fmt: skip


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"x" * 200_000])
def test_a_damaged_summary_is_set_aside_and_begun_anew(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path)
    write_summary(run, [{"slide_id": "a", "file": "a.svs"}])
    run.summary_path.write_bytes(run.summary_path.read_bytes() + damage)
    before = run.summary_path.read_bytes()
    write_summary(run, [{"slide_id": "b", "file": "b.svs"}])
    assert (tmp_path / "summary.csv.damaged-1").read_bytes() == before
    assert "begun anew" in caplog.text
    with run.summary_path.open(encoding="utf-8-sig", newline="") as file:
        assert [row["slide_id"] for row in csv.DictReader(file)] == ["b"]
