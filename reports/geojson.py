"""findings.geojson: the findings and the closely read tiles as QuPath opens them; tiles.geojson: every screened tile.

Of a specimen of several photographs, every feature has the ``field`` that it lies in and that field's pixels, and each
photograph also has a file of its own.

QuPath's contract: a FeatureCollection whose features have a UUID, an ``objectType``, a ``classification`` with a
name and a colour, ``measurements`` that are numbers only, and closed rings in level-0 pixels of the image as
QuPath shows it, which is cropped to the slide's bounds.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_chat.atomic import write_bytes
from wsi_chat.schema import Box, Finding, Report, TileVerdict

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:wsi-chat:geojson")
ABNORMAL_COLOR = (181, 65, 14)
OTHER_COLOR = (23, 104, 126)
TILE_COLOR = (120, 120, 120)
DETAILED = ("detailed", "detail_failed")


def write_geojson(
    report: Report,
    tile_verdicts: Sequence[TileVerdict],
    path: Path | str,
    *,
    colors: Mapping[str, tuple[int, int, int]] | None = None,
) -> Path:
    """Write findings as ``detection`` objects and tiles that were read closely as ``tile`` objects.

    Args:
        colors: class code -> RGB (0..255); others get one colour for abnormal and one for the rest.

    Raises:
        OutputError: if the file cannot be written.
    """
    return _write(_features(report, tile_verdicts, colors or {}), path)


def write_geojson_by_field(
    report: Report,
    tile_verdicts: Sequence[TileVerdict],
    folder: Path | str,
    *,
    colors: Mapping[str, tuple[int, int, int]] | None = None,
) -> list[Path]:
    """Write one such file for each photograph that could be opened, ``folder/NAME.geojson``; none for a slide.

    Raises:
        OutputError: if a file cannot be written.
    """
    features = _features(report, tile_verdicts, colors or {})
    return [
        _write(
            [feature for feature in features if feature["properties"]["field"] == field.name],
            Path(folder) / f"{file_name(field.name)}.geojson",
        )
        for field in report.slide.fields
        if not field.error
    ]


def file_name(field: str) -> str:
    """A photograph's name as part of a file name of ours."""
    return field.replace("/", "_").replace("\\", "_")


def write_tiles_geojson(report: Report, tile_verdicts: Sequence[TileVerdict], path: Path | str) -> Path:
    """Write every tile that has a screening answer, with its p, as a ``tile`` object coloured by it.

    Tiles without an answer are in the file too, named as such and without a p: they are missing, and not negative.

    Raises:
        OutputError: if the file cannot be written.
    """
    return _write([_screened(report, verdict) for verdict in tile_verdicts], path)


def _screened(report: Report, verdict: TileVerdict) -> dict[str, Any]:
    p = verdict.p_screen
    name = "Screened tile" if p is not None else "Tile without a screening answer"
    color = TILE_COLOR if p is None else _mixed(OTHER_COLOR, ABNORMAL_COLOR, p)
    return _feature(report, verdict.tile.id, verdict.tile.box, "tile", name, color, _tile_measurements(verdict))


def _mixed(low: tuple[int, int, int], high: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _features(
    report: Report, tile_verdicts: Sequence[TileVerdict], colors: Mapping[str, tuple[int, int, int]]
) -> list[dict[str, Any]]:
    features = [_finding(report, finding, colors) for finding in report.verdict.findings]
    return features + [_tile(report, verdict) for verdict in tile_verdicts if verdict.status in DETAILED]


def _write(features: Sequence[dict[str, Any]], path: Path | str) -> Path:
    document = {"type": "FeatureCollection", "features": features}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, (text + "\n").encode("utf-8"))


def _finding(report: Report, finding: Finding, colors: Mapping[str, tuple[int, int, int]]) -> dict[str, Any]:
    mpp = report.slide.mpp
    lengths = {
        "width um": finding.box.width * mpp,
        "height um": finding.box.height * mpp,
        "area um^2": finding.box.area * mpp * mpp,
    }
    measurements: dict[str, float] = {
        **(lengths if report.slide.scale_known else {}),
        "votes": finding.votes,
        "tiles": len(finding.tile_ids),
        "abnormal": int(finding.abnormal),
    }
    if finding.confidence is not None:
        measurements["confidence"] = finding.confidence
    if finding.score is not None:
        measurements["p_screen of its tile"] = finding.score
    color = colors.get(finding.label, ABNORMAL_COLOR if finding.abnormal else OTHER_COLOR)
    return _feature(report, finding.id, finding.box, "detection", finding.name, color, measurements)


def _tile_measurements(verdict: TileVerdict) -> dict[str, float]:
    known: dict[str, float | None] = {
        "p_screen": verdict.p_screen,
        "p_abnormal": verdict.p_abnormal,
        "focus": verdict.focus,
        "cellularity": verdict.tile.cellularity,
        "boxes": len(verdict.boxes) if verdict.status == "detailed" else None,
        "dropped boxes": verdict.dropped_boxes,
    }
    return {name: value for name, value in known.items() if value is not None}


def _tile(report: Report, verdict: TileVerdict) -> dict[str, Any]:
    measurements = _tile_measurements(verdict)
    name = "Tile read closely" if verdict.status == "detailed" else "Tile without a usable close reading"
    return _feature(report, verdict.tile.id, verdict.tile.box, "tile", name, TILE_COLOR, measurements)


def _feature(
    report: Report,
    name: str,
    box: Box,
    kind: str,
    classification: str,
    color: tuple[int, int, int],
    measurements: Mapping[str, float],
) -> dict[str, Any]:
    bounds = report.slide.bounds
    field = report.slide.field_at(box)
    shown = box.shifted(-bounds.x0, -bounds.y0) if bounds else box
    if field is not None:
        shown = field.own(box)
    ring = [
        [shown.x0, shown.y0],
        [shown.x1, shown.y0],
        [shown.x1, shown.y1],
        [shown.x0, shown.y1],
        [shown.x0, shown.y0],
    ]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(NAMESPACE, f"{report.slide.fingerprint}/{name}")),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": kind,
            "name": name,
            "classification": {"name": classification, "color": list(color)},
            "isLocked": kind == "tile",
            **({"field": field.name} if field is not None else {}),
            "measurements": dict(measurements),
        },
    }
