"""The page of one slide: its parts, and what passes between them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from nicegui import ui
from nicegui.events import GenericEventArguments

from reports.html import SYMBOLS
from wsi_chat.app.chat_panel import ChatPanel
from wsi_chat.app.fields import film
from wsi_chat.app.findings_panel import FindingsPanel
from wsi_chat.app.head import head
from wsi_chat.app.layers import GLASS_NAMES, GLASS_RGBA, extent_of, heat_scale
from wsi_chat.app.parts import attributes, box, button, css, text
from wsi_chat.app.review import reviewer_name
from wsi_chat.app.review_bar import ReviewBar
from wsi_chat.app.slides import Shelf, ShownSlide
from wsi_chat.app.source import DOCUMENTS
from wsi_chat.app.state import PageState
from wsi_chat.app.viewer import Viewer
from wsi_chat.app.words import PageWords
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box

OPACITY = {"heat": 0.55, "mask": 0.5, "glass": 0.5}
HELP = (
    (("←", "↑", "→", "↓"), "move"), (("+", "−"), "zoom"), (("1", "2", "4", "0"), "magnify"), (("N", "P"), "next"),
    (("A",), "accept"), (("R",), "reject"), (("L",), "relabel"), (("D",), "draw"), (("C",), "complete"),
    (("U",), "undo"), (("Q",), "ask_region"), (("/",), "ask"), (("H", "M", "G", "B"), "layers"), (("[", "]"), "planes"),
    (("Esc",), "escape"), (("?",), "help"),
)  # fmt: skip


class SlidePage:
    """Builds the page of a slide for one browser."""

    def __init__(self, shelf: Shelf, slide: ShownSlide, words: PageWords) -> None:
        self._shelf, self._slide, self._words = shelf, slide, words
        self._state = PageState(slide, words)
        self._layers: dict[str, Any] = {"boxes": True}
        self._switches: dict[str, ui.element] = {}
        with box("div", "wsi-page"):
            self._head()
            with box("main", "wsi-body"):
                self._list = FindingsPanel(self._state, pick=self.choose, filtered=self.refresh)
                with box("div", "wsi-middle"):
                    self._viewer = Viewer(self._geometry(), words.section("viewer"))
                    self._viewer.classes("wsi-stage")
                    if slide.fields:
                        film(
                            slide.entry.id, slide.fields, words, fly=lambda place: self._viewer.fly(place, margin=0.55)
                        )
                    self._review = ReviewBar(
                        self._state, draw=lambda: self._viewer.draw("cell"), choose=self.choose,
                        named=lambda name: self._viewer.remember("wsi-chat-reviewer", name), changed=slide.changed,
                    )  # fmt: skip
                self._chat = ChatPanel(
                    self._state, go=self.choose, fly=self._viewer.fly, draw=lambda: self._viewer.draw("ask"),
                    framed=self._frame,
                )  # fmt: skip
        self._listen()
        self._set_layers()
        self.refresh()

    # ------------------------------------------------------------------------------------------ building

    def _geometry(self) -> dict[str, Any]:
        slide = self._slide
        size = slide.size or (1, 1)
        about: dict[str, Any] = {
            "key": slide.entry.id, "width": size[0], "height": size[1], "mpp": slide.mpp, "depth": 0, "planes": 1,
            "trouble": slide.trouble,
        }  # fmt: skip
        if slide.reader is not None:
            about |= {
                "depth": slide.reader.pyramid.depth, "planes": slide.reader.planes,
                "squares": f"/slides/{slide.entry.id}/squares", "overview": f"/slides/{slide.entry.id}/overview.jpg",
            }  # fmt: skip
        return about

    def _head(self) -> None:
        words, slide = self._words, self._slide
        result = slide.result
        single = self._shelf.collection.only is not None
        name = slide.entry.title if result is None else result.report.slide.file_name
        with head(words, name, back=not single, skip=True):
            if result is not None:
                verdict = result.report.verdict
                with box("span", f"wsi-chip tone-{verdict.status}"):
                    text(SYMBOLS[verdict.status])
                    text(words.report(f"verdicts.{verdict.status}"))
            text(words("research")).classes("notice")
            box("span", "fill")
            self._layer_menu()
            if result is not None:
                self._documents()
            button(words("keys"), self.show_keys, key="?", kind="plain", test="keys")

    def _documents(self) -> None:
        entry = self._slide.entry
        there = [name for name in DOCUMENTS if (entry.folder / name).is_file()]
        if not there:
            return
        with button(self._words("documents"), lambda: None, kind="plain"), ui.menu().props("auto-close"):
            for name in there:
                with box("a", "q-item wsi-link") as link:
                    attributes(link, href=f"/slides/{entry.id}/files/{name}", target="_blank", rel="noopener")
                    text(name)

    def _layer_menu(self) -> None:
        words, slide = self._words, self._slide
        with button(words("settings"), lambda: None, kind="plain", test="layers"), ui.menu() as menu:
            attributes(menu, aria_label=words("settings"))
            with box("div", "wsi-menu"):
                if slide.grid is not None:
                    self._layer("heat", slide.grid.extent)
                    box("div", "wsi-heat").style(f"background: linear-gradient(90deg, {', '.join(heat_scale())})")
                    with box("div", "wsi-heat-ends"):
                        text("0")
                        text("1")
                    self._layer("mask", slide.grid.extent, outline=slide.grid.outline)
                if slide.mask is not None and slide.size is not None:
                    self._layer("glass", extent_of(slide.mask, slide.size))
                    with box("ul", "wsi-legend"):
                        for kind, name in GLASS_NAMES.items():
                            with box("li"):
                                box("span", "swatch").style(f"background: {css(GLASS_RGBA[kind][:3])}")
                                text(words(f"layers.{name}"))
                self._switch("boxes", key="b")

    def _layer(self, name: str, extent: Sequence[float], **more: Any) -> None:
        """A picture over the slide, with its switch and its opacity."""
        words = self._words
        self._layers[name] = {
            "on": False, "opacity": OPACITY[name], "extent": list(extent),
            "url": f"/slides/{self._slide.entry.id}/{name}.png", **more,
        }  # fmt: skip
        self._switch(name, key=name[0])
        with box("label", "wsi-range"):
            text(words("layers.opacity"))
            share = attributes(
                box("input"), type="range", min=0, max=1, step=0.05, value=OPACITY[name],
                aria_label=f"{words(f'layers.{name}')}: {words('layers.opacity')}",
            )  # fmt: skip
            share.on("input", lambda e: self._opacity(name, float(e.args)),
                     js_handler="(e) => emit(e.target.value)", throttle=0.05)  # fmt: skip

    def _switch(self, name: str, *, key: str) -> None:
        with box("label", "row-of"):
            mark = attributes(box("input"), type="checkbox", data_testid=f"layer-{name}")
            mark.on("change", lambda e: self._lay(name, bool(e.args)), js_handler="(e) => emit(e.target.checked)")
            text(self._words(f"layers.{name}"))
            text(key.upper(), "kbd")
        self._switches[name] = mark

    # ------------------------------------------------------------------------------------------ events

    def _listen(self) -> None:
        viewer, slide = self._viewer, self._slide
        viewer.on("ready", self._ready)
        viewer.on("choose", lambda event: self.choose(str(event.args["id"]), fly=False))
        viewer.on("view", self._viewed)
        viewer.on("drawn", self._drawn)
        viewer.on("command", self._command)
        slide.listeners.append(self.changed)
        client = ui.context.client

        def gone() -> None:
            if self.changed in slide.listeners:
                slide.listeners.remove(self.changed)

        client.on_delete(gone)

    def _ready(self, event: GenericEventArguments) -> None:
        try:
            self._state.reviewer = reviewer_name(str(event.args.get("reviewer", "")))
        except SettingError:
            return
        self.refresh()

    def _viewed(self, event: GenericEventArguments) -> None:
        self._state.view = _box(event.args)
        if self._state.scope == "view":
            self._chat.placed()

    async def _drawn(self, event: GenericEventArguments) -> None:
        place = _box(event.args["box"])
        if place is None:
            return
        if event.args.get("purpose") == "cell":
            await self._review.drawn(place)
            return
        self._state.region = place
        self._chat.choose_scope("region")
        self._chat.focus()

    async def _command(self, event: GenericEventArguments) -> None:
        name = event.args.get("name")
        if name in ("next", "previous"):
            self._step(1 if name == "next" else -1)
        elif name in ("accept", "reject"):
            await self._review.decide(name)
        elif name == "relabel":
            await self._review.relabel()
        elif name == "complete":
            await self._review.complete()
        elif name == "undo":
            self._review.undo()
        elif name in self._layers:
            layer = self._layers[name]
            self._lay(name, not (layer if isinstance(layer, bool) else layer["on"]))
        elif name == "ask":
            self._chat.focus()
        elif name == "help":
            self.show_keys()

    def _step(self, by: int) -> None:
        name = self._list.beside(by)
        if name is not None:
            self.choose(name)

    # ------------------------------------------------------------------------------------------ showing

    def choose(self, name: str, *, fly: bool = True) -> None:
        """Choose a finding, a drawn cell or a tile, and go there."""
        place = self._state.box_of(name)
        if place is None:
            return
        self._state.chosen = name
        self._viewer.choose(name)
        self._list.choose()
        self._review.show_chosen()
        self._chat.placed()
        if fly:
            tile = name in self._slide.tiles
            self._viewer.fly(place, margin=0.75 if tile else 3.0)

    def _frame(self) -> None:
        """Mark what questions are about: the rectangle, or the chosen tile, which has no box of its own."""
        if not hasattr(self, "_chat"):
            return
        state = self._state
        if state.scope == "region":
            self._viewer.frame(state.region)
        else:
            self._viewer.frame(state.box_of(state.chosen) if state.chosen in self._slide.tiles else None)

    def refresh(self) -> None:
        """Show the findings and decisions as they are."""
        state = self._state
        self._viewer.show([row.payload() for row in state.rows()])
        self._viewer.filter(threshold=state.threshold, hidden=sorted(state.hidden))
        self._viewer.choose(state.chosen)
        self._list.refresh()
        self._review.refresh()

    def changed(self) -> None:
        """Something was decided or said, here or in another browser."""
        self.refresh()
        self._chat.refresh()

    def _lay(self, name: str, on: bool) -> None:
        if isinstance(self._layers[name], bool):
            self._layers[name] = on
        else:
            self._layers[name]["on"] = on
        self._set_layers()

    def _opacity(self, name: str, share: float) -> None:
        self._layers[name]["opacity"] = min(1.0, max(0.0, share))
        self._set_layers()

    def _set_layers(self) -> None:
        self._viewer.lay(self._layers)
        for name, mark in self._switches.items():
            layer = self._layers[name]
            mark._props["checked"] = layer if isinstance(layer, bool) else layer["on"]
            mark.update()

    def show_keys(self) -> None:
        words = self._words
        with ui.dialog().props("transition-duration=0") as dialog, ui.card().classes("wsi-dialog"):
            text(words("help.heading"), "h2")
            with box("div", "wsi-keys"):
                for keys, what in HELP:
                    with box("div", "k"):
                        for key in keys:
                            text(key, "kbd")
                    text(words(f"help.{what}"))
            text(words("research_long"), "p").classes("quiet")
            with box("div", "wsi-ends"):
                button(words("close"), dialog.close)
        dialog.on("hide", dialog.delete)
        dialog.open()


def _box(corners: Any) -> Box | None:
    """A rectangle that the browser sent; None where it is none."""
    try:
        x0, y0, x1, y1 = (float(corners[name]) for name in ("x0", "y0", "x1", "y1"))
        box = Box(x0, y0, x1, y1)
    except (TypeError, KeyError, ValueError):
        return None
    return box if box.area > 0 else None


def style() -> str:
    """The page's own style sheet."""
    return resources.files("wsi_chat.app").joinpath("look.css").read_text(encoding="utf-8")
