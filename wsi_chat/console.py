"""Exit codes and the one way an error looks on stderr."""

from __future__ import annotations

import sys

from wsi_chat.errors import WsiChatError

EXIT_FAILED, EXIT_USAGE, EXIT_PARTIAL, EXIT_INTERRUPTED = 1, 2, 3, 130


def complain(error: WsiChatError) -> None:
    """One error on stderr: what is wrong, then the way out."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  fix: {error.hint}", file=sys.stderr)
