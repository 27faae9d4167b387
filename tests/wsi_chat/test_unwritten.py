"""Documents that this machine cannot write: who is told, how often, and whether the run counts as incomplete."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import wsi_chat
from reports import FontMissing, chinese_font
from wsi_chat.analysis.result import SlideResult
from wsi_chat.commands import doctor
from wsi_chat.commands.analyze import _tell
from wsi_chat.engines import ScriptedEngine
from wsi_chat.schema import Query


def answer(query: Query) -> str | dict[str, float]:
    if query.choices:
        return {query.choices[0]: 0.3, query.choices[-1]: 0.7}
    return f"No {query.target} is found."


def analyzed(slide: Path, out: Path, **given: Any) -> SlideResult:
    run: dict[str, Any] = {"specimen": "cervix", "coverage_floor": 0.0, "top_k": 1, "adequacy_tiles": 0, "gallery": 0}
    return wsi_chat.analyze(slide, out=out, engine=ScriptedEngine(answer), **run, **given)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def dicom_slide(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DICOM slide on an install without highdicom."""
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        shutil.copy(shared_data / "slides" / name, tmp_path / name)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    return tmp_path / "boxes_0.dcm"


def test_dicom_objects_that_nobody_asked_for_are_a_note(
    dicom_slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    result = analyzed(dicom_slide, tmp_path / "out")
    assert result.unwritten == ()
    (note,) = result.notes
    assert "highdicom, which is not installed. pip install 'wsi-chat[dicom]'" in note
    assert [line for line in errors(caplog) if "DICOM" in line] == []
    _tell(result, earlier=False)
    shown = capsys.readouterr().out
    assert "note: DICOM objects need highdicom" in " ".join(shown.split())
    assert "not written" not in shown


def test_dicom_objects_that_were_asked_for_and_lack_highdicom_are_an_error(
    dicom_slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = analyzed(dicom_slide, tmp_path / "out", format="pdf,html,json,dicom")
    assert result.unwritten == ("dicom: DICOM objects need highdicom, which is not installed.",)
    assert result.notes == ()
    assert len([line for line in errors(caplog) if "highdicom" in line]) == 1


NO_PDF = "pdf: no font has Chinese characters; install one (pip install 'wsi-chat[cjk]') or name one as font_path."


@pytest.fixture
def no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSI_CHAT_FONT_PATH", raising=False)
    monkeypatch.setattr("reports.fonts.PACKAGE", "no_such_package")
    monkeypatch.setattr("reports.fonts.folders", list)


@pytest.mark.usefixtures("no_font")
def test_a_font_that_is_missing_is_explained_once(
    small_slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = analyzed(small_slide, tmp_path / "out", language="zh", format="pdf,html", limit=2)
    (said,) = [line for line in errors(caplog) if "font" in line]
    assert "pip install 'wsi-chat[cjk]'" in said
    assert result.unwritten == (NO_PDF,)
    assert not result.files.pdf_path.exists()
    assert result.files.html_path.exists()


@pytest.mark.usefixtures("no_font")
def test_a_font_that_is_missing_is_explained_once_for_all_slides_of_a_run(
    small_slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slides = [shutil.copy(small_slide, tmp_path / f"{name}.tiff") for name in "ab"]
    run: dict[str, Any] = {
        "specimen": "cervix",
        "limit": 2,
        "top_k": 0,
        "gallery": 0,
        "language": "zh",
        "format": "pdf",
    }
    result = wsi_chat.analyze_cohort(slides, out=tmp_path / "out", engine=ScriptedEngine(answer), **run)
    assert [state.unwritten for state in result.states] == [(NO_PDF,)] * 2
    assert len([line for line in errors(caplog) if "font" in line]) == 1


@pytest.mark.usefixtures("no_font")
def test_doctor_warns_where_no_font_has_chinese() -> None:
    (found,) = [check for check in doctor.examine() if check.name == "font for Chinese"]
    assert found.state == "WARN"
    assert "--language zh" in found.seen
    assert "wsi-chat[cjk]" in found.fix


def test_doctor_names_the_font_that_a_report_would_use() -> None:
    try:
        font = chinese_font()
    except FontMissing:
        pytest.skip("no font here has Chinese characters")
    (found,) = [check for check in doctor.examine() if check.name == "font for Chinese"]
    assert (found.state, found.seen) == ("PASS", font.name)
