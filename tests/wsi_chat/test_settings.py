"""Settings: which source wins, and what a wrong value says."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from wsi_chat import cli
from wsi_chat.analysis.provenance import config_of
from wsi_chat.commands.analyze import analyze
from wsi_chat.commands.cohort import cohort
from wsi_chat.commands.settings import markdown_lines
from wsi_chat.errors import SettingError
from wsi_chat.settings import FORMATS, Settings, affecting, declared, fit_conditions, from_environment, resolve
from wsi_chat.training.settings import settings_of

RARE = {
    "pool", "pool_k", "coverage_floor", "overlap", "workers", "timeout", "dtype", "seed", "gallery", "font_path",
    "views", "contrast", "zoom", "scope", "positive_controls", "pseudonyms", "trial",
}  # fmt: skip


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("top-k: 5\npool_k: 3\nthreshold: 0.7\n")
    environ = {"WSI_CHAT_TOP_K": "6", "WSI_CHAT_POOL_K": "4", "HOME": "/nowhere"}
    settings, origin = resolve({"top_k": 7, "pool_k": None}, config=config, environ=environ)
    assert (settings.top_k, settings.pool_k, settings.threshold) == (7, 4, 0.7)
    assert settings.overlap == Settings().overlap
    assert origin == {"top_k": "flag", "pool_k": "environment", "threshold": f"file {config}"}


@pytest.mark.parametrize(
    ("flags", "environ", "named", "seen"),
    [
        ({"overlap": 0.9}, {}, "overlap", "0.9"),
        ({"format": "pdf,doc"}, {}, "--format", "doc"),
        ({}, {"WSI_CHAT_DICOM": "perhaps"}, "dicom", "perhaps"),
        ({}, {"WSI_CHAT_TOP_K": "many"}, "WSI_CHAT_TOP_K", "many"),
        ({"engine": "magic"}, {}, "--engine", "magic"),
        ({"mpp": float("nan")}, {}, "--mpp", "nan"),
        ({"threshold": 1.0}, {}, "--threshold", "1.0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_where_it_came_from(
    flags: dict[str, object], environ: dict[str, str], named: str, seen: str
) -> None:
    with pytest.raises(SettingError) as raised:
        resolve(flags, environ=environ)
    assert named in raised.value.message
    assert seen in raised.value.message
    assert raised.value.hint
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"limit": "x"}, "Give a whole number, 1 or more."),
        ({"limit": 1.5}, "Give a whole number, 1 or more."),
        ({"limit": 0}, "Give a whole number, 1 or more."),
        ({"limit": []}, "Give a whole number, 1 or more."),
        ({"workers": 65}, "Give a whole number from 1 to 64."),
        ({"mpp": -1}, "Give a number above 0."),
        ({"mpp": float("inf")}, "Give a number above 0."),
        ({"threshold": 1}, "Give a number above 0 and below 1."),
        ({"overlap": "much"}, "Give a number from 0 to 0.75."),
        ({"engine": "magic"}, "Choose auto, transformers, vllm or openai."),
        ({"exhaustive": "perhaps"}, "Give yes or no."),
        ({"exhaustive": {}}, "Give yes or no."),
        ({"model": 5}, "Give a text."),
        ({"ancillary": 5}, "Give a list."),
        ({"z": "top"}, "choose best, fused, mid, or a plane's number from 0."),
    ],
)
def test_the_way_out_is_said_in_plain_words_with_all_limits(given: dict[str, object], fix: str) -> None:
    with pytest.raises(SettingError) as raised:
        resolve(given)
    assert raised.value.hint == fix


@pytest.mark.parametrize("seen", ["x", "1.5", "0", "nan", "9" * 5000])
def test_an_option_that_is_no_number_is_an_error_like_that_of_any_other_source(tmp_path: Path, seen: str) -> None:
    done = CliRunner().invoke(
        cli.app, ["analyze", str(tmp_path / "a.svs"), "-o", str(tmp_path / "out"), "--limit", seen]
    )
    assert isinstance(done.exception, SettingError)
    assert done.exception.message.startswith(f"--limit: {seen!r}" if seen == "x" else "--limit: ")
    assert done.exception.hint == "Give a whole number, 1 or more."


def test_a_variable_that_is_no_setting_is_named_once_with_the_nearest(caplog: pytest.LogCaptureFixture) -> None:
    environ = {
        "WSI_CHAT_LIMT": "3", "WSI_CHAT_APIKEY": "secret", "WSI_CHAT_XYZZY": "1",
        "WSI_CHAT_API_KEY": "k", "WSI_CHAT_TEST_PAGE": "1", "WSI_CHAT_PDF": "yes", "WSI_CHAT_TOP_K": "3", "HOME": "/",
    }  # fmt: skip
    for _ in range(2):
        assert from_environment(environ) == {"pdf": "yes", "top_k": "3"}
    assert caplog.messages == [
        "WSI_CHAT_APIKEY in the environment is no setting and is ignored. Did you mean WSI_CHAT_API_KEY? "
        "wsi-chat settings lists them.",
        "WSI_CHAT_LIMT in the environment is no setting and is ignored. Did you mean WSI_CHAT_LIMIT? "
        "wsi-chat settings lists them.",
        "WSI_CHAT_XYZZY in the environment is no setting and is ignored. wsi-chat settings lists them.",
    ]


@pytest.mark.parametrize("given", [{"epochs": "x"}, {"epochs": 0}])
def test_the_settings_of_training_speak_alike(given: dict[str, object]) -> None:
    with pytest.raises(SettingError) as raised:
        settings_of(datasets=("d",), out=Path("out"), **given)
    assert raised.value.hint == "Give a number above 0."


NUMBERS = [name for name, one in declared().items() if {int, float} & {one.annotation, *get_args(one.annotation)}]


@pytest.mark.parametrize("written", ["true", "no"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_yes_or_no_is_no_number(tmp_path: Path, name: str, written: str) -> None:
    config = tmp_path / "bool.yaml"
    config.write_text(f"{name}: {written}\n")
    with pytest.raises(SettingError) as raised:
        resolve({}, config=config)
    assert f"{name} in file {config}: {written == 'true'} is not a valid value" in raised.value.message
    assert raised.value.hint.startswith("Write a number")


def test_a_yes_or_no_of_a_switch_stays_one(tmp_path: Path) -> None:
    assert {"limit", "mpp", "threshold", "top_k"} <= set(NUMBERS)
    config = tmp_path / "bool.yaml"
    config.write_text("exhaustive: true\ncontrols: no\nmask: no\nlimit: 3\n")
    settings, _ = resolve({}, config=config)
    assert (settings.exhaustive, settings.controls, settings.mask, settings.limit) == (True, False, "off", 3)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [("top_kk: 3", "'top_kk'"), ("- 1\n- 2", "list"), ("a: [", "not YAML"), ("top_k: {}", "top_k")],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, fragment: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(SettingError, match=r"run\.yaml") as raised:
        resolve({}, config=config)
    assert fragment in raised.value.message


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"absent\.yaml"):
        resolve({}, config=tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SettingError, match="not UTF-8 text"):
        resolve({}, config=tmp_path / "binary.yaml")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert resolve({}, config=tmp_path / "run.yaml") == (Settings(), {})


def test_every_setting_is_an_option_of_analyze_and_of_cohort_and_the_rare_ones_are_not_listed() -> None:
    assert {one.name for one in declared().values() if one.rare} == RARE
    for command in (analyze, cohort):
        offered = set(inspect.signature(command).parameters)
        assert offered >= set(Settings.model_fields)
    shown = CliRunner().invoke(cli.app, ["analyze", "--help"], env={"COLUMNS": "200"}).output
    for one in declared().values():
        assert (f"{one.option} " in shown) != one.rare, one.name
    for panel in {one.panel for one in declared().values()}:
        assert f"─ {panel} ─" in shown


def test_help_shows_the_description_the_default_and_the_unit_of_a_setting() -> None:
    shown = " ".join(CliRunner().invoke(cli.app, ["analyze", "--help"], env={"COLUMNS": "300"}).output.split())
    assert "Screen at most this many tiles, spread evenly over the slide. Default: all." in shown
    assert (
        "--mpp <µm/px> Level-0 resolution in µm/px; overrides the slide's metadata. Default: the slide's own." in shown
    )
    assert "Default: 24." in shown


def test_every_setting_has_a_key_a_variable_and_a_sentence(tmp_path: Path) -> None:
    for one in declared().values():
        assert from_environment({one.variable: "x"}) == {one.name: "x"}
        assert one.description[0].isupper()
        assert one.description.endswith(".")
        assert " um" not in one.description


def test_the_documentation_of_the_settings_is_the_one_that_the_declarations_give() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    wanted = "\n".join(markdown_lines()) + "\n"
    assert page.read_text(encoding="utf-8") == wanted, "run: wsi-chat settings --markdown > docs/settings.md"
    assert wanted.count("\n| `") == len(Settings.model_fields)


def test_a_stored_verdict_depends_on_everything_but_speed() -> None:
    fast = {"batch_size": 3, "gpus": "2", "concurrency": 7, "timeout": 9.0, "workers": 5, "overwrite": True}
    fast |= {"pseudonyms": "names.json", "trial": False}
    assert affecting("speed") == set(fast)
    assert config_of(Settings(**fast)) == config_of(Settings())
    assert config_of(Settings(threshold=0.6)) != config_of(Settings())


def test_an_aggregator_depends_on_what_was_asked_and_not_on_what_is_made_of_it() -> None:
    first = {"limit", "mask", "top_k", "exhaustive", "adapter", "views", "contrast", "zoom"}
    assert set(fit_conditions({})) == first
    assert fit_conditions({"top_k": 5, "threshold": 0.9})["top_k"] == 5
    assert "threshold" not in fit_conditions({"threshold": 0.9})


def test_an_unknown_setting_is_named_with_the_nearest_that_is_known() -> None:
    with pytest.raises(SettingError) as raised:
        resolve({"treshold": 0.4})
    assert "'treshold'" in raised.value.message
    assert "Did you mean threshold?" in raised.value.hint


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"format": "HTML, pdf"}, ("pdf", "html")),
        ({"format": "json"}, ("json",)),
        ({"pdf": False, "dicom": "no"}, ("html", "json")),
        ({"format": "pdf", "html": True}, ("pdf", "html", "json")),
        ({}, FORMATS),
    ],
)
def test_documents_are_chosen_by_format_and_by_the_switches_of_version_0_1(
    given: dict[str, object], chosen: tuple[str, ...]
) -> None:
    assert resolve(given)[0].format == chosen


def test_a_switch_in_the_environment_does_not_undo_the_format_of_an_option() -> None:
    assert resolve({"format": "pdf,html"}, environ={"WSI_CHAT_PDF": "0"})[0].format == ("pdf", "html")
    settings, origin = resolve({"html": False}, environ={"WSI_CHAT_PDF": "0"})
    assert (settings.format, origin) == (("json", "dicom"), {"format": "flag"})


def test_an_option_that_is_no_longer_listed_still_counts_and_says_where_it_went(tmp_path: Path) -> None:
    arguments = ["analyze", str(tmp_path / "absent.svs"), "-o", str(tmp_path / "out"), "--timeout", "5", "--no-pdf"]
    shown = CliRunner().invoke(cli.app, arguments).stderr
    assert "note: --timeout is taken. --help no longer lists it; " in shown
    assert "set timeout in a YAML file (--config) or WSI_CHAT_TIMEOUT" in shown
    assert "--no-pdf is now part of --format" in shown
    saved = json.loads((tmp_path / "out" / "run.json").read_text())
    assert saved["config"]["timeout"] == 5.0
    assert saved["config"]["format"] == ["html", "json", "dicom"]


def test_settings_lists_values_in_effect_and_their_origin(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("zoom: 2\n")
    done = CliRunner().invoke(
        cli.app, ["settings", "--config", str(tmp_path / "run.yaml"), "--json"], env={"WSI_CHAT_TOP_K": "7"}
    )
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(Settings.model_fields)
    assert (rows["zoom"]["value"], rows["zoom"]["origin"]) == (2.0, f"file {tmp_path / 'run.yaml'}")
    assert (rows["top_k"]["value"], rows["top_k"]["origin"], rows["top_k"]["default"]) == (7, "environment", 24)
    assert (rows["zoom"]["option"], rows["mpp"]["unit"]) == (None, "µm/px")
