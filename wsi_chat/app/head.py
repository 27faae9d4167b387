"""The line at the top of every page: where one is, that this is research, the language, dark or light."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nicegui import ui

from reports.language import Words
from wsi_chat.app.parts import attributes, box, button, text
from wsi_chat.app.words import PageWords
from wsi_chat.remarks import LANGUAGES

REMEMBER = """
const mode = localStorage.getItem('wsi-chat-theme');
if (mode) Quasar.Dark.set(mode === 'dark');
"""
# From the server only where the machine has no such font. Nothing is written before the font is there: Chromium keeps
# what it shaped without it.
CHINESE = """<style>@font-face { font-family: "wsi-chat Chinese"; src: local("Noto Sans CJK SC"), local("PingFang SC"),
local("Microsoft YaHei"), url("/fonts/chinese"); unicode-range: U+2E80-9FFF, U+F900-FAFF, U+FF00-FFEF; }
html.waiting #app { display: none; }</style>
<script>{
  const root = document.documentElement;
  const go = () => { root.classList.remove("waiting"); setTimeout(() => dispatchEvent(new Event("resize")), 50); };
  root.classList.add("waiting");
  document.fonts.load('13px "wsi-chat Chinese"', '切').then(go, go);
  setTimeout(go, 3000);
}</script>"""
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


def language_script(words: PageWords) -> str:
    """The page's language, for style and screen readers, before anything is written.

    A Chinese font is asked for at once: Chromium keeps what it shaped without the font.
    """
    tag = Words(words.language)("html.language_tag")
    script = f"<script>document.documentElement.lang = '{tag}';</script>"
    return f"{CHINESE}{script}" if words.language == "zh" else script
