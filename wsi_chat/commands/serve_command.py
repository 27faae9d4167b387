"""``wsi-chat serve-command``: the ``vllm serve`` line for a checkpoint and its dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_chat.commands.console import say, show
from wsi_chat.dialects import detect_dialect, dialect_of_name, get_dialect
from wsi_chat.engines import find_checkpoint
from wsi_chat.engines.checkpoint import read_config
from wsi_chat.engines.selection import list_gpus
from wsi_chat.engines.serving import CPU_FLAGS, family_config, plan_serving, serve_line
from wsi_chat.errors import EngineError, WsiChatError
from wsi_chat.names import from_home


def serve_command(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint folder or name. Default: the embedded checkpoint.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="Prompt and box format of the model. Default: read from the checkpoint.")
    ] = None,
    gpus: Annotated[str | None, typer.Option(help="How many GPUs to use (2), or which (0,3).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Print the vllm serve line that suits a checkpoint and its dialect."""
    payload, notes = describe_serving(model, dialect=dialect, gpus=gpus, host=host, port=port)
    if not json_:
        say(payload["command"])
        for note in notes:
            say(f"# {note}", err=True)
        return
    show(payload, "", as_json=True)


def describe_serving(
    model: str | None, *, dialect: str | None, gpus: str | None, host: str, port: int
) -> tuple[dict[str, Any], list[str]]:
    """The command as a JSON-ready payload, and what a person should know beside it.

    Args:
        model: a checkpoint folder or the name of a repository, which may be on another machine only; None is the
            embedded checkpoint.
        gpus: ``2`` or ``0,3``, as for analyze; they need not be in this machine.

    Raises:
        EngineError: there is no such folder. SettingError: no dialect fits, or ``gpus`` is no number or list.
    """
    folder = local_checkpoint(model)
    found = detected(model, folder)
    if dialect is None and found is None:
        # names what is missing: the dialect, or the checkpoint's config
        found = dialect_of_name(str(model)) if folder is None else detect_dialect(folder)
    speaks = get_dialect(dialect or found or "")
    plan = plan_serving(family_config(speaks) if folder is None else read_config(folder), speaks.image_px)
    which = list_gpus(gpus) if gpus else []
    served = str(folder) if model is None or from_home(model).exists() else model
    line = serve_line(served, folder, speaks, gpus=len(which) or 1, host=host, port=port)
    if gpus and "," in gpus:
        line = f"CUDA_VISIBLE_DEVICES={','.join(str(gpu) for gpu in which)} {line}"
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}/v1"
    payload = {
        "command": line,
        "base_url": url,
        "dialect": speaks.name,
        "max_model_len": plan.max_model_len,
        "mm_processor_kwargs": plan.processor_kwargs,
        "cpu_flags": list(CPU_FLAGS),
    }
    notes = [f"dialect {speaks.name}; then: wsi-chat analyze SLIDE --base-url {url}"]
    if speaks.name != found:
        notes[0] += f" --dialect {dialect}"
    if folder is None:
        notes.append(
            f"{model} is not on this machine: the line is made for the family of {speaks.name}; if the model takes "
            f"fewer than {plan.max_model_len} tokens, lower --max-model-len"
        )
    notes.append(f"on a machine without a GPU add: {' '.join(CPU_FLAGS)}")
    if host not in ("127.0.0.1", "localhost"):
        notes.append("the address is open to the network: give vLLM an --api-key, and analyze WSI_CHAT_API_KEY")
    return payload, notes


def local_checkpoint(model: str | None) -> Path | None:
    """The checkpoint's folder; None for a repository's name of which nothing is on this machine.

    Raises:
        EngineError: a path where there is nothing.
    """
    try:
        folder = find_checkpoint(model)
    except EngineError:  # a name, and not in the local cache
        return None
    if not folder.exists():
        raise EngineError(
            f"there is no checkpoint {folder}",
            hint="Give its folder, or the name of a repository, e.g. Qwen/Qwen2.5-VL-7B-Instruct.",
        )
    return folder


def detected(model: str | None, folder: Path | None) -> str | None:
    """The dialect that analyze would find by itself: of the folder, or of the name that the server lists."""
    try:
        return dialect_of_name(str(model)) if folder is None else detect_dialect(folder)
    except WsiChatError:
        return None
