"""The notebook card: self-contained, escaped, complete."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

from PIL import Image

from reports import verdict_html


class _Strict(HTMLParser):
    """Collects text, tags and sources; fails on tags that do not close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.sources = [], set(), "", []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _parsed(card):
    parser = _Strict()
    parser.feed(card)
    parser.close()
    assert parser.open == []
    return parser


def test_the_card_shows_the_verdict_and_the_picture(case, overview_rgb, tmp_path):
    Image.fromarray(overview_rgb).save(tmp_path / "overview.png")
    parser = _parsed(verdict_html(case.report, tmp_path))
    assert case.report.disclaimer in parser.text
    assert case.report.verdict.reason in parser.text
    for row in case.report.verdict.counts:
        assert re.search(rf"{re.escape(row.name)}\s*({row.seen}|not asked)", parser.text)
    (source,) = parser.sources
    picture = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
    assert max(picture.size) == 520


def test_text_cannot_become_markup(make, tmp_path):
    case = make(file_name="<script>alert('x')</script>&.svs", slide_id="a'b\"c<d")
    verdict = case.report.verdict.model_copy(update={"reason": "</div><img src=http://x>", "category_name": "<b>"})
    parser = _parsed(verdict_html(case.report.model_copy(update={"verdict": verdict}), tmp_path))
    assert parser.tags <= {"div", "table", "tr", "td", "b", "i", "img"}
    assert parser.sources == []
    assert "<script>alert('x')</script>&.svs" in parser.text


def test_a_missing_picture_is_said(abnormal, tmp_path):
    assert "no overview picture" in verdict_html(abnormal.report, tmp_path)
