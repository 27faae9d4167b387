"""dataset_info.json: which data sets a folder holds, as LLaMA-Factory writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wsi_chat.errors import SettingError

INFO = "dataset_info.json"


def read_info(folder: Path) -> dict[str, Any]:
    """The entries of a folder's dataset_info.json, by name. Raises SettingError where it cannot be read."""
    path = folder / INFO
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(
            f"{path} cannot be read: {error}.",
            hint="Point --dataset-dir to the folder that holds it, e.g. what `wsi-chat dataset build` wrote.",
        ) from error
    if not isinstance(content, dict):
        raise SettingError(f"{path} holds no JSON object.", hint="Build the data set anew.")
    return content
