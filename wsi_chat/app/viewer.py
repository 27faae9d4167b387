"""The slide in the browser: Leaflet, as NiceGUI bundles it, in level-0 pixels (``viewer.js``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nicegui.elements.leaflet
from nicegui.element import Element

from wsi_chat.app.parts import altered
from wsi_chat.schema import Box

HERE = Path(__file__).parent
LEAFLET = Path(nicegui.elements.leaflet.__file__).parent / "dist"


class Viewer(Element, component="viewer.js", esm={"nicegui-leaflet": str(LEAFLET), "wsi-chat-page": "script"}):
    """The map of one slide.

    Args:
        slide: ``key``, ``width``, ``height`` (level-0 px), ``mpp`` or None, ``depth``, ``planes``, ``squares`` (address
            of the squares), ``overview``, ``picture`` (a single picture where there are no squares) and ``trouble``.
        words: the texts it shows.

    Emits ``choose`` (a finding's id), ``view`` (the region in view), ``drawn`` (purpose and box), ``command`` (a key
    that the page acts on), ``ready`` (what the browser remembers).
    """

    def __init__(self, slide: Mapping[str, Any], words: Mapping[str, str]) -> None:
        super().__init__()
        self.add_resource(LEAFLET)
        self._props["slide"] = dict(slide)
        self._props["words"] = dict(words)
        self._props["findings"] = []
        self._props["chosen"] = ""
        self._props["threshold"] = 0.0
        self._props["hidden"] = []
        self._props["layers"] = {}
        self._props["region"] = None

    def show(self, findings: Sequence[Mapping[str, Any]]) -> None:
        """Draw these findings: id, label, name, x0, y0, x1, y1, color, abnormal, score, state. What differs is sent."""
        rows = [dict(finding) for finding in findings]
        changed = altered(self._props["findings"], rows)
        if changed is None:
            self._props["findings"] = rows
        elif changed:
            with self._props.suspend_updates():
                self._props["findings"] = rows
            self.run_method("amend", changed)

    def choose(self, name: str) -> None:
        self._change("chosen", name)

    def filter(self, *, threshold: float, hidden: Sequence[str]) -> None:
        """Hide findings below a probability and those of some classes."""
        self._change("threshold", threshold)
        self._change("hidden", list(hidden))

    def lay(self, layers: Mapping[str, Any]) -> None:
        """What lies over it: ``heat``, ``mask``, ``glass`` with url, extent, on and opacity; ``boxes`` on or off."""
        self._change(
            "layers", {name: dict(layer) if isinstance(layer, dict) else layer for name, layer in layers.items()}
        )

    def frame(self, box: Box | None) -> None:
        """Mark the region that questions are about."""
        self._change("region", None if box is None else _corners(box))

    def _change(self, name: str, value: Any) -> None:
        """Change one thing without sending the others, all findings among them, again."""
        if self._props.get(name) == value:
            return
        with self._props.suspend_updates():
            self._props[name] = value
        self.run_method("change", name, value)

    def fly(self, box: Box, *, margin: float = 2.5) -> None:
        self.run_method("fly", _corners(box), margin)

    def draw(self, purpose: str) -> None:
        """Let the user draw a rectangle; ``drawn`` comes with the same purpose."""
        self.run_method("draw", purpose)

    def remember(self, name: str, value: str) -> None:
        """Have the browser keep a value."""
        self.run_method("remember", name, value)


def _corners(box: Box) -> dict[str, float]:
    return {"x0": box.x0, "y0": box.y0, "x1": box.x1, "y1": box.y1}
