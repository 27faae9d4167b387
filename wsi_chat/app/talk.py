"""The conversation about one slide as the page holds it: one question at a time, in pieces, stopped, saved, restored.

What is said is `wsi_chat.chat.conversation`'s; here it is only moved off the event loop and written into the slide's
folder after every answer, as ``conversation.json`` and ``conversation.md``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reports.language import Words
from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.chat.transcript import Reply, read_transcript
from wsi_chat.errors import OutputError, SettingError, WsiChatError, unforeseen
from wsi_chat.schema import Box, Language, Remark

if TYPE_CHECKING:
    from wsi_chat.chat.conversation import Conversation

REFUSED = ("/save", "/quit", "/exit", "/q")
"""Commands of the terminal that have no place here: the conversation is saved by itself, and only in its folder."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and about what: ``place`` is a finding's or tile's id, a region in level-0 pixels, or None for
    the slide as a whole. ``language`` is that of the page, and of the answer as far as the model does not give it."""

    text: str
    place: str | Box | None = None
    language: Language = "en"


class Talk:
    """The conversation about one slide, shared by every browser that shows it.

    Args:
        opening: opens the conversation, which may load a model; called on a thread when something is first asked.
        folder: where it is kept.
        thread: the one thread on which every model of the page is asked.
    """

    def __init__(self, opening: Callable[[], Conversation], folder: Path, thread: ThreadPoolExecutor) -> None:
        self._opening = opening
        self._path = SlideFolder(folder).conversation_path
        self._thread = thread
        self._conversation: Conversation | None = None
        self._stopping = threading.Event()
        self.busy = False
        self.trouble = ""
        self.replies: list[Reply] = self._restored()

    def _restored(self) -> list[Reply]:
        path = self._path
        if not path.exists():
            return []
        try:
            return list(read_transcript(path).replies)
        except OutputError as error:
            # kept as it is: a damaged file is not overwritten by the next answer
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged.json"))
            self.trouble = error.message
            return []

    # ------------------------------------------------------------------------------------------ asking

    async def ask(self, question: Question) -> AsyncGenerator[str | Reply, None]:
        """Pieces of the answer as they are written, then the Reply. One question at a time: others are refused.

        Raises:
            SettingError: another question is being answered.
        """
        if self.busy:
            raise SettingError("Another question is being answered.", hint="Wait for it, or stop it.")
        self.busy = True
        self._stopping.clear()
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[str | Reply] = asyncio.Queue()

        def tell(piece: str | Reply) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, piece)

        work = loop.run_in_executor(self._thread, self._answer, question, tell)
        try:
            while True:
                piece = await heard.get()
                if isinstance(piece, Reply):
                    break
                yield piece
            reply = piece
        finally:
            # also where the listener went away: the answer ends, and is kept as far as it came
            self._stopping.set()
            await asyncio.shield(work)
            self.busy = False
        yield reply

    def stop(self) -> None:
        """End the answer under way at its next word; what was written of it is kept and marked."""
        self._stopping.set()

    def _answer(self, question: Question, tell: Callable[[str | Reply], None]) -> None:
        """On the thread: ask, pass the pieces on, keep the reply and save. Never raises."""
        try:
            reply = self._asked(question, tell)
        except WsiChatError as error:
            text = str(error) if self._conversation is None else self._conversation.in_words(error)
            reply = Reply(question=question.text, text=text, source="program", status="failed")
        except Exception as error:
            reply = Reply(
                question=question.text,
                text=f"No answer: {unforeseen(error)}. Please report it.",
                source="program",
                status="failed",
            )
        self.replies.append(reply)
        try:
            self._save()
        except WsiChatError as error:
            self.trouble = str(error)
        tell(reply)

    def _asked(self, question: Question, tell: Callable[[str | Reply], None]) -> Reply:
        conversation = self._opened()
        conversation.speak(question.language)
        if question.text.strip().split(" ")[0].casefold() in REFUSED:
            raise SettingError(Remark("chat.page_keeps"))
        self._look(conversation, question.place)
        pieces = conversation.stream(question.text)
        spoken = ""
        while not self._stopping.is_set():
            try:
                piece = next(pieces)
            except StopIteration as end:
                reply: Reply = end.value
                return reply
            spoken += piece
            tell(piece)
        pieces.close()
        say = Words(question.language).remark
        return Reply(
            question=question.text, text=spoken or say(Remark("chat.stopped")), source="model" if spoken else "program",
            status="truncated", notes=(say(Remark("chat.stopped_early")),),
        )  # fmt: skip

    def _opened(self) -> Conversation:
        if self._conversation is None:
            self._conversation = self._opening()
        return self._conversation

    def _look(self, conversation: Conversation, place: str | Box | None) -> None:
        if place is not None:
            conversation.look_at(place)
            return
        for _ in conversation.stream("/slide"):
            pass
        conversation.replies.pop()

    def _save(self) -> None:
        if self._conversation is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._conversation.replies[:] = self.replies
            self._conversation.save(self._path)

    def close(self) -> None:
        """Release the slide and the model; what was said stays."""
        if self._conversation is not None:
            self._conversation.close()
            self._conversation = None
