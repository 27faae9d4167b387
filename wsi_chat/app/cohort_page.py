"""The page of many slides: sorted by score, verdict or adequacy, filtered by words, and the way into each."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from reports.html import SYMBOLS
from wsi_chat.app.export import write_manifest
from wsi_chat.app.head import head
from wsi_chat.app.parts import attributes, box, button, text
from wsi_chat.app.reading import slide_label
from wsi_chat.app.slides import Shelf
from wsi_chat.app.source import Entry
from wsi_chat.app.words import PageWords
from wsi_chat.errors import WsiChatError

MANIFEST = "reviewed.csv"
ROW = """
<q-tr :props="props">
  <q-td key="slide" :props="props"><a class="wsi-link strong" :href="props.row.to" :aria-label="props.row.say"
    >{{ props.row.slide }}</a></q-td>
  <q-td key="state" :props="props">{{ props.row.state }}</q-td>
  <q-td key="verdict" :props="props" class="verdict" :class="'tone-' + props.row.tone">{{ props.row.verdict }}</q-td>
  <q-td key="score" :props="props">{{ props.row.score_text }}</q-td>
  <q-td key="category" :props="props">{{ props.row.category }}</q-td>
  <q-td key="adequacy" :props="props">{{ props.row.adequacy }}</q-td>
  <q-td key="coverage" :props="props">{{ props.row.coverage_text }}</q-td>
  <q-td key="abnormal" :props="props">{{ props.row.abnormal }}</q-td>
  <q-td key="reviewed" :props="props">{{ props.row.reviewed }}</q-td>
  <q-td key="reason" :props="props" class="why">{{ props.row.reason }}</q-td>
</q-tr>
"""
LEFT = ("slide", "state", "verdict", "category", "adequacy", "reviewed", "reason")
NAMES = ("slide", "state", "verdict", "score", "category", "adequacy", "coverage", "abnormal", "reviewed", "reason")
FIELDS = {"verdict": "rank"}


def cohort_page(shelf: Shelf, words: PageWords) -> None:
    """Build the page for one browser."""
    stores = shelf.stores()
    labels = {name: slide_label(store)[0] or "" for name, store in stores.items()}
    rows = [_row(entry, words, labels.get(entry.id, "")) for entry in shelf.collection.entries.values()]
    with box("div", "wsi-page"):
        root = shelf.collection.root
        with head(words, root.name if root is not None else words("cohort.heading"), back=False):
            text(words("cohort.tally", n=len(rows))).classes("quiet")
            text(words("research")).classes("notice")
            box("span", "fill")
            button(words("review.manifest"), lambda: _manifest(shelf, words), kind="plain", test="manifest")
        with box("main", "wsi-cohort"):
            search = ui.input(placeholder=words("cohort.search")).props("dense outlined clearable")
            attributes(search, aria_label=words("cohort.search"))
            columns = [
                {
                    "name": name, "label": words(f"cohort.{name}"), "field": FIELDS.get(name, name), "sortable": True,
                    "align": "left" if name in LEFT else "right",
                }
                for name in NAMES
            ]  # fmt: skip
            table = ui.table(
                columns=columns,
                rows=rows,
                row_key="id",
                pagination={"rowsPerPage": 0, "sortBy": "score", "descending": True},
            )
            table.props("flat dense hide-bottom :rows-per-page-options=[0] binary-state-sort")
            attributes(table, data_testid="cohort")
            table.add_slot("body", ROW)
            search.bind_value_to(table, "filter", forward=lambda value: value or "")
            if not rows:
                text(words("cohort.none"), "p").classes("wsi-empty")


def _row(entry: Entry, words: PageWords, reviewed: str) -> dict[str, Any]:
    row = entry.row
    status = row.get("status", "")
    verdict = _of_report(entry)
    status = status or (verdict.status if verdict is not None else "")
    score = _number(row.get("score", ""))
    if score is None and verdict is not None:
        score = verdict.score
    coverage = _number(row.get("tiles_screened_of_foreground", "") or row.get("coverage", ""))
    known = status in SYMBOLS
    return {
        "id": entry.id, "to": f"/s/{entry.id}", "slide": entry.title, "say": words("cohort.open", slide=entry.title),
        "state": row.get("state", "") or ("done" if entry.analyzed else words("verdict.not_analyzed")),
        "tone": status if known else "none", "rank": _RANK.get(status, 9),
        "verdict": f"{SYMBOLS[status]} {words.report(f'verdicts.{status}')}" if known else "",
        "score": score, "score_text": "" if score is None else f"{score:.3f}",
        "category": row.get("category", "") or ((verdict.category_name or "") if verdict is not None else ""),
        "adequacy": "" if verdict is None else words.report(f"adequacy.{verdict.adequacy.status}"),
        "coverage": coverage, "coverage_text": "" if coverage is None else f"{coverage:.0%}",
        "abnormal": _number(row.get("findings_abnormal", "")), "reviewed": reviewed,
        "reason": row.get("reason", "") or row.get("error", ""),
    }  # fmt: skip


_RANK = {"abnormal": 0, "indeterminate": 1, "unsatisfactory": 2, "counted": 3, "normal": 4}


def _of_report(entry: Entry) -> Any:
    try:
        result = entry.load()
    except WsiChatError:
        return None
    return None if result is None else result.report.verdict


def _number(written: str) -> float | None:
    try:
        value = float(written)
    except ValueError:
        return None
    return int(value) if value.is_integer() and "." not in written else value


def _manifest(shelf: Shelf, words: PageWords) -> None:
    root = shelf.collection.root
    if root is None:
        return
    try:
        done = write_manifest(shelf.collection, shelf.stores(), root / MANIFEST)
    except WsiChatError as error:
        ui.notify(str(error), type="warning", multi_line=True)
        return
    ui.notify(words("review.exported", folder=str(done.files[0])), multi_line=True, timeout=8000)
    for note in done.notes:
        ui.notify(note, type="warning", multi_line=True)
