"""Exit codes and the one way an error looks on stderr."""

from __future__ import annotations

import logging
import sys
import warnings

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
