"""A slide that was renamed or moved since it was analyzed: its answers are its own, whatever its file is called now."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3

from wsi_chat.analysis.run_folder import SlideFolder

log = logging.getLogger(__name__)


def take_over_answers(folder: SlideFolder, fingerprint: str) -> bool:
    """Begin a slide's journal with the answers of the same scan under its earlier name, if it has one in this run.

    The earlier folder stays as it is. Answers that belong to other questions are simply never looked up.
    """
    earlier = folder.run.moved.get(fingerprint)
    if earlier is None or earlier.id == folder.id or not earlier.journal_path.is_file():
        return False
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{earlier.journal_path}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(folder.journal_path)) as target,
        ):
            source.backup(target)
    except sqlite3.Error as error:
        log.warning("%s: the answers of %s cannot be taken over: %s", folder.id, earlier.id, error)
        folder.journal_path.unlink(missing_ok=True)
        return False
    log.info("%s is the scan that was analyzed as %s: its answers are taken over", folder.id, earlier.id)
    if earlier.features_path.is_dir() and not folder.features_path.exists():
        shutil.copytree(earlier.features_path, folder.features_path)
    return True
