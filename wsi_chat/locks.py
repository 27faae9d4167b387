"""Locks of files, which the operating system releases when their process ends, and file systems that have none."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system answers that has no locks, as some network and FUSE mounts do."""


def has_locks(folder: Path) -> bool:
    """Whether the file system of a folder has locks, tried on a file without a name; True where none can be made."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return take_lock(file)
    except OSError:
        return True


def lock_file(file: IO[bytes]) -> bool:
    """Take the lock of a file; the operating system releases it when the process ends.

    Returns:
        False where the file system has no locks: then nothing keeps two processes apart, which is logged.

    Raises:
        OSError: at once, where another process (or another journal of this one) has the lock.
    """
    taken = take_lock(file)
    if not taken:
        log.warning("%s: its file system has no locks; let no second run write there meanwhile", file.name)
    return taken


def take_lock(file: IO[bytes]) -> bool:
    """As `lock_file`, without a word in the log."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True
