"""findings.geojson as QuPath reads it."""

from __future__ import annotations

import json
import uuid

import pytest

from reports import write_geojson
from wsi_chat.schema import Box


def _features(case, tmp_path, report=None, **options):
    path = write_geojson(report or case.report, case.tiles, tmp_path / "findings.geojson", **options)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["type"] == "FeatureCollection"
    return document["features"]


def test_every_feature_keeps_the_contract(case, tmp_path):
    features = _features(case, tmp_path)
    detailed = [v for v in case.tiles if v.status in ("detailed", "detail_failed")]
    assert len(features) == len(case.report.verdict.findings) + len(detailed)
    for feature in features:
        assert uuid.UUID(feature["id"]).version == 5
        properties = feature["properties"]
        assert properties["objectType"] in ("detection", "tile")
        assert set(properties["classification"]) == {"name", "color"}
        assert all(isinstance(v, int) and 0 <= v <= 255 for v in properties["classification"]["color"])
        assert all(type(v) in (int, float) for v in properties["measurements"].values())
        (ring,) = feature["geometry"]["coordinates"]
        assert len(ring) == 5
        assert ring[0] == ring[-1]
    ids = [feature["id"] for feature in features]
    assert len(set(ids)) == len(ids)


def test_a_rerun_gives_the_same_bytes_and_another_slide_other_ids(abnormal, make, tmp_path):
    first = write_geojson(abnormal.report, abnormal.tiles, tmp_path / "a.geojson").read_bytes()
    assert write_geojson(abnormal.report, abnormal.tiles, tmp_path / "b.geojson").read_bytes() == first
    other = make(slide_id="another-slide-00000000")
    mine = {feature["id"] for feature in json.loads(first)["features"]}
    assert mine.isdisjoint(feature["id"] for feature in _features(other, tmp_path))


def test_coordinates_are_level_0_minus_the_bounds(abnormal, tmp_path):
    finding = abnormal.report.verdict.findings[0]
    slide = abnormal.report.slide.model_copy(update={"bounds": Box(100, 250, 8000, 5000)})
    moved = abnormal.report.model_copy(update={"slide": slide})
    for report, dx, dy in ((abnormal.report, 0, 0), (moved, 100, 250)):
        feature = next(f for f in _features(abnormal, tmp_path, report) if f["properties"]["name"] == finding.id)
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == pytest.approx([finding.box.x0 - dx, finding.box.y0 - dy])
        assert ring[2] == pytest.approx([finding.box.x1 - dx, finding.box.y1 - dy])


def test_sizes_are_in_micrometres(abnormal, tmp_path):
    finding = abnormal.report.verdict.findings[0]
    feature = next(f for f in _features(abnormal, tmp_path) if f["properties"]["name"] == finding.id)
    measured = feature["properties"]["measurements"]
    assert measured["width um"] == pytest.approx(finding.box.width * 0.5)
    assert measured["area um^2"] == pytest.approx(finding.box.area * 0.25)


def test_a_missing_score_is_left_out_and_not_zero(abnormal, tmp_path):
    findings = tuple(f.model_copy(update={"score": None}) for f in abnormal.report.verdict.findings)
    verdict = abnormal.report.verdict.model_copy(update={"findings": findings})
    report = abnormal.report.model_copy(update={"verdict": verdict})
    feature = _features(abnormal, tmp_path, report)[0]
    assert "p_screen of its tile" not in feature["properties"]["measurements"]


def test_class_colours_come_from_the_caller(abnormal, tmp_path):
    label = abnormal.report.verdict.findings[0].label
    feature = _features(abnormal, tmp_path, colors={label: (1, 2, 3)})[0]
    assert feature["properties"]["classification"]["color"] == [1, 2, 3]
