"""``wsi-chat view``: the page in the browser, on this machine alone unless a host is named."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tilers.remote import slide_path
from wsi_chat.commands.console import say
from wsi_chat.commands.options import ENGINE, SlideNow, with_settings
from wsi_chat.errors import SettingError
from wsi_chat.remarks import LANGUAGES

if TYPE_CHECKING:
    from wsi_chat.analysis.result import SlideResult
    from wsi_chat.app.server import Place
    from wsi_chat.chat.conversation import Conversation

MEBI = 2**20


@with_settings(*ENGINE, "specimen", defaults={"model": "the run's, else the embedded checkpoint"})
def view(
    source: Annotated[
        Path, typer.Argument(parser=slide_path, help="A run folder OUT, a slide's folder in it, a slide, or a picture.")
    ],
    slide: SlideNow = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Run folder in which the conversation about a bare slide is kept.")
    ] = Path("wsi-chat-out"),
    host: Annotated[
        str, typer.Option(help="Address to listen at. Other machines reach it only with the token that is printed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8470,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    language: Annotated[str | None, typer.Option(help="Language of the page: en or zh.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read pictures.")] = None,
    cache: Annotated[int, typer.Option(min=1, help="MiB of pictures that are kept in memory.")] = 256,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document with the address on stdout.")] = False,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,
    *,
    config: Path | None,
    **settings: Any,
) -> None:
    """Look at slides and their findings in the browser: ask about them, review them, export what was corrected."""
    try:
        from wsi_chat.app.server import serve
        from wsi_chat.app.words import language_of
    except ImportError as error:
        raise SettingError(
            f"The page needs a package that is not installed ({error.name}).", hint="Run: pip install 'wsi-chat[app]'"
        ) from error
    from wsi_chat.app.source import find_slides

    if language is not None and language not in LANGUAGES:
        raise SettingError(f"--language {language!r} is not known.", hint=f"Choose one of: {', '.join(LANGUAGES)}.")
    collection = find_slides(source, slide=slide, out=out)

    def converse(about: SlideResult | Path) -> Conversation:
        from wsi_chat.chat.conversation import Conversation

        return Conversation(about, config=config, environ=dict(os.environ), **settings)

    if until_eof:
        threading.Thread(target=_interrupt_at_eof, daemon=True).start()

    def started(place: Place) -> None:
        _tell(place, as_json=json_)
        if browser:
            import webbrowser

            webbrowser.open(place.url)

    serve(
        collection, converse, host=host, port=port, language=language_of(language, "en"), workers=workers,
        kept_bytes=cache * MEBI, started=started,
    )  # fmt: skip


def _interrupt_at_eof() -> None:
    """End with the process that started this one: its end closes our standard input."""
    while sys.stdin.read(1):
        pass
    signal.raise_signal(signal.SIGINT)


def _tell(place: Place, *, as_json: bool) -> None:
    """The address on stdout; how to end it on stderr."""
    if as_json:
        # one line, for the program that started this one to read
        say(json.dumps({"url": place.url, "host": place.host, "port": place.port}))
        sys.stdout.flush()
        return
    say(place.url)
    if place.token:
        say("Whoever has this address, with its token, can read and review these slides.", err=True)
    say("Ctrl-C ends it.", err=True)
    sys.stdout.flush()
