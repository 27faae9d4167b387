"""A verdict as a small HTML card for notebooks: self-contained, escaped, readable without colour."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from PIL import Image

from reports import places
from reports.wording import VERDICT_WORDS, score_pair, score_text, seen_first
from wsi_chat.schema import Report

SYMBOLS = {"abnormal": "▲", "normal": "○", "indeterminate": "◐", "unsatisfactory": "⊠", "counted": "#"}
COLORS = {
    "abnormal": "#b5410e",
    "normal": "#17687e",
    "indeterminate": "#8a6d00",
    "unsatisfactory": "#5c6a70",
    "counted": "#17687e",
}
OVERVIEW_PX = 520


def verdict_html(report: Report, folder: Path | str) -> str:
    """The card: verdict, score, adequacy, findings table and the overview of ``folder`` as a data URI.

    A missing or broken overview is said to be missing. Every text is escaped.
    """
    verdict = report.verdict
    cells = "padding:2px 10px 2px 0;text-align:left;vertical-align:top"
    rows = "".join(
        f"<tr><td style='{cells}'>{'▲ ' if row.abnormal else ''}{_safe(row.name)}</td>"
        f"<td style='{cells};font-variant-numeric:tabular-nums'>{row.seen if row.asked or row.seen else 'not asked'}"
        f"</td></tr>"
        for row in seen_first(verdict.counts)
    )
    table = f"<table style='border-collapse:collapse;margin:8px 0'>{rows}</table>" if rows else ""
    score = ""
    if verdict.score is not None:
        shown, line = score_text(verdict.score), ""
        if verdict.threshold is not None:
            shown, threshold = score_pair(verdict.score, verdict.threshold)
            line = f", threshold {threshold}"
        score = f"<div>Score <b>{shown}</b>{line} ({_safe(verdict.score_kind)})</div>"
    category = f"<div>Category {_safe(verdict.category_name or verdict.category)}</div>" if verdict.category else ""
    specimen = _safe(report.specimen.name) if report.specimen.given else "specimen type not given"
    coverage, funnel = f"{verdict.coverage:.1%}", report.funnel
    if funnel.selected < funnel.foreground:
        whole = f"{funnel.coverage_foreground:.1%} of the tiles that may hold cells"
        coverage = f"{whole} ({coverage} of the tiles selected)"
    adequacy = verdict.adequacy.status.replace("_", " ")
    why = f" ({_safe(verdict.grounds[0].headline)})" if verdict.grounds else ""
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:16px;max-width:900px;padding:12px;border:1px solid #c9d1d4;"
        "font:13px/1.45 system-ui,sans-serif;color:#1d2a30;background:#fff'>"
        f"<div style='flex:1 1 300px;border-left:4px solid {COLORS[verdict.status]};padding-left:12px'>"
        f"<div style='font-size:20px;font-weight:600'>{SYMBOLS[verdict.status]} {VERDICT_WORDS[verdict.status]}{why}"
        "</div>"
        f"{score}{category}<div>Adequacy: {_safe(adequacy)}. Coverage {coverage}.</div>"
        f"<div style='color:#5c6a70'>{_safe(verdict.reason)}</div>{table}"
        f"<div style='color:#5c6a70'>{_safe(report.slide.file_name)}, {specimen}, {_safe(places.size(report))}, "
        f"{f'{report.slide.mpp:.4g} µm/px' if report.slide.scale_known else 'resolution not known'}</div>"
        f"<div style='margin-top:6px;font-weight:600'>{_safe(report.disclaimer)}</div></div>"
        f"<div style='flex:0 1 420px'>{_overview(Path(folder) / 'overview.png', report)}</div></div>"
    )


def _safe(text: object) -> str:
    return html.escape(str(text), quote=True)


def _overview(path: Path, report: Report) -> str:

    try:
        with Image.open(path) as picture:
            picture.thumbnail((OVERVIEW_PX, OVERVIEW_PX))
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, format="PNG")
    except (OSError, SyntaxError, ValueError):
        return "<i>no overview picture</i>"
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    title = _safe(f"Overview of {report.slide.id} with {len(report.verdict.findings)} findings")
    return f"<img alt='{title}' style='max-width:100%' src='data:image/png;base64,{data}'>"
