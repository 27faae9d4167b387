"""The line at the top of every page: where one is, that this is research, the language, dark or light."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nicegui import ui

from reports.language import LANGUAGES, Words
from wsi_chat.app.parts import attributes, box, button, text
from wsi_chat.app.words import PageWords

REMEMBER = """
const mode = localStorage.getItem('wsi-chat-theme');
if (mode) Quasar.Dark.set(mode === 'dark');
"""
TURN = "Quasar.Dark.toggle(); localStorage.setItem('wsi-chat-theme', Quasar.Dark.isActive ? 'dark' : 'light');"


@contextmanager
def head(words: PageWords, name: str, *, back: bool, skip: bool = False) -> Iterator[None]:
    """Build the line; what is built inside stands between the name and the language.

    Args:
        back: offer the way to all slides.
        skip: offer keyboards the way past it to the findings.
    """
    with box("header", "wsi-head"):
        if skip:
            with attributes(box("a", "sr-only skip"), href="#findings"):
                text(words("skip"))
        if back:
            with attributes(box("a", "brand"), href="/", title=words("back"), aria_label=words("back")):
                text("← wsi-chat")
        else:
            text("wsi-chat").classes("brand")
        attributes(
            text(name, "h1").classes("name").style("font-size: inherit; line-height: inherit; margin: 0"), title=name
        )
        yield
        choice = attributes(box("select", "quiet"), aria_label=words("language"), data_testid="language")
        with choice:
            for language in LANGUAGES:
                option = attributes(text(PageWords(language)("name"), "option"), value=language)
                if language == words.language:
                    attributes(option, selected=True)
        choice.on(
            "change",
            js_handler="""(e) => {
            document.cookie = `wsi-chat-language=${e.target.value}; path=/; SameSite=Strict; max-age=31536000`;
            location.reload();
        }""",
        )
        theme = button("◐", lambda: None, kind="plain", hint=words("theme"), test="theme")
        attributes(theme, aria_label=words("theme"))
        theme.on("click", js_handler=f"() => {{ {TURN} }}")
    ui.run_javascript(REMEMBER)


def html_language(words: PageWords) -> str:
    """The tag of the page's language."""
    return Words(words.language)("html.language_tag")
