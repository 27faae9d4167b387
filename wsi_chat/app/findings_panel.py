"""The left of the page: the verdict, the classes with their filter, and the findings in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from nicegui.events import GenericEventArguments

from reports import methods
from reports.html import SYMBOLS
from reports.wording import score_pair, score_text
from wsi_chat.app.findings_list import FindingsList
from wsi_chat.app.parts import GLYPHS, attributes, box, mark, text
from wsi_chat.app.state import PageState, Row

PICKED = "(e) => { const row = e.target.closest('tr[data-id]'); if (row) emit(row.dataset.id); }"
SIGNS = {"accept": "✓", "reject": "✕", "relabel": "✎", "draw": "+", "": ""}
SORTS = ("severity", "probability", "position", "open")


class FindingsPanel:
    """Builds the panel in place.

    Args:
        pick: a finding was chosen in the list.
        filtered: the filter or the order changed.
    """

    def __init__(self, state: PageState, *, pick: Callable[[str], None], filtered: Callable[[], None]) -> None:
        self._state, self._pick, self._filtered = state, pick, filtered
        self._words = state.words
        self._counts: Counter[str] | None = None
        self._shown: list[Row] = []
        with box("aside", "wsi-side left") as side:
            attributes(side, aria_label=self._words("findings.heading"))
            self._verdict()
            self._classes = box("section", "wsi-part")
            self._filter()
            self._list()
        self.refresh()

    # ------------------------------------------------------------------------------------------ verdict

    def _verdict(self) -> None:
        words, result = self._words, self._state.slide.result
        with box("section", "wsi-part wsi-verdict"):
            if result is None:
                text(words("verdict.not_analyzed"), "div").classes("word tone-none")
                text(words("verdict.not_analyzed_long"), "p").classes("quiet")
                return
            verdict = result.report.verdict
            with box("div", f"word tone-{verdict.status}"):
                text(f"{SYMBOLS[verdict.status]} {words.report(f'verdicts.{verdict.status}')}")
            facts: list[tuple[str, str]] = []
            if verdict.score is None:
                facts.append((words("verdict.score"), words("verdict.no_score")))
            else:
                shown, line = score_text(verdict.score), ""
                if verdict.threshold is not None:
                    shown, threshold = score_pair(verdict.score, verdict.threshold)
                    line = f", {words('verdict.threshold', threshold=threshold)}"
                    self._gauge(verdict.score, verdict.threshold, verdict.status)
                facts.append((words("verdict.score"), f"{shown}{line}"))
            if verdict.category:
                facts.append((words("verdict.category"), words.report.category(verdict)))
            facts.append((words("verdict.adequacy"), words.report(f"adequacy.{verdict.adequacy.status}")))
            facts.append((words("verdict.coverage"), methods.coverage_text(result.report, words.report)))
            with box("dl", "wsi-facts"):
                for name, value in facts:
                    text(name, "dt")
                    text(value, "dd")

    def _gauge(self, score: float, threshold: float, status: str) -> None:
        if not 0 <= score <= 1 or not 0 <= threshold <= 1:
            return
        with attributes(box("div", f"wsi-gauge tone-{status}"), aria_hidden="true"):
            box("div", "fill").style(f"width: {100 * score:.1f}%")
            box("div", "line").style(f"left: {100 * threshold:.1f}%")

    # ------------------------------------------------------------------------------------------ classes

    def _filter(self) -> None:
        words, state = self._words, self._state
        if state.slide.result is None:
            return
        with box("section", "wsi-part"), box("label", "wsi-range"):
            text(words("findings.threshold"))
            slider = box("input")
            attributes(slider, type="range", min=0, max=1, step=0.01, value=0, data_testid="threshold")
            attributes(slider, aria_label=words("findings.threshold"))
            shown = text("0.00").classes("value")

            def moved(event: GenericEventArguments) -> None:
                state.threshold = float(event.args)
                shown.text = f"{state.threshold:.2f}"
                self._filtered()

            slider.on("input", moved, js_handler="(e) => emit(e.target.value)", throttle=0.05)

    def _legend(self, rows: list[Row]) -> None:
        words, state = self._words, self._state
        counts = Counter(row.label for row in rows)
        if counts == self._counts:
            return
        self._counts = counts
        self._classes.clear()
        self._classes.set_visibility(bool(counts))
        with self._classes:
            text(words("findings.classes"), "h2")
            with box("div", "wsi-classes"):
                for code in sorted(counts, key=lambda code: (-state.style(code).severity, code)):
                    style = state.style(code)
                    with box("label"):
                        check = attributes(box("input"), type="checkbox", data_class=code)
                        if code not in state.hidden:
                            attributes(check, checked=True)
                        check.on("change", lambda e, code=code: self._toggle(code, bool(e.args)),
                                js_handler="(e) => emit(e.target.checked)")  # fmt: skip
                        mark(style.color, style.shape)
                        text(state.name(code)).classes("text")
                        text(str(counts[code])).classes("n")

    def _toggle(self, code: str, on: bool) -> None:
        (self._state.hidden.discard if on else self._state.hidden.add)(code)
        self._filtered()

    # ------------------------------------------------------------------------------------------ list

    def _list(self) -> None:
        words, state = self._words, self._state
        with box("section", "wsi-grow") as grow:
            attributes(grow, id="findings")
            for kind in ("click", "keydown.enter"):
                grow.on(kind, lambda event: self._pick(str(event.args)), js_handler=PICKED)
            with box("div", "top"):
                text(words("findings.heading"), "h2")
                self._count = text("").classes("quiet")
                choice = box("select", "quiet")
                choice.set_visibility(state.slide.result is not None)
                attributes(choice, aria_label=words("findings.sort"), data_testid="sort")
                with choice:
                    for order in SORTS:
                        attributes(text(words(f"findings.sort_{order}"), "option"), value=order)
                choice.on("change", self._sorted, js_handler="(e) => emit(e.target.value)")
            columns = [
                {"name": "name", "label": words("findings.class"), "field": "name", "align": "left"},
                {"name": "p", "label": words("findings.p"), "field": "p", "align": "right"},
                {"name": "state", "label": words("findings.state"), "field": "sign", "align": "right"},
            ]
            self._table = FindingsList(columns)
            attributes(self._table, data_testid="findings")
            self._empty = text("", "div").classes("wsi-empty")
        state.order = "severity"

    def _sorted(self, event: GenericEventArguments) -> None:
        if event.args in SORTS:
            self._state.order = event.args
            self._filtered()

    def refresh(self) -> None:
        """Show the rows as they are now."""
        state, words = self._state, self._words
        rows = state.rows()
        shown = self._shown = [row for row in rows if state.shown(row)]
        self._legend(rows)
        self._count.text = words("findings.shown", shown=len(shown), of=len(rows)) if rows else ""
        self._table.show(
            [
                {
                    "id": row.id, "name": row.name, "p": "" if row.score is None else f"{row.score:.2f}",
                    "state": row.state, "sign": SIGNS.get(row.state, ""),
                    "glyph": GLYPHS[row.style.shape], "color": row.style.color,
                    "said": words(f"review.state_{row.state}") if row.state else "",
                    "say": words("findings.choose", id=row.id, name=row.name),
                }
                for row in shown
            ]
        )  # fmt: skip
        self._table.choose(state.chosen)
        self._table.set_visibility(bool(shown))
        self._empty.set_visibility(not shown)
        if state.slide.result is not None:
            self._empty.text = words("findings.no_match" if rows else "findings.none")

    def choose(self) -> None:
        """Mark the chosen row and bring it into view."""
        chosen = self._state.chosen
        self._table.choose(chosen, next((n for n, row in enumerate(self._shown) if row.id == chosen), -1))

    def beside(self, by: int) -> str | None:
        """The finding that many rows below the chosen one, the first or last where none is chosen; None for no rows."""
        rows = [row.id for row in self._shown]
        if not rows:
            return None
        if self._state.chosen not in rows:
            return rows[0 if by > 0 else -1]
        return rows[min(max(rows.index(self._state.chosen) + by, 0), len(rows) - 1)]
