"""What a report says of a fitted score and of a category's confidence: in both documents, and in both languages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from aggregators.fitted import HEADS, METHODS
from reports.language import Words
from reports.page import page_data
from reports.webpage import report_html
from wsi_chat.schema import Adequacy, Fitted, Remark, Report

PROMISE = "expected miss rate at most 0.05 (40 abnormal patients held out), for slides like those of the fit"


def fitted_report(report: Report, *, forced: tuple[str, ...] = (), guarantee: str = PROMISE) -> Report:
    fitted = Fitted(
        head="logistic", aggregator="ab" * 32, calibration="platt", classes={"normal": 0.2, "abnormal": 0.8}, low=0.31,
        guarantee=guarantee, forced=forced,
    )  # fmt: skip
    kind = "calibrated by Platt scaling on 90 rendered slides, logistic regression"
    verdict = report.verdict.model_copy(
        update={
            "fitted": fitted, "score": 0.8, "threshold": 0.62, "score_kind": kind,
            "adequacy": Adequacy(status="satisfactory", reason="Enough.", notes=("Cells in groups count once.",)),
        }
    )  # fmt: skip
    return report.model_copy(update={"verdict": verdict})


def shown(report: Report, tiles: Any, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    data = page_data(report, tiles, folder)
    return data, {line["label"]: line["value"] for line in data["verdict"]["lines"]}


def test_a_promise_and_the_band_are_shown(abnormal, tmp_path):
    data, lines = shown(fitted_report(abnormal.report), abnormal.tiles, tmp_path)
    assert lines["Threshold"] == f"{PROMISE}, indeterminate from 0.310 to 0.620"
    assert data["verdict"]["calibration"] == "score: calibrated (Platt scaling)"
    assert data["verdict"]["gauge"]["kind"].endswith("90 rendered slides, logistic regression")
    assert data["notes"][-1] == "Cells in groups count once."


def test_a_forced_aggregator_is_not_called_calibrated_and_nothing_is_promised(abnormal, tmp_path):
    report = fitted_report(abnormal.report, forced=("top_k 3, fitted with 24",), guarantee="")
    data, lines = shown(report, abnormal.tiles, tmp_path)
    assert data["verdict"]["calibration"] == "score: uncalibrated"
    assert "Threshold" not in lines


def test_the_confidence_in_the_category_is_shown_with_its_meaning(abnormal, tmp_path):
    verdict = abnormal.report.verdict
    assert verdict.category is not None
    _, lines = shown(abnormal.report, abnormal.tiles, tmp_path)
    assert lines["Confidence"].startswith(f"{verdict.category_confidence:.2f}, uncalibrated: probability that at least")
    without = verdict.model_copy(update={"category_confidence": None})
    _, lines = shown(abnormal.report.model_copy(update={"verdict": without}), abnormal.tiles, tmp_path)
    assert "Confidence" not in lines


def test_the_page_on_the_web_says_the_same(abnormal, tmp_path):
    page = report_html(fitted_report(abnormal.report), abnormal.tiles, tmp_path)
    text = re.sub(r"<[^>]+>", " ", page)
    assert PROMISE in text
    assert "score: calibrated (Platt scaling)" in text


def calibrated(head: str, method: str, about: Remark | str) -> Remark:
    return Remark("score.calibrated", method=METHODS[method], n=90, about=about, head=HEADS[head])


def test_chinese_keeps_that_slides_were_rendered():
    zh = Words("zh")
    for head in HEADS:
        for method in METHODS:
            assert "合成切片" in zh.remark(calibrated(head, method, Remark("about.rendered")))
            assert "合成" not in zh.remark(calibrated(head, method, ""))
            assert "“borrowed”切片" in zh.remark(calibrated(head, method, Remark("about.given", about="borrowed")))
    assert calibrated("logistic", "platt", Remark("about.rendered")) == (
        "calibrated by Platt scaling on 90 rendered slides, logistic regression"
    )


@pytest.mark.parametrize(
    "remark",
    [
        Remark("guarantee.misses", rate=0.05, n=40),
        Remark("guarantee.misses_and_alarms", rate=0.05, n=40, alarms=0.1, normal=30),
        Remark("score.forced", head=HEADS["attention"]),
        Remark("score.findings", n=4, k=10),
        Remark("confidence.published", needed=3, n=21),
        Remark("confidence.given", needed=1, n=1),
        Remark(
            "aggregator.other_settings",
            differences=[Remark("aggregator.condition", setting="top_k", value="3", fitted="24")],
        ),
    ],
    ids=lambda remark: remark.code,
)
def test_chinese_has_words_for_each_and_keeps_its_numbers(remark):
    text = Words("zh").remark(remark)
    assert any("\u4e00" <= letter <= "\u9fff" for letter in text)
    assert set(re.findall(r"\d+(?:\.\d+)?", text)) == set(re.findall(r"\d+(?:\.\d+)?", remark))
    assert not re.search(r"\b(is|are|the|of)\b", text)
