"""wsi-chat specimens: the list, one system with its sources, a file checked and then used as --specimen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import wsi_chat
from wsi_chat.cli import app
from wsi_chat.engines import ScriptedEngine
from wsi_chat.errors import WsiChatError
from wsi_chat.terminology import load_system, specimens

WIDE = {"COLUMNS": "200"}
CASES = Path(__file__).parents[1] / "cases" / "bad_specimens.yaml"


def run(*arguments: str):
    return CliRunner().invoke(app, ["specimens", *arguments], env=WIDE)


def test_the_list_names_every_system_and_every_specimen_code() -> None:
    shown = run()
    assert shown.exit_code == 0
    rows = json.loads(run("--json").stdout)
    assert [row["system"] for row in rows] == [system.code for system in specimens()]
    words = shown.stdout.split()
    assert all(any(word.strip(",") == code for word in words) for row in rows for code in row["specimens"])


@pytest.mark.parametrize("system", specimens(), ids=lambda system: system.code)
def test_one_system_is_shown_in_full_with_the_source_of_each_field(system) -> None:
    shown = " ".join(run(system.specimens[0]).stdout.split())
    assert all(label.code in shown for label in system.labels)
    assert all(category.name in shown for category in system.categories)
    assert all(item.text in shown for item in system.prohibitions)
    assert all(key in shown for key in system.citations)
    assert " ".join(system.wording.normal.split()) in shown
    loaded = json.loads(run(system.specimens[0], "--json").stdout)
    assert loaded["code"] == system.code
    assert len(loaded["prohibitions"]) == len(system.prohibitions)


def test_published_risks_and_minima_stand_beside_their_source() -> None:
    thyroid = " ".join(run("thyroid").stdout.split())
    assert "74 % (67-83, range) [tbsrtc2023]" in thyroid
    assert "6 groups of 10 cells each" in thyroid
    assert "5,000 cells (2,000 with --reduced-minimum)" in " ".join(run("cervix").stdout.split())


def test_an_unknown_name_or_two_tasks_at_once_are_refused() -> None:
    for arguments, words in ((["cervx"], "did you mean 'cervix'"), (["cervix", "--check", "x.yaml"], "both")):
        made = run(*arguments)
        assert isinstance(made.exception, WsiChatError)
        assert words in str(made.exception)
        assert made.exception.exit_code == 2


def cases() -> list[dict[str, str]]:
    import yaml

    loaded: list[dict[str, str]] = yaml.safe_load(CASES.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_a_bad_file_is_told_by_path_value_and_way_out(tmp_path: Path, case) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(case["file"], encoding="utf-8")
    made = run("--check", str(path), "--json")
    assert made.exit_code == 2
    told = json.loads(made.stdout)
    assert not told["ok"]
    problem = next(entry for entry in told["problems"] if entry["path"] == case["path"])
    assert case["value"] in problem["value"]
    assert case["message"] in problem["message"]
    assert case["hint"] in problem["hint"]
    shown = run("--check", str(path)).stdout
    assert case["path"] in shown
    with pytest.raises(WsiChatError, match="mine"):
        load_system(str(path))


GOOD = """
extends: cervix-tbs2014
code: mine
name: Our cervix
version: "1"
specimens: [mine]
label_map: {koilocyte: lsil}
"""


def test_a_good_file_is_summed_up_and_then_used(tmp_path: Path, small_slide: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    made = run("--check", str(path))
    assert made.exit_code == 0
    assert "Our cervix, version 1: 19 labels, 10 categories" in made.stdout
    assert "category ais is drawn from no label" in made.stdout
    result = wsi_chat.analyze(
        small_slide, out=tmp_path / "out", engine=ScriptedEngine(_abnormal), specimen=str(path), top_k=2, pdf=False,
        adequacy_tiles=0,
    )  # fmt: skip
    assert result.report.specimen.code == "mine"
    assert str(tmp_path) not in result.report.specimen.model_dump_json()
    assert result.status == "abnormal"


def _abnormal(query):
    if query.task == "screen":
        return {query.choices[0]: 0.05, query.choices[1]: 0.95}
    return "none" if query.task == "ground" else "A field."
