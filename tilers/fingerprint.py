"""A slide's fingerprint: quick for files of any size, and different when the scan is another one.

The same file has the same fingerprint wherever it lies, on this machine or behind an address.

It is a SHA-256 over the size, the dimensions of every level and blocks of the content: the first and last
256 KiB and 16 blocks of 64 KiB spread evenly between (all of it up to 2 MiB). Truncation, another scan and
a rewritten header change it; a few bytes altered in the middle of a large file may not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tilers.remote import RemotePath

if TYPE_CHECKING:
    from hashlib import _Hash

WHOLE = 2 * 2**20
ENDS = 256 * 2**10
SAMPLE = 64 * 2**10
SAMPLES = 16


def fingerprint(path: Path, level_sizes: Sequence[tuple[int, int]]) -> str:
    """Hex SHA-256 as described above. A folder (OME-Zarr, or the data folder of .mrxs) counts with its files."""
    digest = hashlib.sha256(repr([tuple(size) for size in level_sizes]).encode())
    if path.is_dir():
        _add_folder(digest, path)
    else:
        _add_file(digest, path)
        companion = path.with_suffix("")
        if path.suffix.lower() == ".mrxs" and companion.is_dir():
            _add_folder(digest, companion)
    return digest.hexdigest()


def _add_file(digest: _Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"|{size}|".encode())
    parts = [(0, size)]
    if size > WHOLE:
        step = (size - 2 * ENDS - SAMPLE) // (SAMPLES - 1)
        parts = [(0, ENDS), *((ENDS + i * step, SAMPLE) for i in range(SAMPLES)), (size - ENDS, ENDS)]
    if isinstance(path, RemotePath):
        for data in path.read_ranges(parts):
            digest.update(data)
        return
    with path.open("rb") as file:
        for offset, length in parts:
            file.seek(offset)
            digest.update(file.read(length))


def _add_folder(digest: _Hash, folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    total = sum(p.stat().st_size for p in files)
    digest.update(f"|{len(files)}|{total}|".encode())
    for path in _spread(files):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))


def _spread(files: Sequence[Path]) -> Iterable[Path]:
    """Every small text file that describes the data, and 64 of the others, evenly."""
    named = {"zarr.json", ".zattrs", ".zarray", ".zgroup", "slidedat.ini"}
    described = [p for p in files if p.name.lower() in named]
    rest = [p for p in files if p.name.lower() not in named]
    step = max(1, len(rest) // 64)
    return [*described, *rest[::step]]
