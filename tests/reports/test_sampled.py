"""A slide of which ``--limit`` had only a sample screened: every document shows the share of the whole, and of what."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aggregators import aggregate
from reports import methods
from reports.html import verdict_html
from reports.language import Words
from reports.narrative import narrate
from reports.page import page_data
from wsi_chat.analysis.summary import row_of
from wsi_chat.schema import Box

LEFT_OUT = 3240
"""Tiles beside the 216 of the case, of which one in sixteen is screened: 6.25 %."""


def sampled(case):
    funnel = case.report.funnel.model_copy(update={"grid": 216 + LEFT_OUT, "foreground": 216 + LEFT_OUT})
    verdict = aggregate(case.tiles, system=case.system, funnel=funnel, bounds=Box(0, 0, 9000, 6000))
    report = case.report.model_copy(update={"funnel": funnel, "verdict": verdict})
    report = report.model_copy(update={"narrative": narrate(report, case.tiles, case.system)})
    return dataclasses.replace(case, report=report)


def test_page_one_is_held_to_the_share_of_the_whole_slide(make, tmp_path):
    case = sampled(make(hot=0, unread=0, failed=0))
    assert case.report.verdict.status == "indeterminate"
    gaps = page_data(case.report, case.tiles, tmp_path)["gaps"]
    plain = {name: text.replace("\u202f", " ").replace("\xa0", " ") for name, text in gaps.items()}
    assert plain["coverage"].startswith("6.2")
    assert plain["floor"] == "of the tiles that may hold cells, floor 90 %"
    assert plain["low"] == "too low"
    assert plain["missing"] == "100 % of the tiles selected, 0 without an answer (0 unreadable)"


def test_a_count_is_held_to_the_tiles_selected_and_both_shares_are_named(make):
    report = sampled(make(specimen="blood-smear", unread=0, failed=0)).report
    assert report.verdict.status == "counted"
    gaps = methods.gaps(report, Words("en"))
    assert gaps["coverage"].startswith("100")
    assert gaps["floor"].startswith("of the tiles selected")
    assert gaps["low"] == ""
    assert gaps["missing"].startswith("6.2")
    assert "of the tiles that may hold cells" in gaps["missing"]


def test_a_slide_that_was_screened_whole_has_one_share(make):
    report = make(hot=0, unread=0, failed=0).report
    gaps = methods.gaps(report, Words("en"))
    assert gaps["coverage"].startswith("100")
    assert gaps["floor"].startswith("floor")
    assert "selected" not in gaps["missing"]


def test_the_share_of_the_whole_is_said_in_the_table_the_narrative_and_the_card(make, tmp_path):
    report = sampled(make(hot=0, unread=0, failed=0)).report
    row = row_of(report)
    assert row["coverage"] == f"{report.verdict.coverage:.4f}" == "1.0000"
    assert row["tiles_screened_of_foreground"] == "0.0625"
    told = [sentence.text for sentence in report.narrative if "selected were screened" in sentence.text]
    assert len(told) == 1
    assert "6.2" in told[0]
    assert "a coverage of 100" not in told[0]
    assert "Coverage 6.2% of the tiles that may hold cells (100.0% of the tiles selected)." in verdict_html(
        report, tmp_path
    )


@pytest.mark.parametrize("specimen", ["cervix", "blood-smear"])
def test_in_chinese_too(make, specimen):
    report = sampled(make(specimen=specimen, hot=0 if specimen == "cervix" else 8, unread=0, failed=0)).report
    gaps = methods.gaps(report, Words("zh"))
    of, other = ("可能含细胞", "选取") if specimen == "cervix" else ("选取", "可能含细胞")
    assert of in gaps["floor"]
    assert other in gaps["missing"]


def test_no_slide_has_more_than_the_whole(make):
    report = make(hot=0).report
    shares = [
        report.funnel.model_copy(update={"screened": n, "foreground": m}).coverage_foreground
        for n, m in ((0, 0), (3, 0), (5, 4), (3, 4))
    ]
    assert np.allclose(shares, [0.0, 0.0, 1.0, 0.75])
