"""Whole files or none: what a report writer puts down appears under its name only when it is complete.

A writer that dies half-way leaves the previous file as it was, and an unwritable folder is named in the error.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsi_chat.errors import OutputError

HINT = "Choose a folder that you may write to, with free space, or remove what is in the way."


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary file or folder name beside ``path``; rename it to ``path`` when the block succeeds.

    The parent folders are made. The temporary name keeps the suffix, since some writers choose their format by
    it. An existing folder at ``path`` (a zarr group) is replaced as a whole.

    Raises:
        OutputError: if the folder cannot be made or the file cannot be written or renamed.
    """
    target = Path(path)
    scratch = target.with_name(f".{target.stem[:80]}-{secrets.token_hex(4)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield scratch
            if scratch.is_dir() and target.is_dir():
                # os.replace cannot rename over a folder that has something in it.
                old = target.with_name(f".{target.stem[:80]}-{secrets.token_hex(4)}.old")
                target.rename(old)
                scratch.rename(target)
                shutil.rmtree(old)
            else:
                os.replace(scratch, target)  # noqa: PTH105 - the one call that replaces atomically everywhere
        finally:
            if scratch.is_dir():
                shutil.rmtree(scratch, ignore_errors=True)
            else:
                scratch.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot write {target}: {error.strerror or error}.", hint=HINT) from error


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Write ``data`` to ``path`` as a whole; see `replacing`."""
    with replacing(path) as scratch:
        scratch.write_bytes(data)
    return Path(path)
