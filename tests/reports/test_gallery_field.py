"""The gallery's common field of view: wide for squamous cells, closer where nearly every cell is small."""

from __future__ import annotations

from typing import Any

import pytest

from reports import gallery_items
from reports.page import page_data
from wsi_chat.schema import Box, Finding, Report

from .conftest import Case


def with_cells(report: Report, sides_um: list[float]) -> Report:
    side = [um / report.slide.mpp for um in sides_um]
    findings = tuple(
        Finding(
            id=f"f{n:04d}", label="hsil", name="HSIL", box=Box(400, 400, 400 + s, 400 + s), abnormal=True,
            tile_ids=("t000000",), votes=1, score=0.9,
        )
        for n, s in enumerate(side, start=1)
    )  # fmt: skip
    changed: dict[str, Any] = {"findings": findings, "carrying": tuple(f.id for f in findings)}
    return report.model_copy(update={"verdict": report.verdict.model_copy(update=changed)})


@pytest.mark.parametrize(
    ("sides_um", "fields"),
    [
        ([50.0, 40.0], [120.0, 60.0]),
        ([25.0, 30.0], [60.0, 60.0]),
        ([8.0, 7.0], [15.0, 15.0]),
        ([7.0] * 19 + [18.0], [15.0] * 19 + [30.0]),
    ],
)
def test_the_field_suits_nine_cells_in_ten_and_the_rest_take_a_wider_one(
    sides_um: list[float], fields: list[float], abnormal: Case
) -> None:
    items = gallery_items(with_cells(abnormal.report, sides_um))
    assert [item.field_um for item in items] == fields


def test_a_gallery_of_five_shows_five_of_the_findings(abnormal, tmp_path):
    report = abnormal.report
    first = report.verdict.findings[0]
    many = tuple(first.model_copy(update={"id": f"f{n:04d}"}) for n in range(1, 25))
    verdict = report.verdict.model_copy(update={"findings": many, "carrying": ("f0001",)})
    for config, shown in (({"gallery": 5}, 5), ({"gallery": 0}, 0), ({}, 24), ({"gallery": "all"}, 24)):
        provenance = report.provenance.model_copy(update={"config": config})
        case = report.model_copy(update={"verdict": verdict, "provenance": provenance})
        assert len(page_data(case, abnormal.tiles, tmp_path)["gallery"]) == shown


def test_a_small_gallery_says_how_many_cells_it_leaves_out(abnormal: Case, tmp_path: Any) -> None:
    report = with_cells(abnormal.report, [40.0] * 24)
    config = {**report.provenance.config, "gallery": 5}
    report = report.model_copy(update={"provenance": report.provenance.model_copy(update={"config": config})})
    data = page_data(report, abnormal.tiles, tmp_path)
    assert len(data["gallery"]) == 5
    assert data["gallery_more"] == "19 more findings are in findings.csv and findings.geojson."
    assert data["gallery"][0]["score"] == "tile p 0.90", "the tile's probability is not the cell's"
    config["gallery"] = 24
    assert page_data(report, abnormal.tiles, tmp_path)["gallery_more"] == ""
