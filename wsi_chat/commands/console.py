"""Exit codes and the one way an error looks on stderr."""

from __future__ import annotations

import json
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from wsi_chat.errors import WsiChatError

EXIT_FAILED, EXIT_USAGE, EXIT_PARTIAL, EXIT_INTERRUPTED = 1, 2, 3, 130


def complain(error: WsiChatError) -> None:
    """One error on stderr: what is wrong, then the way out."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  fix: {error.hint}", file=sys.stderr)


def set_up_logging() -> None:
    """Warnings of this program go to stderr, one line each; those of libraries about odd files stay out of sight.

    What a library grumbles about while a reader tries a file is either no error or becomes one of ours, with the
    file's name and the way out.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    for name in ("tifffile", "tiffslide", "PIL", "matplotlib", "fsspec", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: state saved, exit 130."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever runs the threads decides about signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.stdout.flush()


def show(payload: Any, lines: Any, *, as_json: bool) -> None:
    """One JSON document on stdout, or the lines or table for a reader."""
    if as_json:
        print(json.dumps(payload, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(lines)
