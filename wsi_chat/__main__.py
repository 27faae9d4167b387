"""``wsi-chat`` and ``python -m wsi_chat``: signals are handled before the program is imported."""

from __future__ import annotations

import io
import sys

from wsi_chat.commands.signals import deliver_held, exit_code, exit_code_kept, handle_signals, ignore_signals


def main() -> None:
    """Run the command line; interrupted while it is still being imported, end as it would."""
    handle_signals()
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from wsi_chat.cli import main as run

        deliver_held()
    except KeyboardInterrupt:
        print("interrupted before anything was begun", file=sys.stderr)
        sys.exit(exit_code())
    try:
        run()
    finally:
        ignore_signals()


if __name__ == "__main__":
    with exit_code_kept():
        main()
