"""Which engine is taken and why, which GPUs, and how a checkpoint is to be served."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wsi_chat.dialects import dialect_of_name, get_dialect
from wsi_chat.engines import choose_engine, embedded_checkpoint, load_engine
from wsi_chat.engines.checkpoint import count_parameters, read_config
from wsi_chat.engines.model import Model
from wsi_chat.engines.selection import list_gpus, parse_gpus, quicker_engine
from wsi_chat.engines.serving import pixel_bounds, plan_serving, serve_line
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.settings import Settings


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends to have so many GPUs and a vLLM that knows these architectures (None: not installed)."""
    import torch

    def pretend(gpus: int, knows: list[str] | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        vllm = None
        if knows is not None:
            vllm = types.ModuleType("vllm")
            vllm.__spec__ = types.SimpleNamespace(name="vllm")  # type: ignore[assignment]
            vllm.ModelRegistry = types.SimpleNamespace(get_supported_archs=lambda: knows)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        if vllm is None:
            real = __import__("importlib.util").util.find_spec
            monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "vllm" else real(name, *a))

    return pretend


QWEN3 = ["Qwen3VLForConditionalGeneration"]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint's folder that says that it holds 8 billion parameters."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2_000_000, 4000], "data_offsets": [0, 16_000_000_000]}})
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    (tmp_path / "config.json").write_text(json.dumps({"architectures": QWEN3}), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("gpus", "knows", "device", "engine", "reason"),
    [
        (0, QWEN3, "auto", "transformers", "no CUDA GPU is here"),
        (1, None, "auto", "transformers", "vLLM is not installed"),
        (1, ["LlamaForCausalLM"], "auto", "transformers", "vLLM does not know Qwen3VLForConditionalGeneration"),
        (1, QWEN3, "cpu", "transformers", "--device cpu is not a CUDA GPU"),
        (1, QWEN3, "auto", "vllm", "a CUDA GPU is here, and vLLM knows the architecture; a large model"),
        (2, QWEN3, "cuda:1", "vllm", "a CUDA GPU is here, and vLLM knows the architecture; a large model"),
    ],
)
def test_auto_takes_vllm_only_where_it_can_run(
    machine: Any, large: Path, gpus: int, knows: list[str] | None, device: str, engine: str, reason: str
) -> None:
    machine(gpus, knows)
    chosen = choose_engine("auto", folder=large, device=device)
    assert (chosen.name, chosen.reason, chosen.device) == (engine, reason, device)


@pytest.mark.parametrize(
    ("parameters", "tiles", "cores", "engine", "device", "reason"),
    [
        (8_000_000_000, 10, 64, "vllm", "auto", "a large model"),
        (None, None, 64, "vllm", "auto", "a large model"),
        (1_000_000_000, 10, 64, "vllm", "auto", "a large model"),
        # small enough for the processor, where there is one worth the name and it may be used
        (8_000_000, 100_000, 16, "transformers", "cpu", "a model of 8 M parameters is as fast on this machine's"),
        (50_000_000, None, 8, "transformers", "cpu", "starts at once"),
        (50_000_001, None, 8, "transformers", "auto", "answers before vLLM has started"),
        (8_000_000, 100_000, 7, "vllm", "auto", "about 2590 s with transformers and about 1400 s with vllm"),
        # 65.6 s of start against 12.5 ms a tile: 5,232 tiles
        (8_000_000, 5_200, 0, "transformers", "auto", "a model of 8 M parameters and 5,200 tiles: about 140 s"),
        (8_000_000, 5_300, 0, "vllm", "auto", "starting included"),
        (800_000_000, 300, 64, "transformers", "auto", "a model of 800 M parameters and 300 tiles"),
        (100, None, 2, "transformers", "auto", "a model of 1 M parameters answers"),
    ],
)
def test_a_small_model_is_not_made_to_wait_for_vllm(
    parameters: int | None, tiles: int | None, cores: int, engine: str, device: str, reason: str
) -> None:
    chosen = quicker_engine(parameters, tiles, cores=cores)
    assert (chosen.name, chosen.device) == (engine, device)
    assert reason in chosen.reason


def test_the_embedded_model_runs_on_the_processor_unless_gpus_are_named(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(2, QWEN3)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    folder = embedded_checkpoint()
    assert choose_engine("auto", folder=folder, tiles=10**6).device == "cpu"
    assert choose_engine("auto", folder=folder, device="cuda", tiles=10).name == "transformers"
    assert choose_engine("auto", folder=folder, device="cuda", tiles=10).device == "cuda"
    assert choose_engine("auto", folder=folder, device="cuda", tiles=10**6).name == "vllm"
    assert choose_engine("auto", folder=folder, gpus="2").name == "vllm"
    assert choose_engine("vllm", folder=folder, tiles=10).name == "vllm"


def test_the_choice_goes_by_the_tiles_to_come_until_a_model_is_loaded(
    machine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine(1, QWEN3)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    model = Model(Settings())
    assert model.choice.name == "transformers"
    model.expect(10**6)
    assert model.choice.name == "vllm"
    model.expect(12)
    assert "12 tiles" in model.choice.reason
    started = []
    monkeypatch.setattr("wsi_chat.engines._start_transformers", lambda folder, **given: started.append(given))
    with caplog.at_level("INFO", logger="wsi_chat.engines"):
        _ = model.engine
    assert started[0]["device"] == "auto"
    assert f"engine transformers: {model.choice.reason}" in caplog.messages
    model.expect(10**6)
    assert model.choice.name == "transformers", "the answers of one run are one engine's"
    cohort = Model(Settings(), several=True)
    cohort.expect(10**6)
    assert cohort.choice.name == "transformers", "whichever slide of a cohort comes first"


def test_what_takes_a_minute_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from wsi_chat.commands.console import set_up_logging

    set_up_logging()
    monkeypatch.setattr("wsi_chat.engines._start_vllm", lambda folder, **given: None)
    load_engine(None, engine="vllm")
    shown = capsys.readouterr().err
    assert shown == "Starting vLLM, which takes about a minute the first time (on a GPU it compiles the model) ...\n"


def test_parameters_are_counted_by_the_headers(tmp_path: Path, large: Path) -> None:
    assert count_parameters(large) == 8_000_000_000
    from safetensors import safe_open

    with safe_open(embedded_checkpoint() / "model.safetensors", "numpy") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    assert count_parameters(embedded_checkpoint()) == sum(map(math.prod, shapes))
    (tmp_path / "model.safetensors").write_bytes(b"none")
    assert count_parameters(tmp_path) is None


def test_a_named_server_comes_first_and_contradictions_are_refused() -> None:
    url = "http://127.0.0.1:8000/v1"
    assert choose_engine("auto", base_url=url).name == "openai"
    assert choose_engine("openai", base_url=url).reason == "asked for with --engine"
    assert choose_engine("vllm").name == "vllm"
    with pytest.raises(SettingError, match="needs the server's address"):
        choose_engine("openai")
    with pytest.raises(SettingError, match="--engine vllm runs the model here"):
        choose_engine("vllm", base_url=url)
    with pytest.raises(SettingError, match="engine is 'magic'"):
        choose_engine("magic")
    with pytest.raises(SettingError, match="--gpus does not go with --base-url"):
        load_engine(None, base_url=url, gpus="2")


def test_vllm_that_is_not_installed_is_explained(machine: Any) -> None:
    machine(0, None)
    with pytest.raises(EngineError, match="needs the package vllm") as caught:
        load_engine(None, engine="vllm")
    assert "--engine transformers" in caught.value.hint


def test_gpus_are_a_number_or_a_list(machine: Any) -> None:
    machine(4, None)
    assert parse_gpus("2", environ={}) == ["0", "1"]
    assert parse_gpus("0,3", environ={}) == ["0", "3"]
    assert parse_gpus("3,", environ={}) == ["3"]
    assert parse_gpus("0,2", environ={"CUDA_VISIBLE_DEVICES": "4,5,6,7"}) == ["4", "6"]
    with pytest.raises(SettingError, match="this machine shows 4 CUDA GPUs"):
        parse_gpus("5", environ={})
    for bad in ("", "0", "two", "1,1", "-1,", ","):
        with pytest.raises(SettingError, match="--gpus is"):
            list_gpus(bad)
    machine(0, None)
    with pytest.raises(SettingError, match="shows 0 CUDA GPUs"):
        load_engine(None, gpus="1")


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl"),
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2-vl"),
        ("qwen3_vl_8b", "qwen3-vl"),
        ("lab/CytoChat-qwen2-vl", "cytochat"),
        ("OpenGVLab/InternVL3-8B-hf", "internvl"),
        ("google/medgemma-4b-it", "medgemma"),
        ("google/gemma-3-4b-it", "medgemma"),
        ("google/paligemma2-3b-mix-448", "paligemma"),
        ("embedded", "embedded"),
    ],
)
def test_a_served_models_name_speaks_of_its_dialect(name: str, dialect: str) -> None:
    assert dialect_of_name(name) == dialect


def test_a_name_that_says_nothing_asks_for_the_dialect() -> None:
    with pytest.raises(SettingError, match="'gpt-9' does not say") as caught:
        dialect_of_name("gpt-9")
    assert "--dialect" in caught.value.hint


# ------------------------------------------------------------------------------------------------ serving


@pytest.mark.parametrize("name", ["embedded", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("size", [(256, 256), (512, 512), (2000, 3000), (90, 700), (33, 33)])
def test_within_the_planned_bounds_the_processor_resizes_nothing(name: str, size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    policy = get_dialect(name).image_px
    sent = policy.sent_size(*size)
    least, most = pixel_bounds(policy)
    height, width = smart_resize(sent[1], sent[0], factor=policy.multiple, min_pixels=least, max_pixels=most)
    assert (width, height) == sent


def test_the_plan_holds_six_images_and_the_longest_answer_within_the_models_context() -> None:
    qwen = {"model_type": "qwen2_vl", "vision_config": {"patch_size": 14, "spatial_merge_size": 2}}
    plan = plan_serving({**qwen, "max_position_embeddings": 32768}, get_dialect("qwen2-vl").image_px)
    assert plan.max_model_len >= 2048 + 6 * 1003520 // 28**2
    assert plan.max_model_len % 1024 == 0
    assert plan.limits == {"image": 6, "video": 0}
    assert plan.processor_kwargs == {"size": {"shortest_edge": 3136, "longest_edge": 1003520}}
    tight = plan_serving({**qwen, "max_position_embeddings": 4096}, get_dialect("qwen2-vl").image_px)
    assert tight.max_model_len == 4096
    embedded = plan_serving(read_config(embedded_checkpoint()), get_dialect("embedded").image_px)
    assert embedded.max_model_len == 2048
    fixed = plan_serving({"model_type": "internvl"}, get_dialect("internvl").image_px)
    assert (fixed.pixel_bounds, fixed.processor_kwargs) == (None, {})


def test_the_serve_line_is_ready_for_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    config = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = shlex.split(serve_line(str(folder), folder, get_dialect("cytochat"), gpus=2, port=8123))
    assert words[:4] == ["VLLM_NO_USAGE_STATS=1", "vllm", "serve", str(folder)]
    given = dict(itertools.pairwise(words))
    assert given["--generation-config"] == "vllm"
    assert given["--mm-processor-cache-gb"] == "0"
    assert json.loads(given["--limit-mm-per-prompt"]) == {"image": 6, "video": 0}
    assert json.loads(given["--mm-processor-kwargs"])["size"]["longest_edge"] == 512 * 512
    assert (given["--data-parallel-size"], given["--port"]) == ("2", "8123")
    assert "--enable-prefix-caching" in words


def test_serve_command_prints_the_line_and_what_comes_next() -> None:
    from wsi_chat.cli import app

    done = CliRunner().invoke(app, ["serve-command", "--gpus", "0,3"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("CUDA_VISIBLE_DEVICES=0,3 VLLM_NO_USAGE_STATS=1 vllm serve ")
    assert "--data-parallel-size 2" in done.stdout
    assert "wsi-chat analyze SLIDE --base-url http://127.0.0.1:8000/v1" in done.stderr
    said = json.loads(CliRunner().invoke(app, ["serve-command", "--dialect", "cytochat", "--json"]).stdout)
    assert said["dialect"] == "cytochat"
    assert said["base_url"] == "http://127.0.0.1:8000/v1"
