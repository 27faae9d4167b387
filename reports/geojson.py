"""findings.geojson: the findings and the closely read tiles as QuPath opens them.

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
    features = [_finding(report, finding, colors or {}) for finding in report.verdict.findings]
    features += [_tile(report, verdict) for verdict in tile_verdicts if verdict.status in DETAILED]
    document = {"type": "FeatureCollection", "features": features}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, (text + "\n").encode("utf-8"))


def _finding(report: Report, finding: Finding, colors: Mapping[str, tuple[int, int, int]]) -> dict[str, Any]:
    mpp = report.slide.mpp
    measurements: dict[str, float] = {
        "width um": finding.box.width * mpp,
        "height um": finding.box.height * mpp,
        "area um^2": finding.box.area * mpp * mpp,
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


def _tile(report: Report, verdict: TileVerdict) -> dict[str, Any]:
    known: dict[str, float | None] = {
        "p_screen": verdict.p_screen,
        "p_abnormal": verdict.p_abnormal,
        "focus": verdict.focus,
        "cellularity": verdict.tile.cellularity,
        "boxes": len(verdict.boxes) if verdict.status == "detailed" else None,
        "dropped boxes": verdict.dropped_boxes,
    }
    measurements = {name: value for name, value in known.items() if value is not None}
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
    shown = box.shifted(-bounds.x0, -bounds.y0) if bounds else box
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
            "measurements": dict(measurements),
        },
    }
