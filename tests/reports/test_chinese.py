"""Chinese reports: complete catalogues, the same numbers and evidence, a PDF that shows its characters."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pypdf
import pytest

from reports import FontMissing, Words, chinese_font, narrate, write_html, write_pdf
from reports.check_terms import numbers
from wsi_chat.remarks import catalogue
from wsi_chat.schema import Remark
from wsi_chat.terminology import load_system, specimens

HAN = re.compile(r"[\u4e00-\u9fff]")


def _fields(text):
    """The fields that a text shows; those that only choose between one and many do not count."""
    return sorted({name for _, name, choice, _ in string.Formatter().parse(text) if name and "|" not in (choice or "")})


def test_both_catalogues_say_the_same_things_with_the_same_numbers():
    english, chinese = catalogue("en"), catalogue("zh")
    for section, texts in english.items():
        if not isinstance(texts, dict) or section in ("listing", "remarks"):
            continue
        assert set(texts) == set(chinese[section]), section
        for key, text in texts.items():
            assert _fields(text) == _fields(chinese[section][key]), f"{section}.{key}"


@pytest.mark.parametrize("system", specimens(), ids=lambda system: system.code)
def test_every_reporting_system_is_named_in_chinese(system):
    assert system.zh is not None
    assert set(system.zh.labels) == {label.code for label in system.labels}
    assert set(system.zh.categories) == {category.code for category in system.categories}
    assert set(system.zh.specimens) == set(system.specimens)
    for text in (system.zh.name, system.zh.adequacy, *system.zh.wording.model_dump().values()):
        assert HAN.search(text)
    for label in system.labels:
        assert HAN.search(system.zh.labels[label.code].long_name), label.code
    for category in system.categories:
        code = re.match(r"(?:[A-Z]{2,}(?:-[A-Za-z]+)?|PaN-\w+)$", category.name)
        if code:
            assert system.zh.categories[category.code].startswith(code[0]), "codes stay"


def test_the_standard_terms_of_the_bethesda_system():
    zh = load_system("cervix").zh
    assert zh.categories["hsil"] == "HSIL（高级别鳞状上皮内病变）"
    assert zh.categories["nilm"] == "NILM（未见上皮内病变或恶性病变）"
    assert zh.labels["ascus"].long_name == "意义不明的非典型鳞状细胞"


def _chinese(case, **changes):
    words = Words("zh", case.system)
    report = case.report.model_copy(update={"language": "zh", **changes})
    return report.model_copy(update={"narrative": narrate(report, case.tiles, case.system, words=words)}), words


def test_the_narrative_has_the_numbers_and_the_evidence_of_the_english_one(case):
    report, _ = _chinese(case)
    english = [s for s in case.report.narrative if s.source == "template"]
    chinese = [s for s in report.narrative if s.source == "template"]
    assert [s.evidence for s in chinese] == [s.evidence for s in english]
    for one, other in zip(english, chinese, strict=True):
        assert sorted(numbers(one.text)) == sorted(numbers(other.text, "zh")), other.text
        assert HAN.search(other.text)


@pytest.fixture(scope="module")
def printed(abnormal, tmp_path_factory):
    report, words = _chinese(abnormal, ancillary=("HPV 16 positive",))
    folder = tmp_path_factory.mktemp("zh")
    return write_pdf(report, abnormal.tiles, folder=folder, path=folder / "report.pdf", words=words), report


def test_the_pdf_is_chinese_tagged_and_selectable(printed):
    path, report = printed
    reader = pypdf.PdfReader(path)
    text = re.sub(r"\s|\u200b", "", "".join(page.extract_text() for page in reader.pages))
    for sentence in report.narrative:
        assert re.sub(r"\s", "", sentence.text) in text
    for expected in (
        "细胞学切片报告",
        "标记为异常",
        "仅供研究使用。不是诊断，不得用于临床决策。",
        "依据与方法",
        "未校准",
    ):
        assert expected in text
    assert "□" not in text, "no character without a glyph"
    assert reader.trailer["/Root"]["/Lang"].startswith("zh")
    assert reader.trailer["/Root"]["/MarkInfo"]["/Marked"]
    assert b"pdfuaid" in reader.trailer["/Root"]["/Metadata"].get_data()
    assert [e.title for e in reader.outline if not isinstance(e, list)][-1] == "依据与方法"


def test_the_pdf_shows_ink_where_the_title_stands(printed):
    import numpy as np

    pdfium = pytest.importorskip("pypdfium2")
    document = pdfium.PdfDocument(printed[0])
    page = np.asarray(document[0].render(scale=100 / 72).to_pil().convert("L"))
    document.close()
    assert (page[40:70, 140:300] < 200).sum() > 200


def test_a_font_is_found_in_a_file_or_a_folder():
    found = chinese_font()
    assert chinese_font(found) == found
    assert chinese_font(found.parent) == found


def test_without_a_font_the_pdf_says_the_ways_out_and_the_page_is_still_written(abnormal, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.fonts.PACKAGE", "no_such_package")
    monkeypatch.setattr("reports.fonts.folders", list)
    report, words = _chinese(abnormal)
    with pytest.raises(FontMissing, match="font_path") as caught:
        write_pdf(
            report, abnormal.tiles, folder=tmp_path, path=tmp_path / "report.pdf", font_paths=[tmp_path], words=words
        )
    assert all(
        way in caught.value.hint for way in ("wsi-chat[cjk]", "fonts-noto-cjk", "WSI_CHAT_FONT_PATH", "--format html")
    )
    assert not (tmp_path / "report.pdf").exists()
    page = write_html(report, abnormal.tiles, folder=tmp_path, path=tmp_path / "report.html", words=words)
    assert '<html lang="zh-CN">' in page.read_text(encoding="utf-8")


def test_a_latin_font_is_no_chinese_one(tmp_path):
    import matplotlib as mpl

    from reports.fonts import _has_chinese

    assert not _has_chinese(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"\x00\x01\x00\x00broken")
    assert not _has_chinese(tmp_path / "broken.ttf")


def test_a_remark_of_the_program_is_translated_or_left_as_it_is():
    words = Words("zh")
    assert words.remark(Remark("run.limited", n=5, all=9)) == "前景瓦片 9 个中仅询问了 5 个（--limit）。"
    assert words.remark("Something new.") == "Something new."
    assert Words("en").remark("Something new.") == "Something new."


def test_a_label_that_has_no_translation_keeps_its_name():
    assert Words("zh", load_system("cervix")).label("unheard", "Unheard") == "Unheard"
