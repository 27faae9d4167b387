"""What a report says of a fitted score and of a category's confidence: in both documents, and in both languages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from reports.language import Words
from reports.page import page_data
from reports.webpage import report_html
from wsi_chat.schema import Adequacy, Fitted, Report

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
    assert lines["Threshold"] == f"{PROMISE}, indeterminate from 0.31 to 0.62"
    assert data["verdict"]["calibration"] == "score: calibrated (platt)"
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
    assert "score: calibrated (platt)" in text


def test_chinese_keeps_that_slides_were_rendered():
    for head in ("logistic regression", "attention MIL"):
        for way in ("Platt scaling", "isotonic regression"):
            said = f"calibrated by {way} on 90 rendered slides, {head}"
            assert "合成切片" in Words("zh").program(said)
            assert "合成" not in Words("zh").program(said.replace("rendered ", ""))
            # for other slides there are no words, so the English ones stay
            odd = said.replace("rendered", "borrowed")
            assert Words("zh").program(odd) == odd


@pytest.mark.parametrize(
    "said",
    [
        PROMISE,
        "expected miss rate at most 0.05 (40 abnormal patients held out), false-alarm rate at most 0.1 (30 normal), for"
        " slides like those of the fit",
        "calibrated by Platt scaling on 90 rendered slides, logistic regression",
        "calibrated by isotonic regression on 900 slides, attention MIL",
        "uncalibrated here: attention MIL applied against its conditions",
        "uncalibrated: probability that at least 3 of 21 findings are right, from the agreement of tiles and a"
        " published precision of boxes",
        "probability that at least 1 of 1 finding are right, from the agreement of tiles and a given precision of"
        " boxes",
        "The score is uncalibrated: the checkpoint's own aggregator holds for other settings (top_k 3, fitted with"
        " 24).",
    ],
)
def test_chinese_has_words_for_each_and_keeps_its_numbers(said):
    told = Words("zh").program(said)
    assert told != said
    assert any("\u4e00" <= letter <= "\u9fff" for letter in told)
    assert set(re.findall(r"\d+(?:\.\d+)?", told)) == set(re.findall(r"\d+(?:\.\d+)?", said))
