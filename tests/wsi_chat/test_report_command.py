"""wsi-chat report: the same bytes where nothing changed, another language, a slide gone, folders that are none."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import wsi_chat
from wsi_chat.cli import app
from wsi_chat.commands.report import run_report
from wsi_chat.engines import ScriptedEngine
from wsi_chat.errors import OutputError, SettingError, WsiChatError
from wsi_chat.schema import Query

KEPT = ("report.pdf", "report.html", "report.json", "overview.png", "heatmap.png")


def says(query: Query) -> str | dict[str, float]:
    if query.choices:
        p = 1 - float(np.asarray(query.images[0]).mean()) / 255
        return {query.choices[0]: 1 - p, query.choices[1]: p}
    if query.task == "ground" and query.target == "hsil":
        return "hsil 1 is located at <region>100 100 140 140</region>."
    return f"No {query.target} is found."


@pytest.fixture(scope="module")
def finished(small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished slide, with a slide file of its own."""
    place = tmp_path_factory.mktemp("finished")
    slide = shutil.copy(small_slide, place / "cells.tiff")
    result = wsi_chat.analyze(
        slide, out=place / "out", engine=ScriptedEngine(says), specimen="cervix", top_k=2, threshold=0.05
    )
    return result.folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the whole run that a test may spoil."""
    shutil.copytree(finished.parent, tmp_path / "out")
    return tmp_path / "out" / finished.name


def stored(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in KEPT}


def test_nothing_changed_gives_the_same_bytes_and_asks_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("wsi_chat.engines.load_engine", refuse)
    before = stored(folder)
    for name in ("report.pdf", "report.html"):
        (folder / name).unlink()
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert stored(folder) == before


def test_another_language_and_back(folder: Path) -> None:
    before = stored(folder)
    payload, _, code = run_report(folder, language="zh")
    assert (code, payload["not_written"]) == (0, [])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "标记为异常" in page
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["language"] == "zh"
    assert (folder / "overview.png").read_bytes() != before["overview.png"], "its legend is Chinese"
    run_report(folder, language="en")
    assert stored(folder) == before, "numbers, evidence and pictures come back as they were"


def test_only_the_formats_asked_for_are_written(folder: Path) -> None:
    for name in ("report.pdf", "report.html"):
        (folder / name).unlink()
    payload, _, _ = run_report(folder, formats="html, json")
    assert [Path(name).name for name in payload["written"]] == ["report.html", "report.json"]
    assert not (folder / "report.pdf").exists()


def test_the_slide_is_gone(folder: Path, small_slide: Path) -> None:
    run = json.loads((folder.parent / "run.json").read_text(encoding="utf-8"))
    run["slides"] = dict.fromkeys(run["slides"], "/nowhere/cells.tiff")
    (folder.parent / "run.json").write_text(json.dumps(run), encoding="utf-8")
    payload, _, code = run_report(folder, language="zh")
    assert code == 0
    assert len(payload["written"]) == 3, "what is stored suffices for pdf, html and json"
    payload, lines, code = run_report(folder, formats="dicom,html")
    assert code == 3
    assert [Path(name).name for name in payload["written"]] == ["report.html"]
    assert any(line.startswith("not written: dicom: the slide's DICOM file is not at hand") for line in lines)


def test_without_the_stored_scan_the_pictures_keep_their_language_and_it_is_said(folder: Path) -> None:
    (folder / "scan.jpg").unlink()
    before = (folder / "overview.png").read_bytes()
    payload, _, code = run_report(folder, language="zh", formats="html,json")
    assert code == 3
    assert "scan.jpg" in payload["not_written"][0]
    assert (folder / "overview.png").read_bytes() == before


def test_a_missing_font_costs_the_pdf_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.fonts.PACKAGE", "no_such_package")
    monkeypatch.setattr("reports.fonts.folders", list)
    payload, _, code = run_report(folder, language="zh")
    assert code == 3
    assert "font_path" in payload["not_written"][0]
    assert {Path(name).name for name in payload["written"]} == {"report.html", "report.json"}
    assert not (folder / "report.pdf").exists(), "the English one would pass for it"


def test_a_model_writes_the_narrative_anew(folder: Path) -> None:
    def echo(query: Query) -> str:
        facts = re.findall(r"^\d+\. (.+?) \[[^\]]*\]$", query.turns[-1].text, re.MULTILINE)
        return "\n".join(f"{n}. {text}" for n, text in enumerate(facts, start=1))

    engine = ScriptedEngine(echo)
    payload, _, _ = run_report(
        folder, narrative="model", engine=engine, dialect="qwen2.5-vl", formats="json", ancillary=["HPV 16 positive"]
    )
    assert payload["narrator"]["kept"] > 5
    assert payload["narrator"]["replaced"] == 0
    assert len(engine.asked[0].images) > 0
    run_report(
        folder, narrative="model", engine=engine, dialect="qwen2.5-vl", formats="json", ancillary=["HPV 16 positive"]
    )
    assert len(engine.asked) == 1, "the journal knows the answer"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no report.json"),
        (b'{"schema_version": "1.1", "slide": {"id"', "ends in the middle"),
        (b'{"schema_version": "9.0"}', "schema 9.0; this wsi-chat reads up to"),
        (b"[]", "is no report of schema"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_folders_that_hold_no_report_that_can_be_read(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(OutputError, match=says) as caught:
        run_report(tmp_path)
    assert caught.value.hint


def test_a_run_folder_names_its_slides_and_a_missing_one_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="whole run") as caught:
        run_report(folder.parent)
    assert folder.name in caught.value.hint
    with pytest.raises(OutputError, match="does not exist"):
        run_report(tmp_path / "nowhere")
    (folder / "report.json").unlink()
    with pytest.raises(OutputError, match="has not finished"):
        run_report(folder)


@pytest.mark.parametrize(
    "options", [{"language": "de"}, {"formats": "docx"}, {"formats": ","}, {"narrative": "poem"}, {"slide": Path("x")}]
)
def test_options_that_cannot_be_used_are_named(folder: Path, options: dict[str, object]) -> None:
    before = stored(folder)
    with pytest.raises(SettingError) as caught:
        run_report(folder, **options)  # type: ignore[arg-type]
    assert caught.value.hint
    assert stored(folder) == before


def test_damaged_tiles_are_an_error_that_names_the_file(folder: Path) -> None:
    (folder / "tiles.parquet").write_bytes(b"PAR1")
    with pytest.raises(WsiChatError, match=r"tiles\.parquet"):
        run_report(folder)
