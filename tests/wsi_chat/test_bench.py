"""`wsi-chat bench`: what is measured, that no cache answers for the engine, and what it advises."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wsi_chat.bench.measure import measure
from wsi_chat.bench.result import Bench, Stage, advise
from wsi_chat.cli import app
from wsi_chat.engines import ScriptedEngine
from wsi_chat.engines.model import Model
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.schema import Query
from wsi_chat.settings import Settings


def says(query: Query) -> str | dict[str, float]:
    return {query.choices[0]: 0.9, query.choices[1]: 0.1} if query.choices else "None is found."


def test_a_slide_is_measured_stage_by_stage_on_tiles_that_no_cache_holds(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(says)
    settings = Settings(specimen="cervix", top_k=24, format=("json",), gallery=0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = measure(small_slide, settings, Model(settings, given=engine), tiles=6)
    assert [stage.name for stage in found.stages] == ["load", "plan", "read", "screen", "detail", "documents"]
    assert (found.tiles, found.stage("screen").items) == (6, 6)
    assert found.planned > 12
    assert all(stage.seconds >= 0 for stage in found.stages)
    # the closer look is at four tiles, and extrapolated to the 24 of the settings
    detail = found.stage("detail")
    assert detail.items == 4 * 12
    assert detail.whole == pytest.approx(detail.seconds * 24 / 4)
    assert found.stage("screen").whole == pytest.approx(found.stage("screen").seconds * found.planned / 6)
    screened = [query for query in engine.asked if query.task == "screen"]
    from_memory = {query.key for query in screened if query.tile_id == "bench"}
    in_the_run = {query.key for query in screened if query.tile_id != "bench"}
    assert len(in_the_run) == 6
    assert len(from_memory) >= 2
    pictures = [
        {query.images[0].tobytes() for query in screened if (query.tile_id == "bench") is way} for way in (True, False)
    ]
    assert all(pictures)
    assert not pictures[0] & pictures[1]
    assert list(tmp_path.iterdir()) == []  # nothing is kept
    plain = json.loads(json.dumps(found.as_json()))
    assert plain["whole_slide_seconds"] == pytest.approx(found.whole_slide, abs=0.001)
    assert {"rate", "share", "limit", "against", "settings"} <= set(plain["stages"][3])


def test_what_cannot_be_measured_is_named(small_slide: Path, tmp_path: Path) -> None:
    settings = Settings(specimen="cervix", limit=1)
    model = Model(settings, given=ScriptedEngine(says))
    with pytest.raises(SettingError, match="has 1 tile"):
        measure(small_slide, settings, model)
    with pytest.raises(SettingError, match="--tiles is 0"):
        measure(small_slide, settings, model, tiles=0)
    mute = Settings(specimen="cervix")
    with pytest.raises(EngineError, match="1 of 1 questions failed"):
        measure(small_slide, mute, Model(mute, given=ScriptedEngine({})), tiles=2)


def stages(**changed: dict[str, Any]) -> tuple[Stage, ...]:
    """A machine on which screening waits for the model and nothing else stands out."""
    usual: dict[str, dict[str, Any]] = {
        "load": {"seconds": 5.0},
        "plan": {"seconds": 1.0},
        "read": {"seconds": 1.0, "items": 500, "limit": 600.0},
        "screen": {"seconds": 10.0, "items": 200, "limit": 21.0, "whole": 100.0},
        "detail": {"seconds": 2.0, "items": 48, "limit": 25.0, "whole": 20.0},
        "documents": {"seconds": 5.0},
    }
    return tuple(Stage(name, **{**values, **changed.get(name, {})}) for name, values in usual.items())


@pytest.mark.parametrize(
    ("changed", "first", "never"),
    [
        ({}, "Screening waits for the model", "Reading"),
        ({"read": {"seconds": 25.0}}, "--workers 8 (now 2)", "questions are built too slowly"),
        ({"screen": {"limit": 40.0}}, "questions are built too slowly", "waits for the model"),
        ({"detail": {"whole": 300.0}}, "--top-k", "Reading"),
        ({"documents": {"seconds": 90.0}}, "Screening waits", "--base-url"),
        ({"load": {"seconds": 400.0}}, "--base-url", "Reading"),
    ],
)
def test_the_advice_names_the_setting_of_what_takes_longest(
    changed: dict[str, dict[str, Any]], first: str, never: str
) -> None:
    lines = advise(stages(**changed), workers=2, cores=8, engine="transformers", gpu=False)
    assert first in lines[0]
    assert not any(never in line for line in lines)
    assert any("--format json" in line for line in lines) is ("documents" in changed)


def test_figures_that_cannot_be_trusted_are_said_to_be_so_before_any_advice() -> None:
    quiet = advise(stages(), workers=2, cores=2, engine="transformers", gpu=False, load=0.9)
    busy = advise(stages(), workers=2, cores=2, engine="transformers", gpu=False, load=23.5)
    assert "a load of 23.5 on 2 cores" in busy[0]
    assert busy[1:] == quiet
    odd = advise(stages(detail={"limit": 15.0}), workers=2, cores=8, engine="transformers", gpu=False)
    assert "The detail row came out faster (24 slide/s) than its limit (15)" in odd[0]
    assert not any("came out faster" in line for line in quiet)  # screen: 20 of 21


def test_the_parts_of_the_whole_slide_add_up_to_it() -> None:
    found = Bench("a", "m", "e", {}, 200, 2000, stages())
    parts = {stage.name: found.part(stage) for stage in found.stages}
    assert parts["load"] is parts["read"] is None
    assert sum(part or 0.0 for part in parts.values()) == pytest.approx(1.0)
    assert parts["screen"] == pytest.approx(100 / 126)
    assert found.as_json()["stages"][3]["part"] == pytest.approx(0.794)


def test_a_share_is_of_the_limit_and_noise_above_it_is_all_of_it() -> None:
    assert Stage("read", 2.0, 100, "tiles", limit=200.0).share == 0.25
    assert Stage("read", 0.1, 100, "tiles", limit=200.0).share == 1.0
    assert Stage("plan", 2.0).share is None


def test_the_command_prints_a_table_or_json(small_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_chat.engines.load_engine", lambda *args, **options: ScriptedEngine(says))
    options = ["bench", str(small_slide), "--specimen", "cervix", "--tiles", "3", "--format", "json", "--gallery", "0"]
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0, shown.output
    assert "3 of " in shown.stdout
    assert "--overlap; its limit: the engine fed from memory" in " ".join(shown.stdout.split())
    assert "detail depends on --top-k" in shown.stdout
    assert "%" in next(line for line in shown.stdout.splitlines() if line.startswith("documents"))
    assert "what to change:" in shown.stdout.splitlines()
    assert shown.stdout.splitlines()[-1].startswith(("- ", "  "))
    document = CliRunner().invoke(app, [*options, "--json"])
    assert [stage["name"] for stage in json.loads(document.stdout)["stages"]][-1] == "documents"
