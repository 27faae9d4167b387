"""Which engine answers, and why: the rule behind ``--engine auto``, and the GPUs behind ``--gpus``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_chat.engines.checkpoint import count_parameters, read_config
from wsi_chat.errors import SettingError

ENGINES = ("auto", "transformers", "vllm", "openai")

STARTS = {"transformers": 10.0, "vllm": 75.6}
"""Seconds until the first question can be asked on a GPU. This and the next table were measured on one H200 in bfloat16
with the embedded checkpoint and, for vLLM, also with a model of Qwen3-VL's 8B shape."""
SECONDS_A_TILE = {"transformers": (1 / 38.8, 0.6e-12), "vllm": (1 / 75.6, 0.6e-12)}
"""Of a screening question: with the smallest model, and more for each parameter (as between vLLM's two points)."""

LARGE = 1_000_000_000
"""Parameters from which on vLLM is taken however few the questions: it writes many answers at once, a token of each in
one launch, where transformers writes one batch after the other."""
SMALL = 50_000_000
"""Parameters up to which a GPU waits for its launches most of the time, and processor cores are as fast."""
CORES = 8
"""So many of them screened as fast as that GPU did with transformers (75.3 tiles/s on 16, 38.8 on it)."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine taken, and the reason in words; both are written into the report.

    ``device`` is where it runs: as the settings say, or what was chosen for ``auto``.
    """

    name: str
    reason: str
    device: str = "auto"


def choose_engine(
    wanted: str = "auto",
    *,
    base_url: str | None = None,
    folder: Path | None = None,
    device: str = "auto",
    gpus: str | None = None,
    tiles: int | None = None,
) -> EngineChoice:
    """The engine for these settings.

    ``auto``: a server where one is named; else, where a CUDA GPU is, what `quicker_engine` expects to be done first,
    as far as vLLM is installed and runs the checkpoint's architecture; else transformers.

    Args:
        folder: the checkpoint's folder; None where only a server has it.
        gpus: the setting ``--gpus``: who names GPUs wants them used.
        tiles: that will be asked about; None where nobody knows yet.

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
        return EngineChoice(wanted, "asked for with --engine", device)
    if base_url:
        return EngineChoice("openai", "a server is named with --base-url", device)
    missing = _why_no_gpu(device)
    if missing:
        return EngineChoice("transformers", missing, device)
    quicker = None
    if folder is not None and gpus is None:
        here = device == "auto"
        quicker = quicker_engine(count_parameters(folder), tiles, cores=(os.cpu_count() or 1) if here else 0)
        if quicker.name == "transformers":
            return quicker if here else EngineChoice(quicker.name, quicker.reason, device)
    # only now: to ask vLLM takes as long as to import it
    missing = _why_not_vllm(folder)
    if missing:
        return EngineChoice("transformers", missing, device)
    reason = "a CUDA GPU is here, and vLLM knows the architecture"
    return EngineChoice("vllm", f"{reason}; {quicker.reason}" if quicker else reason, device)


def quicker_engine(parameters: int | None, tiles: int | None, *, cores: int) -> EngineChoice:
    """What is expected to be done first on a machine with a CUDA GPU, were vLLM installed.

    Args:
        parameters: of the model; None where unknown, which counts as many.
        tiles: that will be screened; None where unknown, which counts as few: a conversation should begin at once.
        cores: of the processor, 0 where it may not be used.
    """
    if parameters is None or parameters >= LARGE:
        return EngineChoice("vllm", "a large model")
    size = f"a model of {round(parameters / 1e6) or 1:,} M parameters"
    if parameters <= SMALL and cores >= CORES:
        return EngineChoice("transformers", f"{size} is as fast on this machine's processor, and starts at once", "cpu")
    if tiles is None:
        return EngineChoice("transformers", f"{size} answers before vLLM has started")
    seconds = {
        name: STARTS[name] + tiles * (least + parameters * more) for name, (least, more) in SECONDS_A_TILE.items()
    }
    name = min(seconds, key=seconds.__getitem__)
    either = " and ".join(f"about {round(spent, -1):.0f} s with {each}" for each, spent in seconds.items())
    return EngineChoice(name, f"{size} and {tiles:,} tiles: {either}, starting included")


def _why_no_gpu(device: str) -> str:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA GPU is here"
    return "" if device.startswith(("auto", "cuda")) else f"--device {device} is not a CUDA GPU"


def _why_not_vllm(folder: Path | None) -> str:
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
