"""How a checkpoint is to be served for its dialect: context length, images per question, pixel bounds, caches.

The in-process vLLM engine and the printed ``vllm serve`` line take it from here, so that both see tiles alike.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_chat.dialects import Dialect, ImagePolicy
from wsi_chat.engines.checkpoint import read_config

BOUNDED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Families whose processor rounds an image to its patch multiple and scales it into pixel bounds."""

IMAGE_TOKENS = {"internvl": 256, "internvl_chat": 256, "gemma3": 256, "paligemma": 1024}
"""Tokens of one image at the family's own size, where no bounds decide it."""

MOST_IMAGES = 6
"""Images in one question: a field, its four quadrants, and one more."""

WORDS = 2048
"""Room for the prompt's words and the longest answer (1,024 tokens)."""

STEP = 1024

CPU_BLOCK = 32
"""Tokens in a block of the prefix cache on a CPU. vLLM's own 128 there are more than a small tile's image takes, and
only whole blocks are found again."""

CPU_FLAGS = ("--block-size", str(CPU_BLOCK), "--dtype", "float32", "--enforce-eager")
"""What a server on a CPU needs beside the line for a GPU."""


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """What an engine must be told. ``pixel_bounds``: fewest and most pixels of an image, None for a fixed size."""

    max_model_len: int
    images: int
    pixel_bounds: tuple[int, int] | None

    @property
    def limits(self) -> dict[str, int]:
        """Items per question, as vLLM's ``limit_mm_per_prompt``."""
        return {"image": self.images, "video": 0}

    @property
    def processor_kwargs(self) -> dict[str, dict[str, int]]:
        """As vLLM's ``mm_processor_kwargs``: with these the processor leaves the dialect's images as they are."""
        return {} if self.pixel_bounds is None else size_kwargs(self.pixel_bounds)


def pixel_bounds(policy: ImagePolicy) -> tuple[int, int]:
    """Fewest and most pixels of the images that a dialect sends."""
    if policy.side is None:
        return policy.min_pixels, policy.max_pixels
    # a narrow strip of the side's length may be as thin as one multiple
    return min(policy.min_pixels, policy.multiple * policy.side), policy.side**2


def size_kwargs(bounds: tuple[int, int]) -> dict[str, dict[str, int]]:
    """Pixel bounds as the processor's argument. Its edges are areas: what older versions call min and max pixels."""
    return {"size": {"shortest_edge": bounds[0], "longest_edge": bounds[1]}}


def plan_serving(config: Mapping[str, Any], policy: ImagePolicy, *, images: int = MOST_IMAGES) -> ServingPlan:
    """The plan for a checkpoint's ``config.json`` and its dialect's images."""
    family = str(config.get("model_type", ""))
    text, vision = (config.get(part) or {} for part in ("text_config", "vision_config"))
    bounds = pixel_bounds(policy) if family in BOUNDED else None
    if bounds is None:
        tokens = IMAGE_TOKENS.get(family, STEP)
    else:
        side = int(vision.get("patch_size", 14)) * int(vision.get("spatial_merge_size", 2))
        tokens = math.ceil(bounds[1] / side**2) + 2
    needed = math.ceil((WORDS + images * tokens) / STEP) * STEP
    longest = text.get("max_position_embeddings") or config.get("max_position_embeddings")
    return ServingPlan(min(needed, int(longest)) if longest else needed, images, bounds)


def family_config(dialect: Dialect) -> dict[str, Any]:
    """What a ``config.json`` of a dialect's family says that a plan depends on, for a checkpoint that is not here."""
    family = dialect.spec.base_model_type or next(iter(dialect.spec.model_types), "")
    multiple = dialect.spec.image.multiple
    # two merged patches; a dialect that fixes the side of its pictures may leave the multiple to the processor
    return {"model_type": family, "vision_config": {"patch_size": multiple // 2 if multiple >= 28 else 14}}


def serve_line(
    model: str, folder: Path | None, dialect: Dialect, *, gpus: int = 1, host: str = "127.0.0.1", port: int = 8000
) -> str:
    """The ``vllm serve`` command for a checkpoint, ready for a shell.

    Args:
        model: what to serve, as vLLM takes it: a folder, or a repository's name.
        folder: where its config.json lies; None for a model that is on another machine.
        gpus: engines behind the one address, one for each GPU.
    """
    config = family_config(dialect) if folder is None else read_config(folder)
    plan = plan_serving(config, dialect.image_px)
    words: list[str] = ["vllm", "serve", model, "--served-model-name", Path(model).name]
    words += ["--host", host, "--port", str(port)]
    words += ["--max-model-len", str(plan.max_model_len)]
    words += ["--limit-mm-per-prompt", json.dumps(plan.limits)]
    if plan.processor_kwargs:
        words += ["--mm-processor-kwargs", json.dumps(plan.processor_kwargs)]
    # the checkpoint's own sampling defaults stay out; every tile is new to the media cache, its prefix is not
    words += ["--generation-config", "vllm", "--mm-processor-cache-gb", "0", "--enable-prefix-caching"]
    words += ["--chat-template-content-format", "openai", "--enable-prompt-tokens-details"]
    if gpus > 1:
        words += ["--data-parallel-size", str(gpus)]
    # vLLM reports its usage to its makers unless told not to
    return "VLLM_NO_USAGE_STATS=1 " + shlex.join(words)
