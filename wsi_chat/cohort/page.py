"""index.html: a cohort on one page that needs nothing but itself, sortable, with the way to every slide's documents."""

from __future__ import annotations

import base64
import html
from collections import Counter
from typing import Any
from urllib.parse import quote

from reports.html import COLORS, SYMBOLS
from reports.wording import VERDICT_WORDS
from wsi_chat.analysis.run_folder import RUN_HINT, SlideFolder
from wsi_chat.atomic import write_text
from wsi_chat.cohort.result import CohortResult
from wsi_chat.schema import DISCLAIMER

STATE_MARKS = {"done": "●", "indeterminate": "◐", "failed": "✕", "running": "▸", "queued": "·"}
# title, and how it is sorted: by words, by number, or not at all
HEADS = (
    ("Overview", None), ("Sample and documents", "text"), ("State", "text"), ("Verdict", "text"), ("Score", "number"),
    ("Category", "text"), ("Abnormal cells", "number"), ("Tiles screened", "number"), ("Label", "text"),
    ("Patient", "text"), ("Seconds", "number"), ("Reason", "text"),
)  # fmt: skip

STYLE = """
:root{--ink:#1d2a30;--soft:#5c6a70;--line:#d5dcdf;--paper:#fff;--band:#f3f6f7;--link:#17687e;color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:14px/1.45 system-ui,"Segoe UI",Roboto,sans-serif}
header{padding:22px 28px 14px;border-bottom:1px solid var(--line)}
h1{font-size:22px;margin:0 0 2px}
.where{color:var(--soft);overflow-wrap:anywhere}
.use{margin:12px 0 0;font-weight:600}
.tally{display:flex;flex-wrap:wrap;gap:8px;margin:14px 0 0;padding:0;list-style:none}
.tally li{padding:4px 12px;border:1px solid var(--line);border-radius:4px;background:var(--band)}
.tally b{font-variant-numeric:tabular-nums}
.tools{display:flex;gap:16px;align-items:center;flex-wrap:wrap;padding:12px 28px}
input{font:inherit;padding:5px 9px;border:1px solid #98a5ab;border-radius:4px;min-width:260px;color:inherit}
a{color:var(--link)}
.frame{overflow-x:auto;padding:0 28px 28px}
table{border-collapse:collapse;width:100%}
th,td{padding:7px 12px 7px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{position:sticky;top:0;background:var(--paper);border-bottom:2px solid var(--ink);vertical-align:bottom}
.state{white-space:nowrap}
th button{font:inherit;font-weight:600;border:0;background:none;padding:0;color:inherit;cursor:pointer;
 text-align:inherit}
th button::after{content:" ↕";color:#98a5ab}
th[aria-sort=ascending] button::after{content:" ↑";color:var(--ink)}
th[aria-sort=descending] button::after{content:" ↓";color:var(--ink)}
td.n{white-space:nowrap}.n{text-align:right;font-variant-numeric:tabular-nums;padding-right:18px}
td img{display:block;max-width:120px;max-height:90px;border:1px solid var(--line)}
.none{display:block;width:72px;color:var(--soft);font-size:12px}
.file{color:var(--soft);font-size:12px;overflow-wrap:anywhere;max-width:220px}
td.why{min-width:260px;max-width:420px;color:var(--soft);font-size:13px}
.why summary{cursor:pointer}
.docs{max-width:230px;font-size:12px}.docs a{display:inline-block;margin:0 8px 2px 0;white-space:nowrap}
.verdict{font-weight:600;white-space:nowrap}
tr.failed .state,tr.indeterminate .state{font-weight:600}
tr.failed td{background:#fdf3ef}
@media print{.tools{display:none}th{position:static}}
"""

SCRIPT = """
const body=document.querySelector('tbody'),rows=[...body.rows];
document.querySelectorAll('th button').forEach(button=>button.addEventListener('click',()=>{
  const head=button.parentElement,at=head.cellIndex,number=head.classList.contains('n');
  const up=head.getAttribute('aria-sort')!=='ascending';
  document.querySelectorAll('th').forEach(th=>th.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort',up?'ascending':'descending');
  const value=row=>row.cells[at].dataset.v;
  rows.sort((a,b)=>{
    const x=value(a),y=value(b);
    if(x===''||y==='')return (x==='')-(y==='');
    const d=number?x-y:x.localeCompare(y,undefined,{numeric:true});
    return up?d:-d;
  });
  body.append(...rows);
}));
document.querySelector('input').addEventListener('input',event=>{
  const words=event.target.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown=0;
  rows.forEach(row=>{const text=row.textContent.toLowerCase();
    row.hidden=!words.every(word=>text.includes(word));shown+=!row.hidden;});
  document.querySelector('output').textContent=shown===rows.length?'':`${shown} of ${rows.length} slides`;
});
"""


def write_index(result: CohortResult) -> None:
    """Write ``index.html`` for a cohort as it stands.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(result.run.index_path, page(result), hint=RUN_HINT)


def page(result: CohortResult) -> str:
    """The page as text. Everything that came from a file or a manifest is escaped."""
    rows = result.rows
    heads = "".join(_head(title, kind) for title, kind in HEADS)
    body = "\n".join(_row(result, row) for row in rows)
    title = f"Cohort of {len(rows)} slide{'' if len(rows) == 1 else 's'}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - wsi-chat</title><style>{STYLE}</style></head><body>
<header><h1>{title}</h1><div class="where">{_safe(result.out.resolve().name)}</div>
{_tally(result, rows)}
<p class="use">{DISCLAIMER}</p></header>
<div class="tools"><label>Filter <input type="search" placeholder="sample, verdict, patient, reason ..."></label>
<output></output><a href="summary.csv">summary.csv</a><a href="run.json">run.json</a></div>
<div class="frame"><table><thead><tr>{heads}</tr></thead><tbody>
{body}
</tbody></table></div>
<script>{SCRIPT}</script></body></html>
"""


def _head(title: str, kind: str | None) -> str:
    if kind is None:
        return f'<th scope="col">{title}</th>'
    css = ' class="n"' if kind == "number" else ""
    return f'<th scope="col"{css}><button type="button">{title}</button></th>'


def _tally(result: CohortResult, rows: list[dict[str, Any]]) -> str:
    states = [f"<li>{STATE_MARKS[name]} {name} <b>{number}</b></li>" for name, number in result.counts.items()]
    found = Counter(str(row.get("status") or "") for row in rows)
    verdicts = [
        f"<li>{SYMBOLS[name]} {_safe(words)} <b>{found[name]}</b></li>"
        for name, words in VERDICT_WORDS.items()
        if found[name]
    ]
    named = f'<ul class="tally" aria-label="Slides per state">{"".join(states)}</ul>'
    return named + (f'<ul class="tally" aria-label="Slides per verdict">{"".join(verdicts)}</ul>' if verdicts else "")


def _row(result: CohortResult, row: dict[str, Any]) -> str:
    state, verdict = str(row["state"]), str(row.get("status") or "")
    words = VERDICT_WORDS.get(verdict, "")  # type: ignore[call-overload]
    mark = f"{SYMBOLS[verdict]} {words}" if words else ""
    color = COLORS.get(verdict, "inherit")
    score = str(row.get("score") or "")
    screened = str(row.get("tiles_screened", ""))
    cells = [
        f"<td>{_thumbnail(result, row)}</td>",
        f'<td data-v="{_safe(row["sample_id"])}">{_safe(row["sample_id"])}'
        f'<div class="file">{_safe(row["file"])}</div>'
        f'<div class="docs">{_links(result.run.slide(str(row["slide_id"])))}</div></td>',
        f'<td class="state" data-v="{state}">{STATE_MARKS[state]} {state}</td>',
        f'<td class="verdict" data-v="{_safe(words)}" style="color:{color}">{_safe(mark)}</td>',
        _number(score, f"{float(score):.3f}" if score else ""),
        _text(row.get("category")),
        _number(row.get("findings_abnormal", "")),
        _number(screened, f"{screened} of {row.get('tiles_selected', '?')}" if screened else ""),
        _text(row["label"]),
        _text(row["patient"]),
        _number(row["seconds"], f"{float(row['seconds']):.1f}" if row["seconds"] != "" else ""),
        f'<td class="why" data-v="{_safe(row["reason"])}">{_why(str(row["reason"]))}</td>',
    ]
    return f'<tr class="{state}">{"".join(cells)}</tr>'


def _text(value: object) -> str:
    shown = _safe(value or "")
    return f'<td data-v="{shown}">{shown}</td>'


def _number(value: object, shown: str | None = None) -> str:
    return f'<td class="n" data-v="{_safe(value)}">{_safe(value if shown is None else shown)}</td>'


def _why(reason: str, most: int = 110) -> str:
    if len(reason) <= most:
        return _safe(reason)
    return f"<details><summary>{_safe(reason[:most])} ...</summary>{_safe(reason[most:])}</details>"


def _links(folder: SlideFolder) -> str:
    places = (
        (folder.pdf_path, "PDF"), (folder.html_path, "HTML"), (folder.report_path, "JSON"),
        (folder.findings_path, "GeoJSON"), (folder.heatmap_path, "heat map"), (folder.tiles_path, "tiles"),
        (folder.traceback_path, "traceback"),
    )  # fmt: skip
    return "".join(f'<a href="{quote(folder.id)}/{path.name}">{title}</a>' for path, title in places if path.is_file())


def _thumbnail(result: CohortResult, row: dict[str, Any]) -> str:
    # a slide that is done anew shows no picture of its earlier run
    if row["state"] in ("done", "indeterminate"):
        try:
            data = result.run.slide(str(row["slide_id"])).thumbnail_path.read_bytes()
        except OSError:
            data = b""
        if data:
            source = base64.b64encode(data).decode("ascii")
            return f'<img alt="Overview of {_safe(row["sample_id"])}" src="data:image/jpeg;base64,{source}">'
    return '<span class="none">no overview</span>'


def _safe(text: object) -> str:
    return html.escape(str(text), quote=True)
