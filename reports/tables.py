"""Tables: tiles.parquet, one row per planned tile; findings.csv, one per cell; fields.csv, one per photograph;
differential.csv, one per type.

What is not known is null or empty, never 0 and never 'normal'.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsi_chat.atomic import replacing, write_bytes
from wsi_chat.errors import OutputError
from wsi_chat.schema import FieldRecord, Report, Tile, TileVerdict, field_at

FINDING_COLUMNS = (
    "finding", "class", "label", "abnormal", "field", "x_um", "y_um", "width_um", "height_um", "confidence", "tile_p",
    "votes", "tiles", "also_called", "x0_px", "y0_px", "x1_px", "y1_px",
)  # fmt: skip
FIELD_COLUMNS = (
    "number", "field", "status", "reason", "width_px", "height_px", "tiles", "tiles_screened", "tiles_detailed",
    "p_highest", "findings", "findings_abnormal",
)  # fmt: skip
DIGEST = b"wsi-chat sha256"
"""Metadata of tiles.parquet: SHA-256 of its values, since Parquet's own checksums do not cover its headers."""
UNITS = {
    "field": "name of the photograph, where the specimen is several; null for a slide",
    "field_x": "px of that photograph",
    "field_y": "px of that photograph",
    "x": "level-0 px",
    "y": "level-0 px",
    "width": "level-0 px",
    "height": "level-0 px",
    "read_width": "px of the read level",
    "read_height": "px of the read level",
    "out_px": "px",
    "mpp": "um/px",
    "cellularity": "foreground area fraction, 0..1",
    "focus": "variance of the Laplacian of luminance, arbitrary",
    "z": "focal plane shown, from 0; null where the slide has one",
    "p_screen": "probability of the screening question's positive option, uncalibrated",
    "p_abnormal": "the same where that question is about abnormality, else null",
    "n_boxes": "boxes in the tile's answers before merging across tiles; null where none was asked or answered",
}


def write_tiles_parquet(
    tile_verdicts: Sequence[TileVerdict], path: Path | str, *, fields: Sequence[FieldRecord] = ()
) -> Path:
    """Write one row per tile: geometry, cellularity, focus, screening probability, status, description, error.

    With ``fields``, the photographs of a specimen, also the one that each tile shows and its place in it. Units and
    meanings are in the fields' metadata (key ``unit``). Empty texts are null.

    Raises:
        OutputError: if the file cannot be written.
    """

    rows = list(tile_verdicts)
    tiles = [row.tile for row in rows]
    own = [field_at(fields, tile.box) for tile in tiles]
    place = [field.own(tile.box) if field else None for tile, field in zip(tiles, own, strict=True)]
    columns: dict[str, tuple[pa.DataType, list[object]]] = {
        "tile_id": (pa.string(), [tile.id for tile in tiles]),
        "index": (pa.int64(), [tile.index for tile in tiles]),
        "x": (pa.int64(), [tile.x for tile in tiles]),
        "y": (pa.int64(), [tile.y for tile in tiles]),
        "width": (pa.int64(), [tile.width for tile in tiles]),
        "height": (pa.int64(), [tile.height for tile in tiles]),
        "level": (pa.int16(), [tile.level for tile in tiles]),
        "read_width": (pa.int32(), [tile.read_px[0] for tile in tiles]),
        "read_height": (pa.int32(), [tile.read_px[1] for tile in tiles]),
        "out_px": (pa.int32(), [tile.out_px for tile in tiles]),
        "mpp": (pa.float64(), [tile.mpp for tile in tiles]),
        "cellularity": (pa.float64(), [tile.cellularity for tile in tiles]),
        "focus": (pa.float64(), [row.focus for row in rows]),
        "z": (pa.int16(), [row.z for row in rows]),
        "p_screen": (pa.float64(), [row.p_screen for row in rows]),
        "p_abnormal": (pa.float64(), [row.p_abnormal for row in rows]),
        "status": (pa.string(), [row.status for row in rows]),
        "asked": (pa.list_(pa.string()), [list(row.asked) for row in rows]),
        "n_boxes": (pa.int32(), [len(row.boxes) if row.status == "detailed" else None for row in rows]),
        "dropped_boxes": (pa.int32(), [row.dropped_boxes for row in rows]),
        "truncated": (pa.bool_(), [row.truncated for row in rows]),
        "description": (pa.string(), [row.description or None for row in rows]),
        "error": (pa.string(), [row.error or None for row in rows]),
        "field": (pa.string(), [field.name if field else None for field in own]),
        "field_x": (pa.int64(), [round(box.x0) if box else None for box in place]),
        "field_y": (pa.int64(), [round(box.y0) if box else None for box in place]),
    }
    schema = pa.schema(
        [
            pa.field(name, kind, metadata={"unit": UNITS[name]} if name in UNITS else None)
            for name, (kind, _) in columns.items()
        ]
    )
    table = pa.Table.from_pydict({name: values for name, (_, values) in columns.items()}, schema=schema)
    with replacing(path) as scratch:
        pq.write_table(table.replace_schema_metadata({DIGEST: _digest(table)}), scratch, compression="zstd")
    return Path(path)


def _digest(table: pa.Table) -> str:
    """Hex SHA-256 over names, types and values of a table, however its file stores them."""
    # Parquet gives the values of a list another name than Arrow
    kinds = [(field.name, "list" if pa.types.is_list(field.type) else str(field.type)) for field in table.schema]
    digest = hashlib.sha256(repr(kinds).encode())
    for name in table.column_names:
        column = table[name].combine_chunks()
        parts = [pc.is_null(column)]
        if pa.types.is_list(column.type):
            parts.append(pc.fill_null(pc.list_value_length(column), 0))
            column = pc.list_flatten(column)
        if pa.types.is_string(column.type):
            digest.update(json.dumps(column.to_pylist()).encode())
        else:
            parts.append(pc.fill_null(column, False if pa.types.is_boolean(column.type) else 0))
        for part in parts:
            digest.update(part.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def write_findings_csv(report: Report, path: Path | str) -> Path:
    """Write one row per finding, for spreadsheets: UTF-8 with a byte order mark, so that they read it as it is.

    Positions are of the centre from the top left corner in µm, sizes in µm; the box also in level-0 pixels. All are
    those of the scan, or of the photograph that ``field`` names. What is not known is empty: lengths in µm too, where
    nobody stated the scale.

    Raises:
        OutputError: if the file cannot be written.
    """
    return _write_csv(path, FINDING_COLUMNS, finding_rows(report))


def finding_rows(report: Report) -> list[dict[str, object]]:
    """The rows of findings.csv, by `FINDING_COLUMNS`."""
    slide = report.slide
    mpp = slide.mpp if slide.scale_known else None
    return [
        {
            "finding": finding.id,
            "class": finding.name,
            "label": finding.label,
            "abnormal": "yes" if finding.abnormal else "no",
            "field": finding.field,
            "x_um": _um(box.center[0], mpp),
            "y_um": _um(box.center[1], mpp),
            "width_um": _um(box.width, mpp),
            "height_um": _um(box.height, mpp),
            "confidence": "" if finding.confidence is None else f"{finding.confidence:.4f}",
            "tile_p": "" if finding.score is None else f"{finding.score:.4f}",
            "votes": finding.votes,
            "tiles": " ".join(finding.tile_ids),
            "also_called": " ".join(finding.other_labels),
            "x0_px": f"{box.x0:.1f}",
            "y0_px": f"{box.y0:.1f}",
            "x1_px": f"{box.x1:.1f}",
            "y1_px": f"{box.y1:.1f}",
        }
        for finding in report.verdict.findings
        for box in [finding.field_box or finding.box]
    ]


def _um(px: float, mpp: float | None) -> str:
    return "" if mpp is None else f"{px * mpp:.2f}"


def write_fields_csv(report: Report, tile_verdicts: Sequence[TileVerdict], path: Path | str) -> Path | None:
    """Write one row per photograph of a specimen: whether it was read, and what was found; None for a slide.

    ``status`` is ``read`` where every tile was screened, ``in part`` where some were, ``missing`` where none was, and
    ``not asked`` where a limit left all of it out. Counts of a field of which nothing was read closely are empty.

    Raises:
        OutputError: if the file cannot be written.
    """
    if not report.slide.fields:
        return None
    tiles: dict[int, list[TileVerdict]] = {field.number: [] for field in report.slide.fields}
    for verdict in tile_verdicts:
        own = report.slide.field_at(verdict.tile.box)
        if own is not None:
            tiles[own.number].append(verdict)
    classes = {f"n_{count.label}": count.label for count in report.verdict.counts if count.asked or count.seen}
    rows = [_field_row(report, field, tiles[field.number], classes) for field in report.slide.fields]
    return _write_csv(path, (*FIELD_COLUMNS, *classes), rows)


def _field_row(
    report: Report, field: FieldRecord, tiles: Sequence[TileVerdict], classes: Mapping[str, str]
) -> dict[str, object]:
    found = [finding for finding in report.verdict.findings if finding.field == field.name]
    screened = [verdict.p_screen for verdict in tiles if verdict.p_screen is not None]
    counted = any(verdict.status == "detailed" for verdict in tiles)
    errors = [verdict.error for verdict in tiles if verdict.error]
    row: dict[str, object] = {
        "number": field.number,
        "field": field.name,
        "status": _field_status(field, tiles, len(screened)),
        "reason": field.error or (errors[0] if errors else ""),
        "width_px": "" if field.error else field.own_size[0],
        "height_px": "" if field.error else field.own_size[1],
        "tiles": len(tiles),
        "tiles_screened": len(screened),
        "tiles_detailed": sum(verdict.status == "detailed" for verdict in tiles),
        "p_highest": f"{max(screened):.4f}" if screened else "",
        "findings": len(found) if counted else "",
        "findings_abnormal": sum(finding.abnormal for finding in found) if counted else "",
    }
    numbers = {name: sum(finding.label == label for finding in found) for name, label in classes.items()}
    return row | {name: n if counted else "" for name, n in numbers.items()}


def _field_status(field: FieldRecord, tiles: Sequence[TileVerdict], screened: int) -> str:
    if field.error or (tiles and not screened):
        return "missing"
    if not tiles:
        return "not asked"
    return "read" if screened == len(tiles) else "in part"


def write_differential_csv(report: Report, path: Path | str) -> Path | None:
    """Write the white-cell differential: one row per type with its share and interval; None where there is none.

    Raises:
        OutputError: if the file cannot be written.
    """
    found = report.verdict.differential
    if found is None or not found.rows:
        return None
    rows = [
        {
            "class": row.name,
            "label": row.label,
            "n": row.n,
            "of": found.typed,
            "percent": f"{100 * row.fraction:.2f}",
            "low": f"{100 * row.interval.low:.2f}",
            "high": f"{100 * row.interval.high:.2f}",
            "level": f"{row.interval.level:g}",
        }
        for row in found.rows
    ]
    return _write_csv(path, tuple(rows[0]), rows)


def _write_csv(path: Path | str, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return write_bytes(path, text.getvalue().encode("utf-8-sig"))


def read_tiles_table(path: Path | str) -> pa.Table:
    """The table of a run's tiles as it was written, compared with its SHA-256 where it states one.

    Raises:
        OutputError: the file is missing, is no Parquet, or was changed or damaged since.
    """
    hint = "Run wsi-chat analyze again; it resumes from the journal and asks nothing twice."
    try:
        table = pq.read_table(path)
        stated = (table.schema.metadata or {}).get(DIGEST)
        damaged = stated is not None and stated.decode("ascii") != _digest(table)
    except Exception as error:  # Arrow raises many kinds on damaged files
        reason = " ".join(str(error).split())[:200]
        raise OutputError(f"{path} cannot be read as a table of tiles ({reason}).", hint=hint) from error
    if damaged:
        raise OutputError(f"{path} was changed or damaged after it was written: its SHA-256 does not fit.", hint=hint)
    return table


def read_tiles_parquet(path: Path | str) -> list[TileVerdict]:
    """The tiles of a run as its table holds them: all but the boxes, of which it has only the number.

    Raises:
        OutputError: see `read_tiles_table`, or it is not a table of tiles.
    """
    table = read_tiles_table(path)
    try:
        return [_tile_verdict(row) for row in table.to_pylist()]
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"{path} cannot be read as a table of tiles ({' '.join(str(error).split())[:200]}).",
            hint="Run wsi-chat analyze again; it resumes from the journal and asks nothing twice.",
        ) from error


def _tile_verdict(row: dict[str, Any]) -> TileVerdict:
    tile = Tile(
        index=row["index"], x=row["x"], y=row["y"], width=row["width"], height=row["height"], level=row["level"],
        read_px=(row["read_width"], row["read_height"]), out_px=row["out_px"], mpp=row["mpp"],
        cellularity=row["cellularity"],
    )  # fmt: skip
    return TileVerdict(
        tile=tile, status=row["status"], p_screen=row["p_screen"], p_abnormal=row["p_abnormal"],
        asked=tuple(row["asked"] or ()), description=row["description"] or "", truncated=row["truncated"],
        dropped_boxes=row["dropped_boxes"], focus=row["focus"], z=row.get("z"), error=row["error"] or "",
    )  # fmt: skip
