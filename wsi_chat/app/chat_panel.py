"""The right of the page: questions and answers. An answer leads to the tiles and findings that it cites, and the
picture that the model was shown stands beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import aclosing

from nicegui import ui
from nicegui.events import GenericEventArguments

from wsi_chat.app.parts import attributes, box, button, picture, text
from wsi_chat.app.state import PageState, Scope
from wsi_chat.app.talk import Question
from wsi_chat.chat.record import ID
from wsi_chat.chat.transcript import Reply
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box

SCOPES: tuple[Scope, ...] = ("slide", "view", "region", "finding")


class ChatPanel:
    """Builds the panel in place.

    Args:
        go: fly to a finding or a tile by its id.
        fly: fly to a region.
        draw: let the user draw the rectangle that is asked about.
        framed: the region that questions are about changed.
    """

    def __init__(
        self,
        state: PageState,
        *,
        go: Callable[[str], None],
        fly: Callable[[Box], None],
        draw: Callable[[], None],
        framed: Callable[[], None],
    ) -> None:
        self._state, self._go, self._fly, self._draw, self._framed = state, go, fly, draw, framed
        self._words = state.words
        self._shown = 0
        with box("aside", "wsi-side right") as side:
            attributes(side, aria_label=self._words("chat.heading"))
            self._side = side
            with box("section", "wsi-grow"):
                with box("div", "top"):
                    text(self._words("chat.heading"), "h2")
                self._talk = box("div", "wsi-talk")
                attributes(self._talk, role="log", aria_live="polite", data_testid="talk")
            self._asking()
        self.refresh()

    # ------------------------------------------------------------------------------------------ the question

    def _asking(self) -> None:
        words = self._words
        with box("form", "wsi-ask") as form:
            form.on("submit", self._ask, js_handler="(e) => { e.preventDefault(); emit(); }")
            with box("div", "wsi-scope") as scopes:
                attributes(scopes, role="radiogroup", aria_label=words("chat.about"))
                self._scopes: dict[Scope, ui.button] = {}
                for scope in SCOPES:
                    made = button(words(f"chat.{scope}"), lambda s=scope: self.choose_scope(s), test=f"scope-{scope}")
                    self._scopes[scope] = attributes(made, role="radio")  # type: ignore[assignment]
            self._input = ui.textarea(placeholder=words("chat.placeholder"))
            self._input.props("outlined dense autogrow input-style=min-height:20px").classes("full-width")
            attributes(self._input, aria_label=words("chat.ask"), data_testid="question")
            self._input.on("keydown.enter", self._ask, js_handler=
                           "(e) => { if (!e.shiftKey && !e.isComposing) { e.preventDefault(); emit(); } }")  # fmt: skip
            with box("div", "row-of"):
                self._where = text("").classes("quiet").style("flex: 1")
                self._stop = button(words("chat.stop"), self._halt, key="", test="stop")
                self._send = button(words("chat.ask"), self._ask, kind="main", test="ask")
        self._stop.set_visibility(False)
        self.choose_scope(self._state.scope)

    def focus(self) -> None:
        self._input.run_method("focus")

    def choose_scope(self, scope: Scope) -> None:
        """What the next question is about."""
        state = self._state
        state.scope = scope
        for name, made in self._scopes.items():
            made.classes(add="on" if name == scope else "", remove="" if name == scope else "on")
            attributes(made, aria_checked="true" if name == scope else "false")
            made.update()
        if scope == "region" and state.region is None:
            ui.notify(self._words("chat.draw_first"))
            self._draw()
        self.placed()

    def placed(self) -> None:
        """Say where the question is about."""
        state = self._state
        place = self._place()
        mpp = state.slide.mpp
        if isinstance(place, str):
            self._where.text = place
        elif place is None:
            self._where.text = ""
        elif mpp:
            self._where.text = f"{place.width * mpp:.0f} × {place.height * mpp:.0f} µm"
        else:
            self._where.text = f"{place.width:.0f} × {place.height:.0f} px"
        self._framed()

    def _place(self) -> str | Box | None:
        state = self._state
        if state.scope == "view":
            return state.view
        if state.scope == "region":
            return state.region
        if state.scope == "finding" and state.chosen:
            known = any(f.id == state.chosen for f in state.slide.findings) or state.chosen in state.slide.tiles
            return state.chosen if known else state.box_of(state.chosen)
        return None

    async def _ask(self, event: GenericEventArguments | None = None, *, said: str = "") -> None:
        with self._side:  # the button that asked may be gone before the answer is there
            await self._ask_of(said or str(self._input.value or ""))

    async def _ask_of(self, said: str) -> None:
        said = said.strip()
        talk = self._state.slide.talk
        if not said or talk.busy:
            return
        if self._state.scope == "finding" and self._place() is None:
            ui.notify(self._words("review.choose_first"))
            return
        if self._state.scope == "region" and self._state.region is None:
            self.choose_scope("region")
            return
        self._input.value = ""
        place = self._place()
        self._empty_gone()
        with self._talk:
            asked = text(said, "div").classes("wsi-said")
            with box("div", "wsi-reply") as under_way:
                writing = text("", "div").classes("text wsi-writing")
                waiting = text(self._words("chat.waiting")).classes("from")
        self._busy(True)
        self._down()
        spoken = ""
        try:
            async with aclosing(talk.ask(Question(said, place, self._words.language))) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Reply):
                        break
                    spoken += piece
                    writing.text = spoken
                    waiting.set_visibility(False)
                    self._down()
        except SettingError as error:
            ui.notify(str(error), type="warning")
        finally:
            asked.delete()
            under_way.delete()
            self._busy(False)
        if talk.trouble:
            ui.notify(talk.trouble, type="negative", multi_line=True)
            talk.trouble = ""
        self._state.slide.changed()

    def _halt(self) -> None:
        self._state.slide.talk.stop()
        ui.notify(self._words("chat.stopping"))

    def _busy(self, on: bool) -> None:
        self._stop.set_visibility(on)
        self._send.set_visibility(not on)

    # ------------------------------------------------------------------------------------------ the answers

    def refresh(self) -> None:
        """Show every answer that is not shown yet; another browser may have asked."""
        replies = self._state.slide.talk.replies
        if not replies:
            self._empty()
            return
        if self._shown > len(replies):
            self._talk.clear()
            self._shown = 0
        if self._shown < len(replies):
            self._empty_gone()
        with self._talk:
            for reply in replies[self._shown :]:
                self._reply(reply)
        self._shown = len(replies)
        self._down()

    def _empty(self) -> None:
        self._talk.clear()
        with self._talk:
            text(self._words("chat.empty"), "p").classes("quiet")
            with box("div", "wsi-suggest"):
                known = self._state.slide.result is not None
                # the first two are about the record, which a slide that was not analyzed does not have
                for shown, asked in self._words.section("chat")["suggestions"][0 if known else 2 :]:
                    button(shown, lambda asked=asked: self._ask(said=asked))

    def _empty_gone(self) -> None:
        if self._shown == 0:
            self._talk.clear()

    def _reply(self, reply: Reply) -> None:
        words = self._words
        text(reply.question, "div").classes("wsi-said")
        with box("div", f"wsi-reply {'failed' if reply.status == 'failed' else ''}".strip()) as shown:
            attributes(shown, data_testid="reply", data_source=reply.source)
            with box("div", "text"):
                self._linked(reply.text)
            if reply.region is not None and reply.source != "record" and self._state.slide.reader is not None:
                self._shown_picture(reply)
            if reply.cites:
                with box("div", "wsi-cites"):
                    text(words("chat.cites")).classes("quiet")
                    for name in reply.cites:
                        self._cite(name)
            facts = [words(f"chat.{reply.source}"), *(words.report.remark(note) for note in reply.notes)]
            if reply.status == "truncated" and not reply.notes:
                facts.append(words("chat.stopped"))
            text("; ".join(facts)).classes("from")

    def _linked(self, said: str) -> None:
        """The answer as text; ids that the record has are links, whatever else it holds is only shown."""
        end = 0
        for found in re.finditer(ID, said):
            if self._state.box_of(found.group()) is None:
                continue
            if said[end : found.start()]:
                text(said[end : found.start()])
            self._cite(found.group())
            end = found.end()
        text(said[end:])

    def _cite(self, name: str) -> None:
        link = attributes(text(name, "button").classes("cite"), type="button", data_cite=name)
        link.on("click", lambda: self._go(name))

    def _shown_picture(self, reply: Reply) -> None:
        region = reply.region
        assert region is not None
        corners = ",".join(f"{value:.2f}" for value in (region.x0, region.y0, region.x1, region.y1))
        source = f"/slides/{self._state.slide.entry.id}/region.jpg?box={corners}&px=384"
        with box("figure"):
            seen = attributes(picture(source, self._words("chat.shown")), tabindex=0, data_testid="shown")
            seen.on("click", lambda: self._fly(region))
            seen.on("keydown.enter", lambda: self._fly(region))
            said = self._words("chat.shown")
            if reply.mpp:
                said += f", {self._words('chat.shown_at', mpp=f'{reply.mpp:.3g}')}"
            text(said, "figcaption")

    def _down(self) -> None:
        self._talk.client.run_javascript(
            f"const t = getHtmlElement({self._talk.id}); if (t) t.scrollTop = t.scrollHeight;"
        )
