"""OUT/run.log: what happened in a run, beside its results: warnings, failures and their causes, requests tried again.

Lines are added, so that a run which was resumed keeps the log of its earlier part.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsi_chat._version import __version__

log = logging.getLogger(__name__)

PACKAGES = ("wsi_chat", "tilers", "aggregators", "reports")
LOG = "run.log"
_FORM = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
MOST_WAITING = 1000


class _RunLog(logging.Handler):
    """Writes to ``run.log`` as soon as the run folder is there; until then lines wait in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_FORM)
        self._path = folder / LOG
        self._waiting: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(self.format(record))
        if not self._path.parent.is_dir():
            return
        # a full disk must not end the run over its log; what could not be written is tried again with the next line
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(f"{line}\n" for line in self._waiting))
            self._waiting.clear()


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Keep what the program logs within the block in ``folder/run.log``, from INFO on and with tracebacks."""
    handler = _RunLog(folder)
    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        if not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)
    log.info("wsi-chat %s begins", __version__)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
