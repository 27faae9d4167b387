"""The run folder: where each slide's results go, and the two files above them, ``run.json`` and ``summary.csv``.

Every file is written beside its place and moved into it, so that a kill at any instant leaves the old or the new
file, never half of one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wsi_chat.errors import OutputError, WsiChatError
from wsi_chat.schema import Report

SUMMARY_COLUMNS = (
    "slide_id", "file", "state", "status", "score", "score_kind", "category", "coverage", "findings_abnormal",
    "tiles_foreground", "tiles_screened", "tiles_failed", "reason",
)  # fmt: skip


def slide_id(path: Path) -> str:
    """The file's stem plus eight hex digits of its absolute path's SHA-256: same-named slides never collide."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    stem = path.name
    for suffix in (".ome.zarr", ".ome.tiff", ".ome.tif", path.suffix):
        if suffix and stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
            break
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in stem) or "slide"
    return f"{safe[:80]}-{digest}"


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 beside ``path`` and move it into place.

    Raises:
        OutputError: the place cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}).", hint="Choose another folder with -o."
        ) from error


def open_folder(path: Path) -> Path:
    """Make the folder and prove that it can be written, before any model is loaded.

    Raises:
        OutputError: it exists as a file, or cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"-o {path}: cannot be written ({error.strerror}).",
            hint="Choose a folder that you may write to, with -o.",
        ) from error
    return path


def row_of(report: Report) -> dict[str, Any]:
    """One finished slide as a row of ``summary.csv``."""
    verdict, funnel = report.verdict, report.funnel
    return {
        "slide_id": report.slide.id,
        "file": report.slide.file_name,
        "state": "done",
        "status": verdict.status,
        "score": "" if verdict.score is None else f"{verdict.score:.4f}",
        "score_kind": verdict.score_kind,
        "category": verdict.category_name or "",
        "coverage": f"{verdict.coverage:.4f}",
        "findings_abnormal": sum(f.abnormal for f in verdict.findings),
        "tiles_foreground": funnel.foreground,
        "tiles_screened": funnel.screened,
        "tiles_failed": funnel.unreadable + funnel.screen_failed,
        "reason": verdict.reason,
    }


def row_of_failure(path: Path, error: WsiChatError) -> dict[str, Any]:
    """One slide that gave no verdict, as a row of ``summary.csv``."""
    return {"slide_id": slide_id(path), "file": path.name, "state": "failed", "reason": str(error)}


def write_summary(out: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write ``summary.csv``; rows of earlier runs in the same folder are kept unless repeated here."""
    path = out / "summary.csv"
    merged: dict[str, Mapping[str, Any]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as old:
            merged = {row["slide_id"]: row for row in csv.DictReader(old) if row.get("slide_id")}
    merged.update({str(row["slide_id"]): row for row in rows})
    text = io.StringIO()
    writer = csv.DictWriter(text, SUMMARY_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(merged.values())
    write_atomically(path, text.getvalue())
    return path


def write_run(out: Path, *, config: Mapping[str, Any], origin: Mapping[str, str], slides: Mapping[str, str]) -> Path:
    """Write ``run.json``: the effective settings, where each came from, and which file each slide id is."""
    path = out / "run.json"
    known: dict[str, str] = {}
    if path.is_file():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")).get("slides", {}))
        except (ValueError, AttributeError, TypeError):
            known = {}  # a damaged run.json holds nothing that this run cannot say again
    payload = {"config": dict(config), "origin": dict(origin), "slides": {**known, **slides}}
    write_atomically(path, json.dumps(payload, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return path
