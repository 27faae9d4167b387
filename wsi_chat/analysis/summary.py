"""summary.csv: one row a slide, whether it has a verdict or not. What a slide lacks is empty, never 0.

UTF-8 with a byte order mark, so that spreadsheets read it as it is. ``n_<class>`` are the cells found of each class
that the slide was asked about. ``coverage`` is, as in report.json, the share of the tiles selected that were screened,
``tiles_screened_of_foreground`` that of all tiles that may hold cells, those that ``--limit`` left out among them.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_chat.analysis.run_folder import RUN_HINT, RunFolder
from wsi_chat.atomic import write_bytes
from wsi_chat.database import set_aside
from wsi_chat.errors import WsiChatError, as_utf8, unforeseen
from wsi_chat.schema import Report

log = logging.getLogger(__name__)

SUMMARY_COLUMNS = (
    "slide_id", "file", "state", "status", "score", "score_kind", "category", "adequacy", "adequacy_reason", "coverage",
    "tiles_screened_of_foreground", "fields", "fields_missing", "findings_abnormal",
    "tiles_grid", "tiles_foreground", "tiles_selected", "tiles_read", "tiles_screened", "tiles_failed",
    "tiles_detailed", "tiles_detail_failed", "seconds", "headline", "rules", "reason", "error",
)  # fmt: skip


COUNT = "n_"

LACKING = frozenset(
    ("answers.none", "coverage.answers", "controls.unanswered", "adequacy.unanswered", "counts.missing")
)  # fmt: skip
"""Rules of `aggregators` that speak where tiles or answers are missing: only there can a rerun find anything else."""


def row_of(report: Report) -> dict[str, Any]:
    """The row of a finished slide."""
    verdict, funnel = report.verdict, report.funnel
    return {
        "slide_id": report.slide.id,
        "file": report.slide.file_name,
        "state": "done",
        "status": verdict.status,
        "score": "" if verdict.score is None else f"{verdict.score:.4f}",
        "score_kind": verdict.score_kind,
        "category": verdict.category_name or "",
        "adequacy": verdict.adequacy.status,
        "adequacy_reason": verdict.adequacy.reason,
        "fields": len(report.slide.fields) or "",
        "fields_missing": sum(bool(field.error) for field in report.slide.fields) if report.slide.fields else "",
        "coverage": f"{verdict.coverage:.4f}",
        "tiles_screened_of_foreground": f"{funnel.coverage_foreground:.4f}",
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
        "headline": verdict.grounds[0].headline if verdict.grounds else "",
        "rules": "; ".join(ground.rule for ground in verdict.grounds),
        "reason": verdict.reason,
        **{f"{COUNT}{row.label}": row.seen for row in verdict.counts if row.asked or row.seen},
    }


def class_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The columns of classes that rows have, in the order in which they come."""
    return tuple(dict.fromkeys(name for row in rows for name in row if name.startswith(COUNT)))


def row_of_failure(slide: str, file_name: str, reason: str, error: BaseException) -> dict[str, Any]:
    """The row of a slide that gave no verdict: its id, its file's name as documents show it, and why, in words."""
    return {
        "slide_id": slide, "file": file_name, "state": "failed", "reason": reason, "error": type(error).__name__,
    }  # fmt: skip


def reason_of(error: BaseException) -> str:
    """An exception in words; see `unforeseen` for one that was not raised on purpose."""
    return str(error) if isinstance(error, WsiChatError) else unforeseen(error)


def indeterminate_by_error(report: Report) -> bool:
    """Whether the slide has no verdict because of the run, and not because of the slide.

    Tiles or answers are missing, only a sample was looked at, the controls failed, or model or score were made for
    other slides; see `aggregators.rules`. An older report has no grounds: there, whether tiles or answers failed.
    """
    verdict, funnel = report.verdict, report.funnel
    if verdict.status != "indeterminate":
        return False
    if verdict.grounds:
        return verdict.grounds[0].by_error
    few = verdict.coverage < verdict.coverage_floor or not funnel.screened
    screening = few and funnel.unreadable + funnel.screen_failed > 0
    return screening or (verdict.score is None and funnel.detail_failed > 0)


def write_summary(
    run: RunFolder,
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
    path = run.summary_path
    rows = list(rows)
    merged: dict[str, Mapping[str, Any]] = {}
    names = [*columns, *(name for name in class_columns(rows) if name not in columns)]
    if keep_earlier and path.is_file():
        earlier_names, merged = _earlier(path)
        names = [*earlier_names, *(name for name in names if name not in earlier_names)]
    for row in rows:
        key = str(row["slide_id"])
        # a cohort's own columns (label, patient) outlive a single slide that is analyzed again
        own = {
            name: merged[key][name]
            for name in merged.get(key, {})
            if name not in SUMMARY_COLUMNS and not name.startswith(COUNT)
        }
        merged[key] = {**own, **row}
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: defused(value) for name, value in row.items()} for row in merged.values())
    return write_bytes(path, as_utf8(text.getvalue()).encode("utf-8-sig"), hint=RUN_HINT)


def _earlier(path: Path) -> tuple[list[str], dict[str, Mapping[str, Any]]]:
    """The columns and the rows, by slide id, of the file as it stands; none of one that is damaged, which is kept."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows: dict[str, Mapping[str, Any]] = {
                (key := fused(row["slide_id"])): {**row, "slide_id": key} for row in reader if row.get("slide_id")
            }
            return [name for name in reader.fieldnames or () if name], rows
    except (UnicodeDecodeError, csv.Error) as error:
        log.warning("%s is damaged (%s); moved to %s, and begun anew", path, error, set_aside(path).name)
        return [], {}


def defused(value: Any) -> Any:
    """A value as a spreadsheet may read it: text that would be taken for a formula gets an apostrophe before it.

    Numbers stay as they are, also negative ones; see OWASP, "CSV Injection".
    """
    if not isinstance(value, str) or len(value) < 2 or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def fused(text: str) -> str:
    """The text that `defused` made this of: a slide whose id begins with ``-`` is known again by its id.

    No id begins with an apostrophe itself (`slide_ids`), and so none is taken for another's.
    """
    return text[1:] if text.startswith("'") and defused(text[1:]) == text else text
