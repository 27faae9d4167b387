"""Writes a folder of fields with their truth: for looking, for tests of other tools, for ground-truth files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wsi_chat.datasets.render.field import render_field
from wsi_chat.schema import RENDERED_NOTE


def render_fields(
    out_dir: str | Path, seed: int, n: int, *, size: int = 256, mpp: float = 0.5, recipe: str | None = None
) -> Path:
    """Writes `n` fields as PNG (seeds `seed` .. `seed + n - 1`) and `truth.json`; returns the path of the latter.

    `truth.json` is a list with `image`, `seed`, `recipe`, `mpp`, `size`, `abnormal` and `cells` (boxes in px).
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    note = PngInfo()
    note.add_text("Description", RENDERED_NOTE)
    records = []
    for number in range(seed, seed + n):
        field = render_field(number, size=size, mpp=mpp, recipe=recipe)
        name = f"field_{number:07d}.png"
        Image.fromarray(field.image).save(folder / name, pnginfo=note)
        cells = [asdict(cell) for cell in field.cells]
        record = {"image": name, "seed": number, "recipe": field.recipe, "mpp": mpp, "size": size}
        records.append({**record, "abnormal": field.abnormal, "cells": cells})
    truth = folder / "truth.json"
    truth.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return truth
