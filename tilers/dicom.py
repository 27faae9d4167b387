"""DICOM files as they lie in folders: known by their content, with or without a suffix, and by their series."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from wsi_chat.errors import SlideUnsupported

HEAD_BYTES = 64 * 2**10
MAX_FILES = 10_000
# Series Instance UID (0020,000E) with its value representation UI, as every usual transfer syntax writes it.
SERIES_TAG = b"\x20\x00\x0e\x00UI"


def is_dicom(path: Path) -> bool:
    """Whether a file bears DICOM's mark, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files that lie directly in a folder, by name."""
    with os.scandir(folder) as entries:
        files = sorted(Path(entry.path) for entry in entries if entry.is_file() and not entry.name.startswith("."))
    return [path for path in files[:MAX_FILES] if path.name != "DICOMDIR" and is_dicom(path)]


def irregular_file(folder: Path) -> str:
    """The name of a named pipe, a socket or a device that lies directly in a folder, or "".

    OpenSlide opens all that lies beside a DICOM file, and waits at a pipe for ever.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                mode = entry.stat().st_mode
            except OSError:
                continue  # a link to nowhere, which cannot be opened either
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return entry.name
    return ""


def series_uid(path: Path) -> str:
    """Series Instance UID of a DICOM file, or "" where it does not stand in its first 64 KiB."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    at = head.find(SERIES_TAG)
    if at < 0:
        return ""
    start = at + len(SERIES_TAG) + 2
    length = int.from_bytes(head[start - 2 : start], "little")
    return head[start : start + length].decode("ascii", errors="replace").strip("\0 ")


def file_of_series(folder: Path) -> Path:
    """One file of the only DICOM series in a folder; OpenSlide finds the others beside it.

    Raises:
        SlideUnsupported: there is no series, or more than one.
    """
    files = dicom_files(folder)
    if not files:
        raise SlideUnsupported("a folder without DICOM files")
    series = {series_uid(path) for path in files}
    if len(series) > 1:
        raise SlideUnsupported(f"a folder with {len(series)} DICOM series; give any one file of the one that is meant")
    return files[0]
