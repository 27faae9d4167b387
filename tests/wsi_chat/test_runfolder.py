"""The run folder: ids that never collide, files that are whole, rows that are kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from wsi_chat.analysis.run_folder import open_folder, row_of_failure, slide_id, write_run, write_summary
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
    write_summary(tmp_path, [row_of_failure(Path("a.svs"), error), row_of_failure(Path("b.svs"), error)])
    write_summary(tmp_path, [row_of_failure(Path("b.svs"), SlideUnsupported("worse, much"))])
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["state"], row["reason"]) for row in rows] == [
        ("a.svs", "failed", "no reader convert it"),
        ("b.svs", "failed", "worse, much"),
    ]
    assert not list(tmp_path.glob(".*"))


def test_run_json_remembers_every_slide_and_survives_damage(tmp_path: Path) -> None:
    write_run(tmp_path, config={"top_k": 1}, origin={}, slides={"a-1": "/x/a.svs"})
    path = write_run(tmp_path, config={"top_k": 2}, origin={"top_k": "flag"}, slides={"b-2": "/x/b.svs"})
    assert json.loads(path.read_text())["slides"] == {"a-1": "/x/a.svs", "b-2": "/x/b.svs"}
    assert json.loads(path.read_text())["config"] == {"top_k": 2}
    path.write_text("{ half")
    write_run(tmp_path, config={}, origin={}, slides={"c-3": "/x/c.svs"})
    assert json.loads(path.read_text())["slides"] == {"c-3": "/x/c.svs"}
