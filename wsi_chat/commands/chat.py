"""The command ``wsi-chat chat``: a conversation in the terminal, or questions piped in, one a line.

Answers go to stdout; the reminder, notes and errors to stderr. Ctrl-C stops the answer that is being written, at an
empty prompt it ends the conversation, as the end of input does.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from tilers.remote import slide_path
from wsi_chat.chat.conversation import Conversation
from wsi_chat.chat.record import corners
from wsi_chat.chat.transcript import Reply
from wsi_chat.commands.console import say, say_json
from wsi_chat.commands.options import ENGINE, SlideNow, with_settings
from wsi_chat.commands.signals import every_interrupt, exit_code
from wsi_chat.commands.terminal import Console
from wsi_chat.control_characters import visible

PROMPT = "> "
QUIT = ("/quit", "/exit", "/q")


@with_settings(
    *ENGINE, "specimen", "mpp", "reader", "language", defaults={"model": "the run's, else the embedded checkpoint"}
)
def chat(
    source: Annotated[
        Path, typer.Argument(parser=slide_path, help="Run folder of a slide, OUT/<slide id>; or a slide, or an image.")
    ],
    slide: SlideNow = None,
    save: Annotated[Path | None, typer.Option(help="Write the conversation to this file when it ends.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object per answer, each on a line.")] = False,
    *,
    config: Path | None,
    **settings: Any,
) -> None:
    """Talk about an analyzed slide, a slide or an image; /help in the conversation lists what can be asked."""
    opened = Conversation(source, slide=slide, config=config, environ=dict(os.environ), **settings)
    with opened as conversation, every_interrupt():
        code = talk(conversation, save=save, as_json=json_)
    raise typer.Exit(code)


def talk(conversation: Conversation, *, save: Path | None = None, as_json: bool = False) -> int:
    """Read questions until the end of input or /quit. Returns the exit code: 0, or 130 after Ctrl-C at the prompt."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    aside = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in conversation.notes:
        aside.print(note, style="dim" if note is conversation.notes[0] else "yellow", markup=False)
    if terminal:
        aside.print("/help lists what you can ask; /quit ends.", style="dim")
    code = 0
    try:
        for line in _lines(terminal):
            if not line.strip():
                continue
            if line.strip().casefold() in QUIT:
                break
            _exchange(conversation, line, aside, terminal=terminal, as_json=as_json)
    except KeyboardInterrupt:
        code = exit_code()
        aside.print("interrupted")
    finally:
        if save is not None:
            written = conversation.save(save)
            aside.print(f"saved {written[0]} and {written[1]}", markup=False)
    return code


def _lines(terminal: bool) -> Iterator[str]:
    """Questions: typed with line editing and history where readline is there, else from stdin."""
    if not terminal:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  importing it gives input() its history
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            say()
            return


def _exchange(conversation: Conversation, line: str, aside: Console, *, terminal: bool, as_json: bool) -> None:
    pieces = conversation.stream(line)
    writer = _Writer(aside.width if terminal else None)
    waiting = aside.status("asking", spinner="dots") if terminal else contextlib.nullcontext()
    started = False
    try:
        with waiting:
            piece = next(pieces)
        while True:
            if not as_json:
                started = True
                writer.write(piece)
            piece = next(pieces)
    except StopIteration as end:
        reply: Reply = end.value
    except KeyboardInterrupt:
        pieces.close()
        writer.end()
        if started:
            say()
        if not terminal:
            raise
        aside.print("stopped", style="dim")
        return
    if as_json:
        say_json(reply.model_dump_json())
        return
    writer.end()
    say()
    _tell(reply, aside, terminal=terminal)


class _Writer:
    """Writes text to stdout as it comes; with a width, breaks lines between words, the last word held back."""

    def __init__(self, width: int | None) -> None:
        self._width = width
        self._column = 0
        self._word = ""

    def write(self, text: str) -> None:
        if self._width is None:
            sys.stdout.write(visible(text))
        else:
            for letter in text:
                if letter in " \n":
                    self._put(letter)
                else:
                    self._word += letter
        sys.stdout.flush()

    def _put(self, after: str) -> None:
        assert self._width is not None
        if self._column and self._column + len(self._word) >= self._width:
            sys.stdout.write("\n")
            self._column = 0
        sys.stdout.write(visible(self._word) + after)
        self._column = 0 if after == "\n" else self._column + len(self._word) + len(after)
        self._word = ""

    def end(self) -> None:
        """Write what is held back."""
        if self._word:
            self._put("")
        sys.stdout.flush()


def _tell(reply: Reply, aside: Console, *, terminal: bool) -> None:
    """What supports the answer: on the terminal below it, when piped as one more line of stdout."""
    facts = []
    if reply.cites:
        facts.append(f"cites {', '.join(reply.cites)}")
    if reply.source == "model" and reply.region is not None:
        scale = f" at {reply.mpp:.3g} µm/px" if reply.mpp else ""
        facts.append(f"shown {corners(reply.region)}{scale}")
    if facts:
        text = f"[{'; '.join(facts)}]"
        if terminal:
            aside.print(text, style="cyan", markup=False)
        else:
            say(text)
    for note in reply.notes:
        aside.print(f"note: {note}", style="dim", markup=False)
