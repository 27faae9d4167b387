"""Slides in folders as people have them: linked, looping, DICOM without suffixes; manifests that Excel wrote."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from wsi_chat.analysis.manifest import read_manifest
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.cohort.search import find_slides


@pytest.fixture
def slide(shared_data: Path) -> Path:
    return shared_data / "slides" / "small.svs"


def test_a_linked_batch_is_searched_and_loops_end(tmp_path: Path, slide: Path) -> None:
    cohort, store = tmp_path / "cohort", tmp_path / "store" / "batch"
    cohort.mkdir()
    store.mkdir(parents=True)
    shutil.copy(slide, cohort / "one.svs")
    shutil.copy(slide, store / "two.svs")
    shutil.copy(slide, tmp_path / "outside.svs")
    (cohort / "batch").symlink_to(store)
    (cohort / "again").symlink_to(store)
    (cohort / "loop").symlink_to(tmp_path)
    (store / "inner").symlink_to(store)
    (store / "back").symlink_to(cohort)
    assert sorted(sample.path.name for sample in find_slides(cohort)) == ["one.svs", "two.svs"]


def test_dicom_without_suffixes_is_one_slide_per_series(tmp_path: Path, shared_data: Path) -> None:
    for i, name in enumerate(("IM0001", "1.2.840.113619")):
        shutil.copy(shared_data / "slides" / f"boxes_{i}.dcm", tmp_path / name)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "LICENSE").write_text("no slide")
    assert [sample.path.name for sample in find_slides(tmp_path)] == ["1.2.840.113619"]


def test_a_name_that_is_not_utf8_has_an_id(tmp_path: Path, slide: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.svs"))
    shutil.copy(slide, odd)
    (sample,) = find_slides(tmp_path)
    assert sample.path == odd
    assert slide_id(odd).startswith("caf_-")


@pytest.mark.parametrize("line", ["sep=;\r\n", '"sep=;"\n', "SEP=;;;\n", "\ufeffsep=;\n"])
def test_excels_sep_line_names_the_separator(tmp_path: Path, slide: Path, line: str) -> None:
    shutil.copy(slide, tmp_path / "small.svs")
    path = tmp_path / "manifest.csv"
    path.write_text(f"{line}sample_id;image_path;mpp\ns1;small.svs;0,5\n", encoding="utf-8")
    (sample,) = read_manifest(path)
    assert (sample.sample_id, sample.path.name, sample.mpp, sample.line) == ("s1", "small.svs", 0.5, 3)
