"""What the pages of report.pdf say, as plain strings and numbers for the template; no markup is made here.

Everything that came from a file, a user or a model passes through `reports.printable.clean`. What the pages say of how
the slide was analyzed is in `reports.methods`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from reports import blood, methods, places
from reports.gallery import GalleryItem, gallery_items
from reports.language import Words
from reports.printable import clean, sentences, shortened
from reports.wording import (
    id_ranges,
    included,
    score_pair,
    score_text,
    seen_first,
)
from wsi_chat.remarks import number
from wsi_chat.schema import Report, SlideVerdict, TileVerdict

# Evidence that the page cites beside a sentence: findings and tiles; fields are listed under the methods.
_REFERENCE = re.compile(r"[ft]\d+$")
STRIP = 7
NAME_COLUMNS = 22
GALLERY_LIMIT = 48


def page_data(
    report: Report, tile_verdicts: Sequence[TileVerdict], folder: Path, *, words: Words | None = None
) -> dict[str, Any]:
    """The data of the template, JSON-able. Pictures are named only where ``folder`` has a readable one.

    Args:
        words: the language; by default that of the report, with the names as the report holds them.
    """
    words = words or Words(report.language)
    limit = gallery_limit(report)
    items = gallery_items(report, limit=limit, tile_verdicts=tile_verdicts)
    verdict = report.verdict
    return {
        "language": words.language,
        "words": words.section("page"),
        "title": words("page.title", id=clean(report.slide.id)),
        "disclaimer": disclaimer(report, words),
        "slide_id": clean(report.slide.id, 60),
        "identity": _identity(report, words),
        "verdict": _verdict(report, words),
        "findings": _findings(verdict, words),
        "differential": blood.table(report, words),
        "narrative": _narrative(report, words),
        "legend": _legend(report, words),
        "overview": _picture(folder, "overview.png"),
        "heatmap": _picture(folder, "heatmap.png"),
        "total": number(len(verdict.findings)),
        "included": _included(verdict, words),
        "strip_title": _strip_title(report, items, words),
        "strip": [_cell(report, item, folder, words) for item in items[:STRIP]],
        "gallery": [_cell(report, item, folder, words) for item in items],
        "gallery_more": _more(report, items, words),
        "funnel": methods.funnel(report, words),
        "gaps": methods.gaps(report, words),
        "provenance": methods.provenance(report, words),
        "details": methods.details(report, words),
        "controls": methods.controls(report, words),
        "notes": [clean(words.remark(note)) for note in (*report.notes, *report.verdict.adequacy.notes)],
    }


def gallery_limit(report: Report) -> int:
    """How many cells the gallery shows: what the run was asked for with --gallery."""
    asked = report.provenance.config.get("gallery")
    return asked if isinstance(asked, int) and not isinstance(asked, bool) else GALLERY_LIMIT


def _more(report: Report, items: Sequence[GalleryItem], words: Words) -> str:
    """How many findings the gallery does not show, and where they are; empty where it shows them all."""
    shown = {item.id for item in items}
    left = sum(finding.id not in shown for finding in report.verdict.findings)
    return words("page.gallery_more", n=left) if left else ""


def disclaimer(report: Report, words: Words) -> str:
    """The report's own notice in its language; another one, as a user's own report may carry, stays as it is."""
    original = type(report).model_fields["disclaimer"].default
    return clean(words("page.disclaimer") if report.disclaimer == original else report.disclaimer, 200)


def _identity(report: Report, words: Words) -> list[dict[str, str]]:
    slide, specimen = report.slide, report.specimen
    objective = f"{slide.objective_power:g}×" if slide.objective_power else words("page.no_objective")
    sources = {
        "flag": "page.mpp_flag",
        "objective power (derived)": "page.mpp_derived",
        "tiff resolution tags": "page.mpp_tiff",
    }
    known = sources.get(slide.mpp_source)
    source = words(known) if known else words("page.mpp_from", source=slide.mpp_source)
    comma = words.between
    dialect = words("page.dialect", dialect=report.provenance.model.dialect)
    pairs = [
        ("slide", clean(slide.id, 44)),
        ("file", clean(slide.file_name, 44)),
        ("specimen", clean(words.specimen(report), 44) if specimen.given else words("page.not_given")),
        ("fields" if slide.fields else "scan_size", clean(places.size(report, words), 48)),
        (
            "resolution",
            clean(f"{slide.mpp:.4g} µm/px{comma}{source}", 48) if slide.scale_known else words("page.mpp_assumed"),
        ),
        ("scanner", clean(f"{objective}{comma}{slide.vendor or words('page.no_vendor')}", 44)),
        ("system", clean(words.system_name(report), 64) if specimen.given else words("page.no_system")),
        ("analysed", clean(_moment(report.timings.started), 44)),
        ("model", clean(f"{report.provenance.model.name}{comma}{dialect}", 44)),
    ]
    return [{"label": words(f"page.{label}"), "value": value} for label, value in pairs]


def _moment(started: str) -> str:
    """A timestamp to the minute; as it stands where it is none."""
    try:
        return datetime.fromisoformat(started).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError):
        return started


def _verdict(report: Report, words: Words) -> dict[str, Any]:
    verdict, adequacy = report.verdict, report.verdict.adequacy
    more = words("page.continued")
    lines = []
    label = words("page.category")
    if verdict.category:
        name = clean(words.category(verdict), 90)
        hint = "page.category_abnormal" if verdict.status == "abnormal" else ""
        lines.append({"label": label, "value": words(hint, category=name) if hint else name})
    elif report.specimen.given and verdict.status in ("abnormal", "normal"):
        reason = words.remark(verdict.category_reason)
        lines.append({"label": label, "value": sentences(reason, 260, more) or words("page.none_named")})
    if verdict.category_confidence is not None:
        confidence = f"{verdict.category_confidence:.2f}{words.between}{words.remark(verdict.category_confidence_kind)}"
        lines.append({"label": words("page.confidence"), "value": sentences(confidence, 320, more)})
    if verdict.fitted is not None and verdict.fitted.guarantee:
        promise = words.remark(verdict.fitted.guarantee)
        if verdict.threshold is not None and verdict.fitted.low < verdict.threshold:
            low, high = score_pair(verdict.fitted.low, verdict.threshold)
            promise += f"{words.between}{words('page.band', low=low, high=high)}"
        lines.append({"label": words("page.guarantee"), "value": sentences(promise, 320, more)})
    found = verdict.differential
    if found is not None and found.rows:
        lines.append({"label": words("blood.title"), "value": clean(blood.line(found, words), 300)})
    if found is not None and found.seen:
        lines.append(
            {"label": words("blood.seen"), "value": sentences(words.spaced(map(words.remark, found.seen)), 300, more)}
        )
    status = words(f"adequacy.{adequacy.status}")
    reason = f"{status}{words.stop}{words.gap}{words.remark(adequacy.reason)}"
    lines.append({"label": words("page.adequacy"), "value": sentences(reason, 420, more)})
    if report.scope is not None:
        lines.append({"label": words("page.scope"), "value": sentences(methods.scope_text(report, words), 420, more)})
    if report.controls is not None:
        lines.append(
            {"label": words("page.controls"), "value": sentences(methods.controls_text(report, words), 300, more)}
        )
    return {
        "status": verdict.status,
        "word": words(f"verdicts.{verdict.status}"),
        "headline": clean(headline(verdict, words), 70),
        "reason": sentences(words.remark(verdict.reason), 480, more),
        "lines": lines,
        "gauge": _gauge(verdict, words),
        "calibration": methods.calibration_text(report, words),
    }


def headline(verdict: SlideVerdict, words: Words) -> str:
    """What stands beside the verdict's word where a slide has none: the rule that decides, in a few words."""
    if not verdict.grounds or verdict.status in ("normal", "abnormal", "counted"):
        return ""
    return words.remark(verdict.grounds[0].headline)


def _gauge(verdict: SlideVerdict, words: Words) -> dict[str, Any] | None:
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
        "kind": clean(words.remark(verdict.score_kind), 110),
        "threshold": line,
        "low": f"{low:g}" if low == int(low) else f"{low:.1f}",
        "high": f"{high:g}" if high == int(high) else f"{high:.1f}",
        "at": (score - low) / (high - low),
        "threshold_at": None if threshold is None else (threshold - low) / (high - low),
        "reached": threshold is not None and score >= threshold,
    }


MARKS = {"model": "◇", "template_after_check": "◆"}


def _narrative(report: Report, words: Words) -> list[dict[str, Any]]:
    """The sentences; ``opens`` starts a paragraph, which is where the account of the run begins.

    ``mark`` tells a model's sentences and those that stand in for one, where a model wrote the narrative.
    """
    entries: list[dict[str, Any]] = []
    for sentence in report.narrative:
        cited = [clean(name) for name in sentence.evidence]
        of_run = cited[0].startswith("funnel.")
        quoted = sentence.source == "model" and report.narrator is None
        refs = [] if quoted else [name for name in cited if _REFERENCE.match(name)]
        entries.append(
            {
                "text": clean(sentence.text),
                "evidence": id_ranges(cited),
                "cited": cited,
                "refs": shortened(id_ranges(refs)),
                "mark": MARKS.get(sentence.source, "") if report.narrator else "",
                "replaced": words.objections(sentence.replaced),
                "opens": bool(entries) and of_run and not any(entry["of_run"] for entry in entries),
                "of_run": of_run,
            }
        )
    return entries


def _legend(report: Report, words: Words) -> list[dict[str, str]]:
    """What the marks of the narrative mean; only those that it has."""
    used = {sentence.source for sentence in report.narrative} if report.narrator else set()
    texts = {"model": "page.legend_model", "template_after_check": "page.legend_replaced"}
    return [{"mark": MARKS[source], "text": words(text)} for source, text in texts.items() if source in used]


def _findings(verdict: SlideVerdict, words: Words) -> list[dict[str, Any]]:
    return [
        {
            "code": row.label,
            "name": clean(words.label(row.label, row.name), 34),
            "long": clean(words.label_in_full(row.label, row.name), 80),
            "abnormal": row.abnormal,
            "seen": number(row.seen) if row.asked or row.seen else words("page.not_asked"),
            "asked": row.asked or row.seen > 0,
            "some": row.seen > 0,
            "evidence": shortened(id_ranges(map(clean, row.finding_ids))),
            "all": id_ranges(map(clean, row.finding_ids)),
        }
        for row in seen_first(verdict.counts)
    ]


def _included(verdict: SlideVerdict, words: Words) -> str:
    """Which rows of the table count cells of other rows too, so that nobody adds them up; empty where none does."""
    names = {row.label: clean(words.label(row.label, row.name), 34) for row in verdict.counts}
    return words.spaced(
        words("page.included", whole=names[label], kinds=words.listed([names[row.label] for row in kinds]))
        for label, kinds in included(verdict).items()
    )


def _picture(folder: Path, name: str) -> str | None:
    """The picture's path under the folder, or None where it is missing or cannot be decoded."""

    try:
        with Image.open(folder / name) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        return None
    return f"/{name}"


def _strip_title(report: Report, items: Sequence[GalleryItem], words: Words) -> str:
    if items and items[0].id == items[0].tile_id:
        return words("page.strip_fields")
    if report.verdict.status == "abnormal" and any(finding.abnormal for finding in report.verdict.findings):
        return words("page.strip_cells")
    return words("page.strip_marked")


def _cell(report: Report, item: GalleryItem, folder: Path, words: Words) -> dict[str, Any]:
    is_field = item.id == item.tile_id
    parts = []
    if item.confidence is not None:
        parts.append(words("page.cell_confidence", p=score_text(item.confidence)))
    if item.score is not None:
        parts.append(words("page.tile_p", p=score_text(item.score)))
    score = words.between.join(parts)
    name = words("page.field_item") if is_field else words.label(item.label, item.name)
    also = words.between.join(map(words.label_of, item.also_called))
    return {
        "image": _picture(folder, item.file),
        "id": clean(item.id, 14),
        "name": clean(name, 26),
        "abnormal": item.abnormal,
        "tile": "" if is_field else clean(item.tile_id, 14),
        "position": _where(report, item, words),
        "score": score,
        "field": words("page.gallery_field", um=places.side(report, item.field_um)),
        "um": places.side(report, item.field_um),
        "also": words("page.elsewhere", names=clean(also, 30)) if also else "",
    }


def _where(report: Report, item: GalleryItem, words: Words) -> str:
    """Where a cell lies, on one line of a gallery: the photograph that it is in, or its place on the scan."""
    own = report.slide.field_at(item.box)
    if own is None:
        return places.position(report, item.box, words)
    return words("page.in_field", number=own.number, name=clean(own.name, NAME_COLUMNS))
