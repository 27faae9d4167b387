"""LoRA adapters through peft: which layers get them, and the checkpoint with them merged in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.engines.adapter import apply_adapter, read_adapter
from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.engines.loading import load_model
from wsi_chat.errors import SettingError

if TYPE_CHECKING:
    import torch

VISION = re.compile(r"(?:^|\.)visual(?:\.|$)")
LANGUAGE = re.compile(r"(?:^|\.)language_model\.")


def linear_layers(model: Any, *, vision: bool) -> list[str]:
    """Names of the linear layers of the language model's blocks, and with ``vision`` of the vision tower's."""
    import torch

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in names if LANGUAGE.search(name) or (vision and VISION.search(name))]


def target_pattern(model: Any, targets: Sequence[str], *, vision: bool) -> str:
    """The layers that get adapters, as the regular expression that goes into adapter_config.json.

    Raises:
        SettingError: a target names no linear layer of the part that is trained.
    """
    layers = linear_layers(model, vision=vision)
    known = sorted({name.rsplit(".", 1)[-1] for name in layers if not name.rsplit(".", 1)[-1].isdigit()})
    ends = tuple(targets) or tuple(sorted({_end(name) for name in layers}))
    for end in ends:
        if not any(name == end or name.endswith(f".{end}") for name in layers):
            raise SettingError(
                f"--targets: no linear layer of {'the model' if vision else 'the language model'} is called {end!r}.",
                hint=f"There are: {', '.join(known)}.",
            )
    parts = r"(?:language_model|visual)" if vision else "language_model"
    return rf"(?:.*\.)?{parts}\.(?:.*\.)?(?:{'|'.join(re.escape(end) for end in ends)})"


def _end(name: str) -> str:
    """The end of a layer's name that tells it apart: ``q_proj``; ``mlp.0`` where the last part is a number."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def add_adapters(
    model: Any, *, rank: int, alpha: int, dropout: float, targets: Sequence[str], vision: bool, base: str
) -> Any:
    """The model with fresh adapters, its own weights frozen. ``base`` is written as the adapter's base model."""
    import peft

    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_pattern(model, targets, vision=vision),
        task_type="CAUSAL_LM",
        bias="none",
        base_model_name_or_path=base,
    )
    model.name_or_path = base
    return peft.get_peft_model(model, config)


def merge(base: Checkpoint, adapter: Path, dtype: torch.dtype) -> Any:
    """The base checkpoint with the adapter added to its weights (in float32, then ``dtype``), on the CPU."""
    import torch

    model = load_model(base.path, torch.float32, torch.device("cpu"))
    return apply_adapter(model, read_adapter(adapter, base)).to(dtype)


def freeze_vision(model: Any) -> None:
    """Leave the vision tower as it is; everything else is trained."""
    for name, weights in model.named_parameters():
        if VISION.search(name):
            weights.requires_grad_(False)
