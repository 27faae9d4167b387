"""report.pdf: what it says, that nothing overflows, that text is data, that it is tagged and repeats."""

from __future__ import annotations

import re
import shutil
from functools import cache

import numpy as np
import pypdf
import pytest

from reports import draw_gallery, draw_heatmap, draw_overview, write_pdf
from wsi_chat.errors import OutputError

HOSTILE = (
    r"""#import "x.typ": * $x^2$ *bold* _it_ ] } ) \ \u{41} <label> @ref = head // end /* c */ #panic("no") `raw` ~ """
)
BREAKS = dict.fromkeys(map(ord, "\u200b\u00ad"), "")


def _squeezed(text):
    """Without white space and break opportunities, which depend on where lines end."""
    return re.sub(r"\s+", "", text.translate(BREAKS))


@cache
def _pages(path):
    """The text of each page; a file is read once."""
    return [page.extract_text().translate(BREAKS) for page in pypdf.PdfReader(path).pages]


def _make(case, folder, **options):
    return write_pdf(case.report, case.tiles, folder=folder, path=folder / "report.pdf", **options)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Gives the PDF of a case, with pictures, made once for the module."""
    made = {}
    scan = np.full((120, 180, 3), 235, dtype=np.uint8)

    def give(case):
        key = case.report.verdict.reason
        if key not in made:
            folder = tmp_path_factory.mktemp("report")
            for name, draw in (("overview.png", draw_overview), ("heatmap.png", draw_heatmap)):
                if made:  # the first case's pictures serve the others
                    shutil.copy(next(iter(made.values())).parent / name, folder / name)
                else:
                    draw(scan, case.report, case.tiles, folder / name)
            draw_gallery(lambda box, px: np.full((px, px, 3), 190, np.uint8), case.report, folder, px=64)
            made[key] = _make(case, folder)
        return made[key]

    return give


def test_the_first_page_holds_what_a_reader_needs(case, printed):
    pages = _pages(printed(case))
    first, verdict = _squeezed(pages[0]), case.report.verdict
    words = {
        "abnormal": "Flagged as abnormal",
        "normal": "Not flagged",
        "indeterminate": "Indeterminate",
        "unsatisfactory": "Unsatisfactory",
        "counted": "Cells counted",
    }
    for expected in (
        words[verdict.status],
        "RESEARCH USE ONLY",
        case.report.disclaimer,
        case.report.slide.id,
        "0.5 µm/px, from aperio.MPP",
        "Cervical cytology" if case.report.specimen.code == "cervix" else "",
        "not given" if not case.report.specimen.given else "",
        "4.38 × 2.94 mm",
        "9b1f0c2d",
        "seed 0",
        verdict.reason,
    ):
        assert _squeezed(expected) in first, expected
    if verdict.score is not None:
        assert f"{verdict.score:.3f}" in first
        assert _squeezed(verdict.score_kind) in first
    for page in pages:
        assert _squeezed(case.report.disclaimer) in _squeezed(page)
    assert _squeezed(case.report.narrative[0].text) in first, "the narrative begins on page one"
    assert f"Page1/{len(pages)}" in first
    assert "FINDINGS" in first, "capitals are letter-spaced"
    assert any("Evidence and methods" in page for page in pages[1:])


def test_every_sentence_and_its_evidence_are_in_the_file(case, printed):
    last = _squeezed("".join(_pages(printed(case))))
    for sentence in case.report.narrative:
        assert _squeezed(sentence.text) in last
        for name in sentence.evidence:
            # Inside of a run (f0001–f0004) only the ends are written.
            assert name in last or re.search(r"[ft]\d+–[ft]\d+", last), name


def test_page_counts(case, printed):
    texts = _pages(printed(case))
    shown = min(48, len(case.report.verdict.findings)) or len(case.report.verdict.carrying)
    assert len(texts) == 1 + -(-shown // 25) + (2 if len(case.report.verdict.findings) > 500 else 1)
    assert sum("Gallery" in text for text in texts) == bool(shown)
    assert "Cytology slide report" in texts[0]
    assert not any("Cytology slide report" in text for text in texts[1:])


def test_a_slide_without_cells_says_that_none_is_shown(make, printed):
    pages = _pages(printed(make(empty=True)))
    assert "No cell or field is shown." in pages[0]


def test_model_text_is_data_and_appears_literally(make, tmp_path):
    # No quotable() stands between: what is in the report is set as it is.
    case = make(slide_id="x#y", file_name=r"#panic(1) $x$ *b* ].svs", notes=(HOSTILE, r"\#set page(width: 1cm)"))
    sentences = tuple(
        s.model_copy(update={"text": HOSTILE if i == 0 else s.text}) for i, s in enumerate(case.report.narrative)
    )
    counts = tuple(c.model_copy(update={"name": "#[*N*]$"}) for c in case.report.verdict.counts)
    verdict = case.report.verdict.model_copy(update={"reason": HOSTILE, "category_name": "*c* #d", "counts": counts})
    hostile = case.report.model_copy(update={"narrative": sentences, "verdict": verdict})
    path = write_pdf(hostile, case.tiles, folder=tmp_path, path=tmp_path / "report.pdf")
    pages = _pages(path)
    text = _squeezed("".join(pages))
    assert text.count(_squeezed(HOSTILE)) >= 4, "reason, narrative twice, notes"
    for literal in (r"#panic(1)$x$*b*].svs", r"\#setpage(width:1cm)", "#[*N*]$", "*c*#d"):
        assert literal in text
    assert pypdf.PdfReader(path).pages[0].mediabox.width == pytest.approx(595.28, abs=0.1)


def test_long_names_stay_on_one_page_and_inside_of_it(make, tmp_path):
    name = "W" * 300 + ".svs"
    case = make(slide_id="i" * 200, file_name=name, notes=("n" * 3000,))
    verdict = case.report.verdict.model_copy(
        update={"reason": "word " * 400, "category_name": "C" * 300, "score_kind": "k" * 300}
    )
    model = case.report.provenance.model.model_copy(update={"name": "m" * 400, "revision": "r" * 100})
    source = case.report.provenance.model_copy(update={"model": model, "versions": {"v" * 100: "1" * 200}})
    report = case.report.model_copy(update={"verdict": verdict, "provenance": source})
    path = write_pdf(report, case.tiles, folder=tmp_path, path=tmp_path / "report.pdf")
    pages = _pages(path)
    assert "Page 1 /" in pages[0].replace("\u202f", " ")
    assert "SHA-256" in pages[0], "the provenance is still on the first page"
    assert "Cytology slide report" not in pages[1]
    assert name in _squeezed("".join(pages)), "whole among the methods"
    _inside(path)


def _inside(path):
    """Nothing is drawn in the margins (16 mm; here 12 mm are checked) or across the footer."""
    pdfium = pytest.importorskip("pypdfium2")
    document = pdfium.PdfDocument(path)
    for page in document:
        image = np.asarray(page.render(scale=1).to_pil().convert("L"))
        edge = round(12 / 25.4 * 72)
        for strip in (image[:, :edge], image[:, -edge:], image[-20:]):
            assert strip.min() > 250
        footer_line = round((297 - 15 + 2.5) / 25.4 * 72)
        assert image[footer_line - 6 : footer_line - 3, 60:-60].min() > 250 or page is not document[0]
    document.close()


def test_nothing_leaves_its_page(case, printed):
    _inside(printed(case))


def test_missing_and_broken_pictures_leave_a_marked_frame(abnormal, tmp_path):
    (tmp_path / "overview.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "gallery").mkdir()
    assert _pages(_make(abnormal, tmp_path))[0].count("picture not available") == 2 + 7


def test_characters_without_a_font_are_marked_and_listed(make, tmp_path):
    # Two ancient scripts that few fonts hold, an unassigned code point, a control character, a lone surrogate.
    case = make(file_name="A\U00012000B\U00010600C\U000e0fffD\x07E\udc80F.svs")
    pages = _pages(_make(case, tmp_path))
    named = _squeezed("".join(pages))
    shown = re.search(r"A(.)B(.)C(.)D(.)E(.)F\.svs", _squeezed(pages[0]))
    assert shown is not None
    assert shown[3] == shown[4] == shown[5] == "\ufffd"
    if shown[1] == "□":
        assert "U+12000" in named
        assert "standsforacharacterthatnoinstalledfontshows" in named


def test_cjk_names_do_not_stop_the_report(make, tmp_path):
    case = make(file_name="宫颈细胞学检查_第三号切片.svs", slide_id="スライド-1")
    text = _squeezed(_pages(_make(case, tmp_path))[0])
    assert "宫颈细胞学检查" in text or "□□□□□□□" in text


def test_the_file_is_tagged_has_a_language_a_title_and_bookmarks(abnormal, printed):
    reader = pypdf.PdfReader(printed(abnormal))
    root = reader.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert root["/Lang"] == "en"
    assert abnormal.report.slide.id in reader.metadata.title
    assert b"pdfuaid" in root["/Metadata"].get_data()
    top = [entry.title for entry in reader.outline if not isinstance(entry, list)]
    assert [title.replace("\xa0", " ") for title in top][1:] == ["Gallery", "Evidence and methods"]


def test_the_same_report_gives_the_same_bytes(abnormal, tmp_path):
    first = _make(abnormal, tmp_path).read_bytes()
    assert _make(abnormal, tmp_path).read_bytes() == first
    assert pypdf.PdfReader(tmp_path / "report.pdf").metadata.creation_date.isoformat().startswith("2026-03-02T09:41")
    dated = pypdf.PdfReader(_make(abnormal, tmp_path, timestamp=0)).metadata.creation_date
    assert dated.year == 1970


def test_an_unwritable_pdf_is_named(abnormal, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match=r"file/report\.pdf"):
        write_pdf(abnormal.report, abnormal.tiles, folder=tmp_path, path=tmp_path / "file" / "report.pdf")


def test_a_page_that_typst_refuses_is_an_output_error(abnormal, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.pdf.TEMPLATE", "schema/report.schema.json")
    monkeypatch.setattr("reports.pdf._without_glyph", lambda characters, fonts: set())
    with pytest.raises(OutputError, match="Typst says"):
        _make(abnormal, tmp_path)
    assert not (tmp_path / "report.pdf").exists()
