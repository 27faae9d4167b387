"""Text on page one: whole, or cut where a sentence ends, with the place of the rest; never within a word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.language import Words
from reports.page import page_data
from reports.printable import sentences
from wsi_chat.remarks import together
from wsi_chat.schema import Remark

MORE = "(more below)"


def test_a_text_that_fits_is_whole():
    assert sentences("One. Two at 0.5.", 20, MORE) == "One. Two at 0.5."


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("The score 0.000 is below 0.500. The slide is outside.", 40, "The score 0.000 is below 0.500. (more below)"),
        ("One. Two. Three is longer than what fits.", 12, "One. Two. (more below)"),
        ("评分低于阈值。该切片不在范围内。其余从略。", 33, "评分低于阈值。该切片不在范围内。 (more below)"),
        ("A sentence without an end that fits", 20, "A sentence without… (more below)"),
        ("x" * 30, 10, f"{'x' * 10}… (more below)"),
    ],
)
def test_a_longer_one_ends_with_a_sentence(text, limit, kept):
    assert sentences(text, limit, MORE) == kept


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=30), st.integers(12, 120))
def test_no_sentence_is_cut_within(words, limit):
    text = " ".join(f"{word}." for word in words)
    shown = sentences(text, limit, MORE)
    if shown != text:
        assert shown.endswith(f". {MORE}")
        assert text.startswith(shown.removesuffix(f" {MORE}"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_page_one_leaves_out_is_under_the_methods(make, tmp_path, language):
    case, words = make(), Words(language)
    said = together(*(Remark("verdict.unsure", n=n) for n in range(1, 40)))
    adequacy = case.report.verdict.adequacy.model_copy(update={"reason": said})
    verdict = case.report.verdict.model_copy(update={"reason": said, "adequacy": adequacy})
    report = case.report.model_copy(update={"verdict": verdict})
    data = page_data(report, case.tiles, tmp_path, words=words)
    more = f" {words('page.continued')}"
    page_one = [line["value"] for line in data["verdict"]["lines"] if line["label"] == words("page.adequacy")]
    whole = {entry["label"]: entry["value"] for entry in data["details"]}
    for shown, label in ((data["verdict"]["reason"], "reason_verdict"), (page_one[0], "reason_adequacy")):
        assert shown.endswith(more)
        kept = shown.removesuffix(more).split(words.stop, 1)[1] if label.endswith("adequacy") else shown
        assert kept.removesuffix(more).strip() in whole[words(f"page.{label}")]
        assert kept.removesuffix(more)[-1] in ".。"
