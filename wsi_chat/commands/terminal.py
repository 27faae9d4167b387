"""A rich console on which control characters are symbols; see `wsi_chat.commands.console.visible`."""

from __future__ import annotations

from collections.abc import Iterator

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from wsi_chat.commands.console import visible


class Console(rich.console.Console):
    """As rich's, for text of unknown origin: a file's name or a model's answer cannot steer the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """What `rich` renders, with every control character in its text shown."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)
