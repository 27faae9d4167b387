"""How a long step reports how far it is: one signature for every stage of a run, a fit or a search."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The default: nothing is reported."""
