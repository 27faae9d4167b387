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
from wsi_chat.remarks import FieldValue
from wsi_chat.schema import Box, Finding, LabelledBox, Remark, Tile

if TYPE_CHECKING:
    from wsi_chat.analysis.result import SlideResult
    from wsi_chat.dialects import Dialect
    from wsi_chat.terminology import System

LISTED = 10
ID = re.compile(r"\b(?:f\d{4,}|t\d{6,})\b")
"""Ids of findings (f0001) and tiles (t000042), as reports write them."""

_COUNT = re.compile(r"\bhow many\b|\bnumber of\b|\bcounts?\b|多少|几个|计数", re.I)
_WHERE = re.compile(
    r"\bwhere\b|\blist\b|\bshow\b|\bwhich\b|\bare there\b|\bis there\b|\bany\b|\bfind\b|\blocate\b"
    r"|哪里|何处|列出|有没有|是否有|有无",
    re.I,
)
STATUS = {
    "normal": "status.normal", "abnormal": "status.abnormal", "indeterminate": "status.indeterminate",
    "unsatisfactory": "status.unsatisfactory", "counted": "status.counted", "satisfactory": "status.satisfactory",
    "not_assessed": "status.not_assessed",
}  # fmt: skip
TILE_STATUS = {
    "planned": "tile.planned", "unreadable": "tile.unreadable", "screened": "tile.screened",
    "screen_failed": "tile.screen_failed", "detailed": "tile.detailed", "detail_failed": "tile.detail_failed",
}  # fmt: skip


_ABOUT_IT = re.compile(r"\b(?:tell|score|probability|about|who|what is|what's|where)\b|是什么|概率|哪里|说说", re.I)
_OF_SLIDE = re.compile(r"\bslide\b|\bspecimen\b|\boverall\b|\bin total\b|切片|标本|总共|一共", re.I)


@dataclass(frozen=True, slots=True)
class RecordAnswer:
    """An answer from the record, the ids that support it, and the boxes it speaks of (level-0 pixels)."""

    text: str
    cites: tuple[str, ...] = ()
    boxes: tuple[LabelledBox, ...] = ()


class SlideFacts:
    """What is known of an analyzed slide, to be asked in plain words, English or Chinese; ``words`` gives the answers'
    language."""

    def __init__(self, result: SlideResult, system: System, dialect: Dialect, words: Words | None = None) -> None:
        self.result = result
        self.report = result.report
        self.words = words or Words("en", system)
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
        if named and _ABOUT_IT.search(text):
            return self.about(named)
        for pattern, weak, answer in self._routes:
            if pattern.search(text) and not (weak and pointed):
                return answer()
        if pointed and not _OF_SLIDE.search(text):
            return None
        label = find_label(text, self._dialect, self._system)
        counted = _COUNT.search(text)
        if label and (counted or _WHERE.search(text)):
            return self.of_label(label)
        if re.search(r"\bfindings?\b|\babnormal(?:ities)?\b|所见|异常", text, re.I) or (
            counted and re.search("cell|细胞", text, re.I)
        ):
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
            route(r"\bwhy\b|\breasons?\b|\bwhat carries\b|为什么|为何|理由|原因|依据", False, self.why),
            route(r"\bdifferential\b|\bleft shift\b|\bper (?:field|tile)\b|分类计数|核左移", False, self.differential),
            route(r"\badequa\w*|\b(?:un)?satisfactory\b|\benough cells\b|满意|细胞(?:够|足够)", False, self.adequacy),
            route(r"\bcategory\b|\bbethesda\b|分类|诊断类别", True, self.category),
            route(
                r"\bhow many (?:tiles|fields)\b|\bcoverage\b|\bfunnel\b|\bunreadable\b|\bmissing\b"
                r"|覆盖率|多少个?(?:瓦片|视野)|缺失",
                False,
                self.coverage,
            ),
            route(
                r"\b(?:highest|top|worst|most (?:suspicious|abnormal)) (?:tiles?|fields?)\b|最高的?瓦片|最可疑",
                False,
                self.top_tiles,
            ),
            route(
                r"\b(?:which|what) model\b|\bdialect\b|\bwho answered\b|\bsettings\b|(?:哪个|什么)模型|设置",
                False,
                self.model,
            ),
            route(r"\bjournal\b|\bhow many (?:answers|questions)\b|日志", False, self.journal),
            route(
                r"\bresolution\b|\bmagnification\b|\bscanner\b|\b[uµμ]m/px\b|\bhow (?:large|big)\b"
                r"|分辨率|倍率|扫描仪|多大",
                True,
                self.slide,
            ),
            route(
                r"\bsummar\w+|\breport\b|\bnarrative\b|\bdescribe the slide\b|概述|总结|摘要|报告", True, self.summary
            ),
            route(r"\bverdict\b|\bscore\b|\bthreshold\b|结论|评分|阈值", False, self.verdict),
            route(r"\bslide (?:normal|abnormal)\b|\bnormal or abnormal\b|正常吗|正常还是异常", True, self.verdict),
            route(r"\b(?:result|outcome|conclusion|overall)\b|\bdiagnos(?:is|ed)\b(?! results)", True, self.verdict),
            route(r"\bis (?:it|this|the slide|the case) (?:ab)?normal\b", True, self.verdict),
        ]

    def _say(self, code: Remark) -> str:
        return self.words.remark(code)

    def verdict(self) -> RecordAnswer:
        verdict = self.report.verdict
        known: dict[str, FieldValue] = {"status": Remark(STATUS[verdict.status]), "reason": verdict.reason}
        said = Remark("record.verdict", **known)
        if verdict.category_name:
            said = Remark("record.verdict_category", **known, category=self.words.category(verdict))
        return RecordAnswer(self._say(said), self._known(verdict.carrying[:5]))

    def why(self) -> RecordAnswer:
        """The reason, the sentences behind it, and what carries it."""
        verdict = self.report.verdict
        lines = [self._say(verdict.reason)]
        if verdict.category_reason:
            lines.append(self._say(verdict.category_reason))
        carrying = self._known(verdict.carrying)
        if carrying:
            names = self.words.between.join(self._short(name) for name in carrying[:LISTED])
            more = len(carrying) - LISTED
            said = Remark("record.carried_more", names=names, n=more) if more > 0 else Remark(
                "record.carried", names=names
            )  # fmt: skip
            lines.append(self._say(said))
        boxes = tuple(
            LabelledBox(f.label, f.box) for name in carrying[:LISTED] if (f := self._findings.get(name)) is not None
        )
        return RecordAnswer("\n".join(lines), carrying[:LISTED], boxes)

    def category(self) -> RecordAnswer:
        verdict = self.report.verdict
        if verdict.category_name is None:
            text = self._say(Remark("record.no_category", reason=verdict.category_reason)).strip()
            return RecordAnswer(text, self._known(verdict.carrying[:5]))
        said = Remark(
            "record.category", category=self.words.category(verdict), system=self.words.system_name(self.report),
            reason=verdict.category_reason,
        )  # fmt: skip
        return RecordAnswer(self._say(said).strip(), self._known(verdict.carrying[:LISTED]))

    def adequacy(self) -> RecordAnswer:
        adequacy = self.report.verdict.adequacy
        known: dict[str, FieldValue] = {"status": Remark(STATUS[adequacy.status]), "reason": adequacy.reason}
        said = Remark("record.adequacy", **known)
        if adequacy.cells_estimate is not None:
            said = Remark("record.adequacy_cells", **known, n=adequacy.cells_estimate)
        return RecordAnswer(self._say(said).strip(), self._top(3))

    def _tiles_in_detail(self) -> Remark:
        n = self.report.funnel.detailed
        return Remark("record.in_detail", n=n) if n != 1 else Remark("record.in_detail_one")

    def coverage(self) -> RecordAnswer:
        funnel = self.report.funnel
        said = Remark(
            "record.coverage", grid=funnel.grid, foreground=funnel.foreground, selected=funnel.selected,
            screened=funnel.screened, coverage=funnel.coverage, detailed=funnel.detailed,
            unreadable=funnel.unreadable, failed=funnel.screen_failed, partial=funnel.detail_failed,
        )  # fmt: skip
        gaps = [name for name, row in self.rows.items() if row["status"] in ("unreadable", "screen_failed")]
        return RecordAnswer(self._say(said), tuple(gaps[:LISTED]) or self._top(1))

    def top_tiles(self) -> RecordAnswer:
        names = self._top(LISTED)
        if not names:
            return RecordAnswer(self._say(Remark("record.no_top")))
        tiles = self.words.between.join(f"{name} ({self.rows[name]['p_screen']:.3f})" for name in names)
        return RecordAnswer(self._say(Remark("record.top", tiles=tiles)), names)

    def model(self) -> RecordAnswer:
        source, model = self.report.provenance, self.report.provenance.model
        said = Remark(
            "record.model", name=model.name, revision=model.revision, engine=model.engine, dialect=model.dialect,
            px=source.tile_px, mpp=source.tile_mpp,
        )  # fmt: skip
        return RecordAnswer(self._say(said))

    def slide(self) -> RecordAnswer:
        slide = self.report.slide
        said = Remark(
            "record.slide", file=slide.file_name, width=slide.width, height=slide.height, mpp=slide.mpp,
            source=slide.mpp_source, levels=slide.levels, reader=slide.reader,
        )  # fmt: skip
        return RecordAnswer(self._say(said))

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
            return RecordAnswer(self._say(Remark("record.journal_unreadable", error=str(error))))
        parts = ", ".join(f"{number} {task}" for task, number in tally.items()) or "none"
        return RecordAnswer(self._say(Remark("record.journal", n=sum(tally.values()), parts=parts)), self._top(1))

    def of_label(self, label: str) -> RecordAnswer:
        """How many findings of a class there are, and where."""
        kinds = self._system.kinds_of(label)
        found = sorted((f for f in self.result.findings if f.label in kinds), key=lambda f: (-(f.score or 0.0), f.id))
        row = next((count for count in self.report.verdict.counts if count.label == label), None)
        known: dict[str, FieldValue] = {"name": self._name(label), "detailed": self._tiles_in_detail()}
        if not found:
            if row is None or not row.asked:
                return RecordAnswer(self._say(Remark("record.never_asked", name=known["name"])))
            return RecordAnswer(self._say(Remark("record.none_of", **known)), self._detailed(3))
        known["n"] = len(found)
        known["where"] = "; ".join(
            self._say(Remark("record.at", id=f.id, corners=corners(f.box))) for f in found[:LISTED]
        )
        more = len(found) - LISTED
        said = Remark("record.some_of_more", **known, more=more) if more > 0 else Remark("record.some_of", **known)
        boxes = tuple(LabelledBox(f.label, f.box) for f in found)
        text = self.words.spaced([self._say(said), self._share(label)])
        return RecordAnswer(text, tuple(f.id for f in found[:LISTED]), boxes)

    def differential(self) -> RecordAnswer:
        """White cells by type, what was seen for review, and how far the figures can be trusted."""
        found = self.report.verdict.differential
        if found is None:
            return RecordAnswer(self._say(Remark("record.no_differential")))
        cites = self._known(f.id for f in self.result.findings if any(f.label == row.label for row in found.rows))
        text = self.words.spaced(sentence.text for sentence in sentences(self.report, self.words))
        return RecordAnswer(text, cites[:LISTED] or self._detailed(3))

    def _share(self, label: str) -> str:
        """What a type makes of the differential; empty for a class that is no part of one."""
        found = self.report.verdict.differential
        row = next((row for row in found.rows if row.label == label), None) if found is not None else None
        if row is None or found is None:
            return ""
        said = Remark("record.share", share=share_text(row), typed=found.typed, interval=interval_text(row))
        return self._say(said)

    def _name(self, label: str) -> str:
        """The display name of a class, as the findings table has it."""
        code = self._system.read_label(label)
        return self.words.label(code, self._system.label(code).name) if code else label

    def all_counts(self) -> RecordAnswer:
        located = [count for count in self.report.verdict.counts if count.seen]
        if not located:
            return RecordAnswer(self._say(Remark("record.none")), self._detailed(3))
        classes = [
            Remark("part.number_and_class", n=count.seen, name=self.words.label(count.label, count.name))
            for count in located
        ]
        text = self._say(Remark("record.located", detailed=self._tiles_in_detail(), classes=classes))
        cites = self._known(name for count in located for name in count.finding_ids[:3])
        return RecordAnswer(text, cites[:LISTED])

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
            return f"{name} ({self.words.label(finding.label, finding.name)})"
        p = self.rows[name]["p_screen"]
        return f"{name} ({p:.3f})" if p is not None else name

    def _long(self, name: str) -> str:
        finding = self._findings.get(name)
        if finding is not None:
            said = Remark(
                "record.finding", id=name, name=self.words.label(finding.label, finding.name),
                corners=corners(finding.box), tiles=self.words.between.join(finding.tile_ids),
                score="" if finding.score is None else Remark("record.finding_score", p=finding.score),
                others=Remark("record.finding_others", names=", ".join(finding.other_labels))
                if finding.other_labels else "",
            )  # fmt: skip
            return self._say(said)
        row = self.rows[name]
        p = Remark("tile.no_p") if row["p_screen"] is None else Remark("tile.p", p=row["p_screen"])
        parts = [
            Remark("record.tile", id=name, status=Remark(TILE_STATUS[row["status"]]), p=p, corners=corners(_rect(row)))
        ]
        if row["description"]:
            parts.append(Remark("record.tile_wrote", text=row["description"]))
        if row["error"]:
            parts.append(Remark("record.tile_error", error=row["error"]))
        return self.words.spaced(map(self._say, parts))


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
