"""What a fine-tuning run asks of the machine: its memory, its number formats, its other processes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.training.settings import TrainSettings

if TYPE_CHECKING:
    import torch

BYTES_FULL = 16
"""Per parameter in full fine-tuning: weights, gradient and Adam's two moments in float32."""

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def check_extras() -> None:
    for name in ("accelerate", "peft"):
        try:
            version(name)
        except PackageNotFoundError as error:
            raise EngineError(f"{name} is not installed.", hint="pip install 'wsi-chat[train]'") from error


def check_memory(checkpoint: Checkpoint, settings: TrainSettings, device: torch.device) -> None:
    """Refuse at once what cannot fit: the weights and, in full fine-tuning, their gradients and moments."""
    import psutil
    import torch

    stored = sum(file.stat().st_size for file in checkpoint.path.glob("*.safetensors"))
    parameters = stored / (4 if stored_dtype(checkpoint.path) == torch.float32 else 2)
    each = BYTES_FULL if settings.method == "full" else (2 if device.type == "cuda" else 4)
    needed = parameters * each
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise EngineError(
            f"{settings.method} fine-tuning of {checkpoint.path} needs at least {needed / 2**30:.1f} GiB on {device}, "
            f"{free / 2**30:.1f} GiB are free",
            hint="Use --method lora, a smaller checkpoint, or a device with more memory.",
        )


def stored_dtype(folder: Path) -> torch.dtype:
    """The number format in which a checkpoint stores its weights, read from a file's header."""
    import torch
    from safetensors import safe_open

    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    with safe_open(str(min(folder.glob("*.safetensors"))), framework="pt") as file:
        kinds = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
    return names.get(max(set(kinds), key=kinds.count), torch.float32)


def precision(settings: TrainSettings, device: torch.device) -> tuple[bool, bool]:
    """(bf16, fp16): on a GPU bf16 where it can, else fp16; on a CPU neither, unless asked for."""
    import torch

    wanted = settings.precision
    if wanted == "auto":
        if device.type != "cuda":
            return False, False
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return able, not able
    if wanted == "fp16" and device.type != "cuda":
        raise SettingError(f"--precision fp16 on {device}.", hint="On a CPU train in bf16 or fp32.")
    return wanted == "bf16", wanted == "fp16"


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def shared(found: Path | None, device: torch.device) -> Path | None:
    """What the first process found, in every process."""
    if world_size() == 1:
        return found
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=device.type == "cpu")
    told = broadcast_object_list([str(found) if found else ""])
    return Path(told[0]) if told[0] else None


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' and peft's own remarks: ours say what matters."""
    from transformers.utils import logging

    theirs: Any = logging
    before, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(theirs.ERROR)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft and transformers remind each other of names that change in their next versions
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        theirs.set_verbosity(before)
        if bars:
            theirs.enable_progress_bar()


def ran_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in NO_MEMORY)
