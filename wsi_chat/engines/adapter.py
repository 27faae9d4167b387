"""LoRA adapters: is the folder complete, does it belong to this checkpoint; and the checkpoint with it applied.

Nothing is unpickled: an adapter is ``adapter_config.json`` and ``adapter_model.safetensors``, as peft saves them.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_chat.engines.checkpoint import Checkpoint, revision
from wsi_chat.engines.loading import describe_error
from wsi_chat.errors import EngineError
from wsi_chat.names import from_home

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A complete adapter folder that was trained on the checkpoint at hand. ``revision`` hashes its files."""

    path: Path
    revision: str

    @property
    def name(self) -> str:
        return self.path.resolve().name


def read_adapter(path: str | Path, checkpoint: Checkpoint) -> Adapter:
    """Check an adapter folder against the checkpoint that it is to change.

    Raises:
        EngineError: it is not a folder, lacks a file, is pickled, is not a LoRA, or names another base checkpoint.
    """
    folder, config = complete_adapter(path)
    base = str(config.get("base_model_name_or_path") or "")
    if base and not _same_base(base, checkpoint):
        raise EngineError(
            f"adapter {folder} was trained on {base!r}, the model is {checkpoint.path.resolve().name!r}",
            hint=f"Name its base with --model; if that was only renamed, correct base_model_name_or_path in {CONFIG}.",
        )
    return Adapter(folder, revision(folder))


def complete_adapter(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """An adapter's folder and its configuration, whatever it was trained on; no weights are read.

    Raises:
        EngineError: it is not a folder, lacks a file, is pickled, or is not a LoRA.
    """
    folder = from_home(path)
    if not folder.is_dir():
        raise EngineError(
            f"--adapter {folder} is not a folder", hint=f"Point it to a folder with {CONFIG} and {WEIGHTS}."
        )
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        pickled = (folder / "adapter_model.bin").is_file() and WEIGHTS in missing
        hint = "adapter_model.bin is a pickle and is never loaded: save the adapter as safetensors." if pickled else ""
        raise EngineError(f"adapter {folder} lacks {', '.join(missing)}", hint=hint or "Copy the adapter again.")
    config = _config(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise EngineError(f"adapter {folder} is of type {kind!r}", hint="LoRA adapters can be applied.")
    return folder, config


def _config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"{path} cannot be read: {error}", hint="Copy the adapter again.") from error
    if not isinstance(content, dict):
        raise EngineError(f"{path} holds no JSON object", hint="Copy the adapter again.")
    return content


def _same_base(base: str, checkpoint: Checkpoint) -> bool:
    """Whether a name or path in an adapter's config means this folder: the same place, or the same last name.

    A downloaded repository lies in ``models--owner--name/snapshots/<commit>``, so its owner's folder counts too.
    """
    if Path(base).is_dir() and Path(base).resolve() == checkpoint.path.resolve():
        return True
    wanted = base.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].casefold()
    names = {part.rsplit("--", 1)[-1].casefold() for part in checkpoint.path.resolve().parts[-3:]}
    config = _config(checkpoint.path / "config.json")
    names.add(str(config.get("_name_or_path") or "").rstrip("/").rsplit("/", 1)[-1].casefold())
    return wanted in names


def apply_adapter(model: Any, adapter: Adapter) -> Any:
    """The model with the adapter's changes added to its weights, in evaluation mode.

    Raises:
        EngineError: peft is not installed, or the adapter's tensors do not fit the model's.
    """
    try:
        import peft
    except ImportError as error:
        raise EngineError(
            "LoRA adapters need the package peft", hint="Install it: pip install 'wsi-chat[train]'."
        ) from error
    try:
        with warnings.catch_warnings():
            # peft asks transformers for a name that it renamed
            warnings.simplefilter("ignore", FutureWarning)
            tuned = peft.PeftModel.from_pretrained(
                model, str(adapter.path), is_trainable=False, local_files_only=True, use_safetensors=True
            )
            merged = tuned.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise EngineError(
            f"adapter {adapter.path} does not fit the model: {describe_error(error)}",
            hint="Name the checkpoint that it was trained on with --model.",
        ) from error
    return merged.eval()
