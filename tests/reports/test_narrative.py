"""The narrative: numbers from the report, evidence that exists, wording that never outruns the verdict."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators import aggregate
from reports import check_evidence, narrate
from reports.evidence import has_field
from reports.language import Words
from reports.page import page_data
from reports.wording import id_ranges, quotable, score_pair
from wsi_chat.errors import AnswerError
from wsi_chat.remarks import number, percent
from wsi_chat.schema import Adequacy, Box, Count, Funnel, Interval, LabelledBox, Remark, Sentence, Tile, TileVerdict
from wsi_chat.terminology import load_system

TOO_SURE = re.compile(r"\b(diagnosed|diagnostic of|confirm\w*|definite\w*|proves?|proven|certainly|malignant)\b", re.I)


def _text(sentences, *, model=False):
    return " ".join(s.text for s in sentences if model or s.source != "model")


def test_every_case_cites_only_what_exists(case):
    check_evidence(case.report, case.tiles)
    assert case.report.narrative
    assert narrate(case.report, case.tiles, case.system) == case.report.narrative, "deterministic"


def test_the_flagged_slide_is_told_with_its_numbers(abnormal):
    text = _text(abnormal.report.narrative)
    verdict, funnel = abnormal.report.verdict, abnormal.report.funnel
    assert f"score of {verdict.score:.3f}" in text
    assert "reaches the threshold of 0.500; the slide was flagged for review" in text
    assert f"suggestive of {verdict.category_name}" in text
    assert f"{funnel.screened} of {funnel.selected} tiles" in text
    for row in verdict.counts:
        if row.seen:
            assert re.search(rf"{row.name} cells.{{0,20}} in {row.seen} places", text)
            cited = [s.evidence for s in abnormal.report.narrative if s.text.endswith(f"in {row.seen} places.")]
            assert row.finding_ids in cited
    assert "2 tiles could not be read and 1 gave no usable screening answer" in text


def _numbers(report):
    """Every number that the report holds, as the narrative may write it."""
    verdict, funnel = report.verdict, report.funnel
    values = {number(v) for v in funnel.model_dump().values()} | {number(c.seen) for c in verdict.counts}
    shares = [verdict.coverage, verdict.coverage_floor, verdict.adequacy.sampled_area_fraction]
    values |= {re.sub(r"[^\d.]", "", percent(v)) for v in shares if v is not None}
    if verdict.differential is not None:
        values.add(f"{verdict.differential.field_um:.0f}")
        for entry in verdict.differential.per_field:
            values |= {f"{entry.mean:.1f}", number(entry.fewest), number(entry.most)}
    if verdict.score is not None and verdict.threshold is not None:
        values |= set(score_pair(verdict.score, verdict.threshold))
    return values | set(re.findall(r"\d+(?:\.\d+)?", verdict.score_kind))


def test_every_number_in_the_text_is_one_of_the_reports(case):
    for sentence in case.report.narrative:
        if sentence.source == "template":
            for found in re.findall(r"\d[\d\u202f]*(?:\.\d+)?", sentence.text):
                assert found.strip("\u202f") in _numbers(case.report), sentence.text


def test_estimates_are_told_with_interval_and_fraction(abnormal):
    adequacy = Adequacy(
        status="satisfactory",
        reason="enough",
        cells_estimate=12345.6,
        cells_interval=Interval(low=10000, high=15000.4),
        sampled_area_fraction=0.125,
    )
    verdict = abnormal.report.verdict.model_copy(update={"adequacy": adequacy})
    text = _text(narrate(abnormal.report.model_copy(update={"verdict": verdict}), abnormal.tiles, abnormal.system))
    assert "estimated at 12\u202f346 (95\u202f% interval 10\u202f000 to 15\u202f000)" in text
    assert "extrapolated from 12.5\u202f% of the area" in text


def test_an_indeterminate_slide_says_why_and_reassures_nobody(make):
    case = make(hot=0, unread=60, failed=9)
    assert case.report.verdict.status == "indeterminate"
    text = _text(case.report.narrative, model=True)
    assert "below the floor of 90\u202f%" in text
    assert not re.search(r"\b(normal|nilm|negative|benign)\b", text, re.I)


def test_a_slide_without_a_specimen_type_says_so(make):
    first = make(specimen=None).report.narrative[0]
    assert "specimen type was not given" in first.text
    assert first.evidence == ("specimen",)


def test_what_was_not_asked_is_not_told_as_absent(make):
    case = make(hot=0, unread=0, failed=0)
    assert "not marked" not in _text(case.report.narrative)


@pytest.mark.parametrize(
    "said",
    [
        "Diagnosed as carcinoma.",
        "HPV 16 positive.",
        "p16 staining is strong.",
        "Immunohistochemistry shows a high Ki-67.",
        "This confirms a lesion.",
        "A normal field.",
        "Negative for malignancy.",
        "Nothing rules out methylation.",
        "   ",
    ],
)
def test_a_model_is_not_quoted_beyond_what_the_slide_shows(said, make):
    case = make(description=said)
    assert not [s for s in case.report.narrative if s.source == "model"]


def test_a_models_words_are_quoted_as_such(abnormal):
    quoted = [s for s in abnormal.report.narrative if s.source == "model"]
    assert len(quoted) == 1, "the same words once"
    assert quoted[0].evidence[0] in quoted[0].text
    assert "the model wrote: “Cells with enlarged, dark nuclei" in quoted[0].text
    assert not [s for s in narrate(abnormal.report, abnormal.tiles, abnormal.system, quotes=0) if s.source == "model"]


def test_never_claimed_words_keep_a_sentence_out_and_grades_of_lesions_do_not():
    never = ["depth of invasion, stage or grade of a tumour"]
    assert not quotable("Tumour cells of a late stage.", status="abnormal", never_claim=never)
    assert quotable("Cells of a high-grade lesion.", status="abnormal", never_claim=never)


@pytest.mark.parametrize("name", ["f9999", "t999999", "funnel.nothing", "verdict.score.x", "", "funnel."])
def test_evidence_that_does_not_exist_is_refused(name, abnormal):
    wrong = abnormal.report.model_copy(update={"narrative": (Sentence(text="Cells.", evidence=("specimen", name)),)})
    with pytest.raises(AnswerError, match="does not exist") as caught:
        check_evidence(wrong, abnormal.tiles)
    assert repr(name) in str(caught.value)
    assert "Cells." in str(caught.value)


def test_a_field_without_a_value_is_no_evidence(make):
    report = make(empty=True).report
    assert report.verdict.score is None
    assert not has_field(report, "verdict.score")
    assert has_field(report, "funnel.coverage"), "derived values count"
    assert has_field(report, "funnel.screened"), "zero is a value"


@pytest.mark.parametrize("field", ["carrying", "tile_ids", "finding_ids"])
def test_the_verdicts_own_references_are_checked(field, abnormal):
    verdict = abnormal.report.verdict
    change = {
        "carrying": {"carrying": ("f9999",)},
        "tile_ids": {"carrying": (), "findings": (verdict.findings[0].model_copy(update={"tile_ids": ("t999999",)}),)},
        "finding_ids": {
            "counts": (Count(label="x", name="X", abnormal=True, seen=1, asked=True, finding_ids=("f9999",)),)
        },
    }[field]
    report = abnormal.report.model_copy(update={"verdict": verdict.model_copy(update=change), "narrative": ()})
    with pytest.raises(AnswerError, match="9999"):
        check_evidence(report, abnormal.tiles)


@pytest.mark.parametrize(
    ("ids", "short"),
    [
        (["f0001", "f0002", "f0003", "f0007"], "f0001–f0003, f0007"),
        (["f0009", "f0010"], "f0009–f0010"),
        (["f0001", "t000002"], "f0001, t000002"),
        (["funnel.read", "f0002", "f0001"], "funnel.read, f0002, f0001"),
        ([], ""),
    ],
)
def test_runs_of_ids_are_shortened(ids, short):
    assert id_ranges(ids) == short


def test_numbers_never_round_across_a_border():
    assert percent(0.9999) == ">\u202f99.9\u202f%"
    assert percent(1.0) == "100\u202f%"
    assert percent(0.0001) == "<\u202f0.1\u202f%"
    assert score_pair(0.4999, 0.5) == ("0.4999", "0.5000")
    assert score_pair(0.5, 0.5) == ("0.500", "0.500")


@st.composite
def _slides(draw):
    """Tiles of any status with any boxes, and a system."""
    system = load_system(draw(st.sampled_from(["cervix", "blood-smear", None])))
    labels = st.sampled_from([label.code for label in system.labels])
    tiles = []
    for index in range(draw(st.integers(0, 14))):
        tile = Tile(index, index * 100, 0, 100, 100, 0, (100, 100), 100, 0.5, 0.5)
        status = draw(
            st.sampled_from(["unreadable", "screened", "screen_failed", "detailed", "detail_failed", "planned"])
        )
        p = draw(st.floats(0, 1)) if status in ("screened", "detailed", "detail_failed") else None
        boxes, asked, said = (), (), ""
        if status == "detailed":
            asked = tuple(label.code for label in system.asked_labels)
            boxes = tuple(
                LabelledBox(draw(labels), Box(tile.x + x, 0, tile.x + x + 20, 20))
                for x in draw(st.lists(st.integers(0, 79), max_size=4))
            )
            said = draw(st.sampled_from(["", "Large nuclei.", "A normal field.", "Diagnosed as SCC.", "NILM"]))
        tiles.append(
            TileVerdict(tile=tile, status=status, p_screen=p, p_abnormal=p, boxes=boxes, asked=asked, description=said)
        )
    count = {s: sum(t.status == s for t in tiles) for s in ("unreadable", "screen_failed", "detailed", "detail_failed")}
    funnel = Funnel(
        grid=20,
        foreground=len(tiles) + draw(st.integers(0, 3)) if tiles else 0,
        selected=len(tiles),
        read=len(tiles) - count["unreadable"],
        screened=sum(t.p_screen is not None for t in tiles),
        truncated_answers=draw(st.integers(0, 2)),
        dropped_boxes=draw(st.integers(0, 2)),
        **count,
    )
    verdict = aggregate(tiles, system=system, funnel=funnel, bounds=Box(0, 0, 1500, 100))
    return system, tiles, funnel, verdict


@settings(max_examples=60, deadline=None)
@given(_slides())
def test_whatever_the_slide_the_narrative_cites_what_exists_and_claims_no_more_than_the_verdict(abnormal, slide):
    system, tiles, funnel, verdict = slide
    report = abnormal.report.model_copy(update={"funnel": funnel, "verdict": verdict, "narrative": ()})
    told = narrate(report, tiles, system)
    check_evidence(report.model_copy(update={"narrative": told}), tiles)
    text = _text(told, model=True)
    assert text
    assert not TOO_SURE.search(text)
    if verdict.status in ("indeterminate", "unsatisfactory"):
        assert not re.search(r"\b(normal|nilm|negative|benign)\b", text, re.I)
    if verdict.status != "abnormal":
        assert "was flagged" not in text
        assert "suggestive" not in text.replace("suggestive of bacterial vaginosis", "")
    if verdict.status != "normal":
        assert "No abnormal cells were called" not in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_slide_that_is_not_called_abnormal_never_denies_the_cells_that_were_marked(abnormal, language):
    """It said 'No abnormal cells were called' and, two sentences on, 'SCC cells were marked in 4 places'."""
    verdict = abnormal.report.verdict.model_copy(update={"status": "normal"})
    report = abnormal.report.model_copy(update={"verdict": verdict})
    words = Words(language, abnormal.system)
    marked = sum(finding.abnormal for finding in verdict.findings)
    text = _text(narrate(report, abnormal.tiles, abnormal.system, words=words))
    assert words.wording("normal", abnormal.system) not in text
    assert words("narrative.normal_with_candidates", n=marked) in text
    clean = report.model_copy(update={"verdict": verdict.model_copy(update={"findings": (), "counts": ()})})
    assert words.wording("normal", abnormal.system) in _text(narrate(clean, (), abnormal.system, words=words))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("specimen", ["cervix", "thyroid", "urine", "effusion", None])
def test_a_slide_that_its_score_alone_flags_is_not_said_to_have_abnormal_cells(make, tmp_path, specimen, language):
    """It said 'Abnormal cells were called' and, beside it, 'No abnormal cell was located'."""
    case = make(specimen=specimen, boxes_per_tile=0)
    words = Words(language, case.system)
    verdict = case.report.verdict
    assert (verdict.status, sum(finding.abnormal for finding in verdict.findings)) == ("abnormal", 0)
    assert verdict.adequacy.status != "satisfactory"
    assert words.remark(Remark("verdict.score_alone")) in words.remark(verdict.reason)
    text = _text(narrate(case.report, case.tiles, case.system, words=words))
    assert words("narrative.abnormal_by_score") in text
    assert words.wording("abnormal", case.system) not in text
    page = page_data(case.report, case.tiles, tmp_path, words=words)
    assert page["strip_title"] != words("page.strip_cells")
    marked = make(specimen=specimen)
    told = _text(narrate(marked.report, marked.tiles, marked.system, words=Words(language, marked.system)))
    assert words.wording("abnormal", case.system) in told
    assert "The score alone" not in marked.report.verdict.reason


def test_the_score_is_the_same_number_in_the_reason_and_in_the_narrative(abnormal):
    verdict = abnormal.report.verdict
    assert verdict.status == "abnormal"
    score, threshold = score_pair(verdict.score, verdict.threshold)
    assert f"The score {score} (" in verdict.reason
    assert f"the threshold {threshold};" in verdict.reason
    assert f"The slide score of {score} (" in _text(abnormal.report.narrative)
    assert score_pair(0.998, 0.5) == ("0.998", "0.500"), "never 1.00"


def test_no_sentence_says_that_a_tile_which_was_only_not_masked_holds_cells(abnormal):
    """Photographs are screened whole, and a mask leaves out empty glass: neither knows that a tile holds cells."""
    told = [sentence.text for sentence in abnormal.report.narrative if "funnel.screened" in sentence.evidence]
    assert told
    assert all("with cells" not in text for text in told)
    assert any("tiles that may hold cells were screened" in text for text in told)
