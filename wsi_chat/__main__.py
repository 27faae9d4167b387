"""``python -m wsi_chat``: the command line."""

from wsi_chat.cli import main

main()
