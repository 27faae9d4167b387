"""LoRA adapters on the transformers engine: applied as peft does, refused where they do not belong."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from wsi_chat.engines.transformers import TransformersEngine
from wsi_chat.errors import EngineError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def adapter_of(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family -> a LoRA adapter with weights large enough to change answers, on its tiny checkpoint."""
    root = tmp_path_factory.mktemp("adapters")
    return cache(lambda family: _adapter(tiny_checkpoint(family), root / family / "cells-lora"))


@pytest.fixture
def adapter(adapter_of: Callable[[str], Path]) -> Path:
    return adapter_of("qwen2_vl")


def _adapter(folder: Path, place: Path) -> Path:
    import peft
    import torch
    import transformers

    loader: Any = transformers.AutoModelForImageTextToText
    base = loader.from_pretrained(folder)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that it renamed
        tuned = peft.get_peft_model(base, config)
    for name, weights in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weights, std=0.6)
    tuned.save_pretrained(place, save_embedding_layers=False)
    return place


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "internvl", "paligemma"])
def test_an_adapter_changes_the_answers_as_peft_does(
    family: str, asking: Any, reference: Any, tiny_checkpoint: Any, adapter_of: Callable[[str], Path]
) -> None:
    import peft
    import torch

    adapter = adapter_of(family)
    folder, query = tiny_checkpoint(family), asking.query(2, choices=("A", "B", "C"))
    plain, engine = TransformersEngine(folder), TransformersEngine(folder, adapter=adapter)
    stock = reference(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        tuned = peft.PeftModel.from_pretrained(stock.model, str(adapter)).eval()
    with torch.inference_mode():
        logs = tuned(**stock.inputs(query)).logits[0, -1].double().log_softmax(-1)
    vocabulary = stock.tokenizer.get_vocab()
    mass = [sum(math.exp(logs[vocabulary[t]]) for t in tokens) for tokens in (("A", "ĠA"), ("B",), ("C",))]
    found, before = (asking.answers(e, [query])[query.key].probabilities for e in (engine, plain))
    assert found is not None
    assert before is not None
    assert [found[c] for c in "ABC"] == pytest.approx([m / sum(mass) for m in mass], abs=1e-4)
    assert max(abs(found[c] - before[c]) for c in "ABC") > 0.01
    assert engine.model_name == f"{family}+cells-lora"
    assert engine.model_id.startswith(f"{family}+cells-lora@")
    assert engine.model_id != plain.model_id


def test_an_adapter_of_another_base_or_shape_is_refused(tiny_checkpoint: Any, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"was trained on '.*qwen2_vl', the model is 'qwen3_vl'"):
        TransformersEngine(tiny_checkpoint("qwen3_vl"), adapter=adapter)
    forged = Path(shutil.copytree(adapter, tmp_path / "forged"))
    config = json.loads((forged / "adapter_config.json").read_text())
    (forged / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "", "r": 4}))
    with pytest.raises(EngineError, match="does not fit the model"):
        TransformersEngine(tiny_checkpoint("qwen2_vl"), adapter=forged)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "lacks adapter_config.json"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "is a pickle"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}'), "of type 'PROMPT_TUNING'"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_broken_adapters_are_named(tiny_checkpoint: Any, adapter: Path, tmp_path: Path, broken: Any, says: str) -> None:
    copied = Path(shutil.copytree(adapter, tmp_path / "copied"))
    broken(copied)
    with pytest.raises(EngineError, match=says):
        TransformersEngine(tiny_checkpoint("qwen2_vl"), adapter=copied)
