"""report.html: one file, no request, accessible, every sentence and cell linked both ways, text as data."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from reports import draw_gallery, draw_heatmap, write_html, write_scan
from reports.webpage import report_html
from wsi_chat.schema import Interval, Sentence

VOID = {"meta", "img", "br", "image", "path"}


class _Page(HTMLParser):
    """Ids, links, sources and headings; fails on tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.tags, self.text = [], [], [], [], [], ""
        self.images = []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        if tag in ("img", "image"):
            self.sources.append(found.get("src") or found.get("href"))
            self.images.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def _parsed(text):
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of a case, with pictures."""
    pages = {}
    scan = np.full((120, 180, 3), 235, dtype=np.uint8)

    def give(case):
        if case.report.verdict.reason not in pages:
            folder = tmp_path_factory.mktemp("page")
            write_scan(scan, folder)
            draw_heatmap(scan, case.report, case.tiles, folder / "heatmap.png")
            draw_gallery(lambda box, px: np.full((px, px, 3), 190, np.uint8), case.report, folder, px=64, limit=6)
            pages[case.report.verdict.reason] = report_html(case.report, case.tiles, folder)
        return pages[case.report.verdict.reason]

    return give


def test_every_link_leads_somewhere_inside_of_the_file(case, made):
    page = _parsed(made(case))
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)


def test_nothing_is_asked_of_anyone_and_nothing_runs(case, made):
    text = made(case)
    assert not re.search(r"https?://|<script|<link|@import|url\(|\son\w+=", text)
    assert "default-src 'none'; img-src data:" in text


def test_sentences_lead_to_their_evidence_and_cells_back(case, made):
    text = made(case)
    for number, sentence in enumerate(case.report.narrative, start=1):
        item = re.search(rf'<li id="s{number}">(.*?)</li>', text, re.DOTALL)
        for name in sentence.evidence[:40]:
            anchor = name if re.match(r"[ft]\d+$", name) else f"field-{name}"
            assert f'href="#{anchor}"' in item[1]
            place = re.search(rf'<(?:li|tr) id="{re.escape(anchor)}".*?</(?:li|tr)>', text, re.DOTALL)
            assert f'href="#s{number}"' in place[0]


def test_the_page_is_accessible(case, made):
    text = made(case)
    page = _parsed(text)
    assert '<html lang="en">' in text
    assert {"header", "main", "footer", "nav", "h1"} <= set(page.tags)
    assert page.tags.count("h1") == 1
    assert "h3" not in page.tags
    for tag, found in zip(["img"] * len(page.images), page.images, strict=True):
        assert found.get("alt") or "href" in found, tag
    for table in re.findall(r"<table>.*?</table>", text, re.DOTALL):
        assert 'scope="col"' in table
    for name in re.findall(r'aria-labelledby="([^"]+)"', text):
        assert name in page.ids
    assert 'class="skip" href="#report"' in text


def _luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", ["ink", "quiet", "accent", "warm"])
def test_text_colours_have_a_contrast_of_4_5_on_the_darkest_ground(name, abnormal, made):
    text = made(abnormal)
    color, wash = (re.search(rf"--{key}: (#[0-9a-f]{{6}})", text)[1] for key in (name, "wash"))
    assert (_luminance(wash) + 0.05) / (_luminance(color) + 0.05) >= 4.5


def test_the_page_says_what_the_report_says(case, made):
    page = _parsed(made(case))
    assert case.report.disclaimer in page.text
    assert "RESEARCH USE ONLY" in page.text
    assert case.report.verdict.reason in page.text
    for sentence in case.report.narrative:
        assert sentence.text in page.text
    if case.report.verdict.score is not None:
        assert "score: uncalibrated" in page.text


def test_a_cited_interval_is_written_as_one(abnormal, tmp_path):
    """It stood there as Python writes a dictionary."""
    interval = Interval(low=159.96384, high=304.7045, level=0.95)
    adequacy = abnormal.report.verdict.adequacy.model_copy(update={"cells_interval": interval})
    verdict = abnormal.report.verdict.model_copy(update={"adequacy": adequacy})
    cited = Sentence(text="About 221 cells.", evidence=("verdict.adequacy.cells_interval",))
    report = abnormal.report.model_copy(update={"verdict": verdict, "narrative": (cited,)})
    page = report_html(report, abnormal.tiles, tmp_path)
    assert "<td>160–304.7 (95\u202f%)</td>" in page


def test_no_cited_value_is_shown_as_python_writes_it(made, make):
    """The grounds of an indeterminate slide stood there as rule='...' headline='...'."""
    case = make(hot=0, unread=60)
    assert case.report.verdict.grounds
    page = made(case)
    assert "by_error=" not in page
    assert case.report.verdict.grounds[0].headline in _parsed(page).text


def test_text_cannot_become_markup(make, tmp_path):
    case = make(file_name="<script>alert(1)</script>.svs", slide_id="a\"b'<c>", notes=("<img src=http://x>",))
    verdict = case.report.verdict.model_copy(update={"reason": "</section><b>", "category_name": "<i>"})
    page = _parsed(report_html(case.report.model_copy(update={"verdict": verdict}), case.tiles, tmp_path))
    assert not {"script", "b>", "i"} & set(page.tags)
    assert "<script>alert(1)</script>.svs" in page.text
    assert page.sources == []


def test_the_same_report_gives_the_same_bytes(abnormal, tmp_path):
    first = write_html(abnormal.report, abnormal.tiles, folder=tmp_path, path=tmp_path / "a.html").read_bytes()
    assert write_html(abnormal.report, abnormal.tiles, folder=tmp_path, path=tmp_path / "b.html").read_bytes() == first
