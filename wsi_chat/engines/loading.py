"""Loads a checkpoint with transformers: safetensors only, no remote code, no silent gaps, nothing fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.errors import EngineError, SettingError, WsiChatError
from wsi_chat.schema import Sampling

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_device(name: str) -> torch.device:
    """The device of a setting; ``auto`` is the GPU where torch sees one. Raises SettingError."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"device is {name!r}", hint="Give auto, cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device is {name!r}, but torch sees no GPU", hint="Use --device cpu.")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of a setting; ``auto`` is bfloat16 on a GPU, else float32. Raises SettingError."""
    import torch

    if name not in DTYPES:
        raise SettingError(f"dtype is {name!r}", hint=f"Choose one of: {', '.join(DTYPES)}.")
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers' own: the pipeline shows one."""
    from transformers.utils import logging

    theirs: Any = logging
    was_on = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            theirs.enable_progress_bar()


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The model in evaluation mode. Raises EngineError, also where transformers would invent lost weights.

    Attention is left to transformers: SDPA but where a part of the model (Gemma 2's softcapping) cannot use it.
    """
    import transformers

    loader: Any = transformers.AutoModelForImageTextToText
    try:
        with _quiet():
            model, info = loader.from_pretrained(
                str(folder),
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:
        raise EngineError(
            f"checkpoint {folder} cannot be loaded: {describe_error(error)}", hint="Copy the checkpoint again."
        ) from error
    lost = sorted(info.get("missing_keys") or ())
    if lost:
        # transformers would fill them with random numbers and go on
        raise EngineError(
            f"checkpoint {folder} lacks {len(lost)} of the model's weights, first {lost[0]}",
            hint="Copy the checkpoint again, complete.",
        )
    return model.eval().to(device)


def generation_settings(model: Any, tokenizer: Any) -> Callable[[int, Sampling | None], Any]:
    """A function (max_tokens, sampling) -> generation settings: of the checkpoint, its end tokens only.

    Without sampling they are greedy.
    """
    import transformers

    settings_of: Any = transformers.GenerationConfig
    named = getattr(model.generation_config, "eos_token_id", None)
    try:
        ends = {int(token) for token in (named if isinstance(named, list) else [named]) if token is not None}
    except (TypeError, ValueError, OverflowError) as error:
        raise EngineError(
            f"generation_config.json names the end token {str(named)[:100]!r}, which is no number.",
            hint="Set eos_token_id to a number or a list of numbers, or copy the checkpoint again.",
        ) from error
    if tokenizer.eos_token_id is not None:
        ends.add(int(tokenizer.eos_token_id))
    if not ends:
        raise EngineError("the checkpoint names no end token", hint="Add eos_token_id to generation_config.json.")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends)
    # the checkpoint's own sampling defaults must not leak in
    model.generation_config = settings_of(eos_token_id=sorted(ends), pad_token_id=pad)

    def settings(max_tokens: int, sampling: Sampling | None = None) -> Any:
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling is not None:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            drawn["top_k"] = sampling.top_k
        return settings_of(num_beams=1, max_new_tokens=max_tokens, eos_token_id=sorted(ends), pad_token_id=pad, **drawn)

    return settings


def describe_error(error: BaseException) -> str:
    """An exception's message on one line, after its type where the message is no sentence (a key, or nothing)."""
    said = " ".join(str(error).split())[:500]
    if isinstance(error, WsiChatError) or (" " in said and not isinstance(error, KeyError)):
        return said
    return f"{type(error).__name__}: {said}" if said else f"{type(error).__name__}, which says no more"
