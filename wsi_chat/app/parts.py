"""Small parts of the page that NiceGUI has no element for. Every text is set as text, never as markup."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement


def text(content: str, tag: str = "span") -> TextElement:
    """A piece of text in an element of its own."""
    return TextElement(tag=tag, text=content)


def box(tag: str = "div", classes: str = "") -> ui.element:
    """An element without a text."""
    element = ui.element(tag)
    return element.classes(classes) if classes else element


def attributes(element: ui.element, **values: Any) -> ui.element:
    """Set attributes as values, whatever signs they hold; ``aria_label`` sets ``aria-label``."""
    for name, value in values.items():
        element._props[name.rstrip("_").replace("_", "-")] = value
    return element


def picture(source: str, alt: str) -> ui.element:
    return attributes(box("img"), src=source, alt=alt, loading="lazy")


def button(
    label: str, act: Callable[..., Any], *, key: str = "", kind: str = "", hint: str = "", test: str = ""
) -> ui.button:
    """A button with its key beside its name. ``kind``: main, plain or empty."""
    # no colour of Quasar's: its classes would win over the page's own style
    made = ui.button(on_click=act, color=None).props("unelevated no-caps dense").classes(f"wsi-button {kind}".strip())
    with made:
        text(label)
        if key:
            text(key.upper() if len(key) == 1 else key, "kbd")
    attributes(made, aria_label=f"{label} ({key.upper()})" if key else label, title=hint or label)
    if key:
        attributes(made, aria_keyshortcuts=key)
    if test:
        attributes(made, data_testid=test)
    return made


def altered(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The rows that differ, where both lists hold the same ids in the same order; None where they do not."""
    if len(before) != len(after):
        return None
    changed = []
    for old, new in zip(before, after, strict=True):
        if old["id"] != new["id"]:
            return None
        if old != new:
            changed.append(dict(new))
    return changed


GLYPHS = {
    "triangle": "▲", "diamond": "◆", "ring": "○", "square": "□", "wedge": "▽", "pentagon": "⬠", "hexagon": "⬡",
    "left": "◁", "right": "▷", "cross": "✖",
}  # fmt: skip
"""The shapes of classes as the slide has them, in text."""


def mark(color: str, shape: str) -> TextElement:
    """The mark of a class as the slide has it."""
    made = text(GLYPHS[shape]).classes("mark").style(f"--c: {color}")
    attributes(made, aria_hidden="true")
    return made


def css(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def rgb_of(color: str) -> tuple[int, int, int]:
    """``#b5410e`` as red, green, blue."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def is_dark(color: tuple[int, int, int]) -> bool:
    """Whether white text stands better on a colour than black: by its relative luminance (WCAG 2)."""

    def linear(value: int) -> float:
        share = value / 255
        return float(share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4)

    red, green, blue = (linear(value) for value in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.18
