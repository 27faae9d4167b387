"""Writes a checkpoint folder that `transformers` (and servers built on it) load without custom code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLImageProcessorPil

from wsi_chat.engines.sums import write_sums
from wsi_chat.training.embedded import wording
from wsi_chat.training.embedded.architecture import IMAGE_PX, MERGE, PATCH_PX, parameter_count
from wsi_chat.training.embedded.fields import BLOOD_MPP

SCOPE: dict[str, Any] = {
    "statement": "Demonstration model: trained on rendered cervical fields and real blood smears; "
    "not for real cervical slides.",
    "specimens": {"cervix": "rendered", "blood-smear": "real"},
}
"""What the checkpoint was trained for: specimen system -> whether its training pictures were rendered or real."""


def image_processor() -> Any:
    """The stock Qwen2-VL processor with its limits fixed, so that a 256 x 256 image passes unscaled."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH_PX,
        merge_size=MERGE,
        temporal_patch_size=2,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"shortest_edge": IMAGE_PX * IMAGE_PX, "longest_edge": IMAGE_PX * IMAGE_PX},
    )


def export(model: Any, tokenizer: Any, folder: Path, summary: dict[str, Any]) -> None:
    """Weights in bf16, tokenizer, processor and `manifest.json`; `summary` says how it was trained and measured."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(torch.bfloat16).save_pretrained(folder)
    model.to(torch.float32)
    model.load_state_dict(kept)
    model.tie_weights()
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    manifest = {
        "dialect": "embedded",
        "architecture": "Qwen3VLForConditionalGeneration",
        "parameters": parameter_count(model),
        "tile_px": IMAGE_PX,
        "mpp": {"cervix": 0.5, "blood-smear": BLOOD_MPP, "default": 0.5},
        "labels": {
            "cervix": [*wording.EPITHELIAL, wording.ABNORMAL, *wording.ORGANISMS, *wording.NORMAL],
            "blood-smear": list(wording.BLOOD),
        },
        "screen": {
            "cervix": {"topic": wording.SCREEN_TOPIC, "options": ["normal", "abnormal"], "positive": "abnormal"},
            "blood-smear": {"topic": wording.BLOOD_TOPIC, "options": ["no", "yes"], "positive": "yes"},
        },
        "scope": SCOPE,
        "training": summary,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    write_sums(folder)
