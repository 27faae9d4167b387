"""The white-cell differential in words and numbers: for the narrative, the pages and the tables.

Percentages stand beside the number of cells that they come from and their interval; flags say what was seen, for
review, and never what it means.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reports import places
from reports.language import Words
from wsi_chat.remarks import percent
from wsi_chat.schema import Differential, DifferentialRow, PerField, Report, Sentence


def interval_text(row: DifferentialRow) -> str:
    """``32–81 %``: the interval of a share."""
    low, high = 100 * row.interval.low, 100 * row.interval.high
    return f"{low:.0f}–{high:.0f}\u202f%"


def share_text(row: DifferentialRow) -> str:
    """A share as whole percent, so that it claims no more than its interval; never 0 or 100 where it is neither."""
    whole = f"{100 * row.fraction:.0f}"
    return percent(row.fraction) if whole in ("0", "100") else f"{whole}\u202f%"


def field_text(entry: PerField, report: Report, words: Words) -> str:
    """``mean 7.6 (0 to 14) in 9 tiles 38 µm wide``; the width in px where the scale is not known."""
    found = report.verdict.differential
    assert found is not None, "a number per field is part of a differential"
    values = {"mean": f"{entry.mean:.1f}", "fewest": entry.fewest, "most": entry.most, "fields": found.fields}
    if found.field_um is None:
        return words("blood.per_field_value", **values)
    return words("blood.per_field_wide", width=places.side(report, found.field_um), **values)


def sentences(report: Report, words: Words) -> Iterator[Sentence]:
    """What the narrative says of the differential, with the findings behind it."""
    found = report.verdict.differential
    if found is None:
        return
    parts = [
        words("blood.part", name=words.label(row.label, row.name), share=share_text(row), n=row.n,
              interval=interval_text(row))
        for row in sorted(found.rows, key=lambda row: -row.n)
        if row.n
    ]  # fmt: skip
    if parts:
        text = words("blood.differential", n=found.typed, parts=words.listed(parts), level=percent(_level(found)))
        yield Sentence(text=text, evidence=("verdict.differential",))
    for entry in found.per_field:
        text = words(
            "blood.per_field", name=words.label(entry.label, entry.name), value=field_text(entry, report, words)
        )
        yield Sentence(text=text, evidence=("verdict.differential",))
    for remark in (*found.seen, *found.notes):
        yield Sentence(text=words.remark(remark), evidence=("verdict.differential",))


def _level(found: Differential) -> float:
    return found.rows[0].interval.level


def line(found: Differential, words: Words) -> str:
    """The differential on one line: the types that were seen, the most frequent first."""
    rows = [row for row in sorted(found.rows, key=lambda row: -row.n) if row.n]
    if not rows:
        return ""
    parts = [f"{words.label(row.label, row.name)} {share_text(row)} ({interval_text(row)})" for row in rows]
    return words("blood.line", n=found.typed, parts=words.between.join(parts))


def table(report: Report, words: Words) -> dict[str, Any] | None:
    """Rows and captions for the templates; None where the report has no differential."""
    found = report.verdict.differential
    if found is None:
        return None
    rows = [
        {"name": words.label(row.label, row.name), "n": str(row.n), "share": share_text(row),
         "interval": interval_text(row)}
        for row in found.rows
    ]  # fmt: skip
    per_field = [
        {
            "name": words("blood.per_field_name", name=words.label(entry.label, entry.name)),
            "value": field_text(entry, report, words),
        }
        for entry in found.per_field
    ]
    return {
        "title": words("blood.title"),
        "head": [words(f"blood.{name}") for name in ("type", "number", "share", "interval")],
        "rows": rows,
        "total": words("blood.total", n=found.typed, untyped=found.untyped),
        "per_field": per_field,
        "seen": [words.remark(remark) for remark in found.seen],
        "notes": [words.remark(remark) for remark in found.notes],
    }
