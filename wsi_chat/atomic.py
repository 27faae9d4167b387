"""Whole files or none: a file or folder appears under its name only when it is complete.

A writer that is killed or fails halfway leaves the previous file as it was, and a place that cannot be written is
named in the error. Every file that replaces an earlier one is written here.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsi_chat.errors import OutputError

HINT = "Choose a folder that you may write to, with free space, or remove what is in the way."


@contextmanager
def replacing(path: Path | str, *, parents: bool = True, hint: str = HINT) -> Iterator[Path]:
    """Give a temporary file or folder name beside ``path``; rename it to ``path`` when the block succeeds.

    The temporary name keeps the suffix, since some writers choose their format by it. An existing folder at ``path``
    (a zarr group) is replaced as a whole.

    Args:
        path: the file or folder to write.
        parents: make the folders above it that are missing.
        hint: the way out that the error names.

    Raises:
        OutputError: the folder cannot be made, or the file cannot be written or renamed.
    """
    target = Path(path)
    scratch = target.with_name(f".{target.stem[:80]}-{secrets.token_hex(4)}{target.suffix}")
    try:
        if parents:
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
        raise OutputError(f"{target} cannot be written: {error.strerror or error}.", hint=hint) from error


def write_bytes(path: Path | str, data: bytes, *, parents: bool = True, hint: str = HINT) -> Path:
    """Write ``data`` to ``path`` as a whole; see `replacing`."""
    with replacing(path, parents=parents, hint=hint) as scratch:
        scratch.write_bytes(data)
    return Path(path)


def write_text(path: Path | str, text: str, *, parents: bool = True, hint: str = HINT) -> Path:
    """Write ``text`` to ``path`` as a whole, as UTF-8 with its line ends as they are; see `replacing`.

    Bytes of a file name that is not UTF-8 are written as JSON escapes them, so that run.json gives the same name back.
    """
    writable = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    return write_bytes(path, writable.encode("utf-8"), parents=parents, hint=hint)
