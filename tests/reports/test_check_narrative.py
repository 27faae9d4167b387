"""A model's sentences against the findings: a table of cases, and mutations that must all be caught."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import narrate
from reports.check_narrative import Checker, Written, check_narrative, read_lines
from reports.check_terms import numbers, plain
from reports.language import Words
from wsi_chat.schema import Sentence
from wsi_chat.terminology import load_system

TABLE = yaml.safe_load((Path(__file__).parents[1] / "cases" / "narrative_sentences.yaml").read_text(encoding="utf-8"))
ROWS = [(group, row) for group in TABLE for row in group["sentences"]]
CERVIX = load_system("cervix")
CHECKERS = {language: Checker.of(CERVIX, language) for language in ("en", "zh")}


@pytest.mark.parametrize(("group", "row"), ROWS, ids=[row["text"][:70] or "empty" for _, row in ROWS])
def test_the_table_of_sentences(group, row):
    finding = Sentence(text=group["finding"]["text"], evidence=tuple(group["finding"]["evidence"]))
    found = CHECKERS[group.get("language", "en")].sentence(row["text"], finding)
    assert set(row["objects"]) <= {one.kind for one in found}, found
    assert bool(found) == bool(row["objects"]), found


@pytest.fixture(scope="module")
def told(abnormal):
    """The template's own sentences in both languages: correct narratives to spoil."""
    given = {}
    for language in ("en", "zh"):
        report = abnormal.report.model_copy(update={"language": language, "ancillary": ("HPV 16 positive",)})
        given[language] = narrate(report, abnormal.tiles, abnormal.system, quotes=0, words=Words(language, CERVIX))
    return given


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_correct_narrative_stands(language, told):
    for finding in told[language]:
        assert CHECKERS[language].sentence(finding.text, finding) == (), finding.text
    written = [Written(n, finding.text) for n, finding in enumerate(told[language], start=1)]
    result = check_narrative(written, told[language], system=CERVIX, language=language)
    assert [s.text for s in result] == [s.text for s in told[language]]
    assert {s.source for s in result} == {"model"}


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_other_number_is_caught(told, data):
    language = data.draw(st.sampled_from(["en", "zh"]))
    finding = data.draw(st.sampled_from([f for f in told[language] if re.search(r"\d", f.text)]))
    places = list(re.finditer(r"(?<![A-Za-z])\d+(?:\.\d+)?", finding.text))
    place = data.draw(st.sampled_from(places))
    other = data.draw(st.integers(0, 5000).map(str) | st.floats(0, 100, allow_nan=False).map(lambda v: f"{v:.2f}"))
    text = finding.text[: place.start()] + other + finding.text[place.end() :]
    if numbers(text, language) != numbers(finding.text, language):
        kinds = {one.kind for one in CHECKERS[language].sentence(text, finding)}
        assert kinds & {"number", "omission"}, text


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_other_category_is_caught(told, data):
    language = data.draw(st.sampled_from(["en", "zh"]))
    checker = CHECKERS[language]
    named = [f for f in told[language] if checker.names.taken_out(f.text)[0] and f.evidence != ("ancillary",)]
    finding = data.draw(st.sampled_from(named))
    original = plain(finding.text)
    places = list(checker.names.pattern.finditer(original))
    place = data.draw(st.sampled_from(places))
    other = data.draw(st.sampled_from(sorted(checker.names.groups)))
    group = checker.names.groups
    if group[other] == group[place[0].casefold()]:
        return
    text = original[: place.start()] + other + original[place.end() :]
    assert checker.sentence(text, finding), text


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_other_evidence_is_caught(told, data):
    finding = data.draw(st.sampled_from(told["en"]))
    name = data.draw(st.from_regex(r"[ft][0-9]{4,6}", fullmatch=True) | st.sampled_from(["funnel.none", "verdict.x"]))
    if name not in finding.evidence:
        found = CHECKERS["en"].sentence(finding.text, finding, cited=[name])
        assert [one.kind for one in found] == ["evidence"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_denial_put_in_or_left_out_is_caught(told, data):
    finding = data.draw(st.sampled_from(told["en"]))
    spots = [m.end() for m in re.finditer(r"\b(is|was|were)\b", finding.text)]
    if "not " in finding.text:
        text = finding.text.replace("not ", "", 1)
    elif spots:
        spot = data.draw(st.sampled_from(spots))
        text = f"{finding.text[:spot]} not{finding.text[spot:]}"
    else:
        return
    assert CHECKERS["en"].sentence(text, finding), text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.booleans())
def test_any_text_gives_a_whole_narrative(told, text, truncated):
    findings = told["en"]
    result = check_narrative(read_lines(text, truncated=truncated), findings, system=CERVIX, language="en")
    assert len(result) >= len(findings)
    for sentence, finding in zip(result, findings, strict=False):
        assert sentence.evidence == finding.evidence
        if sentence.source == "template_after_check":
            assert (sentence.text, bool(sentence.replaced)) == (finding.text, True)


def test_lines_and_remarks_are_read_and_a_cut_off_last_line_is_marked():
    text = "Here you go:\n1. First one. [f0001, t000002]\n**2.** Second.\n+ Nuclei are dark. [t000002]\n3. Cut o"
    lines = read_lines(text, truncated=True)
    assert [(line.number, line.text, line.cited, line.whole) for line in lines] == [
        (1, "First one.", ("f0001", "t000002"), True),
        (2, "Second.", (), True),
        (None, "Nuclei are dark.", ("t000002",), True),
        (3, "Cut o", (), False),
    ]


def test_what_was_not_written_comes_from_the_template_and_says_so(told):
    findings = told["en"]
    lines = [Written(1, findings[0].text), Written(1, "Another."), Written(2, "Cut o", whole=False)]
    result = check_narrative(lines, findings, system=CERVIX, language="en")
    assert [s.source for s in result] == ["model"] + ["template_after_check"] * (len(findings) - 1)
    assert [s.replaced for s in result[1:]] == ["truncated"] + ["missing"] * (len(findings) - 2)


@pytest.mark.parametrize(
    ("text", "cited", "stands"),
    [
        ("The nuclei are enlarged with dark chromatin.", ("t000001",), True),
        ("The nuclei are enlarged with dark chromatin.", (), False),
        ("The nuclei are enlarged with dark chromatin.", ("t000009",), False),
        ("Two nuclei are dark.", ("t000001",), False),
        ("The nuclei look malignant.", ("t000001",), False),
        ("HSIL cells with dark nuclei.", ("t000001",), False),
        ("The nuclei are normal.", ("t000001",), False),
        ("No nuclei are seen.", ("t000001",), False),
        ("A pleasant picture.", ("t000001",), False),
    ],
)
def test_remarks_are_about_the_looks_of_cells_that_were_shown(text, cited, stands):
    line = Written(None, text, cited)
    result = check_narrative([line], [], system=CERVIX, language="en", shown=["t000001"], remark="Of {tile}: {text}")
    assert [s.text for s in result] == ([f"Of t000001: {text}"] if stands else [])
