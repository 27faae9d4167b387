"""The command ``wsi-chat models``: checkpoints, as JSON or as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from aggregators.fitted import HEADS, load_fitted
from wsi_chat.analysis.slide_score import OWN
from wsi_chat.bounded import load_json
from wsi_chat.commands.console import EXIT_FAILED, show
from wsi_chat.dialects import detect_dialect
from wsi_chat.engines import embedded_checkpoint
from wsi_chat.engines.checkpoint import check_checkpoint
from wsi_chat.errors import DocumentError, WsiChatError


def models(
    folders: Annotated[list[Path] | None, typer.Argument(help="Checkpoint folders to examine.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """List the embedded checkpoint and the given ones: architecture, size, dialect, and whether they load here.

    Exits with 1 if a given folder holds no checkpoint that loads.
    """
    payload, lines = describe_models(folders or [])
    show(payload, lines, as_json=json_)
    if any(one["state"] != "ready" for one in payload):
        raise typer.Exit(EXIT_FAILED)


def describe_models(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], RenderableType]:
    """The embedded checkpoint and the given folders, with all that is checked before weights are loaded."""
    payload: list[dict[str, Any]] = []
    table = Table(box=None, pad_edge=False)
    for column in ("model", "architecture", "weights", "dialect", "aggregator", "state"):
        table.add_column(column, overflow="fold")
    for name, folder in [("embedded", embedded_checkpoint()), *[(str(folder), folder) for folder in folders]]:
        config = folder / "config.json"
        architecture = dialect = ""
        try:
            content = load_json(config)
            named = content.get("architectures") if isinstance(content, dict) else None
            architecture = ", ".join(map(str, named)) if isinstance(named, list) and named else "unknown"
            dialect = detect_dialect(folder)
            check_checkpoint(folder)
            state = "ready"
        except DocumentError as error:
            state = f"no usable config.json: {error.reason}"
        except WsiChatError as error:
            state = str(error)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
        aggregator = _own_aggregator(folder)
        payload.append(
            {
                "name": name,
                "folder": str(folder),
                "architecture": architecture,
                "weights_bytes": size,
                "dialect": dialect,
                "aggregator": aggregator,
                "state": state,
            }
        )
        row = (name, architecture, f"{size / 2**20:.1f} MiB", dialect, aggregator, state)
        table.add_row(*(Text(value) for value in row))
    return payload, table


def _own_aggregator(folder: Path) -> str:
    """The aggregator that a checkpoint brings, in a few words; empty where it brings none."""
    if not (folder / OWN).is_dir():
        return ""
    try:
        record = load_fitted(folder / OWN).record
    except WsiChatError as error:
        return str(error)
    slides = f"{record.cohort.slides} {record.cohort.about} slides".replace("  ", " ")
    return f"{HEADS[record.head]}, {slides}, {record.conditions.get('reporting system', 'any system')}"
