"""Exit codes and the one way an error looks on stderr."""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from typing import Any

from wsi_chat.analysis.run_log import PACKAGES
from wsi_chat.control_characters import CONTROLS, one_line, visible, with_list
from wsi_chat.errors import WsiChatError, unforeseen

log = logging.getLogger(__name__)

EXIT_FAILED, EXIT_USAGE, EXIT_PARTIAL = 1, 2, 3


def say(text: str = "", *, err: bool = False) -> None:
    """One line on stdout or stderr; text of unknown origin cannot steer the terminal."""
    print(one_line(text), file=sys.stderr if err else sys.stdout, flush=True)


def say_lines(text: str) -> None:
    """Text on stdout whose line breaks are part of it, as a model's answer."""
    print(visible(text), flush=True)


def _say_error(text: str) -> None:
    """A message on stderr: one line, or one and the indented lines of its list."""
    print(with_list(text), file=sys.stderr, flush=True)


def say_json(payload: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout. Control characters are escaped, so that the data stay what they are.

    Args:
        payload: what `json` can write, or a document as text.
        indent: as of `json.dumps`.
    """
    text = payload if isinstance(payload, str) else json.dumps(payload, indent=indent, ensure_ascii=False)
    print(CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text), flush=True)


class _ToStderr(logging.Handler):
    """A line for each record, without its traceback, which is for run.log."""

    def emit(self, record: logging.LogRecord) -> None:
        _say_error(f"{record.levelname}: {record.getMessage()}")


class _Waiting(logging.Handler):
    """What a user waits for, said where nothing else would be."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "waited_for", False) and _stderr.level > logging.INFO:
            message = record.getMessage()
            say(f"{message[0].upper()}{message[1:]} ...", err=True)


_stderr = _ToStderr(logging.WARNING)
# an error that `complain` prints is logged too, for run.log
_stderr.addFilter(lambda record: not getattr(record, "printed", False))


def complain(error: WsiChatError) -> None:
    """One error on stderr: what is wrong, then the way out."""
    _say_error(f"error: {error.message}")
    if error.hint:
        say(f"  fix: {error.hint}", err=True)
    log.error("%s", error, exc_info=error, extra={"printed": True})


def say_unforeseen(error: Exception) -> None:
    """An error that nobody raised on purpose, on stderr: its traceback, then what it is and the way out."""
    print(visible("".join(traceback.format_exception(error))), file=sys.stderr, end="", flush=True)
    _say_error(f"error: {unforeseen(error)}")
    say("  fix: This is a fault of the program: please report it, with the lines above.", err=True)


def set_up_logging() -> None:
    """Warnings of this program go to stderr, one line each; those of libraries about odd files stay out of sight.

    What a library grumbles about while a reader tries a file is either no error or becomes one of ours, with the
    file's name and the way out.
    """
    if _stderr not in logging.getLogger().handlers:
        logging.getLogger().addHandler(_stderr)
        engines = logging.getLogger("wsi_chat.engines")
        engines.addHandler(_Waiting(logging.INFO))
        engines.setLevel(logging.INFO)
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
        say_json(payload)
        return
    from wsi_chat.commands.terminal import Console

    Console(highlight=False, soft_wrap=True).print(lines)
