"""Under the slide: the chosen finding and what a reviewer can say of it; who reads, how far, and the files of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import combinations

from nicegui import events, ui

from wsi_chat.app.export import export_review
from wsi_chat.app.parts import attributes, box, button, mark, text
from wsi_chat.app.reading import agreement, progress
from wsi_chat.app.review import SLIDE, Action, reviewer_name
from wsi_chat.app.state import PageState
from wsi_chat.errors import SettingError, WsiChatError
from wsi_chat.schema import Box


class ReviewBar:
    """Builds the bar in place.

    Args:
        draw: let the user draw a missed cell.
        choose: go to a finding.
        named: a reviewer's name was given; the browser keeps it.
        changed: a decision was written.
    """

    def __init__(
        self,
        state: PageState,
        *,
        draw: Callable[[], None],
        choose: Callable[[str], None],
        named: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._state, self._draw, self._choose, self._named, self._changed = state, draw, choose, named, changed
        self._words = state.words
        words = self._words
        with box("section", "wsi-review") as bar:
            attributes(bar, aria_label=words("review.heading"))
            with box("div", "chosen") as chosen:
                attributes(chosen, role="status", data_testid="chosen")
                self._chosen = text("").classes("text strong")
                self._details = text("").classes("text quiet")
            button(words("review.accept"), lambda: self.decide("accept"), key="a", test="accept")
            button(words("review.reject"), lambda: self.decide("reject"), key="r", test="reject")
            button(words("review.relabel"), self.relabel, key="l", test="relabel")
            button(words("review.draw"), self._start_drawing, key="d", test="draw")
            button(words("review.complete"), self.complete, key="c", test="complete", hint=words("help.complete"))
            button(words("review.undo"), self.undo, key="u", test="undo")
            box("span", "sep")
            self._who = button("", self.ask_name, kind="plain", test="reviewer")
            self._progress = text("").classes("quiet")
            attributes(self._progress, data_testid="progress")
            button(words("review.agreement"), self.show_agreement, kind="plain", test="agreement")
            if state.slide.result is not None:
                self._slide_class()
                button(words("review.export"), self.export, kind="plain", test="export")
        self.refresh()

    # ------------------------------------------------------------------------------------------ deciding

    async def decide(self, action: Action, *, label: str = "") -> None:
        """Write a decision about the chosen finding down."""
        state = self._state
        if not state.chosen or state.box_of(state.chosen) is None or state.chosen in state.slide.tiles:
            ui.notify(self._words("review.choose_first"))
            return
        if not await self._has_name():
            return
        self._write(lambda: state.slide.store.decide(state.reviewer, state.chosen, action, label=label))

    async def relabel(self) -> None:
        if not self._state.chosen:
            ui.notify(self._words("review.choose_first"))
            return
        if not await self._has_name():
            return
        label = await self._pick(self._words("review.choose_class", id=self._state.chosen))
        if label:
            await self.decide("relabel", label=label)

    async def drawn(self, place: Box) -> None:
        """A rectangle was drawn around a missed cell: ask for its class and keep it."""
        if not await self._has_name():
            return
        label = await self._pick(self._words("review.choose_class_drawn"))
        if not label:
            return
        state = self._state
        made = self._write(lambda: state.slide.store.draw(state.reviewer, label, place))
        if made is not None:
            self._choose(made)

    async def complete(self) -> None:
        """Say of the tile here that every cell in it is marked."""
        state = self._state
        tile = state.tile_here()
        if tile is None:
            ui.notify(self._words("review.not_a_field"))
            return
        if not await self._has_name():
            return
        self._write(lambda: state.slide.store.decide(state.reviewer, tile, "complete"))
        ui.notify(self._words("review.completed", tile=tile))

    def undo(self) -> None:
        state, words = self._state, self._words
        gone = state.slide.store.undo(state.reviewer) if state.reviewer else None
        if gone is None:
            ui.notify(words("review.nothing_undone"))
            return
        name = words(f"review.{'slide_class' if gone.action == 'label' else gone.action}")
        ui.notify(words("review.undone", action=name, about=gone.about))
        if state.chosen == gone.about and gone.action == "draw":
            state.chosen = ""
        self._changed()

    def _write(self, decide: Callable[[], object]) -> str | None:
        """Write; what it is about, or None where it could not be written, which is said."""
        try:
            decision = decide()
        except WsiChatError as error:
            ui.notify(str(error), type="negative")
            return None
        self._changed()
        return str(getattr(decision, "about", ""))

    async def _start_drawing(self) -> None:
        if await self._has_name():
            self._draw()

    # ------------------------------------------------------------------------------------------ windows

    async def _pick(self, title: str) -> str | None:
        """Choose a class: by mouse, by arrows, or by the number beside it."""
        state = self._state
        choices = state.choices()
        keys = "123456789abcdefghijklmnopqrstuvwxyz"
        with ui.dialog().props("transition-duration=0") as dialog, ui.card().classes("wsi-dialog"):
            attributes(dialog, aria_label=title)
            text(title, "h2")
            with box("div", "wsi-pick") as listed:
                attributes(listed, role="listbox", aria_label=title)
                for n, code in enumerate(choices):
                    style = state.style(code)
                    with box("button") as choice:
                        attributes(choice, type="button", role="option", data_class=code)
                        if n == 0:
                            attributes(choice, autofocus=True)
                        if n < len(keys):
                            text(keys[n], "kbd")
                        mark(style.color, style.shape)
                        text(state.name(code)).classes("strong")
                    choice.on("click", lambda code=code: dialog.submit(code))

            def typed(event: events.KeyEventArguments) -> None:
                key = str(event.key)
                if event.action.keydown and key in keys and keys.index(key) < len(choices):
                    dialog.submit(choices[keys.index(key)])

            ui.keyboard(on_key=typed, ignore=["input", "select", "textarea"])
        picked = await dialog
        dialog.delete()
        return picked if isinstance(picked, str) else None

    async def _has_name(self) -> bool:
        return bool(self._state.reviewer) or await self.ask_name()

    async def ask_name(self) -> bool:
        """Who is reading? Whether there is a name now."""
        words, state = self._words, self._state
        with ui.dialog().props("transition-duration=0") as dialog, ui.card().classes("wsi-dialog"):
            text(words("review.who"), "h2")
            text(words("review.who_hint"), "p").classes("quiet")
            known = list(state.slide.store.reviewers())
            given = ui.input(words("review.name"), value=state.reviewer, autocomplete=known).props("autofocus dense")
            attributes(given, data_testid="reviewer-name")
            given.classes("full-width").on("keydown.enter", lambda: dialog.submit(given.value))
            with box("div", "wsi-ends"):
                button(words("cancel"), lambda: dialog.submit(None), kind="plain")
                button(words("save"), lambda: dialog.submit(given.value), kind="main", test="save-name")
        name = await dialog
        dialog.delete()
        if not name:
            return bool(state.reviewer)
        try:
            state.reviewer = reviewer_name(str(name))
        except SettingError as error:
            ui.notify(str(error), type="negative")
            return False
        self._named(state.reviewer)
        self._changed()
        return True

    def show_agreement(self) -> None:
        words, state = self._words, self._state
        names = state.slide.store.reviewers()
        with ui.dialog().props("transition-duration=0") as dialog, ui.card().classes("wsi-dialog") as card:
            attributes(card, data_testid="agreement-window")
            text(words("review.agreement"), "h2")
            if len(names) < 2:
                text(words("review.agreement_none"), "p")
            for first, second in combinations(names, 2):
                found = agreement(state.slide.findings, state.slide.store, first, second)
                said = words("review.agreement_long", first=first, second=second, common=found.common, same=found.same)
                text(said, "p")
                kappa = "review.kappa_none" if found.kappa is None else "review.kappa"
                text(words(kappa, kappa="" if found.kappa is None else f"{found.kappa:.2f}"), "p").classes("strong")
                if found.apart:
                    text(words("review.apart"), "p").classes("quiet")
                    with box("div", "wsi-cites"):
                        for name in found.apart:
                            link = text(name, "button").classes("cite")
                            link.on("click", lambda name=name: (dialog.close(), self._choose(name)))
            with box("div", "wsi-ends"):
                button(words("close"), dialog.close)
        dialog.on("hide", dialog.delete)
        dialog.open()

    # ------------------------------------------------------------------------------------------ the slide and files

    def _slide_class(self) -> None:
        """What the slide is, by this reader, for `wsi-chat fit`."""
        words, state = self._words, self._state
        classes = [c.name for c in state.slide.system.categories] or ["normal", "abnormal"]
        choice = box("select", "quiet")
        attributes(choice, aria_label=words("review.slide_class_long"), title=words("review.slide_class_long"))
        attributes(choice, data_testid="slide-class")
        with choice:
            attributes(text(words("review.slide_class"), "option"), value="")
            self._options = {name: attributes(text(name, "option"), value=name) for name in classes}

        async def chosen(event: events.GenericEventArguments) -> None:
            name = str(event.args)
            if name in self._options and await self._has_name():
                self._write(lambda: state.slide.store.decide(state.reviewer, SLIDE, "label", label=name))

        choice.on("change", chosen, js_handler="(e) => emit(e.target.value)")

    async def export(self) -> None:
        words, slide = self._words, self._state.slide
        result = slide.result
        if result is None:
            return
        waiting = ui.notification(words("review.export"), spinner=True, timeout=None)
        try:
            done = await asyncio.to_thread(export_review, slide.entry, result, slide.store)
        except WsiChatError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        finally:
            waiting.dismiss()
        ui.notify(words("review.exported", folder=str(done.files[0].parent)), multi_line=True, timeout=8000)
        for note in done.notes:
            ui.notify(note, type="warning", multi_line=True, timeout=8000)

    # ------------------------------------------------------------------------------------------ showing

    def show_chosen(self) -> None:
        """Show what is chosen."""
        state, words = self._state, self._words
        row = next((row for row in state.rows() if row.id == state.chosen), None)
        if row is None:
            self._chosen.text = state.chosen if state.chosen in state.slide.tiles else words("review.none_chosen")
            self._details.text = ""
        else:
            self._chosen.text = f"{row.name}  {row.id}"
            self._details.text = "  ·  ".join(self._facts(row.box, row.score, row.state, row.model, row.label))

    def refresh(self) -> None:
        """Show what is chosen and how far the review is."""
        state, words = self._state, self._words
        self.show_chosen()
        self._who.clear()
        with self._who:
            text(f"{words('review.reviewer')}: {state.reviewer}" if state.reviewer else words("review.nobody"))
        done = progress(state.slide.findings, state.decisions)
        self._progress.text = words("review.progress", done=done.done, of=done.of) if done.of else ""
        said = words("review.progress_long", done=done.done, of=done.of, who=state.reviewer or words("review.nobody"))
        attributes(self._progress, title=said, aria_label=said)
        own = state.decisions.get(SLIDE)
        for name, option in getattr(self, "_options", {}).items():
            option._props["selected"] = own is not None and own.label == name
            option.update()

    def _facts(self, place: Box, score: float | None, decision: str, model: str, label: str) -> list[str]:
        state, words = self._state, self._words
        facts = [] if score is None else [f"p {score:.3f}"]
        mpp = state.slide.mpp
        if mpp:
            facts.append(f"{place.width * mpp:.1f} × {place.height * mpp:.1f} µm")
            facts.append(f"x {place.center[0] * mpp:.1f}, y {place.center[1] * mpp:.1f} µm")
        else:
            facts.append(f"{place.width:.0f} × {place.height:.0f} px")
        if decision:
            facts.append(words(f"review.state_{decision}"))
        if model and model != label:
            facts.append(f"{words('verdict.model')}: {state.name(model)}")
        return facts
