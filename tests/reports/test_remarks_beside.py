"""report.json reads as text, and another language is written from the codes and fields that stand beside it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from reports import Words, read_report_json, write_report_json
from wsi_chat.schema import Remark, Report


@pytest.fixture
def report(make) -> Report:
    return make(notes=(Remark("run.limited", n=5, all=9), "A note from elsewhere.")).report


def coded(report: Report) -> dict[str, str]:
    return {entry.at: entry.code for entry in report.remarks}


def test_report_json_reads_as_text_and_keeps_codes_and_fields_beside_it(tmp_path: Path, report: Report) -> None:
    path = write_report_json(report, tmp_path / "report.json")
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["verdict"]["reason"] == str(report.verdict.reason)
    assert all(isinstance(note, str) for note in stored["notes"])
    beside = {entry["at"]: entry for entry in stored["remarks"]}
    assert beside["verdict.score_kind"]["code"] == "score.topk"
    assert beside["verdict.score_kind"]["fields"] == {"k": 5}
    assert beside["verdict.reason"]["fields"]["kind"] == {
        "text": stored["verdict"]["score_kind"], "code": "score.topk", "fields": {"k": 5},
    }  # fmt: skip
    again = read_report_json(path)
    assert again == report
    assert coded(again) == coded(report)
    chinese = Words("zh").remark(again.verdict.reason)
    assert chinese == Words("zh").remark(report.verdict.reason) != str(report.verdict.reason)


def test_a_report_of_an_older_schema_is_read_and_its_texts_stay(tmp_path: Path, report: Report) -> None:
    old = {**json.loads(report.model_dump_json()), "schema_version": "1.1"}
    del old["remarks"]
    (tmp_path / "report.json").write_text(json.dumps(old), encoding="utf-8")
    read = read_report_json(tmp_path / "report.json")
    assert read.remarks == ()
    assert (read.verdict.reason, read.notes) == (report.verdict.reason, report.notes)
    assert Words("zh").remark(read.verdict.reason) == str(report.verdict.reason)


@pytest.mark.parametrize("at", ["verdict.unheard", "notes.99", "notes.x", "verdict", "funnel.read", ""])
def test_a_remark_for_a_place_that_is_not_there_changes_nothing(report: Report, at: str) -> None:
    data = json.loads(report.model_dump_json())
    before = copy.deepcopy(data)
    data["remarks"] = [{"at": at, "code": "run.limited", "fields": {}}]
    assert Report.model_validate(data) == report
    assert {**data, "remarks": before["remarks"]} == before, "the caller's data is not touched"
