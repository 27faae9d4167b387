"""serve-command for a model that is elsewhere, models on nothing, and a doctor that touches nothing."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wsi_chat import cli
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import embedded_checkpoint
from wsi_chat.engines.serving import serve_line


def run(*words: str) -> Any:
    return CliRunner().invoke(cli.app, list(words))


@pytest.mark.parametrize(
    ("words", "dialect", "bounds"),
    [
        (["Qwen/Qwen2.5-VL-7B-Instruct"], "qwen2.5-vl", (3136, 1003520)),
        (["Qwen/Qwen3-VL-8B-Instruct"], "qwen3-vl", (65536, 1310720)),
        (["someone/CytoChat-7B"], "cytochat", (512, 262144)),
        (["someone/some-model", "--dialect", "qwen2-vl"], "qwen2-vl", (3136, 1003520)),
    ],
)
def test_the_line_for_a_model_on_another_machine(words: list[str], dialect: str, bounds: tuple[int, int]) -> None:
    done = run("serve-command", *words, "--json")
    assert done.exit_code == 0, done.output
    payload = json.loads(done.stdout)
    assert payload["dialect"] == dialect
    assert payload["mm_processor_kwargs"] == {"size": {"shortest_edge": bounds[0], "longest_edge": bounds[1]}}
    line = shlex.split(payload["command"])
    assert line[line.index("serve") + 1] == words[0]
    plain = run("serve-command", *words)
    assert "is not on this machine" in plain.stderr
    assert plain.stdout.strip() == payload["command"]


def test_the_line_is_that_of_the_checkpoint_where_both_are_known(tmp_path: Path) -> None:
    config = {"model_type": "qwen2_vl", "vision_config": {"patch_size": 14, "spatial_merge_size": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("qwen2-vl", "cytochat"):
        dialect = get_dialect(name)
        assert serve_line("m", None, dialect) == serve_line("m", tmp_path, dialect)


def test_a_name_that_says_nothing_and_a_path_to_nothing_are_refused(tmp_path: Path) -> None:
    unknown = run("serve-command", "someone/some-model")
    assert unknown.exit_code != 0
    assert "--dialect" in getattr(unknown.exception, "hint", "")
    gone = run("serve-command", str(tmp_path / "gone"))
    assert "there is no checkpoint" in str(gone.exception)


def test_models_exits_with_1_where_a_folder_holds_none(tmp_path: Path) -> None:
    assert run("models").exit_code == 0
    assert run("models", str(embedded_checkpoint())).exit_code == 0
    for folder in (tmp_path, tmp_path / "gone"):
        done = run("models", str(folder), "--json")
        assert done.exit_code == 1
        assert [one["state"] == "ready" for one in json.loads(done.stdout)] == [True, False]
    (tmp_path / "config.json").write_text("[" * 5000)
    assert run("models", str(tmp_path)).exit_code == 1


@pytest.mark.parametrize(
    ("name", "sums", "says"),
    [
        ("model.safetensors", True, "cut off"),
        ("tokenizer.json", False, "is no tokenizer"),
        ("tokenizer.json", True, "not as it was exported"),
        ("manifest.json", True, "not as it was exported"),
        ("SHA256SUMS", True, "not as it was exported"),
        ("preprocessor_config.json", False, "lacks preprocessor_config.json"),
    ],
)
def test_models_calls_nothing_ready_that_loading_refuses(tmp_path: Path, name: str, sums: bool, says: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(embedded_checkpoint(), folder)
    if not sums:
        (folder / "SHA256SUMS").unlink()
    path = folder / name
    if name == "model.safetensors":
        with path.open("r+b") as file:
            file.truncate(2**20)
    elif name == "preprocessor_config.json":
        path.unlink()
    elif name == "SHA256SUMS":
        path.write_text("".join("0" * 64 + line[64:] for line in path.read_text().splitlines(keepends=True)))
    else:
        path.write_bytes(path.read_bytes() + b" " if name == "manifest.json" else path.read_bytes()[:-2])
    done = run("models", str(folder), "--json")
    embedded, copied = json.loads(done.stdout)
    assert (done.exit_code, embedded["state"]) == (1, "ready")
    assert says in copied["state"]
    assert name in copied["state"] or name == "SHA256SUMS"
    assert (copied["architecture"], copied["dialect"]) == (embedded["architecture"], embedded["dialect"])


def test_doctor_makes_nothing(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "b"
    done = run("doctor", "-o", str(wanted), "--json")
    (output,) = [check for check in json.loads(done.stdout) if check["name"] == "output"]
    assert output["state"] == "PASS"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    done = run("doctor", "-o", str(tmp_path / "file" / "x"), "--json")
    (output,) = [check for check in json.loads(done.stdout) if check["name"] == "output"]
    assert (output["state"], done.exit_code) == ("FAIL", 1)
