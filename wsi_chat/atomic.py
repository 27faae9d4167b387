"""Whole files or none: a file or folder appears under its name only when it is complete.

A writer that is killed or fails halfway leaves the previous file as it was, and a place that cannot be written is
named in the error. Every file that replaces an earlier one is written here. What is half made lies in a hidden folder
that its owner alone can enter; `sweep` removes those that killed processes left.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsi_chat.errors import OutputError

PART = re.compile(r"\.(?P<machine>[0-9a-f]{8})-(?P<process>[0-9]+)-[0-9a-f]{8}\.part")
"""What the folders of half-made files are called: by the machine and the process that make them."""
ABANDONED_SECONDS = 86_400.0  # after which one of a process on another machine is taken for left behind

_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_mine: set[Path] = set()

HINT = "Choose a folder that you may write to, with free space, or remove what is in the way."


@contextmanager
def replacing(path: Path | str, *, parents: bool = True, hint: str = HINT) -> Iterator[Path]:
    """Give a place for the file or folder while it is made; move it to ``path`` when the block succeeds.

    It has the same name, since some writers choose their format by it, and lies in a folder of its own, where its maker
    may keep what it is made from. An existing folder at ``path`` (a zarr group) is replaced as a whole.

    Args:
        path: the file or folder to write.
        parents: make the folders above it that are missing.
        hint: the way out that the error names.

    Raises:
        OutputError: the folder cannot be made, or the file cannot be written or renamed.
    """
    target = Path(path)
    try:
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as part:
            scratch = part / target.name
            yield scratch
            if scratch.is_dir() and target.is_dir():
                # os.replace cannot rename over a folder that has something in it.
                target.rename(part / "replaced")
                scratch.rename(target)
            else:
                os.replace(scratch, target)  # noqa: PTH105 - the one call that replaces atomically everywhere
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}.", hint=hint) from error


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder inside ``folder`` for what is half made: its owner's alone, and gone with the block."""
    part = folder / f".{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}.part"
    _mine.add(part)
    try:
        part.mkdir(mode=0o700)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _mine.discard(part)


def sweep(folder: Path) -> int:
    """Remove what killed processes left half made in ``folder`` and in the folders right below it.

    Returns:
        How many were removed. Those of processes that still run stay.
    """
    left = [path for pattern in (".*.part", "*/.*.part") for path in folder.glob(pattern) if _is_abandoned(path)]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return len(left)


def _is_abandoned(part: Path) -> bool:
    named = PART.fullmatch(part.name)
    if named is None:
        return False
    process = int(named["process"])
    if named["machine"] != _MACHINE or sys.platform == "win32":  # there nobody can be asked whether it lives
        try:
            return time.time() - part.stat().st_mtime > ABANDONED_SECONDS
        except OSError:
            return False
    if process == os.getpid():  # a container's processes have the same few numbers every time
        return part not in _mine
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def write_bytes(
    path: Path | str, data: bytes, *, parents: bool = True, hint: str = HINT, private: bool = False
) -> Path:
    """Write ``data`` to ``path`` as a whole; see `replacing`. With ``private`` its owner alone can read it."""
    with replacing(path, parents=parents, hint=hint) as scratch:
        scratch.write_bytes(data)
        if private:
            scratch.chmod(0o600)
    return Path(path)


def write_text(path: Path | str, text: str, *, parents: bool = True, hint: str = HINT, private: bool = False) -> Path:
    """Write ``text`` to ``path`` as a whole, as UTF-8 with its line ends as they are; see `write_bytes`.

    Bytes of a file name that is not UTF-8 are written as JSON escapes them, so that run.json gives the same name back.
    """
    writable = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    return write_bytes(path, writable.encode("utf-8"), parents=parents, hint=hint, private=private)
