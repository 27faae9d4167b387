"""A rich console with symbols for control characters; see `wsi_chat.control_characters`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from wsi_chat.control_characters import one_line, visible


class Console(rich.console.Console):
    """As rich's, for text of unknown origin: a file's name or a model's answer cannot steer the terminal."""

    def print(self, *objects: Any, markup: bool | None = None, **options: Any) -> None:
        """As rich's. Text without markup may come from anywhere, and is one line whatever it holds."""
        plain = (one_line(item) if markup is False and isinstance(item, str) else item for item in objects)
        super().print(*plain, markup=markup, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """What `rich` renders, with every control character in its text shown."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)
