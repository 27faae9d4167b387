"""Which architectures the transformers engine runs, and what makes the prompts of each."""

from __future__ import annotations

from typing import Any

from wsi_chat.engines import processed, qwen
from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.engines.prompts import Prompts
from wsi_chat.errors import EngineError

MODEL_TYPES = (*qwen.MODEL_TYPES, *processed.MODEL_TYPES)
REMOTE_CODE = {
    "internvl_chat": "It needs code of its own, which is never run here. Take the same model in transformers' format "
    "(OpenGVLab names these ...-hf), or serve this one with vLLM and name the server with --base-url."
}
"""Types that are known and not run, and the way out."""


def check_family(checkpoint: Checkpoint) -> None:
    """Raises EngineError where the engine has no way to run this architecture."""
    if checkpoint.model_type not in MODEL_TYPES:
        raise EngineError(
            f"checkpoint {checkpoint.path} is of type {checkpoint.model_type!r}",
            hint=REMOTE_CODE.get(checkpoint.model_type, f"The transformers engine runs {', '.join(MODEL_TYPES)}."),
        )


def prompts_for(checkpoint: Checkpoint, config: Any) -> Prompts:
    """What turns queries into prompts for this checkpoint. Raises EngineError where it cannot be loaded."""
    if checkpoint.model_type in qwen.MODEL_TYPES:
        return qwen.QwenPrompts(checkpoint, config)
    return processed.ProcessedPrompts(checkpoint, config)
