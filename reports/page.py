"""What the pages of report.pdf say, as plain strings and numbers for the template; no markup is made here.

Everything that came from a file, a user or a model passes through `clean`, so that it is one line of
printable text of bounded length wherever the page has room for one line only.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from reports.gallery import GalleryItem, gallery_items
from reports.wording import (
    id_ranges,
    number,
    percent,
    score_pair,
    score_text,
    seen_first,
    size_mm,
    verdict_word,
)
from wsi_chat.schema import Report, SlideVerdict, TileVerdict

# Evidence that the page cites beside a sentence: findings and tiles; fields are listed under the methods.
_REFERENCE = re.compile(r"[ft]\d+$")
STRIP = 7
GALLERY_LIMIT = 48
MPP_SOURCES = {"flag": "given by the user", "objective power (derived)": "derived from the objective power"}


def page_data(report: Report, tile_verdicts: Sequence[TileVerdict], folder: Path) -> dict[str, Any]:
    """The data of the template, JSON-able. Pictures are named only where ``folder`` has a readable one."""
    items = gallery_items(report, limit=GALLERY_LIMIT, tile_verdicts=tile_verdicts)
    verdict = report.verdict
    return {
        "title": f"Slide report {clean(report.slide.id)}",
        "disclaimer": clean(report.disclaimer, 200),
        "slide_id": clean(report.slide.id, 60),
        "identity": _identity(report),
        "verdict": _verdict(report),
        "findings": _findings(verdict),
        "narrative": _narrative(report),
        "overview": _picture(folder, "overview.png"),
        "heatmap": _picture(folder, "heatmap.png"),
        "total": number(len(verdict.findings)),
        "strip_title": _strip_title(report, items),
        "strip": [_cell(item, folder) for item in items[:STRIP]],
        "gallery": [_cell(item, folder) for item in items],
        "funnel": _funnel(report),
        "gaps": _gaps(report),
        "provenance": _provenance(report),
        "details": _details(report),
        "notes": [clean(note) for note in report.notes],
    }


def clean(text: object, limit: int | None = None) -> str:
    """Printable text on one line; control characters and lone surrogates become U+FFFD, long text loses its middle.

    ``limit`` counts columns: East Asian wide characters take two, the widest Latin letters one and a half.
    """
    # Not str.split(): that would also turn the no-break spaces of numbers into ordinary ones.
    line = re.sub(r"[ \t\r\n\f\v]+", " ", str(text)).strip()
    line = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs", "Cn", "Co") else c for c in line)
    if limit is None or sum(map(_columns, line)) <= limit:
        return line
    head = _kept(line, limit * 2 // 3)
    tail = _kept(line[::-1], limit // 3 - 1)[::-1]
    return f"{head}…{tail}"


def _kept(line: str, limit: int) -> str:
    """The start of the line, up to this many columns."""
    ends = accumulate(map(_columns, line))
    return line[: next((i for i, end in enumerate(ends) if end > limit), len(line))]


def _columns(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return 2.0
    return 1.5 if character in "WMm@%" else 1.0


def _identity(report: Report) -> list[dict[str, str]]:
    slide, specimen = report.slide, report.specimen
    objective = f"{slide.objective_power:g}×" if slide.objective_power else "objective not recorded"
    source = MPP_SOURCES.get(slide.mpp_source, f"from {slide.mpp_source}")
    pairs = [
        ("Slide", clean(slide.id, 44)),
        ("File", clean(slide.file_name, 44)),
        ("Specimen", clean(specimen.name, 44) if specimen.given else "not given"),
        ("Scan size", f"{size_mm(report)} ({number(slide.width)} × {number(slide.height)} px)"),
        ("Resolution", clean(f"{slide.mpp:.4g} µm/px, {source}", 48)),
        ("Scanner", clean(f"{objective}, {slide.vendor or 'vendor not recorded'}", 44)),
        ("Reporting system", clean(specimen.system, 64) if specimen.given else "none applied"),
        ("Analysed", clean(_moment(report.timings.started), 44)),
        ("Model", clean(f"{report.provenance.model.name}, {report.provenance.model.dialect} dialect", 44)),
    ]
    return [{"label": label, "value": value} for label, value in pairs]


def _moment(started: str) -> str:
    """A timestamp to the minute; as it stands where it is none."""
    try:
        return datetime.fromisoformat(started).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return started


def _verdict(report: Report) -> dict[str, Any]:
    verdict, adequacy = report.verdict, report.verdict.adequacy
    lines = []
    if verdict.category:
        name = clean(verdict.category_name or verdict.category, 90)
        hint = "suggestive of " if verdict.status == "abnormal" else ""
        lines.append({"label": "Category", "value": f"{hint}{name}"})
    elif report.specimen.given and verdict.status in ("abnormal", "normal"):
        lines.append({"label": "Category", "value": clean(verdict.category_reason, 160) or "none named"})
    status = {"not_assessed": "not assessed"}.get(adequacy.status, adequacy.status)
    lines.append({"label": "Adequacy", "value": clean(f"{status}. {adequacy.reason}", 170)})
    return {
        "status": verdict.status,
        "word": verdict_word(verdict),
        "reason": clean(verdict.reason, 420),
        "lines": lines,
        "gauge": _gauge(verdict),
    }


def _gauge(verdict: SlideVerdict) -> dict[str, Any] | None:
    """Places of score and threshold on the gauge as fractions; None without a score.

    Scores between 0 and 1 are drawn on 0..1; others (logits, say) on a symmetrical scale that holds both.
    """
    score, threshold = verdict.score, verdict.threshold
    if score is None:
        return None
    both = [score] if threshold is None else [score, threshold]
    low, high = 0.0, 1.0
    if not all(0.0 <= value <= 1.0 for value in both):
        high = max(1.0, *(abs(value) for value in both)) * 1.25
        low = -high
    shown, line = (score_text(score), "") if threshold is None else score_pair(score, threshold)
    return {
        "score": shown,
        "kind": clean(verdict.score_kind, 110),
        "threshold": line,
        "low": f"{low:g}" if low == int(low) else f"{low:.1f}",
        "high": f"{high:g}" if high == int(high) else f"{high:.1f}",
        "at": (score - low) / (high - low),
        "threshold_at": None if threshold is None else (threshold - low) / (high - low),
        "reached": threshold is not None and score >= threshold,
    }


def _narrative(report: Report) -> list[dict[str, Any]]:
    """The sentences; ``opens`` starts a paragraph, which is where the account of the run begins."""
    told: list[dict[str, Any]] = []
    for sentence in report.narrative:
        cited = [clean(name) for name in sentence.evidence]
        of_run = cited[0].startswith("funnel.")
        refs = [name for name in cited if _REFERENCE.match(name)] if sentence.source == "template" else []
        told.append(
            {
                "text": clean(sentence.text),
                "evidence": id_ranges(cited),
                "refs": _short(id_ranges(refs)),
                "source": sentence.source,
                "opens": bool(told) and of_run and not any(entry["of_run"] for entry in told),
                "of_run": of_run,
            }
        )
    return told


def _findings(verdict: SlideVerdict) -> list[dict[str, Any]]:
    return [
        {
            "name": clean(row.name, 34),
            "abnormal": row.abnormal,
            "seen": number(row.seen) if row.asked or row.seen else "not asked",
            "some": row.seen > 0,
            "evidence": _short(id_ranges(map(clean, row.finding_ids))),
            "all": id_ranges(map(clean, row.finding_ids)),
        }
        for row in seen_first(verdict.counts)
    ]


def _short(text: str, limit: int = 30) -> str:
    """As many of the listed ranges as fit, then an ellipsis."""
    if len(text) <= limit:
        return text
    kept = text[:limit].rsplit(", ", 1)[0]
    return f"{kept}, …"


def _picture(folder: Path, name: str) -> str | None:
    """The picture's path under the folder, or None where it is missing or cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(folder / name) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        return None
    return f"/{name}"


def _strip_title(report: Report, items: Sequence[GalleryItem]) -> str:
    if items and items[0].id == items[0].tile_id:
        return "Fields with the highest screening probability"
    if report.verdict.status == "abnormal":
        return "Cells that carry the verdict"
    return "Marked cells"


def _cell(item: GalleryItem, folder: Path) -> dict[str, Any]:
    x, y = item.position_mm
    score = "" if item.score is None else f"p {score_text(item.score)}"
    return {
        "image": _picture(folder, item.file),
        "id": clean(item.id, 14),
        "name": clean(item.name, 26),
        "abnormal": item.abnormal,
        "tile": clean(item.tile_id, 14) if item.tile_id != item.id else "",
        "position": f"x {x:.2f}, y {y:.2f} mm",
        "score": score,
        "field": f"{item.field_um:.0f} µm",
        "also": clean(", ".join(item.also_called), 30),
    }


def _funnel(report: Report) -> list[dict[str, str]]:
    funnel = report.funnel
    steps = [
        (funnel.grid, "tiles in the grid"),
        (funnel.foreground, "with cells"),
        (funnel.selected, "selected"),
        (funnel.screened, "screened"),
        (funnel.detailed, "read closely"),
    ]
    return [{"count": number(count), "label": label} for count, label in steps]


def _gaps(report: Report) -> dict[str, str]:
    funnel, verdict = report.funnel, report.verdict
    missing = funnel.unreadable + funnel.screen_failed
    return {
        "coverage": percent(verdict.coverage),
        "floor": percent(verdict.coverage_floor),
        "low": "yes" if verdict.coverage < verdict.coverage_floor else "",
        "missing": f"{number(missing)} without an answer ({number(funnel.unreadable)} unreadable)",
    }


def _provenance(report: Report) -> list[dict[str, str]]:
    source, model = report.provenance, report.provenance.model
    decoding = ", ".join(f"{name} {_value(value)}" for name, value in sorted(model.decoding.items()))
    pairs = [
        ("Model", f"{clean(model.name, 60)}, revision {clean(model.revision, 20)}"),
        ("Asked", f"dialect {clean(model.dialect, 30)} through {clean(model.engine, 30)}; {clean(decoding, 80)}"),
        ("Prompts", f"SHA-256 {clean(model.prompts_sha256)[:16]}"),
        (
            "Tiles",
            f"{source.tile_px} px at {source.tile_mpp:.3g} µm/px, overlap {percent(source.overlap)}, "
            f"mask {clean(source.mask, 30)}, seed {source.seed}",
        ),
        ("Run", clean(f"{report.timings.started}; reader {report.slide.reader}", 90)),
    ]
    return [{"label": label, "value": value} for label, value in pairs]


def _details(report: Report) -> list[dict[str, str]]:
    slide, source, verdict = report.slide, report.provenance, report.verdict
    pairs: list[tuple[str, str]] = [
        ("Slide id", clean(slide.id)),
        ("File name", clean(slide.file_name)),
        ("Fingerprint", clean(slide.fingerprint)),
        ("Reader", clean(f"{slide.reader}, {slide.levels} levels")),
        ("Specimen", clean(f"{report.specimen.name} ({report.specimen.code})")),
        ("Reporting system", clean(f"{report.specimen.system}, version {report.specimen.system_version}")),
        ("Reason of the verdict", clean(verdict.reason)),
        ("Reason of the category", clean(verdict.category_reason)),
        ("Adequacy rule", clean(verdict.adequacy.rule)),
        ("Model", clean(f"{source.model.name}, revision {source.model.revision}")),
        ("Prompts, SHA-256", clean(source.model.prompts_sha256)),
        ("Decoding", _mapping(source.model.decoding)),
        ("Aggregation", _mapping(source.aggregation)),
        ("Versions", _mapping(source.versions)),
        ("Settings", _mapping(source.config)),
        ("Sources", clean("; ".join(report.specimen.sources))),
        ("Report schema", clean(report.schema_version)),
    ]
    return [{"label": label, "value": value} for label, value in pairs if value]


def _mapping(values: dict[str, Any]) -> str:
    return clean(", ".join(f"{key} {_value(value)}" for key, value in sorted(values.items())), 1500)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
