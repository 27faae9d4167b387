"""Which engine answers, and why: the rule behind ``--engine auto``, and the GPUs behind ``--gpus``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_chat.engines.checkpoint import read_config
from wsi_chat.errors import SettingError

ENGINES = ("auto", "transformers", "vllm", "openai")


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine taken, and the reason in words; both are written into the report."""

    name: str
    reason: str


def choose_engine(
    wanted: str = "auto", *, base_url: str | None = None, folder: Path | None = None, device: str = "auto"
) -> EngineChoice:
    """The engine for these settings.

    ``auto``: a server where one is named, else vLLM where it is installed, runs the checkpoint's architecture and
    finds a CUDA GPU, else transformers.

    Args:
        folder: the checkpoint's folder; None where only a server has it.

    Raises:
        SettingError: an unknown engine, or one that does not go with ``base_url``.
    """
    if wanted not in ENGINES:
        raise SettingError(f"engine is {wanted!r}", hint=f"Choose one of: {', '.join(ENGINES)}.")
    if wanted == "openai" and not base_url:
        raise SettingError(
            "the openai engine needs the server's address", hint="Give it: --base-url http://127.0.0.1:8000/v1."
        )
    if base_url and wanted not in ("auto", "openai"):
        raise SettingError(
            f"--base-url names a server, but --engine {wanted} runs the model here",
            hint="Leave one of them out.",
        )
    if wanted != "auto":
        return EngineChoice(wanted, "asked for with --engine")
    if base_url:
        return EngineChoice("openai", "a server is named with --base-url")
    missing = _why_not_vllm(folder, device)
    if missing:
        return EngineChoice("transformers", missing)
    return EngineChoice("vllm", "a CUDA GPU is here, and vLLM knows the architecture")


def _why_not_vllm(folder: Path | None, device: str) -> str:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA GPU is here"
    if not device.startswith(("auto", "cuda")):
        return f"--device {device} is not a CUDA GPU"
    from wsi_chat.engines.vllm import why_not

    architectures = read_config(folder).get("architectures") if folder is not None else None
    return why_not([str(name) for name in architectures] if isinstance(architectures, list) else [])


def list_gpus(text: str) -> list[int]:
    """The numbers of ``--gpus``: ``2`` is the first two, ``0,3`` or ``3,`` are these. Raises SettingError."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
        if "," not in text:
            numbers = list(range(numbers[0]))
    except (ValueError, IndexError):
        numbers = []
    if not numbers or min(numbers) < 0 or len(set(numbers)) != len(numbers):
        raise SettingError(f"--gpus is {text!r}", hint="Give how many (--gpus 2) or which ones (--gpus 0,3).")
    return numbers


def parse_gpus(text: str, *, environ: Mapping[str, str] | None = None) -> list[str]:
    """The GPUs of ``--gpus`` as CUDA_VISIBLE_DEVICES names them.

    Raises:
        SettingError: no number or list of numbers, one listed twice, or more than the machine has.
    """
    import torch

    numbers = list_gpus(text)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if max(numbers) >= count:
        raise SettingError(
            f"--gpus {text}: this machine shows {count} CUDA GPUs", hint="Ask for fewer, or leave --gpus out."
        )
    # the user may have hidden some already: numbers count among those that are left
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()] or [str(n) for n in range(count)]
    return [names[number] for number in numbers]
