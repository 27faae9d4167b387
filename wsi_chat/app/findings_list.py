"""The list of findings in the browser (``findings_list.js``): thousands of rows, of which only those in sight exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui.element import Element

from wsi_chat.app.parts import altered


class FindingsList(Element, component="findings_list.js"):
    """A table of findings.

    Args:
        columns: as Quasar's table takes them: ``name``, ``label``, ``field``, ``align``.
    """

    def __init__(self, columns: Sequence[Mapping[str, str]]) -> None:
        super().__init__()
        self._props["columns"] = [dict(column) for column in columns]
        self._props["rows"] = []
        self._props["chosen"] = ""

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show these rows: id, name, p, state, sign, glyph, color, said, say. Only what differs is sent."""
        made = [dict(row) for row in rows]
        changed = altered(self._props["rows"], made)
        if changed is None:
            self._props["rows"] = made
        elif changed:
            with self._props.suspend_updates():
                self._props["rows"] = made
            self.run_method("amend", changed)

    def choose(self, name: str, place: int | None = None) -> None:
        """Mark a row as chosen; with ``place``, its number, bring it into view."""
        if place is None and self._props["chosen"] == name:
            return
        with self._props.suspend_updates():
            self._props["chosen"] = name
        self.run_method("choose", name, -1 if place is None else place)
