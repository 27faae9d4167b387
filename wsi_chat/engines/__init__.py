"""Who answers. `load_engine` gives an `Engine`; importing this package loads no model library."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from wsi_chat.dialects import ImagePolicy, detect_dialect, dialect_of_name
from wsi_chat.engines.adapter import complete_adapter
from wsi_chat.engines.checkpoint import Checkpoint, complete_checkpoint, read_checkpoint, read_config
from wsi_chat.engines.loading import pick_device, pick_dtype
from wsi_chat.engines.protocol import Engine, EngineCrashed, SupervisedEngine
from wsi_chat.engines.scripted import Fault, ScriptedEngine
from wsi_chat.engines.selection import ENGINES, EngineChoice, choose_engine, parse_gpus
from wsi_chat.errors import EngineError, SettingError
from wsi_chat.names import from_home

log = logging.getLogger(__name__)

__all__ = [
    "ENGINES",
    "Checkpoint",
    "Engine",
    "EngineChoice",
    "EngineCrashed",
    "Fault",
    "ScriptedEngine",
    "SupervisedEngine",
    "check_engine",
    "choose_engine",
    "embedded_checkpoint",
    "find_checkpoint",
    "load_engine",
    "read_checkpoint",
    "served_dialect",
]


def embedded_checkpoint() -> Path:
    """The folder of the checkpoint that ships with the package. Raises EngineError where it is absent."""
    folder = Path(str(resources.files("wsi_chat"))) / "embedded"
    if not (folder / "config.json").is_file():
        raise EngineError(
            f"this installation has no embedded checkpoint ({folder})",
            hint="Reinstall wsi-chat, or name a checkpoint with --model.",
        )
    return folder


EMBEDDED = "embedded"
"""What reports and tables call the checkpoint that ships with the package."""


def find_checkpoint(model: str | Path | None) -> Path:
    """The folder of a model: None or ``embedded`` -> the embedded one, a path, or a repository name already downloaded.

    Nothing is fetched: a name is looked up in the local cache only. Raises EngineError.
    """
    if model is None:
        return embedded_checkpoint()
    folder = from_home(model)
    name = str(model)
    looks_like_name = isinstance(model, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if folder.exists() or not looks_like_name:
        return embedded_checkpoint() if name == EMBEDDED and not folder.exists() else folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, local_files_only=True))
    except Exception as error:
        raise EngineError(
            f"model {name!r} is neither a folder nor in the local model cache",
            hint=f"Download it first (hf download {name}) or give --model the path of its folder.",
        ) from error


def load_engine(
    model: str | Path | None = None,
    *,
    engine: str | EngineChoice = "auto",
    adapter: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    base_url: str | None = None,
    gpus: str | None = None,
    concurrency: int | None = None,
    timeout: float = 120.0,
    images: ImagePolicy | None = None,
) -> Engine:
    """Load a model and stand ready. It is restarted once if it dies.

    Args:
        model: a checkpoint folder, the name of a downloaded repository, or None for the embedded checkpoint; for
            a server the name that it lists, or None for its only one.
        engine: ``auto``, ``transformers``, ``vllm`` or ``openai``; see `choose_engine` for what ``auto`` takes. Or what
            that gave, with its device.
        adapter: folder of a LoRA adapter that was trained on the model.
        dtype: ``auto`` (bfloat16 on a GPU, float32 on a CPU), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        batch_size: queries per forward pass (transformers).
        seed: seeds torch; greedy decoding does not draw from it.
        base_url: address of an OpenAI-compatible server, e.g. ``http://127.0.0.1:8000/v1``.
        gpus: ``2`` (so many) or ``0,3`` (these): one engine process for each, on one queue.
        concurrency: questions under way at once (openai: 32, vllm: 128).
        timeout: seconds that one request to a server may take.
        images: how the dialect sizes images, so that the model's processor leaves them as they are; None takes
            the checkpoint's own dialect.

    Raises:
        SettingError: an unknown engine, dtype, device or GPU, or settings that do not go together.
        EngineError: a checkpoint that is incomplete, broken, or of an architecture that the engine cannot run; a
            server that does not answer.
    """
    folder = None if base_url else find_checkpoint(model)
    chosen = (
        engine
        if isinstance(engine, EngineChoice)
        else choose_engine(engine, base_url=base_url, folder=folder, device=device, gpus=gpus)
    )
    log.info("engine %s: %s", chosen.name, chosen.reason)
    if folder is None:
        if gpus or adapter:
            raise SettingError(
                f"{'--gpus' if gpus else '--adapter'} does not go with --base-url",
                hint="The server decides about its GPUs and adapters; it lists an adapter as a model of its own.",
            )
        return _of_server(base_url or "", model, concurrency, timeout, seed, images)
    # the folder's own name, not its path: moving a checkpoint must not change the keys of its answers
    name = "embedded" if model is None else folder.resolve().name if Path(model).exists() else str(model)
    common: dict[str, Any] = {"name": name, "adapter": adapter, "dtype": dtype, "seed": seed}
    start: Callable[[], Engine]
    if chosen.name == "vllm":
        waiting = "starting vLLM, which takes about a minute the first time (on a GPU it compiles the model)"
        log.info(waiting, extra={"waited_for": True})
        start = partial(_start_vllm, folder, images=images, slots=concurrency, **common)
    else:
        start = partial(_start_transformers, folder, device=chosen.device, batch_size=batch_size, **common)
    if gpus is None:
        return SupervisedEngine(start)
    from wsi_chat.engines.engine_pool import EnginePool

    environments = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in parse_gpus(gpus)]
    return EnginePool([start] * len(environments), environments=environments)


def check_engine(
    chosen: EngineChoice,
    *,
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    dtype: str = "auto",
    gpus: str | None = None,
) -> None:
    """Find what would keep `load_engine` from loading a model here, without reading its weights. A server is not asked.

    Raises:
        SettingError, EngineError: as `load_engine`.
    """
    if chosen.name == "openai":
        return
    complete_checkpoint(find_checkpoint(model))
    if adapter is not None:
        complete_adapter(adapter)
    if gpus is not None:
        parse_gpus(gpus)
    if chosen.name == "vllm":
        from wsi_chat.engines.vllm import check_installed

        check_installed()
    else:
        pick_dtype(dtype, pick_device(chosen.device))


def served_dialect(base_url: str, model: str | None) -> str:
    """The dialect of a server's model: from its checkpoint's folder where that lies here, else from its name.

    Raises:
        SettingError: its name does not say; EngineError: no server answers.
    """
    from wsi_chat.engines.openai import look_up

    served = look_up(base_url, model)
    return detect_dialect(served.root) if served.root is not None else dialect_of_name(served.name)


def _start_transformers(folder: Path, **settings: Any) -> Engine:
    from wsi_chat.engines.transformers import TransformersEngine

    return TransformersEngine(folder, **settings)


def _start_vllm(folder: Path, *, images: ImagePolicy | None, slots: int | None, **settings: Any) -> Engine:
    from wsi_chat.engines.serving import plan_serving
    from wsi_chat.engines.vllm import SLOTS, VLLMEngine

    plan = None if images is None else plan_serving(read_config(folder), images)
    return VLLMEngine(folder, plan=plan, slots=slots or SLOTS, **settings)


def _of_server(
    base_url: str, model: str | Path | None, concurrency: int | None, timeout: float, seed: int,
    images: ImagePolicy | None,
) -> Engine:  # fmt: skip
    from wsi_chat.engines.openai import CONCURRENCY, OpenAIEngine
    from wsi_chat.engines.serving import pixel_bounds

    before: OpenAIEngine | None = None

    def start() -> Engine:
        nonlocal before
        before = OpenAIEngine(
            base_url,
            model=None if model is None else str(model),
            concurrency=concurrency or CONCURRENCY,
            timeout=timeout,
            seed=seed,
            pixel_bounds=None if images is None else pixel_bounds(images),
            # a server that went away may be on its way back, loading its model: the same one
            patience=0.0 if before is None else timeout,
            answering="" if before is None else before.answering,
        )
        return before

    return SupervisedEngine(start)
