"""Fine-tuning tiny random checkpoints of the three architectures, and the embedded one for a few steps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_chat.dialects import get_dialect
from wsi_chat.engines import embedded_checkpoint, load_engine, read_checkpoint
from wsi_chat.errors import EngineError, OutputError, SettingError
from wsi_chat.schema import Query, Turn
from wsi_chat.training.finetune import Trained, finetune
from wsi_chat.training.settings import settings_of
from wsi_chat.training.state import last_state, read_metrics

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Callable[[str], Path]) -> dict[str, Path]:
    return {family: tiny_checkpoint(family) for family in FAMILIES}


def _line(question: str, answer: str, image: str) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": answer}],
        "images": [image],
    }


CHOICE = (
    "Please answer the multiple-choice question based on the image [Is it abnormal?], and select the best option from "
    "the following options [A.no, B.yes]. Just answer the option."
)


def _dataset(folder: Path, name: str, *, seeds: range, side: int = 112) -> Path:
    """A JSONL in CytoChat's form: grounding with a box and without, a choice, a region, two turns."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in seeds:
        image = f"images/{seed}.png"
        pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / image)
        lines += [
            _line("Locate all hsil.", f"hsil 1 is located at <region>{seed % 50} 10.5 56 84</region>.", image),
            _line("Locate all lsil.", "No lsil is found.", image),
            _line(CHOICE, "B.yes.", image),
            _line("Give a brief description of region.<region>28 28 56 84</region>", "hsil", image),
        ]
    talk = _line("How many?", "Two.", "images/0.png")
    if 0 in seeds:
        talk["messages"] += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
        lines.append(talk)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    _dataset(folder, "cells_train", seeds=range(3))
    _dataset(folder, "cells_val", seeds=range(100, 102))
    info = {f"cells_{split}": {"file_name": f"cells_{split}.jsonl", "formatting": "sharegpt"} for split in
            ("train", "val")}  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def _train(model: Path, data: Path, out: Path, **more: Any) -> Trained:
    chosen = {
        "model": str(model), "datasets": ("cells_train",), "dataset_dir": data, "out": out, "batch_size": 2,
        "accumulate": 1, "steps": 2, "eval_dataset": "none", "device": "cpu", "log_every": 1, "lr": 0.01,
    }  # fmt: skip
    tell = more.pop("tell", None)
    return finetune(settings_of(**{**chosen, **more}), tell=tell)


def _weights(folder: Path, name: str = "model.safetensors") -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / name))


def _logits(model: Any, folder: Path) -> Any:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Locate all hsil.", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_one_lora_step_changes_the_adapter_and_nothing_else(
    family: str, tiny: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    import peft
    import torch
    import transformers

    base, out = tiny[family], tmp_path / "out"
    before = read_checkpoint(base).revision
    trained = _train(base, data, out, steps=1, merge=True, rank=2, alpha=4, dropout=0.0)
    assert trained.steps == 1
    assert trained.merged == out / "merged"
    assert read_checkpoint(base).revision == before
    adapter = _weights(out, "adapter_model.safetensors")
    ups = [value for name, value in adapter.items() if "lora_B" in name]
    assert len(ups) == 2 * 7
    assert all(bool(value.abs().max() > 0) for value in ups), "lora_B begins as zeros: a step must move it"
    assert all("language_model" in name and "visual" not in name for name in adapter)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    assert config["base_model_name_or_path"] == str(base.resolve())

    loader: Any = transformers.AutoModelForImageTextToText
    plain = _logits(loader.from_pretrained(base), base)
    adapted = _logits(peft.PeftModel.from_pretrained(loader.from_pretrained(base), str(out)), base)
    merged = _logits(loader.from_pretrained(out / "merged"), base)
    assert torch.allclose(adapted, merged, atol=1e-5)
    assert not torch.allclose(adapted, plain, atol=1e-3)

    old, new = _weights(base), _weights(out / "merged")
    assert old.keys() == new.keys()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    ends = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.split(".")[-2] for name in moved} == set(ends)
    assert not any("visual" in name for name in moved)
    assert (out / "merged" / "config.json").read_bytes() == (base / "config.json").read_bytes()

    engine = load_engine(out / "merged", device="cpu")
    image = Image.open(data / "images" / "0.png").convert("RGB")
    (answer,) = engine.answer([Query("k", "vqa", (Turn("user", "<image>?"),), (image,), max_tokens=2)])
    assert answer.status != "failed"
    assert answer.error == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_in_the_vision_tower_when_asked(
    family: str, tiny: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    _train(tiny[family], data, tmp_path / "out", steps=1, vision=True, gradient_checkpointing=True)
    adapter = _weights(tmp_path / "out", "adapter_model.safetensors")
    seeing = [name for name in adapter if "visual" in name and "lora_B" in name]
    assert seeing
    assert any("merger" in name for name in seeing)
    assert all(bool(adapter[name].abs().max() > 0) for name in seeing)


def test_targets_choose_the_layers(tiny: dict[str, Path], data: Path, tmp_path: Path) -> None:
    _train(tiny["qwen3_vl"], data, tmp_path / "out", steps=1, targets=("q_proj", "v_proj"))
    adapter = _weights(tmp_path / "out", "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter} == {"q_proj", "v_proj"}
    with pytest.raises(SettingError, match=r"no linear layer of the language model is called 'qkv'.*q_proj"):
        _train(tiny["qwen3_vl"], data, tmp_path / "other", targets=("qkv",))


def _losses(out: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row}


def test_a_run_that_broke_off_goes_on_as_if_it_had_not(tiny: dict[str, Path], data: Path, tmp_path: Path) -> None:
    import torch

    base = tiny["qwen2_vl"]
    common: dict[str, Any] = {"steps": 9, "eval_every": 2, "dropout": 0.3, "keep": 9}
    whole = tmp_path / "whole"
    _train(base, data, whole, **common)

    def breaks(row: dict[str, Any]) -> None:
        if row.get("steps") and row["step"] == 7:
            raise RuntimeError("the machine stops here")

    broken = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="stops here"):
        _train(base, data, broken, **common, tell=breaks)
    # what a kill in the middle of saving leaves behind
    shutil.copytree(broken / "checkpoints" / "checkpoint-6", broken / "checkpoints" / "checkpoint-7")
    (broken / "checkpoints" / "checkpoint-7" / "trainer_state.json").write_text('{"glob')
    assert last_state(broken) == broken / "checkpoints" / "checkpoint-6"

    seen: list[int] = []
    trained = _train(base, data, broken, **common, resume=True, tell=lambda row: seen.append(row["step"]))
    assert trained.steps == 9
    assert min(seen) == 7
    assert list(_losses(broken)) == list(range(1, 10))
    assert _losses(broken) == _losses(whole), "after one epoch of 7 batches too: order and dropout go on"
    one, other = (_weights(out, "adapter_model.safetensors") for out in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resuming_with_other_settings_is_refused(tiny: dict[str, Path], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _train(tiny["qwen2_vl"], data, out, steps=1)
    with pytest.raises(OutputError, match="holds a training run"):
        _train(tiny["qwen2_vl"], data, out, steps=1)
    with pytest.raises(SettingError, match=r"had rank 16, now it is 4"):
        _train(tiny["qwen2_vl"], data, out, steps=1, rank=4, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no training run"):
        _train(tiny["qwen2_vl"], data, tmp_path / "full", overwrite=True)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_interrupted_by_a_signal_the_state_is_saved(
    tiny: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from wsi_chat import cli
    from wsi_chat.commands import train as command

    def interrupts(row: dict[str, Any]) -> None:
        if row.get("steps") and row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(command, "_progress", lambda **_: nullcontext(interrupts))
    out = tmp_path / "out"
    arguments = ["wsi-chat", "train", "--model", str(tiny["qwen2_vl"]), "--dataset", "cells_train", "--dataset-dir",
                 str(data), "-o", str(out), "--batch-size", "2", "--accumulate", "1", "--steps", "5",
                 "--eval-samples", "3", "--device", "cpu"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 143
    assert "interrupted: the state is saved; run the same command with --resume to go on" in capsys.readouterr().err
    assert last_state(out) == out / "checkpoints" / "checkpoint-3"
    assert json.loads((out / "training.json").read_text())["state"] == "interrupted"
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(command, "_progress", lambda **_: nullcontext(None))
    monkeypatch.setattr(sys, "argv", [*arguments, "--resume", "--json"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    said = json.loads(capsys.readouterr().out)
    assert said["steps"] == 5
    assert {"loss", "ground_f1", "choice_accuracy", "refer_accuracy"} <= set(said["metrics"])
    assert said["best_by"] == "ground_f1"


@pytest.mark.slow
def test_a_killed_run_resumes(tiny: dict[str, Path], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[5])\n"
        "from pathlib import Path; from wsi_chat.training.finetune import finetune\n"
        "from wsi_chat.training.settings import settings_of\n"
        "def tell(row):\n"
        "    if row.get('steps') and row['step'] == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "finetune(settings_of(model=sys.argv[1], datasets=('cells_train',), dataset_dir=Path(sys.argv[2]),"
        " out=Path(sys.argv[3]), batch_size=2, accumulate=1, steps=5, eval_dataset='none', device='cpu', lr=0.01,"
        " log_every=1, eval_every=2), tell=tell)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny["qwen2_vl"]), str(data), str(out), "-", root],
        timeout=200, capture_output=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert last_state(out) == out / "checkpoints" / "checkpoint-2"
    trained = _train(tiny["qwen2_vl"], data, out, steps=5, eval_every=2, resume=True)
    assert trained.steps == 5
    assert list(_losses(out)) == [1, 2, 3, 4, 5]
    assert (out / "adapter_model.safetensors").is_file()


def test_full_fine_tuning_of_the_embedded_checkpoint_lowers_the_loss(tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "data"
    for name, seeds in (("a_train", range(4)), ("a_val", range(50, 52))):
        file = _dataset(folder, name, seeds=seeds, side=256)
        lines = [
            _line("Is the preparation well stained?", "The stain is pale.", f"images/{seed}.png") for seed in seeds
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    base = embedded_checkpoint()
    trained = _train(
        base, folder, out, datasets=(str(folder / "a_train.jsonl"),), eval_dataset=str(folder / "a_val.jsonl"),
        method="full", steps=8, lr=5e-4, batch_size=2, eval_every=4, eval_samples=0,
    )  # fmt: skip
    assert trained.best_by == "loss"
    assert trained.metrics["loss"] < 0.8 * trained.before["loss"]
    old, new = _weights(base), _weights(out)
    assert old.keys() == new.keys()
    assert {value.dtype for value in new.values()} == {torch.bfloat16}
    assert any(not torch.equal(old[name], new[name]) for name in old if "visual" in name)
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert " model.safetensors\n" in (out / "SHA256SUMS").read_text()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["dialect"] == "embedded"
    assert manifest["fine_tuned"]["base_revision"] == read_checkpoint(base).revision
    assert "training" not in manifest, "the base's measured figures are not those of the fine-tune"
    engine = load_engine(out, device="cpu")
    dialect = get_dialect("embedded")
    from wsi_chat import tasks

    image = Image.open(folder / "images" / "0.png").convert("RGB")
    query, _ = dialect.build(tasks.mcq("Is it?", ["no", "yes"]), image, model_id="m", decoding={})
    (answer,) = engine.answer([query])
    assert answer.probabilities is not None


def test_memory_that_cannot_suffice_is_said_at_once(
    tiny: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    class Full:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    with pytest.raises(EngineError, match=r"full fine-tuning of .* needs at least .*--method lora"):
        _train(tiny["qwen2_vl"], data, tmp_path / "out", method="full")
    assert not (tmp_path / "out").exists()


def test_running_out_of_memory_names_the_way_out(
    tiny: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat.training.trainer import ChatTrainer

    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(ChatTrainer, "training_step", explode)
    with pytest.raises(EngineError, match=r"memory ran out .*--gradient-checkpointing"):
        _train(tiny["qwen2_vl"], data, tmp_path / "out")


def test_a_loss_that_is_no_number_stops_the_run(
    tiny: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from wsi_chat.training.trainer import ChatTrainer

    monkeypatch.setattr(ChatTrainer, "training_step", lambda *_, **__: torch.tensor(float("nan")))
    with pytest.raises(EngineError, match=r"the loss is nan at step 1"):
        _train(tiny["qwen2_vl"], data, tmp_path / "out")


def test_where_the_metric_ties_the_loss_decides(tiny: dict[str, Path], data: Path, tmp_path: Path) -> None:
    # a random model never finds a box: F1 is 0 at every evaluation, while the loss goes down
    out = tmp_path / "out"
    trained = _train(
        tiny["qwen2_vl"], data, out, steps=3, eval_dataset=None, eval_every=1, eval_samples=3, best_by="ground_f1"
    )
    rows = read_metrics(out / "metrics.jsonl")
    assert {row["eval_ground_f1"] for row in rows if "eval_ground_f1" in row} == {0.0}
    losses = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row and row["step"]}
    assert trained.best_step == min(losses, key=losses.__getitem__)
    assert trained.best_step != 1
