"""Exit codes and the one way an error looks on stderr."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Any

from wsi_chat.analysis.run_log import PACKAGES
from wsi_chat.errors import WsiChatError

log = logging.getLogger(__name__)

EXIT_FAILED, EXIT_USAGE, EXIT_PARTIAL, EXIT_INTERRUPTED = 1, 2, 3, 130


class _ToStderr(logging.Handler):
    """A line for each record, without its traceback, which is for run.log."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname}: {record.getMessage()}", file=sys.stderr)


_stderr = _ToStderr(logging.WARNING)
# an error that `complain` prints is logged too, for run.log
_stderr.addFilter(lambda record: not getattr(record, "printed", False))


def complain(error: WsiChatError) -> None:
    """One error on stderr: what is wrong, then the way out."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  fix: {error.hint}", file=sys.stderr)
    log.error("%s", error, exc_info=error, extra={"printed": True})


def set_up_logging() -> None:
    """Warnings of this program go to stderr, one line each; those of libraries about odd files stay out of sight.

    What a library grumbles about while a reader tries a file is either no error or becomes one of ours, with the
    file's name and the way out.
    """
    if _stderr not in logging.getLogger().handlers:
        logging.getLogger().addHandler(_stderr)
    for name in ("tifffile", "tiffslide", "PIL", "matplotlib", "fsspec", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


def set_verbosity(level: int) -> None:
    """What goes to stderr beside warnings and errors: at 1 what is being done, from 2 on every detail."""
    if not level:
        return
    wanted = logging.INFO if level == 1 else logging.DEBUG
    _stderr.setLevel(wanted)
    for name in PACKAGES:
        logging.getLogger(name).setLevel(wanted)


def show(payload: Any, lines: Any, *, as_json: bool) -> None:
    """One JSON document on stdout, or the lines or table for a reader."""
    if as_json:
        print(json.dumps(payload, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(lines)
