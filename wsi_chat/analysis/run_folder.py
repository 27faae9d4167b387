"""The run folder: where each slide's results go, and the two files above them, ``run.json`` and ``summary.csv``.

Every file is written beside its place and moved into it, so that a kill at any instant leaves the old or the new
file, never half of one. Documents of an earlier run stay only while the run under way would write the same.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_chat.errors import OutputError, WsiChatError
from wsi_chat.schema import Report

SUMMARY_COLUMNS = (
    "slide_id", "file", "state", "status", "score", "score_kind", "category", "coverage", "findings_abnormal",
    "tiles_grid", "tiles_foreground", "tiles_selected", "tiles_read", "tiles_screened", "tiles_failed",
    "tiles_detailed", "tiles_detail_failed", "seconds", "reason", "error",
)  # fmt: skip
JOURNAL = "journal.sqlite"
TRACEBACK = "error.log"
SUPERSEDED = "superseded"
# what a run writes about a slide; a slide's folder may hold more (its journal, a saved conversation), which stays
DOCUMENTS = (
    "report.*", "findings.*", "tiles.*", "maps.zarr", "scan.*", "overview.*", "heatmap.*", "gallery", "thumbnail.*",
    "*.dcm",
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
        "tiles_grid": funnel.grid,
        "tiles_foreground": funnel.foreground,
        "tiles_selected": funnel.selected,
        "tiles_read": funnel.read,
        "tiles_screened": funnel.screened,
        "tiles_failed": funnel.unreadable + funnel.screen_failed,
        "tiles_detailed": funnel.detailed,
        "tiles_detail_failed": funnel.detail_failed,
        "seconds": round(sum(report.timings.seconds.values()), 3),
        "reason": verdict.reason,
    }


def row_of_failure(path: Path, error: Exception) -> dict[str, Any]:
    """One slide that gave no verdict, as a row of ``summary.csv``."""
    why = reason_of(error)
    return {"slide_id": slide_id(path), "file": path.name, "state": "failed", "reason": why, "error": _kind(error)}


def row_of_waiting(path: Path) -> dict[str, Any]:
    """One slide that has no verdict of this run yet, so that an earlier run's row is not taken for one."""
    return {"slide_id": slide_id(path), "file": path.name, "state": "queued"}


def reason_of(error: Exception) -> str:
    """An exception in words; one that was not raised on purpose is named by its type."""
    return str(error) if isinstance(error, WsiChatError) else f"{_kind(error)}: {error}".rstrip(": ")


def _kind(error: Exception) -> str:
    return type(error).__name__


def indeterminate_by_error(report: Report) -> bool:
    """Whether the slide has no verdict because tiles or answers failed (and not because its score is in doubt)."""
    verdict, funnel = report.verdict, report.funnel
    if verdict.status != "indeterminate":
        return False
    few = verdict.coverage < verdict.coverage_floor or not funnel.screened
    screening = few and funnel.unreadable + funnel.screen_failed > 0
    return screening or (verdict.score is None and funnel.detail_failed > 0)


def write_traceback(folder: Path, error: BaseException) -> Path:
    """Keep where an unexpected exception came from, in the slide's folder."""
    open_folder(folder)
    path = folder / TRACEBACK
    write_atomically(path, "".join(traceback.format_exception(error)))
    return path


def write_summary(
    out: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    columns: Sequence[str] = SUMMARY_COLUMNS,
    keep_earlier: bool = True,
) -> Path:
    """Write ``summary.csv``.

    Args:
        rows: by column; each has a ``slide_id``.
        columns: the order of the columns; those of the file's earlier rows are kept behind them.
        keep_earlier: keep rows of earlier runs in the same folder unless they are repeated here.
    """
    path = out / "summary.csv"
    merged: dict[str, Mapping[str, Any]] = {}
    names = list(columns)
    if keep_earlier and path.is_file():
        with path.open(encoding="utf-8", newline="") as old:
            reader = csv.DictReader(old)
            merged = {row["slide_id"]: row for row in reader if row.get("slide_id")}
            earlier = [name for name in reader.fieldnames or () if name]
        names = [*earlier, *(name for name in names if name not in earlier)]
    for row in rows:
        key = str(row["slide_id"])
        # a cohort's own columns (label, patient) outlive a single slide that is analyzed again
        own = {name: merged[key][name] for name in merged.get(key, {}) if name not in SUMMARY_COLUMNS}
        merged[key] = {**own, **row}
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore", lineterminator="\n")
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


class EarlierDocuments:
    """What an earlier run left in a slide's folder, until the run under way is known to differ from it.

    A verdict that another setting, another model or another scan gave is not left where the new one will stand:
    its documents move to ``superseded/`` as soon as a difference is known, and go when the new report is written.
    The journal stays, so nothing that was answered is lost.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._report: Any = None
        path = folder / "report.json"
        if path.exists():
            try:
                self._report = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self._report = {}  # half a report is nobody's verdict: it agrees with nothing

    @property
    def there(self) -> bool:
        """Whether a report of an earlier run stands in the folder."""
        return self._report is not None

    def agree(self, block: str, values: Mapping[str, Any]) -> bool:
        """Whether the earlier report has these values in one of its blocks."""
        held = self._report.get(block) if isinstance(self._report, dict) else None
        if not isinstance(held, dict):
            return False
        wanted = json.loads(json.dumps(dict(values)))  # as it reads after writing: tuples are lists
        return all(name in held and held[name] == value for name, value in wanted.items())

    def expect(self, block: str, values: Mapping[str, Any]) -> None:
        """Set the documents aside unless the earlier report has these values in ``block``."""
        if self.there and not self.agree(block, values):
            self.set_aside()

    def set_aside(self) -> None:
        """Move the documents to ``superseded/``, the report first, since it is what marks a finished slide.

        Raises:
            OutputError: the folder cannot be written.
        """
        if not self.there:
            return
        place = self._folder / SUPERSEDED
        try:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            found = [path for pattern in DOCUMENTS for path in sorted(self._folder.glob(pattern))]
            for path in sorted(dict.fromkeys(found), key=lambda path: path.name != "report.json"):
                path.rename(place / path.name)
        except OSError as error:
            raise OutputError(
                f"{place}: cannot be written ({error.strerror}).", hint="Choose another folder with -o."
            ) from error
        self._report = None

    def forget(self) -> None:
        """The new documents are complete: what they replace goes, and so does the traceback of an earlier failure."""
        shutil.rmtree(self._folder / SUPERSEDED, ignore_errors=True)
        (self._folder / TRACEBACK).unlink(missing_ok=True)
