"""A blood film's differential on the pages, in both languages: numbers with intervals, flags without a diagnosis."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pypdf
import pytest

from aggregators.counts import count_findings
from aggregators.differential import differential
from reports import Words, narrate, write_differential_csv, write_html, write_pdf, write_tiles_parquet
from reports.blood import interval_text, share_text, table
from reports.page import page_data
from reports.wording import included
from wsi_chat.analysis.result import SlideResult
from wsi_chat.chat.record import SlideFacts
from wsi_chat.dialects import get_dialect
from wsi_chat.schema import ASSUMED_SCALE, Box, DifferentialRow, Finding, Interval, Report
from wsi_chat.terminology import load_system

BLOOD = load_system("blood-smear")
TYPES = {"neutrophil": 70, "lymphocyte": 30, "monocyte": 10, "eosinophil": 4, "ig": 2, "wbc": 3, "erythroblast": 1}


def typed(case) -> Report:
    """The counted case with a differential of 116 typed cells, all in its first closely read tile."""
    tiles = [t.model_copy(update={"asked": tuple(label.code for label in BLOOD.labels)}) for t in case.tiles]
    tile = next(t.tile for t in tiles if t.status == "detailed")
    names = [label for label, n in TYPES.items() for _ in range(n)]
    findings = tuple(
        Finding(
            id=f"f{n:04d}", label=label, name=BLOOD.label(label).name, box=Box(n, n, n + 9, n + 9), abnormal=False,
            tile_ids=(tile.id,), votes=1,
        )
        for n, label in enumerate(names, start=1)
    )  # fmt: skip
    verdict = case.report.verdict.model_copy(
        update={
            "findings": findings,
            "differential": differential(findings, tiles, BLOOD),
            "carrying": (),
            "counts": (),
        }
    )
    return case.report.model_copy(update={"verdict": verdict})


@pytest.fixture
def counted(make):
    return make(specimen="blood-smear")


@pytest.fixture
def report(counted) -> Report:
    return typed(counted)


def in_words(report: Report, case, language: str) -> tuple[Report, Words]:
    words = Words(language, BLOOD)
    changed = report.model_copy(update={"language": language})
    return changed.model_copy(update={"narrative": narrate(changed, case.tiles, BLOOD, words=words)}), words


def test_the_table_has_every_type_with_its_number_and_interval(report):
    data = table(report, Words("en", BLOOD))
    assert [(row["name"], row["n"]) for row in data["rows"]] == [
        ("Neutrophil", "70"), ("Eosinophil", "4"), ("Basophil", "0"), ("Lymphocyte", "30"), ("Monocyte", "10"),
        ("Immature granulocyte", "2"),
    ]  # fmt: skip
    assert (data["rows"][0]["share"], data["rows"][0]["interval"]) == ("60\u202f%", "51–69\u202f%")
    assert data["total"] == "116 white cells of a stated type; 3 of no stated type."
    assert data["seen"] == [
        "Seen, for review: 2 cells marked as immature granulocytes (left shift).",
        "Seen, for review: 1 cell marked as nucleated red cell (erythroblast), which is not counted among the white"
        " cells.",
    ]
    assert any("classifies 200 per examiner (CLSI H20-A2)" in note for note in data["notes"])


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0, "0\u202f%"), (0.004, "0.4\u202f%"), (0.604, "60\u202f%"), (0.998, "99.8\u202f%"), (1.0, "100\u202f%")],
)
def test_a_share_is_never_rounded_to_none_or_all(fraction, text):
    interval = Interval(low=0.0, high=1.0)
    row = DifferentialRow(label="x", name="x", n=1, fraction=fraction, interval=interval)
    assert share_text(row) == text
    assert interval_text(row) == "0–100\u202f%"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_pages_show_it_in_both_languages(report, counted, tmp_path, language):
    changed, words = in_words(report, counted, language)
    page = write_html(changed, counted.tiles, folder=tmp_path, path=tmp_path / "report.html", words=words)
    html = re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))
    path = write_pdf(changed, counted.tiles, folder=tmp_path, path=tmp_path / "report.pdf", words=words)
    pdf = _squeezed("".join(sheet.extract_text() for sheet in pypdf.PdfReader(path).pages))
    names = {"en": ("White-cell differential", "Eosinophil"), "zh": ("白细胞分类计数", "嗜酸性粒细胞")}[language]
    for name in (*names, "51–69", "CLSI H20-A2"):
        assert _squeezed(name) in _squeezed(html)
        assert _squeezed(name) in pdf
    none = words("page.abnormal_class")
    assert _squeezed(none) not in pdf, "no class of blood is abnormal, so no mark of such a class is explained"
    assert none not in html
    assert _squeezed(words.system_name(changed)) in pdf
    assert words.system_name(changed) in html
    text = " ".join(sentence.text for sentence in changed.narrative)
    assert "51–69" in text
    diagnosis = r"an(a)?emia|leuk(a)?emia|infect|贫血|白血病|感染"
    said = " ".join([*table(changed, words)["seen"], *table(changed, words)["notes"], text])
    assert not re.search(diagnosis, said, re.IGNORECASE)


def _squeezed(text: str) -> str:
    return re.sub(r"[\s\u200b]", "", text)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_width_in_um_where_the_scale_is_not_known(report, counted, tmp_path, language):
    """The tiles of photographs without a resolution were called 38 µm wide, at a scale that nobody stated."""
    slide = report.slide.model_copy(update={"mpp_source": ASSUMED_SCALE, "mpp": 0.25})
    told, words = in_words(report.model_copy(update={"slide": slide}), counted, language)
    assert told.verdict.differential.per_field
    text = "".join(sentence.text for sentence in told.narrative)
    path = write_html(told, counted.tiles, folder=tmp_path, path=tmp_path / "report.html", words=words)
    page = re.sub(r"<style>.*?</style>|<[^>]+>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for shown in (text, page):
        assert f"{told.verdict.differential.field_um / 0.25:.0f} px" in shown
        assert not re.search(r"\d\s?µm", shown)


def test_differential_csv_has_a_row_a_type(report, tmp_path):
    path = write_differential_csv(report, tmp_path / "differential.csv")
    assert path is not None
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = {row["label"]: row for row in csv.DictReader(stream)}
    assert (rows["neutrophil"]["n"], rows["neutrophil"]["of"], rows["neutrophil"]["percent"]) == ("70", "116", "60.34")
    assert (rows["basophil"]["n"], rows["basophil"]["low"]) == ("0", "0.00")


def test_chat_counts_types_kinds_and_the_differential(report, counted, tmp_path):
    write_tiles_parquet(counted.tiles, tmp_path / "tiles.parquet")
    dialect = get_dialect("embedded")
    facts = SlideFacts(SlideResult(report=report, folder=tmp_path), BLOOD, dialect)

    def answer(question: str) -> str:
        found = facts.answer(question)
        assert found is not None, question
        assert found.cites, "every answer cites what it stands on"
        return found.text

    assert answer("How many eosinophils?").startswith("4 Eosinophil in")
    assert "That is 3\u202f% of 116 white cells of a stated type (1–9\u202f%)." in answer("How many eosinophils?")
    assert answer("How many white blood cells are there?").startswith("119 WBC in"), "typed cells are white cells"
    assert answer("How many erythroblasts?").startswith("1 Erythroblast in")
    told = answer("What is the differential?")
    assert "Neutrophil 60\u202f% (70; 51–69\u202f%)" in told
    assert "left shift" in answer("Is there a left shift?")
    assert "RBC per tile" in answer("How many red cells per field?")


def test_a_report_without_a_differential_shows_none(abnormal, tmp_path: Path):
    assert table(abnormal.report, Words("en", abnormal.system)) is None
    page = write_html(abnormal.report, abnormal.tiles, folder=tmp_path, path=tmp_path / "report.html")
    assert "differential" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_says_which_row_counts_the_cells_of_others_too(report, counted, tmp_path, language):
    """184 red cells, 13 white ones, a lymphocyte, a monocyte and 22 platelets were '219 marked in all'."""
    verdict = report.verdict
    verdict = verdict.model_copy(update={"counts": count_findings(verdict.findings, counted.tiles, BLOOD)})
    report = report.model_copy(update={"verdict": verdict, "language": language})
    rows = {row.label: row.seen for row in verdict.counts}
    white = ("neutrophil", "eosinophil", "lymphocyte", "monocyte", "ig")
    assert rows["wbc"] == sum(rows[kind] for kind in white) + TYPES["wbc"]
    kinds = included(verdict)
    assert {whole: {row.label for row in parts} for whole, parts in kinds.items()} == {"wbc": set(white)}
    words = Words(language, BLOOD)
    said = page_data(report, counted.tiles, tmp_path, words=words)["included"]
    assert all(words.label(kind, BLOOD.label(kind).name) in said for kind in (*white, "wbc"))
    assert words.label("erythroblast", BLOOD.label("erythroblast").name) not in said
    shown = write_html(report, counted.tiles, folder=tmp_path, path=tmp_path / "report.html", words=words)
    assert said in shown.read_text()


def test_a_row_all_of_whose_cells_are_kinds_is_told_and_one_without_any_is_not(report, counted):
    verdict = report.verdict
    for labels, told in ((("monocyte",), {"wbc"}), (("wbc",), set()), ((), set())):
        findings = tuple(f for f in verdict.findings if f.label in labels)
        counts = count_findings(findings, counted.tiles, BLOOD)
        assert set(included(verdict.model_copy(update={"findings": findings, "counts": counts}))) == told
