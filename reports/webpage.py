"""report.html: the whole report as one file that asks for nothing else, readable by anyone and on any screen.

Every sentence leads to its evidence and every cell back to the sentences that cite it. Texts are escaped, pictures
are inside of the file, there is no script, and the page's own policy forbids requests.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from reports import places
from reports.blood import line
from reports.html import COLORS, SYMBOLS
from reports.language import Words
from reports.page import page_data
from reports.printable import clean
from reports.scan import read_scan
from reports.wording import score_text
from wsi_chat._version import __version__
from wsi_chat.atomic import write_bytes
from wsi_chat.remarks import percent
from wsi_chat.schema import Finding, Interval, Report, TileVerdict

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = "templates/report.css"
PICTURE_PX = 1100
SHOWN = 40  # links behind one sentence; the rest stand in the table of all findings
FLAG = '<span class="flag" aria-hidden="true">▲ </span>'
NONE = "–"
_ID = re.compile(r"[ft]\d+$")


def write_html(
    report: Report,
    tile_verdicts: Sequence[TileVerdict],
    *,
    folder: Path | str,
    path: Path | str,
    words: Words | None = None,
) -> Path:
    """Write report.html with the pictures found in ``folder``; a missing one is said to be missing.

    Raises:
        OutputError: the file cannot be written.
    """
    page = report_html(report, tile_verdicts, Path(folder), words=words)
    return write_bytes(path, page.encode("utf-8"))


def report_html(
    report: Report, tile_verdicts: Sequence[TileVerdict], folder: Path, *, words: Words | None = None
) -> str:
    """The page as text; the same report and pictures give the same text."""
    words = words or Words(report.language)
    return _Page(report, tile_verdicts, folder, words).whole()


def _safe(text: object) -> str:
    return html.escape(clean(text), quote=True)


class _Page:
    """One page in the making: what is cited where, and the parts in their order."""

    def __init__(self, report: Report, tile_verdicts: Sequence[TileVerdict], folder: Path, words: Words) -> None:
        self.report, self.folder, self.words = report, folder, words
        self.data = page_data(report, tile_verdicts, folder, words=words)
        self.tiles = {row.tile.id: row for row in tile_verdicts}
        self.findings = {finding.id: finding for finding in report.verdict.findings}
        self.cited: dict[str, list[int]] = {}
        for number, sentence in enumerate(report.narrative, start=1):
            for name in dict.fromkeys(sentence.evidence):
                self.cited.setdefault(name, []).append(number)
        self.fields = [name for name in self.cited if not _ID.match(name)]
        carrying = [tile for finding in report.verdict.findings for tile in finding.tile_ids[:1]]
        names = [name for name in self.cited if _ID.match(name) and name not in self.findings]
        self.pictured = {item["id"] for item in self.data["gallery"]}
        self.shown_tiles = [name for name in dict.fromkeys([*names, *carrying]) if name not in self.pictured]

    def say(self, key: str, **fields: object) -> str:
        return html.escape(self.words(key, **fields), quote=True)

    def whole(self) -> str:
        style = resources.files("reports").joinpath(STYLE).read_text(encoding="utf-8")
        parts = [
            self.verdict(), self.contents(), self.middle(), self.pictures(), self.funnel(), self.gallery(),
            self.all_findings(), self.cited_tiles(), self.cited_fields(), self.controls(), self.notes(), self.methods(),
        ]  # fmt: skip
        made = self.say("html.footer", version=__version__, schema=self.report.schema_version)
        return (
            f'<!DOCTYPE html>\n<html lang="{self.say("html.language_tag")}">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_safe(self.data['title'])}</title>\n<style>\n{style}</style>\n</head>\n"
            f'<body style="--tone: {COLORS[self.report.verdict.status]}">\n'
            f'<a class="skip" href="#report">{self.say("html.skip")}</a>\n{self.header()}\n'
            f'<main id="report">\n{"".join(part for part in parts if part)}</main>\n'
            f"<footer><p><strong>{_safe(self.data['disclaimer'])}</strong></p><p>{made}</p></footer>\n</body>\n</html>\n"
        )

    # ------------------------------------------------------------------------------------------ the parts

    def header(self) -> str:
        pairs = "".join(_pair(entry) for entry in self.data["identity"])
        return (
            f'<header><div class="masthead"><h1>wsi-chat <span>{self.say("page.heading")}</span></h1>'
            f'<p class="notice" role="note">{self.say("page.research")}</p></div>'
            f'<dl class="identity">{pairs}</dl></header>'
        )

    def verdict(self) -> str:
        shown = self.data["verdict"]
        lines = "".join(
            f"<p><span class='quiet'>{_safe(x['label'])}</span> {_safe(x['value'])}</p>" for x in shown["lines"]
        )
        why = f' <small class="quiet">({_safe(shown["headline"])})</small>' if shown["headline"] else ""
        return (
            f'<section class="verdict" aria-labelledby="verdict"><div><h2 id="verdict" class="word">'
            f'<span aria-hidden="true">{SYMBOLS[shown["status"]]}</span>{_safe(shown["word"])}{why}</h2>'
            f"<p>{_safe(shown['reason'])}</p>{lines}</div>{self.gauge(shown['gauge'])}</section>\n"
        )

    def gauge(self, gauge: dict[str, Any] | None) -> str:
        if gauge is None:
            return f'<p class="quiet">{self.say("page.no_score")}</p>'
        line, threshold = "", ""
        if gauge["threshold_at"] is not None:
            line = f'<span class="line" style="left: {100 * gauge["threshold_at"]:.2f}%"></span>'
            threshold = self.say("page.threshold", threshold=gauge["threshold"])
        at = 100 * min(1.0, max(0.0, gauge["at"]))
        return (
            f'<div class="gauge"><span class="value">{_safe(gauge["score"])}</span>{self.say("page.slide_score")}'
            f'<div class="bar" aria-hidden="true"><span class="fill" style="width: {at:.2f}%"></span>{line}</div>'
            f"<small>{threshold}<br>{_safe(gauge['kind'])}<br>{_safe(self.data['verdict']['calibration'])}</small></div>"
        )

    def contents(self) -> str:
        entries = [
            ("narrative", "page.narrative"), ("classes", "page.findings"), ("maps", "page.overview"),
            ("gallery", "page.gallery"), ("findings", "html.all_findings"), ("methods", "page.methods"),
        ]  # fmt: skip
        links = "".join(f'<li><a href="#{name}">{self.say(key)}</a></li>' for name, key in entries)
        return f'<nav aria-label="{self.say("html.contents")}"><ul>{links}</ul></nav>\n'

    def middle(self) -> str:
        return f'<div class="two">{self.narrative()}<div>{self.classes()}{self.differential()}</div></div>\n'

    def narrative(self) -> str:
        items = []
        for number, (entry, sentence) in enumerate(zip(self.data["narrative"], self.report.narrative, strict=True), 1):
            mark = f' <span class="mark">{entry["mark"]}</span>' if entry["mark"] else ""
            why = f" {_safe(entry['replaced'])}." if entry["replaced"] else ""
            items.append(
                f'<li id="s{number}">{_safe(entry["text"])}{mark}'
                f'<div class="evidence">{self.say("html.carried_by")}{self.links(sentence.evidence)}{why}</div></li>'
            )
        body = f'<ol class="narrative">{"".join(items)}</ol>' if items else f"<p>{self.say('page.no_narrative')}</p>"
        legend = "".join(f"<p class='quiet'>{x['mark']} {_safe(x['text'])}</p>" for x in self.data["legend"])
        return _section("narrative", self.say("page.narrative"), body + legend)

    def links(self, names: Iterable[str]) -> str:
        unique = list(dict.fromkeys(names))
        shown = [f'<a href="#{self.anchor(name)}">{_safe(name)}</a>' for name in unique[:SHOWN]]
        more = f' <a href="#findings">+{len(unique) - SHOWN}</a>' if len(unique) > SHOWN else ""
        return ", ".join(shown) + more

    @staticmethod
    def anchor(name: str) -> str:
        """A finding's and a tile's id as they are; a field of the report after ``field-``."""
        return _safe(name) if _ID.match(name) else f"field-{_safe(name)}"

    def back(self, name: str) -> str:
        """Links to the sentences that cite something."""
        numbers = self.cited.get(name, [])
        label = self.say("html.sentence")
        return ", ".join(f'<a href="#s{n}" aria-label="{label} {n}">{n}</a>' for n in numbers) or NONE

    def classes(self) -> str:
        if not self.data["findings"]:
            return _section("classes", self.say("page.findings"), f"<p>{self.say('page.no_class')}</p>")
        by_code = {row.label: row for row in self.report.verdict.counts}
        rows = []
        for row in self.data["findings"]:
            flag = FLAG if row["abnormal"] else ""
            hidden = f' <small class="quiet">({self.say("html.abnormal")})</small>' if row["abnormal"] else ""
            ids = by_code[row["code"]].finding_ids
            links = f'<div class="evidence">{self.links(ids[:6])}{" …" if len(ids) > 6 else ""}</div>' if ids else ""
            name = f"{flag}{_safe(row['long'])}{hidden}"
            rows.append(f'<tr><th scope="row">{name}</th><td class="n">{_safe(row["seen"])}</td><td>{links}</td></tr>')
        head = (
            f'<tr><th scope="col">{self.say("page.class")}</th><th scope="col" class="n">{self.say("page.seen")}</th>'
            f'<th scope="col">{self.say("page.evidence")}</th></tr>'
        )
        caption = self.say("page.marked_in_all", n=len(self.findings))
        if self.data["included"]:
            caption = f"{caption}; {_safe(self.data['included'])}"
        return _section("classes", self.say("page.findings"), _table(caption, head, rows))

    def differential(self) -> str:
        found = self.data["differential"]
        if found is None:
            return ""
        head = "".join(f'<th scope="col">{_safe(name)}</th>' for name in found["head"])
        rows = [
            f'<tr><th scope="row">{_safe(row["name"])}</th><td class="n">{_safe(row["n"])}</td>'
            f'<td class="n">{_safe(row["share"])}</td><td class="n">{_safe(row["interval"])}</td></tr>'
            for row in found["rows"]
        ]
        body = _table(_safe(found["total"]), f"<tr>{head}</tr>", rows) if rows else ""
        body += "".join(f"<p>{_safe(entry['name'])}: {_safe(entry['value'])}</p>" for entry in found["per_field"])
        body += "".join(f"<p>{_safe(text)}</p>" for text in (*found["seen"], *found["notes"]))
        return _section("differential", _safe(found["title"]), body)

    def pictures(self) -> str:
        heat = _inlined(self.folder / "heatmap.png", PICTURE_PX)
        right = f'<img src="{heat}" alt="{self.say("page.screening_alt")}">' if heat else self.none()
        return (
            f'<div class="two"><section aria-labelledby="maps"><h2 id="maps">{self.say("page.overview")}</h2>'
            f"<figure>{self.map()}{self.key()}</figure></section>"
            f'<section aria-labelledby="heat"><h2 id="heat">{self.say("page.screening")}</h2><figure>{right}</figure>'
            "</section></div>\n"
        )

    def key(self) -> str:
        """What the marks mean; the drawn picture says so itself."""
        if read_scan(self.folder) is None or not self.findings:
            return ""
        if not any(row["abnormal"] for row in self.data["findings"]):
            return f"<figcaption>○ {self.say('figures.finding')}</figcaption>"
        abnormal, other = self.say("figures.finding_abnormal"), self.say("figures.finding_other")
        return f"<figcaption>▲ {abnormal} &nbsp; ○ {other}</figcaption>"

    def map(self) -> str:
        """The scan with a mark for each finding that leads to its entry; the drawn picture where no scan is stored."""
        scan = read_scan(self.folder)
        source = _inlined(self.folder / ("scan.jpg" if scan is not None else "overview.png"), PICTURE_PX)
        if source is None:
            return self.none()
        if scan is None:
            return f'<img src="{source}" alt="{self.say("page.overview_alt")}">'
        slide = self.report.slide
        unit = max(slide.width, slide.height) / 1000
        marks = "".join(self.on_map(finding, 9 * unit) for finding in self.findings.values())
        alt = self.say("html.map_alt", n=len(self.findings))
        return (
            f'<svg viewBox="0 0 {slide.width} {slide.height}" role="group" aria-label="{alt}">'
            f'<image href="{source}" width="{slide.width}" height="{slide.height}" preserveAspectRatio="none"/>'
            f"{marks}</svg>"
        )

    def on_map(self, finding: Finding, r: float) -> str:
        x, y = finding.box.center
        name = self.words.label(finding.label, finding.name)
        title = self.say("html.mark_alt", name=clean(name), id=finding.id)
        shape = f"M{x:.0f} {y - r:.0f}L{x + r:.0f} {y + r:.0f}H{x - r:.0f}Z"
        style = f'fill="#b5410e" stroke="#fff" stroke-width="{r / 6:.1f}"'
        if not finding.abnormal:
            shape = f"M{x - r:.0f} {y:.0f}a{r:.0f} {r:.0f} 0 1 0 {2 * r:.0f} 0a{r:.0f} {r:.0f} 0 1 0 {-2 * r:.0f} 0Z"
            style = f'fill="#17687e" fill-opacity="0.15" stroke="#17687e" stroke-width="{r / 3:.1f}"'
        return (
            f'<a href="#{_safe(finding.id)}" aria-label="{title}"><title>{title}</title><path d="{shape}" {style}/></a>'
        )

    def none(self) -> str:
        return f'<p class="quiet">{self.say("page.no_picture")}</p>'

    def funnel(self) -> str:
        gaps = self.data["gaps"]
        steps = "".join(f"<li><b>{_safe(x['count'])}</b> {_safe(x['label'])}</li>" for x in self.data["funnel"])
        low = f", {_safe(gaps['low'])}" if gaps["low"] else ""
        floor = f"({_safe(gaps['floor'])}{low})"
        steps += (
            f"<li>{self.say('page.coverage')} <b>{_safe(gaps['coverage'])}</b> {floor}; {_safe(gaps['missing'])}</li>"
        )
        return f'<ul class="funnel">{steps}</ul>\n'

    def gallery(self) -> str:
        if not self.data["gallery"]:
            return _section("gallery", self.say("page.gallery"), f"<p>{self.say('page.none_shown')}</p>")
        cells = "".join(self.cell(item) for item in self.data["gallery"])
        more = f" {_safe(self.data['gallery_more'])}" if self.data["gallery_more"] else ""
        body = f'<p class="quiet">{self.say("page.gallery_note")}{more}</p><ul class="cells">{cells}</ul>'
        return _section("gallery", self.say("page.gallery"), body)

    def cell(self, item: dict[str, Any]) -> str:
        source = _inlined(self.folder / item["image"].lstrip("/"), 224) if item["image"] else None
        alt = self.say("html.cell_alt", name=item["name"], id=item["id"], um=item["um"])
        picture = (
            f'<img src="{source}" alt="{alt}" loading="lazy" width="224" height="224">'
            if source
            else (f'<div class="nopicture">{self.say("page.no_picture")}</div>')
        )
        flag = FLAG if item["abnormal"] else ""
        score = f", {_safe(item['score'])}" if item["score"] else ""
        also = f"<br>{_safe(item['also'])}" if item["also"] else ""
        name = _safe(item["id"])
        tile = f'<a href="#{_safe(item["tile"])}">{_safe(item["tile"])}</a>' if item["tile"] else ""
        cited = self.back(item["id"])
        citation = f"{self.say('html.cited')}: {cited}" if cited != NONE else self.say("html.not_cited")
        return (
            f'<li id="{name}" tabindex="-1">{picture}<strong>{flag}{_safe(item["name"])}</strong><br>{name} {tile}<br>'
            f"{_safe(item['position'])}<br>{_safe(item['field'])}{score}{also}<br>{citation}</li>"
        )

    def all_findings(self) -> str:
        if not self.findings:
            return _section("findings", self.say("html.all_findings"), f"<p>{self.say('figures.no_findings')}</p>")
        names = (
            "html.id", "page.class", "html.position", "html.size", "html.confidence", "html.tile_score", "html.tile",
            "html.cited",
        )  # fmt: skip
        head = "".join(f'<th scope="col">{self.say(name)}</th>' for name in names)
        rows = []
        for finding in self.findings.values():
            where = _safe(places.center(self.report, finding.box, self.words))
            score = NONE if finding.score is None else score_text(finding.score)
            own = NONE if finding.confidence is None else score_text(finding.confidence)
            tile = finding.tile_ids[0] if finding.tile_ids else ""
            flag = FLAG if finding.abnormal else ""
            name = _safe(finding.id)
            place = f'<tr><th scope="row"><a href="#{name}">{name}</a></th>'
            if finding.id not in self.pictured:
                place = f'<tr id="{name}"><th scope="row">{name}</th>'
            rows.append(
                f"{place}<td>{flag}{_safe(self.words.label(finding.label, finding.name))}</td><td>{where}</td>"
                f"<td>{places.extent(self.report, finding.box)}</td>"
                f"<td>{_safe(own)}</td><td>{_safe(score)}</td>"
                f'<td><a href="#{_safe(tile)}">{_safe(tile)}</a></td><td>{self.back(finding.id)}</td></tr>'
            )
        caption = self.say("page.marked_in_all", n=len(rows))
        return _section("findings", self.say("html.all_findings"), _table(caption, f"<tr>{head}</tr>", rows))

    def cited_tiles(self) -> str:
        if not self.shown_tiles:
            return ""
        names = ("html.id", "html.position", "html.score", "html.tile_status", "html.cited")
        head = "".join(f'<th scope="col">{self.say(name)}</th>' for name in names)
        rows = []
        for name in self.shown_tiles:
            row = self.tiles.get(name)
            place = _safe(places.corner(self.report, row.tile.box, self.words)) if row else "–"
            p = score_text(row.p_screen) if row and row.p_screen is not None else "–"
            status = row.status.replace("_", " ") if row else "–"
            rows.append(
                f'<tr id="{_safe(name)}"><th scope="row">{_safe(name)}</th><td>{place}</td><td>{_safe(p)}</td>'
                f"<td>{_safe(status)}</td><td>{self.back(name)}</td></tr>"
            )
        return _section("tiles", self.say("html.tiles"), _table("", f"<tr>{head}</tr>", rows))

    def cited_fields(self) -> str:
        if not self.fields:
            return ""
        head = "".join(f'<th scope="col">{self.say(name)}</th>' for name in ("html.field", "html.value", "html.cited"))
        rows = [
            f'<tr id="{self.anchor(name)}"><th scope="row">{_safe(name)}</th><td>{_safe(self.value(name))}</td>'
            f"<td>{self.back(name)}</td></tr>"
            for name in self.fields
        ]
        return _section("fields", self.say("html.fields"), _table("", f"<tr>{head}</tr>", rows))

    def value(self, name: str) -> str:
        """A cited field as a reader takes it in; a block of the report by what it is about."""
        value: Any = self.report
        for step in name.split("."):
            value = getattr(value, step, None)
        if name == "verdict.category":
            return self.words.category(self.report.verdict)
        if name == "verdict.counts":
            counts = [f"{self.words.label(row.label, row.name)} {row.seen}" for row in value if row.asked or row.seen]
            return self.words.between.join(counts)
        if name == "verdict.grounds":
            return "; ".join(self.words.remark(ground.headline) for ground in value)
        if name == "verdict.differential":
            return line(value, self.words)
        if name == "verdict.adequacy":
            return self.words(f"adequacy.{value.status}")
        if name == "specimen":
            return self.words.specimen(self.report) if value.given else self.words("page.not_given")
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, tuple):
            return self.words.between.join(map(str, value))
        if isinstance(value, Interval):
            return f"{value.low:.4g}–{value.high:.4g} ({percent(value.level)})"
        return str(value.model_dump(mode="json")) if hasattr(value, "model_dump") else str(value)

    def notes(self) -> str:
        if not self.data["notes"]:
            return ""
        items = "".join(f"<li>{_safe(note)}</li>" for note in self.data["notes"])
        return _section("notes", self.say("page.notes"), f"<ul>{items}</ul>")

    def controls(self) -> str:
        if not self.data["controls"]:
            return ""
        items = "".join(f"<li>{_safe(row)}</li>" for row in self.data["controls"])
        return _section("controls", self.say("page.controls"), f"<ul>{items}</ul>")

    def methods(self) -> str:
        pairs = "".join(_pair(entry) for entry in self.data["details"])
        return _section("methods", self.say("page.methods"), f'<dl class="methods">{pairs}</dl>')


def _section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{body}</section>\n'


def _table(caption: str, head: str, rows: Sequence[str]) -> str:
    captioned = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="scroll"><table>{captioned}<thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _pair(entry: dict[str, str]) -> str:
    return f"<div><dt>{_safe(entry['label'])}</dt><dd>{_safe(entry['value'])}</dd></div>"


def _inlined(path: Path, side: int) -> str | None:
    """A picture as a data URI, as JPEG and no larger than it is shown; None where it cannot be read."""

    try:
        with Image.open(path) as picture:
            picture.load()
            small = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
