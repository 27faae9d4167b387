"""Settings: which source wins, and what a wrong value says."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_chat.errors import SettingError
from wsi_chat.settings import Settings, resolve


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
        ({"overlap": 0.9}, {}, "--overlap", "0.9"),
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
