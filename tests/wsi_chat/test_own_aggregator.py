"""A checkpoint that brings its own fitted aggregator: used for the runs it was fitted for, and for no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wsi_chat
from aggregators.features import Evidence
from aggregators.fit import Cohort, fit
from aggregators.fitted import load_fitted
from wsi_chat.analysis.result import SlideResult
from wsi_chat.analysis.slide_score import OWN
from wsi_chat.commands.models import describe_models
from wsi_chat.engines import ScriptedEngine, embedded_checkpoint
from wsi_chat.engines.checkpoint import revision
from wsi_chat.errors import SettingError
from wsi_chat.schema import Query
from wsi_chat.scoring.fitting import conditions_of_report
from wsi_chat.settings import Settings


def says(query: Query) -> str | dict[str, float]:
    if query.task == "screen":
        p = 1 - float(np.asarray(query.images[0]).mean()) / 255
        return {query.choices[0]: 1 - p, query.choices[1]: p}
    return "No abnormal cell is found." if query.task == "ground" else "A bright field."


def cohort(slides: int = 60) -> Cohort:
    rng = np.random.default_rng(5)
    y = np.arange(slides) % 2

    def evidence(abnormal: int) -> Evidence:
        logits = rng.normal(-2.0, 1.0, 40)
        logits[: 4 * abnormal] += 4.0
        unknown = np.full(40, np.nan)
        p = 1 / (1 + np.exp(-logits))
        return Evidence(p, unknown, unknown, np.zeros(40, dtype=bool), {}, {}, frozenset())

    return Cohort(
        ids=tuple(f"s{i}" for i in range(slides)),
        evidence=tuple(evidence(int(label)) for label in y),
        y=y.astype(np.intp),
        patients=tuple(f"p{i}" for i in range(slides)),
        classes=("normal", "abnormal"),
        fingerprints=tuple(f"f{i}" for i in range(slides)),
    )


@pytest.fixture(scope="module")
def model(small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a checkpoint, with an aggregator fitted for the conditions of a run with its defaults."""
    folder = tmp_path_factory.mktemp("models") / "mine"
    shutil.copytree(embedded_checkpoint(), folder, ignore=shutil.ignore_patterns(OWN, "*.safetensors", "*.md"))
    plain = look(small_slide, tmp_path_factory.mktemp("plain"), folder)
    assert plain.report.verdict.fitted is None
    conditions = conditions_of_report(plain.report)
    fit(cohort(), conditions=conditions, about="drawn", folds=3, inner=2).aggregator.save(folder / OWN)
    return folder


def look(slide: Path, out: Path, model: Path, **settings: Any) -> SlideResult:
    given: dict[str, Any] = {"specimen": "cervix", "pdf": False, "html": False, "adequacy_tiles": 0} | settings
    return wsi_chat.analyze(slide, out=out, engine=ScriptedEngine(says), model=str(model), **given)


def test_a_run_with_its_conditions_is_judged_by_it(small_slide: Path, tmp_path: Path, model: Path) -> None:
    own = load_fitted(model / OWN)
    found = look(small_slide, tmp_path, model).report
    assert found.verdict.fitted is not None
    assert found.verdict.fitted.aggregator == own.sha256 == found.provenance.aggregation["aggregator"]
    assert found.verdict.score_kind == "calibrated by Platt scaling on 60 drawn slides, logistic regression"
    assert found.verdict.threshold == 0.5
    named = look(small_slide, tmp_path, model, aggregator=str(model / OWN)).report
    assert named.verdict.score == found.verdict.score


@pytest.mark.parametrize(
    ("settings", "noted"),
    [
        ({"top_k": 3}, "top_k 3, fitted with 24"),
        ({"limit": 4}, "limit 4, fitted with none"),
        ({"aggregator": "none"}, ""),
        ({"pool": "max"}, ""),
        ({"pool_k": 3}, ""),
        ({"specimen": "urine"}, ""),
    ],
)
def test_another_run_is_not_and_says_so_where_it_came_close(
    small_slide: Path, tmp_path: Path, model: Path, settings: dict[str, Any], noted: str
) -> None:
    report = look(small_slide, tmp_path, model, **settings).report
    assert report.verdict.fitted is None
    assert report.verdict.score_kind.startswith("uncalibrated")
    notes = [note for note in report.notes if "own aggregator" in note]
    assert len(notes) == bool(noted)
    assert not noted or noted in notes[0]


def test_a_rate_for_a_run_that_it_does_not_fit_is_refused(small_slide: Path, tmp_path: Path, model: Path) -> None:
    with pytest.raises(SettingError, match="top_k 3, fitted with 24"):
        look(small_slide, tmp_path, model, top_k=3, miss_rate=0.05)
    with pytest.raises(SettingError, match="without patients held out"):
        look(small_slide, tmp_path, model, miss_rate=0.05)


def test_force_applies_it_and_says_against_what(small_slide: Path, tmp_path: Path, model: Path) -> None:
    verdict = look(small_slide, tmp_path, model, top_k=3, force=True).report.verdict
    assert verdict.fitted is not None
    assert any("top_k 3" in line for line in verdict.fitted.forced)
    assert "uncalibrated here" in verdict.score_kind


def test_a_damaged_one_stops_the_run_before_anything_is_asked(small_slide: Path, tmp_path: Path, model: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    path = broken / OWN / "aggregator.json"
    path.write_text(path.read_text()[:-200])
    engine = ScriptedEngine(says)
    with pytest.raises(SettingError, match=r"aggregator\.json is cut off"):
        wsi_chat.analyze(small_slide, out=tmp_path / "out", engine=engine, model=str(broken), specimen="cervix")
    assert engine.asked == []


def test_it_does_not_change_the_checkpoint_that_it_was_fitted_on(model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "mine"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns(OWN))
    assert revision(bare) == revision(model)


def test_it_stands_back_from_a_slide_unlike_those_of_its_fit(small_slide: Path, tmp_path: Path, model: Path) -> None:
    def sure(query: Query) -> str | dict[str, float]:
        # every tile as normal as can be: the fit has seen logits around -2
        return {query.choices[0]: 1 - 1e-5, query.choices[1]: 1e-5} if query.task == "screen" else says(query)

    given: dict[str, Any] = {
        "specimen": "cervix",
        "pdf": False,
        "html": False,
        "adequacy_tiles": 0,
        "model": str(model),
    }
    report = wsi_chat.analyze(small_slide, out=tmp_path / "a", engine=ScriptedEngine(sure), **given).report
    assert report.provenance.aggregation["pool"] == "topk_logit"
    left = report.verdict
    assert left.fitted is None
    assert (left.status, left.threshold) == ("indeterminate", 0.5)
    assert left.grounds[0].rule == "fit.unlike"
    assert left.score == pytest.approx(1e-4, rel=0.01)  # the pool clips there
    assert left.score_kind.startswith("uncalibrated")
    assert "was not applied: this slide is unlike those it was fitted on (logit" in left.reason
    # who names it, gets it
    named = wsi_chat.analyze(
        small_slide, out=tmp_path / "b", engine=ScriptedEngine(sure), aggregator=str(model / OWN), **given
    ).report.verdict
    assert named.fitted is not None
    assert "was not applied" not in named.reason
    assert (named.status, named.grounds[0].rule) == ("indeterminate", "fit.unlike")


def test_models_shows_it(model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns(OWN))
    payload, _ = describe_models([model, bare])
    assert payload[1]["aggregator"].startswith("logistic regression, 60 drawn slides, cervix-tbs2014")
    assert payload[2]["aggregator"] == ""


def test_the_embedded_checkpoint_brings_one_for_its_defaults() -> None:
    own = load_fitted(embedded_checkpoint() / OWN).record
    here = f"embedded@{revision(embedded_checkpoint())}"
    assert own.conditions["model"] == [f"{here}:bfloat16", f"{here}:float32"]  # on a GPU as on the CPU
    defaults = Settings()
    for name in ("top_k", "overlap", "limit", "mask", "exhaustive", "views", "contrast", "zoom"):
        expected = True if name == "mask" else getattr(defaults, name)  # auto masks slides
        assert own.conditions[name] == expected, name
    assert own.cohort.about == "rendered"
    about = json.loads((embedded_checkpoint() / OWN / "aggregator.json").read_text())["cohort"]
    assert about["patients_given"] is True
