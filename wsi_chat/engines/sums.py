"""SHA256SUMS of a checkpoint folder, as ``sha256sum`` writes and checks it: whether its files are what was exported.

Nothing else in such a folder tells a damaged tokenizer, template or weight from a sound one.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from wsi_chat.bounded import read_text
from wsi_chat.errors import DocumentError, EngineError

FILE = "SHA256SUMS"
SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors")
CHECKED_BYTES = 100 * 2**20
"""Larger files are not read whole before a run; their headers are checked against their sizes."""
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *]([^/\\]+)")


def write_sums(folder: Path, *, leave: tuple[str, ...] = ()) -> Path:
    """Write the sums of a checkpoint's files but those in ``leave``; returns the file. Raises OSError."""
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name not in leave)
    path = folder / FILE
    path.write_text("".join(f"{_sum(file)}  {file.name}\n" for file in files), encoding="utf-8")
    return path


def check_sums(folder: Path) -> None:
    """Raises EngineError for a file that is not as SHA256SUMS says; a folder without one passes."""
    try:
        lines = read_text(folder / FILE).splitlines()
    except DocumentError as error:
        if error.missing:
            return
        raise EngineError(f"{folder / FILE} {error.reason}.", hint="Copy the checkpoint again.") from error
    for match in filter(None, map(_LINE.fullmatch, lines)):
        path = folder / match[2]
        try:
            if path.stat().st_size > CHECKED_BYTES or _sum(path) == match[1].lower():
                continue
        except (OSError, ValueError):
            continue  # what a checkpoint needs and lacks is named elsewhere
        raise EngineError(
            f"{path} is not as it was exported: its SHA-256 is not the one in {FILE}.",
            hint=f"Copy the checkpoint again. If you changed the file yourself, delete {FILE}.",
        )


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
