"""findings.csv and differential.csv open in a spreadsheet as they are: one row a cell, one row a type."""

from __future__ import annotations

import csv

import pytest

from reports import write_differential_csv, write_findings_csv


def rows_of(path):
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_row_a_finding_in_micrometres(abnormal, tmp_path):
    path = write_findings_csv(abnormal.report, tmp_path / "findings.csv")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf"), "spreadsheets need the mark to read UTF-8"
    rows = rows_of(path)
    findings = abnormal.report.verdict.findings
    assert [row["finding"] for row in rows] == [finding.id for finding in findings]
    first, finding = rows[0], findings[0]
    assert (first["class"], first["label"]) == (finding.name, finding.label)
    assert float(first["width_um"]) == pytest.approx(finding.box.width * 0.5, abs=0.01)
    assert float(first["x_um"]) == pytest.approx(finding.box.center[0] * 0.5, abs=0.01)
    assert (first["confidence"], first["tiles"]) == ("", " ".join(finding.tile_ids)), "unknown is empty, never 0"
    assert float(first["tile_p"]) == pytest.approx(finding.score, abs=1e-4)


def test_a_slide_without_findings_has_a_table_without_rows(make, tmp_path):
    assert rows_of(write_findings_csv(make(empty=True).report, tmp_path / "findings.csv")) == []


def test_no_differential_no_file(abnormal, tmp_path):
    assert write_differential_csv(abnormal.report, tmp_path / "differential.csv") is None
    assert not (tmp_path / "differential.csv").exists()
