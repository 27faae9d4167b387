"""What a path names, and that nothing outside of it is named by an id."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from wsi_chat.app.source import find_slides
from wsi_chat.errors import SettingError, SlideNotFound


def test_a_slides_folder_is_one_slide(folder: Path) -> None:
    found = find_slides(folder)
    assert list(found.entries) == [folder.name]
    assert found.only is not None
    assert found.only.analyzed
    loaded = found.only.load()
    assert loaded is not None
    assert loaded.report.slide.id == folder.name


def test_a_run_folder_is_its_slides_with_their_rows(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "second-00000000")
    (folder.parent / "summary.csv").write_text(
        f"slide_id,file,status\n{folder.name},cells.tiff,abnormal\nlost-11111111,lost.svs,\n", encoding="utf-8"
    )
    found = find_slides(folder.parent)
    assert list(found.entries) == [folder.name, "lost-11111111", "second-00000000"]
    assert found.entries[folder.name].row["status"] == "abnormal"
    assert not found.entries["lost-11111111"].analyzed  # a failed slide is listed, not left out
    assert found.only is None


def test_an_id_of_summary_csv_is_no_path(folder: Path) -> None:
    (folder.parent / "summary.csv").write_text("slide_id,file\n../../etc,x\n/etc,y\n..,z\n", encoding="utf-8")
    assert list(find_slides(folder.parent).entries) == [folder.name]


def test_a_slide_that_was_not_analyzed_keeps_its_folder_in_the_run_folder(small_slide: Path, tmp_path: Path) -> None:
    found = find_slides(small_slide, out=tmp_path / "out")
    assert found.only is not None
    assert found.only.slide == small_slide.resolve()
    assert found.only.folder.parent == tmp_path / "out"
    assert found.only.load() is None
    assert not found.only.folder.exists()  # looking writes nothing


def test_a_folder_of_photographs_is_one_specimen(photographs: Path, tmp_path: Path) -> None:
    found = find_slides(photographs, out=tmp_path / "out")
    assert found.only is not None
    assert found.only.slide == photographs.resolve()


def test_what_holds_nothing_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SlideNotFound, match="There is no"):
        find_slides(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="no analyzed slide"):
        find_slides(tmp_path / "empty")
    shutil.copytree(folder, folder.parent / "second-00000000")
    with pytest.raises(SettingError, match="holds 2 slides"):
        find_slides(folder.parent, slide=tmp_path / "x.svs")
