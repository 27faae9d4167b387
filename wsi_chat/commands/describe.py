"""What ``info`` and ``models`` say: each a JSON-ready payload and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


def _pairs(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def describe_slide(path: Path, *, mpp: float | None, reader: str | None) -> tuple[dict[str, Any], RenderableType]:
    """The slide's record without reading a pixel. Raises SlideError as :func:`tilers.open_slide` does."""
    from tilers import open_slide
    from wsi_chat.analysis.run_folder import slide_id

    with open_slide(path, mpp=mpp, reader=reader) as slide:
        width, height = slide.size
        known = slide.mpp is not None
        payload: dict[str, Any] = {
            "id": slide_id(path),
            "file": path.name,
            "reader": slide.reader,
            "vendor": slide.vendor,
            "width": width,
            "height": height,
            "level_sizes": [list(size) for size in slide.level_sizes],
            "mpp": slide.mpp,
            "mpp_source": slide.mpp_source,
            "objective_power": slide.objective_power,
            "fingerprint": slide.fingerprint,
            "notes": list(slide.notes),
            "properties": dict(slide.properties),
        }
        size_mm = f", {width * slide.mpp / 1000:.2f} x {height * slide.mpp / 1000:.2f} mm" if slide.mpp else ""
        rows = [
            ("file", str(path)),
            ("id", payload["id"]),
            ("reader", f"{slide.reader}" + (f" ({slide.vendor})" if slide.vendor else "")),
            ("size", f"{width} x {height} px{size_mm}"),
            ("levels", ", ".join(f"{w} x {h}" for w, h in slide.level_sizes)),
            (
                "resolution",
                f"{slide.mpp:.4g} um/px ({slide.mpp_source})" if known else "unknown: give it with --mpp",
            ),
            ("objective", f"{slide.objective_power:g}x" if slide.objective_power else "not said"),
            ("fingerprint", slide.fingerprint),
            *[("note", note) for note in slide.notes],
        ]
    return payload, _pairs(rows)


def describe_models(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], RenderableType]:
    """The embedded checkpoint and the given folders, from their config files; no weights are read."""
    from wsi_chat.dialects import detect_dialect
    from wsi_chat.engines import embedded_checkpoint
    from wsi_chat.errors import WsiChatError

    payload: list[dict[str, Any]] = []
    table = Table(box=None, pad_edge=False)
    for column in ("model", "architecture", "weights", "dialect", "aggregator", "state"):
        table.add_column(column, overflow="fold")
    for name, folder in [("embedded", embedded_checkpoint()), *[(str(folder), folder) for folder in folders]]:
        config = folder / "config.json"
        try:
            architecture = ", ".join(json.loads(config.read_text(encoding="utf-8")).get("architectures") or ["unknown"])
            dialect = detect_dialect(folder)
            state = "ready"
        except (OSError, ValueError) as error:
            architecture, dialect, state = "", "", f"no usable config.json: {error}"
        except WsiChatError as error:
            dialect, state = "", str(error)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
        if state == "ready" and not size:
            state = "no *.safetensors weights"
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
    from aggregators.fitted import HEADS, load_fitted
    from wsi_chat.analysis.slide_score import OWN
    from wsi_chat.errors import WsiChatError

    if not (folder / OWN).is_dir():
        return ""
    try:
        record = load_fitted(folder / OWN).record
    except WsiChatError as error:
        return str(error)
    slides = f"{record.cohort.slides} {record.cohort.about} slides".replace("  ", " ")
    return f"{HEADS[record.head]}, {slides}, {record.conditions.get('reporting system', 'any system')}"
