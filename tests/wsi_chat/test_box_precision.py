"""The measured share of right boxes: read from what a user gives, and what it does to the confidence in a category."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsi_chat
from wsi_chat.analysis.box_precision import read_box_precision
from wsi_chat.engines import ScriptedEngine
from wsi_chat.errors import SettingError
from wsi_chat.evaluation.evaluate import evaluate
from wsi_chat.schema import Query


@given(st.floats(0, 1))
def test_a_share_is_itself(value: float) -> None:
    assert read_box_precision(f" {value!r} ") == value


def test_shares_by_class() -> None:
    assert read_box_precision("HSIL=0.7, lsil = .5") == {"hsil": 0.7, "lsil": 0.5}
    assert read_box_precision(None) is None


@pytest.mark.parametrize("text", ["1.2", "-0.1", "nan", "often", "hsil=2", "hsil=", ""])
def test_what_is_no_share_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(SettingError, match="no share between 0 and 1"):
        read_box_precision(text)


def test_the_json_of_an_evaluation_gives_the_precision_of_each_class(tmp_path: Path) -> None:
    rows = [
        # two boxes for one true cell: a precision of one half
        {"prompt": "Locate all hsil.", "predict": "hsil 1 is located at <region>10 10 50 50</region>. hsil 2 is located"
         " at <region>100 100 140 140</region>.", "label": "hsil 1 is located at <region>10 10 50 50</region>.",
         "images": ["a.png"], "dialect": "cytochat", "label_dialect": "cytochat", "image_sizes": [[448, 448]],
         "sent_sizes": [[448, 448]]},
    ]  # fmt: skip
    file = tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "scores.json"
    path.write_text(evaluate(file).model_dump_json())
    assert read_box_precision(str(path)) == {"hsil": 0.5}


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"grounding": null}', '{"grounding": {"by_class": {}}}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(SettingError, match=r"other\.json"):
        read_box_precision(str(path))
    with pytest.raises(SettingError, match="No such file"):
        read_box_precision(str(tmp_path / "gone.json"))


def test_a_yes_in_a_file_is_no_precision(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text('{"grounding": {"by_class": {"HSIL": {"found": 3, "precision": {"value": true}}}}}')
    with pytest.raises(SettingError, match=r"scores\.json.*the precision of hsil is True, not a number"):
        read_box_precision(str(path))


def says(query: Query) -> str | dict[str, float]:
    if query.task == "screen":
        return {query.choices[0]: 0.05, query.choices[1]: 0.95}
    box = "hsil 1 is located at <region>100 100 140 140</region>."
    return box if query.target == "hsil" else f"No {query.target} is found."


def test_better_boxes_make_a_category_surer_and_the_report_says_whose_figure_it_is(
    small_slide: Path, tmp_path: Path
) -> None:
    verdicts = {}
    for given_, whose in ((None, "published"), ("0.9", "given"), ("hsil=0.9", "given")):
        report = wsi_chat.analyze(
            small_slide, out=tmp_path, engine=ScriptedEngine(says), specimen="cervix", top_k=4, box_precision=given_,
            pdf=False, html=False,
        ).report  # fmt: skip
        verdicts[given_] = report.verdict
        assert f"a {whose} precision of boxes" in report.verdict.category_confidence_kind
        assert report.verdict.category_confidence_kind.startswith("uncalibrated") == (whose == "published")
    assert verdicts[None].category == verdicts["0.9"].category == "hsil"
    assert verdicts[None].category_confidence < verdicts["0.9"].category_confidence
    assert verdicts["0.9"].category_confidence == verdicts["hsil=0.9"].category_confidence


def test_a_class_that_the_system_does_not_have_is_refused_before_anything_is_asked(
    small_slide: Path, tmp_path: Path
) -> None:
    engine = ScriptedEngine(says)
    with pytest.raises(SettingError, match="no class 'hsli'"):
        wsi_chat.analyze(small_slide, out=tmp_path, engine=engine, specimen="cervix", box_precision="hsli=0.7")
    assert engine.asked == []
