"""Whatever is brought, and whoever answers: what cannot be known to be normal is not called normal."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import wsi_chat
from wsi_chat.analysis.summary import indeterminate_by_error, row_of
from wsi_chat.engines import Engine, ScriptedEngine, load_engine
from wsi_chat.schema import DISCLAIMER, Report

MADE = runpy.run_path(str(Path(__file__).with_name("never_normal.py")))
MPP, PICTURES, SCREENS, script = (MADE[name] for name in ("MPP", "PICTURES", "SCREENS", "script"))
CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "never_normal.yaml").read_text(encoding="utf-8")
)
EMBEDDED = Path(wsi_chat.__file__).parent / "embedded"
QUICK: dict[str, Any] = {
    "top_k": 0, "adequacy_tiles": 0, "aggregator": "none", "format": "json", "gallery": 0, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def embedded() -> Iterator[Engine]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    engine = load_engine(None, engine="transformers")
    yield engine
    engine.close()
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Analyze one case; the embedded model is loaded once for all of them, and is not handed in as a stranger's."""

    def analyze(case: dict[str, Any]) -> Report:
        given = {**QUICK, "specimen": case.get("specimen", "cervix"), **case.get("settings", {})}
        name, model = case["picture"], case.get("model", "negative")
        shared = {
            "tissue": "data/slides/CMU-1-Small-Region.svs", "blood": "data/bccd/JPEGImages/BloodImage_00000.jpg"
        }.get(name)  # fmt: skip
        path = request.getfixturevalue("shared")(shared) if shared else PICTURES[name](tmp_path)
        if path.suffix in (".png", ".jpg"):
            given.setdefault("mpp", MPP)
        if name == "tissue":  # all of it takes a minute; what it is called does not hang on how much is read
            given |= {"limit": 30, "coverage_floor": 0.0}
        if given.get("positive_controls") == "CONTROLS":
            given["positive_controls"] = str(EMBEDDED / "controls")
        if "scope" in given:
            (tmp_path / "scope.yaml").write_text(
                yaml.safe_dump({"statement": "For tests.", "specimens": given["scope"]})
            )
            given["scope"] = str(tmp_path / "scope.yaml")
        if model == "embedded":
            engine = request.getfixturevalue("embedded")
            monkeypatch.setattr("wsi_chat.engines.load_engine", lambda *args, **options: engine)
            monkeypatch.setattr(engine, "close", lambda: None)
            return wsi_chat.analyze(path, out=tmp_path / "out", **given).report
        scripted = ScriptedEngine(script(model), controls="scripted", model_name=model)  # type: ignore[arg-type]
        return wsi_chat.analyze(path, out=tmp_path / "out", engine=scripted, **given).report

    return analyze


@pytest.mark.parametrize("case", CASES, ids=[case["name"].replace(" ", "-") for case in CASES])
def test_it_is_never_normal_and_says_why(case: dict[str, Any], run: Any) -> None:
    report = run(case)
    verdict = report.verdict
    rules = [ground.rule for ground in verdict.grounds]
    assert verdict.status == case["status"], (rules, verdict.reason)
    assert case["rule"] in rules, verdict.reason
    assert indeterminate_by_error(report) == case["error"]
    row = row_of(report)
    assert row["status"] != "normal"
    assert row["headline"] == verdict.grounds[0].headline
    assert row["rules"].split("; ") == rules
    assert all(ground.reason in verdict.reason for ground in verdict.grounds)
    assert verdict.category is None
    assert report.disclaimer == DISCLAIMER


def test_there_are_enough_cases_and_each_has_its_own_name() -> None:
    assert len(CASES) >= 25
    assert len({case["name"] for case in CASES}) == len(CASES)
    assert {case.get("model", "negative") for case in CASES} == {*SCREENS, "embedded"}


@pytest.mark.parametrize("settings", [{}, {"scope": {"cervix": "real"}}, {"limit": 16}])
def test_a_sound_slide_of_a_sound_model_is_normal(settings: dict[str, Any], run: Any) -> None:
    report = run({"picture": "slide", "settings": settings})
    assert (report.verdict.status, report.verdict.grounds) == ("normal", ())
    assert report.controls is not None
    assert report.controls.passed
    assert len(report.controls.answers) <= 12
    assert {answer.kind for answer in report.controls.answers} == {"glass", "blurred", "noise", "swapped"}


def test_controls_may_be_turned_off_and_the_report_says_so(run: Any) -> None:
    report = run({"picture": "slide", "settings": {"controls": False}, "model": "constant_low"})
    assert (report.verdict.status, report.controls) == ("normal", None)
    assert any("control questions were turned off" in note for note in report.notes)
