"""Who answers. `load_engine` gives an `Engine`; importing this package loads no model library."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from wsi_chat.engines.checkpoint import Checkpoint, read_checkpoint
from wsi_chat.engines.protocol import Engine, EngineCrashed, SupervisedEngine
from wsi_chat.engines.scripted import Fault, ScriptedEngine
from wsi_chat.errors import EngineError, SettingError

__all__ = [
    "Checkpoint",
    "Engine",
    "EngineCrashed",
    "Fault",
    "ScriptedEngine",
    "SupervisedEngine",
    "embedded_checkpoint",
    "find_checkpoint",
    "load_engine",
    "read_checkpoint",
]

ENGINES = ("auto", "transformers")


def embedded_checkpoint() -> Path:
    """The folder of the checkpoint that ships with the package. Raises EngineError where it is absent."""
    folder = Path(str(resources.files("wsi_chat"))) / "embedded"
    if not (folder / "config.json").is_file():
        raise EngineError(
            f"this installation has no embedded checkpoint ({folder})",
            hint="Reinstall wsi-chat, or name a checkpoint with --model.",
        )
    return folder


def find_checkpoint(model: str | Path | None) -> Path:
    """The folder of a model: None -> the embedded one, a path, or a repository name already downloaded.

    Nothing is fetched: a name is looked up in the local cache only. Raises EngineError.
    """
    if model is None:
        return embedded_checkpoint()
    folder = Path(model).expanduser()
    name = str(model)
    looks_like_name = isinstance(model, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if folder.exists() or not looks_like_name:
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, local_files_only=True))
    except Exception as error:
        raise EngineError(
            f"model {name!r} is neither a folder nor in the local model cache",
            hint=f"Download it first (hf download {name}) or give the path of its folder.",
        ) from error


def load_engine(
    model: str | Path | None = None,
    *,
    engine: str = "auto",
    adapter: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
) -> Engine:
    """Load a model and stand ready. It is restarted once if it dies.

    Args:
        model: a checkpoint folder, the name of a downloaded repository, or None for the embedded checkpoint.
        engine: ``auto`` or ``transformers``.
        adapter: folder of a LoRA adapter that was trained on the model.
        dtype: ``auto`` (bfloat16 on a GPU, float32 on a CPU), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        batch_size: queries per forward pass.
        seed: seeds torch; greedy decoding does not draw from it.

    Raises:
        SettingError: an unknown engine, dtype or device.
        EngineError: a checkpoint that is incomplete, broken, or of an architecture that the engine cannot run.
    """
    if engine not in ENGINES:
        raise SettingError(f"engine is {engine!r}", hint=f"Choose one of: {', '.join(ENGINES)}.")
    path = find_checkpoint(model)
    # the folder's own name, not its path: moving a checkpoint must not change the keys of its answers
    name = "embedded" if model is None else path.resolve().name if Path(model).exists() else str(model)

    def start() -> Engine:
        from wsi_chat.engines.transformers import TransformersEngine

        return TransformersEngine(
            path, name=name, adapter=adapter, dtype=dtype, device=device, batch_size=batch_size, seed=seed
        )

    return SupervisedEngine(start)
