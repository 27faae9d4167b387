"""OUT/run.log: what happened in a run, beside its results: warnings, failures and their causes, requests tried again.

Lines are added, so that a run which was resumed keeps the log of its earlier part. Folders, this account's home and,
under pseudonyms, names do not show in it: lines wait until it is known what must not.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from wsi_chat._version import __version__
from wsi_chat.control_characters import visible, with_list
from wsi_chat.errors import WsiChatError, unforeseen
from wsi_chat.names import Names, hiding, places

log = logging.getLogger(__name__)

PACKAGES = ("wsi_chat", "tilers", "aggregators", "reports")
LOG = "run.log"
MOST_WAITING = 1000
_FORM = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")


@dataclass(frozen=True, slots=True)
class _Line:
    """A record as text, and the traceback that belongs to it, both as they came."""

    text: str
    trace: str

    @classmethod
    def of(cls, record: logging.LogRecord) -> _Line:
        bare = copy(record)
        bare.exc_info = bare.exc_text = None
        return cls(_FORM.format(bare), _FORM.formatException(record.exc_info) if record.exc_info else "")

    def shown(self, names: Names) -> str:
        """Without what must not show. It begins at the margin, and what follows its first line (a list, a traceback) is
        indented: a file's name with a line break in it cannot pass for a record."""
        trace = f"\n{visible(names.hide(self.trace))}" if self.trace else ""
        return with_list(names.hide(self.text)) + trace.replace("\n", "\n  ") + "\n"


class _RunLog(logging.Handler):
    """Writes to ``run.log`` once the run folder is there and its names are known; until then lines wait in memory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(logging.INFO)
        self._path = folder / LOG
        self._waiting: list[_Line] = []
        self._names: Names | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(_Line.of(record))
        if self._names is not None:
            self.write(self._names)

    def write(self, names: Names | None = None) -> None:
        """Write what waits. ``names`` are those of the run, from now on; at its end, without any, those of all runs."""
        self._names = names or self._names or Names("", hidden=hiding(places([self._path])))
        if not self._waiting or not self._path.parent.is_dir():
            return
        # a full disk must not end the run over its log; what could not be written is tried again with the next line
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(line.shown(self._names) for line in self._waiting))
            self._waiting.clear()


_open: list[_RunLog] = []


def hide_in_log(names: Names) -> None:
    """The names of the run are known: what must not show is kept out of its log, if one is kept."""
    for handler in _open:
        handler.write(names)


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
    _open.append(handler)
    try:
        yield
    except Exception as error:
        if not isinstance(error, WsiChatError):  # which is said, with its traceback, where it is printed
            log.exception("the run ended: %s", unforeseen(error), extra={"printed": True})
        raise
    finally:
        _open.remove(handler)
        handler.write()
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()
