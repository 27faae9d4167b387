"""Answers about a slide from what was written down of it: the verdict, its tiles and the journal. No model is asked.

Every answer cites tiles and findings of the record by their ids. A question that the record does not hold gets None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from reports.blood import interval_text, sentences, share_text
from reports.language import Words
from wsi_chat.asking.intent import find_label
from wsi_chat.errors import WsiChatError
from wsi_chat.journal import Journal
from wsi_chat.schema import Box, Finding, LabelledBox, Tile

if TYPE_CHECKING:
    from wsi_chat.analysis.result import SlideResult
    from wsi_chat.dialects import Dialect
    from wsi_chat.terminology import System

LISTED = 10
ID = re.compile(r"\b(?:f\d{4,}|t\d{6,})\b")
"""Ids of findings (f0001) and tiles (t000042), as reports write them."""

_COUNT = re.compile(r"\bhow many\b|\bnumber of\b|\bcounts?\b", re.I)
_WHERE = re.compile(
    r"\bwhere\b|\blist\b|\bshow\b|\bwhich\b|\bare there\b|\bis there\b|\bany\b|\bfind\b|\blocate\b", re.I
)


@dataclass(frozen=True, slots=True)
class RecordAnswer:
    """An answer from the record, the ids that support it, and the boxes it speaks of (level-0 pixels)."""

    text: str
    cites: tuple[str, ...] = ()
    boxes: tuple[LabelledBox, ...] = ()


class SlideFacts:
    """What is known of an analyzed slide, to be asked in plain words."""

    def __init__(self, result: SlideResult, system: System, dialect: Dialect) -> None:
        self.result = result
        self.report = result.report
        self._system = system
        self._dialect = dialect
        self._findings = {finding.id: finding for finding in result.findings}

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Tile id -> its row of tiles.parquet; empty where the file is gone."""
        try:
            return {row["tile_id"]: row for row in self.result.tiles.to_pylist()}
        except (WsiChatError, KeyError):
            return {}

    def exists(self, name: str) -> bool:
        """Whether a finding or a tile of the record has this id."""
        return name in self._findings or name in self.rows

    def finding(self, name: str) -> Finding | None:
        return self._findings.get(name)

    def tile(self, name: str) -> Tile | None:
        """The tile with this id, as it was planned."""
        row = self.rows.get(name)
        if row is None:
            return None
        return Tile(
            row["index"], row["x"], row["y"], row["width"], row["height"], row["level"],
            (row["read_width"], row["read_height"]), row["out_px"], row["mpp"], row["cellularity"],
        )  # fmt: skip

    def ids_in(self, box: Box) -> tuple[str, ...]:
        """Findings whose centre lies in the box, then the tile whose centre is nearest to the box's."""
        inside = [f.id for f in self.result.findings if _holds(box, f.box.center)]
        x, y = box.center
        holding = [r for r in self.rows.values() if _holds(_rect(r), (x, y))]
        near = sorted(holding, key=lambda r: (_off(_rect(r), x, y), r["index"]))
        return (*inside[:LISTED], *(r["tile_id"] for r in near[:1]))

    def carrying(self) -> str | None:
        """The finding or tile that carries the verdict most, None where none does."""
        return next((name for name in self.report.verdict.carrying if self.exists(name)), None)

    # ------------------------------------------------------------------------------------------ questions

    def answer(self, question: str, *, pointed: bool = False) -> RecordAnswer | None:
        """What the record says to a question; None where the question is not about the slide as a whole.

        Args:
            pointed: something is in view: then only what names the slide or its verdict is meant for the record.
        """
        text = " ".join(question.split())
        named = [name for name in ID.findall(text) if self.exists(name)]
        if named and re.search(r"\b(?:tell|score|probability|about|who|what is|what's|where)\b", text, re.I):
            return self.about(named)
        for pattern, weak, answer in self._routes:
            if pattern.search(text) and not (weak and pointed):
                return answer()
        if pointed and not re.search(r"\bslide\b|\bspecimen\b|\boverall\b|\bin total\b", text, re.I):
            return None
        label = find_label(text, self._dialect, self._system)
        counted = _COUNT.search(text)
        if label and (counted or _WHERE.search(text)):
            return self.of_label(label)
        if re.search(r"\bfindings?\b|\babnormal(?:ities)?\b", text, re.I) or (counted and "cell" in text.casefold()):
            return self.all_counts()
        return None

    @cached_property
    def _routes(self) -> list[tuple[re.Pattern[str], bool, Callable[[], RecordAnswer]]]:
        """(pattern, only where nothing is in view, answer), the first that fits wins."""

        def route(
            words: str, weak: bool, answer: Callable[[], RecordAnswer]
        ) -> tuple[re.Pattern[str], bool, Callable[[], RecordAnswer]]:
            return re.compile(words, re.I), weak, answer

        return [
            route(r"\bwhy\b|\breasons?\b|\bwhat carries\b", False, self.why),
            route(r"\bdifferential\b|\bleft shift\b|\bper (?:field|tile)\b", False, self.differential),
            route(r"\badequa\w*|\b(?:un)?satisfactory\b|\benough cells\b", False, self.adequacy),
            route(r"\bcategory\b|\bbethesda\b", True, self.category),
            route(
                r"\bhow many (?:tiles|fields)\b|\bcoverage\b|\bfunnel\b|\bunreadable\b|\bmissing\b",
                False,
                self.coverage,
            ),
            route(r"\b(?:highest|top|worst|most (?:suspicious|abnormal)) (?:tiles?|fields?)\b", False, self.top_tiles),
            route(r"\b(?:which|what) model\b|\bdialect\b|\bwho answered\b|\bsettings\b", False, self.model),
            route(r"\bjournal\b|\bhow many (?:answers|questions)\b", False, self.journal),
            route(
                r"\bresolution\b|\bmagnification\b|\bscanner\b|\b[uµμ]m/px\b|\bhow (?:large|big)\b", True, self.slide
            ),
            route(r"\bsummar\w+|\breport\b|\bnarrative\b|\bdescribe the slide\b", True, self.summary),
            route(r"\bverdict\b|\bscore\b|\bthreshold\b", False, self.verdict),
            route(r"\bslide (?:normal|abnormal)\b|\bnormal or abnormal\b", True, self.verdict),
            route(r"\b(?:result|outcome|conclusion|overall)\b|\bdiagnos(?:is|ed)\b(?! results)", True, self.verdict),
            route(r"\bis (?:it|this|the slide|the case) (?:ab)?normal\b", True, self.verdict),
        ]

    def verdict(self) -> RecordAnswer:
        verdict = self.report.verdict
        text = f"The verdict is {verdict.status}. {verdict.reason}"
        if verdict.category_name:
            text += f" Category: {verdict.category_name}."
        return RecordAnswer(text, self._known(verdict.carrying[:5]))

    def why(self) -> RecordAnswer:
        """The reason, the sentences behind it, and what carries it."""
        verdict = self.report.verdict
        lines: list[str] = [verdict.reason]
        if verdict.category_reason:
            lines.append(verdict.category_reason)
        carrying = self._known(verdict.carrying)
        if carrying:
            more = f" and {len(carrying) - LISTED} more" if len(carrying) > LISTED else ""
            lines.append(f"It is carried by {', '.join(self._short(name) for name in carrying[:LISTED])}{more}.")
        boxes = tuple(
            LabelledBox(f.label, f.box) for name in carrying[:LISTED] if (f := self._findings.get(name)) is not None
        )
        return RecordAnswer("\n".join(lines), carrying[:LISTED], boxes)

    def category(self) -> RecordAnswer:
        verdict = self.report.verdict
        if verdict.category_name is None:
            return RecordAnswer(
                f"No category is given. {verdict.category_reason}".strip(), self._known(verdict.carrying[:5])
            )
        text = f"{verdict.category_name} ({self.report.specimen.system}). {verdict.category_reason}".strip()
        return RecordAnswer(text, self._known(verdict.carrying[:LISTED]))

    def adequacy(self) -> RecordAnswer:
        adequacy = self.report.verdict.adequacy
        text = f"Adequacy: {adequacy.status.replace('_', ' ')}. {adequacy.reason}".strip()
        if adequacy.cells_estimate is not None:
            text += f" Estimated cells: {adequacy.cells_estimate:.0f}."
        return RecordAnswer(text, self._top(3))

    def _tiles_in_detail(self) -> str:
        n = self.report.funnel.detailed
        return f"the {n} tiles looked at in detail" if n != 1 else "the one tile looked at in detail"

    def coverage(self) -> RecordAnswer:
        funnel = self.report.funnel
        text = (
            f"{funnel.grid} tiles in the grid, {funnel.foreground} with cells, {funnel.selected} selected,"
            f" {funnel.screened} screened ({funnel.coverage:.1%}), {funnel.detailed} looked at in detail."
            f" {funnel.unreadable} could not be read, {funnel.screen_failed} gave no usable screening answer,"
            f" {funnel.detail_failed} were detailed only in part; none of these counts as normal."
        )
        gaps = [name for name, row in self.rows.items() if row["status"] in ("unreadable", "screen_failed")]
        return RecordAnswer(text, tuple(gaps[:LISTED]) or self._top(1))

    def top_tiles(self) -> RecordAnswer:
        names = self._top(LISTED)
        if not names:
            return RecordAnswer("No tile has a screening answer.")
        return RecordAnswer(
            "The highest tiles: " + ", ".join(f"{name} ({self.rows[name]['p_screen']:.3f})" for name in names), names
        )

    def model(self) -> RecordAnswer:
        model = self.report.provenance.model
        return RecordAnswer(
            f"{model.name} ({model.revision}), run by {model.engine}, asked in the dialect {model.dialect};"
            f" tiles of {self.report.provenance.tile_px} px at {self.report.provenance.tile_mpp:g} µm/px."
        )

    def slide(self) -> RecordAnswer:
        slide = self.report.slide
        return RecordAnswer(
            f"{slide.file_name}: {slide.width} x {slide.height} px, {slide.mpp:.4g} µm/px ({slide.mpp_source}),"
            f" {slide.levels} levels, read by {slide.reader}."
        )

    def summary(self) -> RecordAnswer:
        sentences = self.report.narrative
        cites = [name for sentence in sentences for name in sentence.evidence]
        return RecordAnswer(
            " ".join(sentence.text for sentence in sentences) or self.verdict().text, self._known(cites)
        )

    def journal(self) -> RecordAnswer:
        try:
            with Journal(self.result.files.journal_path, read_only=True) as journal:
                tally = journal.tally()
        except WsiChatError as error:
            return RecordAnswer(f"The journal cannot be read: {error}")
        parts = ", ".join(f"{number} {task}" for task, number in tally.items()) or "none"
        return RecordAnswer(f"The journal holds {sum(tally.values())} answers: {parts}.", self._top(1))

    def of_label(self, label: str) -> RecordAnswer:
        """How many findings of a class there are, and where."""
        kinds = self._system.kinds_of(label)
        found = sorted((f for f in self.result.findings if f.label in kinds), key=lambda f: (-(f.score or 0.0), f.id))
        row = next((count for count in self.report.verdict.counts if count.label == label), None)
        detailed = self._tiles_in_detail()
        name = self._name(label)
        if not found:
            asked = row is not None and row.asked
            never = f"{name} was not asked for on this slide; ask about a place in view: locate all {name} here."
            text = f"No {name} was located in {detailed}." if asked else never
            return RecordAnswer(text, self._detailed(3) if asked else ())
        where = "; ".join(f"{f.id} at {corners(f.box)}" for f in found[:LISTED])
        more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
        boxes = tuple(LabelledBox(f.label, f.box) for f in found)
        text = f"{len(found)} {name} in {detailed}: {where}{more}.{self._share(label)}"
        return RecordAnswer(text, tuple(f.id for f in found[:LISTED]), boxes)

    def differential(self) -> RecordAnswer:
        """White cells by type, what was seen for review, and how far the figures can be trusted."""
        found = self.report.verdict.differential
        if found is None:
            return RecordAnswer("This slide has no differential: its reporting system counts no white cells by type.")
        words = Words("en", self._system)
        cites = self._known(f.id for f in self.result.findings if any(f.label == row.label for row in found.rows))
        text = " ".join(sentence.text for sentence in sentences(self.report, words))
        return RecordAnswer(text, cites[:LISTED] or self._detailed(3))

    def _share(self, label: str) -> str:
        """What a type makes of the differential; empty for a class that is no part of one."""
        found = self.report.verdict.differential
        row = next((row for row in found.rows if row.label == label), None) if found is not None else None
        if row is None or found is None:
            return ""
        return f" That is {share_text(row)} of {found.typed} white cells of a stated type ({interval_text(row)})."

    def _name(self, label: str) -> str:
        """The display name of a class, as the findings table has it."""
        code = self._system.read_label(label)
        return self._system.label(code).name if code else label

    def all_counts(self) -> RecordAnswer:
        located = [count for count in self.report.verdict.counts if count.seen]
        if not located:
            return RecordAnswer("No finding was located.", self._detailed(3))
        text = ", ".join(f"{count.seen} {count.name}" for count in located)
        cites = self._known(name for count in located for name in count.finding_ids[:3])
        return RecordAnswer(f"Located in {self._tiles_in_detail()}: {text}.", cites[:LISTED])

    def about(self, names: Iterable[str]) -> RecordAnswer:
        """What is written of findings and tiles, by their ids."""
        known = self._known(names)
        boxes = tuple(LabelledBox(f.label, f.box) for name in known if (f := self._findings.get(name)) is not None)
        return RecordAnswer("\n".join(self._long(name) for name in known), known, boxes)

    # ------------------------------------------------------------------------------------------ words

    def _known(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in names if self.exists(name)))

    def _top(self, count: int) -> tuple[str, ...]:
        rows = [row for row in self.rows.values() if row["p_screen"] is not None]
        rows.sort(key=lambda row: (-row["p_screen"], row["index"]))
        return tuple(row["tile_id"] for row in rows[:count])

    def _detailed(self, count: int) -> tuple[str, ...]:
        return tuple(name for name, row in self.rows.items() if row["status"] == "detailed")[:count]

    def _short(self, name: str) -> str:
        finding = self._findings.get(name)
        if finding is not None:
            return f"{name} ({finding.name})"
        p = self.rows[name]["p_screen"]
        return f"{name} ({p:.3f})" if p is not None else name

    def _long(self, name: str) -> str:
        finding = self._findings.get(name)
        if finding is not None:
            score = "" if finding.score is None else f", highest tile {finding.score:.3f}"
            others = f", also called {', '.join(finding.other_labels)}" if finding.other_labels else ""
            return (
                f"{name}: {finding.name} at {corners(finding.box)}, seen by {', '.join(finding.tile_ids)}"
                f"{score}{others}."
            )
        row = self.rows[name]
        p = "no screening answer" if row["p_screen"] is None else f"p = {row['p_screen']:.3f}"
        text = f"{name}: {row['status']}, {p}, at {corners(_rect(row))}."
        if row["description"]:
            text += f' The model wrote: "{row["description"]}"'
        return text + (f" Error: {row['error']}" if row["error"] else "")


def corners(box: Box) -> str:
    """x0 y0 x1 y1 in level-0 pixels, as /region takes them."""
    return " ".join(f"{value:.0f}" for value in (box.x0, box.y0, box.x1, box.y1))


def _rect(row: dict[str, Any]) -> Box:
    return Box(row["x"], row["y"], row["x"] + row["width"], row["y"] + row["height"])


def _holds(box: Box, point: tuple[float, float]) -> bool:
    return box.x0 <= point[0] <= box.x1 and box.y0 <= point[1] <= box.y1


def _off(box: Box, x: float, y: float) -> float:
    cx, cy = box.center
    return float((cx - x) ** 2 + (cy - y) ** 2)
