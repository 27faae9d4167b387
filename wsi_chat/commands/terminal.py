"""A rich console with symbols for control characters; see `wsi_chat.control_characters`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import rich.console
from rich.cells import cell_len
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from wsi_chat.control_characters import one_line, visible

LEAST = 20
"""Columns that text gets beside its label, however narrow the terminal is."""


class Console(rich.console.Console):
    """As rich's, for text of unknown origin: a file's name or a model's answer cannot steer the terminal."""

    def print(self, *objects: Any, markup: bool | None = None, **options: Any) -> None:
        """As rich's. Text without markup may come from anywhere, and is one line whatever it holds."""
        plain = (one_line(item) if markup is False and isinstance(item, str) else item for item in objects)
        super().print(*plain, markup=markup, **options)

    def hang(self, label: str, text: str | Text) -> None:
        """A label and its text. On a terminal further lines begin below the text's first; elsewhere it is one line."""
        body = Text(one_line(text)) if isinstance(text, str) else text
        indent = cell_len(label) if label else 2
        lines = body.wrap(self, max(LEAST, self.width - indent)) if self.is_terminal else [body]
        for place, line in enumerate(lines):
            line.rstrip()
            start = " " * indent if place else label
            super().print(Text(start).append_text(line), soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """What `rich` renders, with every control character in its text shown."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)
