"""report.json round trip, its published schema, and what happens where nothing can be written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest

from reports import json_schema, published_schema, read_report_json, write_report_json
from reports.schema_file import write_schema
from wsi_chat.atomic import replacing
from wsi_chat.errors import OutputError


def test_report_json_reads_back_as_the_same_report(case, tmp_path):
    path = write_report_json(case.report, tmp_path / "report.json")
    assert read_report_json(path) == case.report


def test_report_json_follows_the_published_schema(case, tmp_path):
    path = write_report_json(case.report, tmp_path / "report.json")
    validator = jsonschema.Draft202012Validator(published_schema())
    validator.check_schema(published_schema())
    assert list(validator.iter_errors(json.loads(path.read_text(encoding="utf-8")))) == []


def test_the_published_schema_refuses_what_the_report_refuses(abnormal):
    data = json.loads(abnormal.report.model_dump_json())
    data["verdict"]["status"] = "cancer"
    data["funnel"]["screened"] = -1
    del data["slide"]["mpp"]
    paths = {tuple(e.path) for e in jsonschema.Draft202012Validator(published_schema()).iter_errors(data)}
    assert paths == {("verdict", "status"), ("funnel", "screened"), ("slide",)}


def test_the_published_schema_is_the_current_one():
    assert published_schema() == json_schema(), "run: python -m reports.schema_file"


def test_the_schema_command_writes_what_is_published(tmp_path):
    assert json.loads(write_schema(tmp_path / "s.json").read_text(encoding="utf-8")) == published_schema()


def test_two_runs_differ_in_the_timings_alone(abnormal, tmp_path):
    later = abnormal.report.timings.model_copy(update={"started": "2026-03-03T00:00:00+00:00"})
    again = abnormal.report.model_copy(update={"timings": later})
    first = json.loads(write_report_json(abnormal.report, tmp_path / "a.json").read_bytes())
    second = json.loads(write_report_json(again, tmp_path / "b.json").read_bytes())
    assert first.pop("timings") != second.pop("timings")
    assert json.dumps(first) == json.dumps(second)


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"{", "Invalid JSON"), (b'{"slide": {}}', "slide"), (b"\xff\xfe", "UTF-8"), (None, "No such file")],
)
def test_a_file_that_is_no_report_is_named(content, named, tmp_path):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutputError, match=r"report\.json") as caught:
        read_report_json(path)
    assert named in str(caught.value)


def test_an_output_that_is_in_the_way_is_named(abnormal, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match=r"file/report\.json") as caught:
        write_report_json(abnormal.report, tmp_path / "file" / "report.json")
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
def test_a_folder_without_write_permission_is_named(abnormal, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_report_json(abnormal.report, tmp_path / "report.json")


def test_a_writer_that_dies_leaves_the_old_file_and_no_scratch(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def die() -> None:
        with replacing(path) as scratch:
            scratch.write_bytes(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        die()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.bin"]


def test_a_full_disk_is_an_output_error_that_names_the_file(tmp_path):
    def fill(path: Path) -> None:
        with replacing(path):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"report\.json cannot be written: No space left"):
        fill(tmp_path / "report.json")
