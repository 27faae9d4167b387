"""What one browser shows of a slide: who reads, what is chosen, filtered and drawn; and the findings as rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from reports.figures import COUNTED
from reports.geojson import ABNORMAL_COLOR, OTHER_COLOR
from wsi_chat.app.parts import css, is_dark, rgb_of
from wsi_chat.app.reading import own_label
from wsi_chat.app.review import Decision
from wsi_chat.app.slides import ShownSlide
from wsi_chat.app.words import PageWords
from wsi_chat.errors import TerminologyError
from wsi_chat.schema import Box
from wsi_chat.terminology import Label

Scope = Literal["slide", "view", "region", "finding"]
Order = Literal["severity", "probability", "position", "open"]


Shape = Literal[
    "triangle", "diamond", "ring", "square", "wedge", "pentagon", "hexagon", "left", "right", "cross"
]  # fmt: skip
COUNTED_SHAPES: dict[str, Shape] = {
    "D": "diamond", "o": "ring", "s": "square", "v": "wedge", "^": "triangle", "p": "pentagon", "h": "hexagon",
    "<": "left", ">": "right", "X": "cross",
}  # fmt: skip
"""The marks of `reports.figures.COUNTED` as the page draws them."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a class is drawn: a colour and a shape, so that it is told without the colour too; ``dark`` says whether
    white text stands on the colour, ``severity`` is the reporting system's."""

    color: str
    dark: bool
    abnormal: bool
    severity: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class Row:
    """A finding or a drawn cell as the page shows it: the class is the reader's own where he gave one, ``model`` what
    the model called it. ``state`` is the reader's last decision, empty where there is none."""

    id: str
    label: str
    name: str
    box: Box
    style: Style
    score: float | None
    state: str
    model: str

    def payload(self) -> dict[str, object]:
        """As the map draws it."""
        return {
            "id": self.id, "label": self.label, "name": self.name, "x0": self.box.x0, "y0": self.box.y0,
            "x1": self.box.x1, "y1": self.box.y1, "color": self.style.color, "dark": self.style.dark,
            "shape": self.style.shape, "abnormal": self.style.abnormal, "score": self.score, "state": self.state,
        }  # fmt: skip


@dataclass
class PageState:
    """The state of one browser's page."""

    slide: ShownSlide
    words: PageWords
    reviewer: str = ""
    chosen: str = ""
    threshold: float = 0.0
    hidden: set[str] = field(default_factory=set)
    order: Order = "severity"
    scope: Scope = "slide"
    view: Box | None = None
    region: Box | None = None
    # a slide has thousands of findings of a few classes: each class is looked up once
    _styles: dict[str, Style] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _rows: tuple[object, list[Row]] = field(default_factory=lambda: (None, []))

    # ------------------------------------------------------------------------------------------ classes

    def style(self, code: str) -> Style:
        """How a class is drawn; see `_style`."""
        found = self._styles.get(code)
        if found is None:
            found = self._styles[code] = self._style(code)
        return found

    def _style(self, code: str) -> Style:
        """How a class is drawn: where cells are only counted as in the PDF, else in the reporting system's colours,
        as QuPath gets them. A class that the system does not have takes the report's colour for its kind."""
        system = self.slide.system
        abnormal = any(f.abnormal for f in self.slide.findings if f.label == code)
        rgb, severity, shape = (ABNORMAL_COLOR if abnormal else OTHER_COLOR), int(abnormal), _shape(abnormal)
        try:
            label = system.label(code)
        except TerminologyError:
            pass
        else:
            abnormal = label.abnormal
            rgb, severity = label.color, system.severity(code)
            shape = shape_of(label)
        counted = self._counted.get(code)
        if counted is not None:
            rgb, shape = counted
        return Style(css(rgb), is_dark(rgb), abnormal, severity, shape)

    @cached_property
    def _counted(self) -> Mapping[str, tuple[tuple[int, int, int], Shape]]:
        """Colour and shape of each class where cells are only counted, as `reports.figures` gives them."""
        result = self.slide.result
        if result is None or result.status != "counted":
            return {}
        names = sorted({(f.name, f.label) for f in self.slide.findings})
        if len(names) > len(COUNTED):
            return {}
        marks = zip(names, COUNTED, strict=False)
        return {code: (rgb_of(color), COUNTED_SHAPES[marker]) for (_, code), (marker, color) in marks}

    def name(self, code: str) -> str:
        """The short name of a class in the page's language."""
        name = self._names.get(code)
        if name is None:
            name = self._names[code] = self._name(code)
        return name

    def _name(self, code: str) -> str:
        found = next((f.name for f in self.slide.findings if f.label == code), None)
        if found is None:
            try:
                found = self.slide.system.label(code).name
            except TerminologyError:
                found = code
        return self.words.label(code, found)

    def choices(self) -> list[str]:
        """The classes that a cell may be given, the gravest first, those of this slide before the others."""
        here = {f.label for f in self.slide.findings}
        codes = dict.fromkeys([*(label.code for label in self.slide.system.labels), *sorted(here)])
        return sorted(codes, key=lambda code: (code not in here, -self.style(code).severity))

    # ------------------------------------------------------------------------------------------ rows

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """The reader's own; another name's are never shown."""
        return self.slide.store.by(self.reviewer) if self.reviewer else {}

    def rows(self) -> list[Row]:
        """Every finding and every cell that the reader drew, in the order asked for."""
        about = (self.slide.store.version, self.reviewer, self.order)
        if about != self._rows[0]:
            self._rows = (about, self._made())
        return self._rows[1]

    def _made(self) -> list[Row]:
        own = self.decisions
        drawn = self.slide.store.drawn()
        rows = []
        for finding in self.slide.findings:
            decision = own.get(finding.id)
            label = finding.label if decision is None else own_label(decision, finding.label) or finding.label
            state = "" if decision is None else decision.action
            rows.append(self._row(finding.id, label, finding.box, finding.score, state, finding.label))
        for name, first in drawn.items():
            decision = own.get(name)
            if decision is None or decision.action == "reject" or first.box is None:
                continue
            rows.append(self._row(name, decision.label or first.label, first.box, None, "draw", ""))
        return self._ordered(rows)

    def _row(self, name: str, label: str, box: Box, score: float | None, state: str, model: str) -> Row:
        return Row(name, label, self.name(label), box, self.style(label), score, state, model)

    def _ordered(self, rows: list[Row]) -> list[Row]:
        p = {row.id: -(row.score if row.score is not None else 1.0) for row in rows}
        if self.order == "probability":
            return sorted(rows, key=lambda row: (p[row.id], row.id))
        if self.order == "position":
            return sorted(rows, key=lambda row: (row.box.y0, row.box.x0))
        last = self.order == "open"
        # by the model's class: a row that is given another one stays where it is, so that "next" is the next
        severity = {row.id: self.style(row.model or row.label).severity for row in rows}
        return sorted(rows, key=lambda row: (last and bool(row.state), -severity[row.id], p[row.id], row.id))

    def shown(self, row: Row) -> bool:
        """Whether a row passes the filter."""
        return row.label not in self.hidden and (row.score is None or row.score >= self.threshold)

    # ------------------------------------------------------------------------------------------ places

    def box_of(self, name: str) -> Box | None:
        """Where a finding, a drawn cell or a tile lies."""
        found = next((f.box for f in self.slide.findings if f.id == name), None)
        if found is not None:
            return found
        drawn = self.slide.store.drawn().get(name)
        if drawn is not None:
            return drawn.box
        tile = self.slide.tiles.get(name)
        if tile is None:
            return None
        return Box(tile["x"], tile["y"], tile["x"] + tile["width"], tile["y"] + tile["height"])

    def tile_here(self) -> str | None:
        """The closely read tile that is meant: the chosen finding's, else the one nearest to the middle of the view."""
        finding = next((f for f in self.slide.findings if f.id == self.chosen), None)
        around = self.box_of(self.chosen) if self.chosen else self.view
        if around is None:
            return None
        x, y = around.center
        best: tuple[float, str] | None = None
        for name, row in self.slide.tiles.items():
            if row["status"] != "detailed" or (finding is not None and name not in finding.tile_ids):
                continue
            inside = row["x"] <= x <= row["x"] + row["width"] and row["y"] <= y <= row["y"] + row["height"]
            if not inside and finding is None:
                continue
            far = (row["x"] + row["width"] / 2 - x) ** 2 + (row["y"] + row["height"] / 2 - y) ** 2
            if best is None or far < best[0]:
                best = (far, name)
        return None if best is None else best[1]


def shape_of(label: Label) -> Shape:
    """The mark of a class: abnormal ones a triangle, glandular ones among them a diamond, all others a ring."""
    return "diamond" if label.abnormal and label.axis == "glandular" else _shape(label.abnormal)


def _shape(abnormal: bool) -> Shape:
    return "triangle" if abnormal else "ring"
