"""The conversation in the page: pieces, places, stop, one at a time; saved after every answer and there again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.app.conftest import says
from tests.app.speaking import SpeakingEngine
from wsi_chat.app.talk import Question, Talk
from wsi_chat.chat.conversation import Conversation
from wsi_chat.chat.transcript import Reply, read_transcript
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box

Opened = Callable[[], Talk]


@pytest.fixture
def opened(folder: Path) -> Iterator[Opened]:
    thread = ThreadPoolExecutor(1)
    talks: list[Talk] = []

    def make() -> Talk:
        engine = SpeakingEngine(says, pause=0.05)
        talks.append(Talk(lambda: Conversation(folder, engine=engine), folder, thread))
        return talks[-1]

    yield make
    for talk in talks:
        talk.close()
    thread.shutdown()


async def hear(talk: Talk, question: Question, *, stop_after: int | None = None) -> tuple[list[str], Reply]:
    pieces: list[str] = []
    async with aclosing(talk.ask(question)) as heard:
        async for piece in heard:
            if isinstance(piece, Reply):
                assert not talk.busy
                return pieces, piece
            pieces.append(piece)
            if stop_after is not None and len(pieces) == stop_after:
                talk.stop()
    raise AssertionError("there was no reply")


def test_an_answer_of_the_record_cites_what_exists(opened: Opened) -> None:
    pieces, reply = asyncio.run(hear(opened(), Question("why?")))
    assert reply.source == "record"
    assert "".join(pieces) == reply.text
    assert reply.cites


def test_a_region_is_shown_to_the_model(opened: Opened) -> None:
    place = Box(300, 300, 420, 420)
    _, reply = asyncio.run(hear(opened(), Question("Is anything abnormal here?", place)))
    assert reply.source == "model"
    assert reply.region is not None
    assert reply.region.clipped(place) == place


def test_a_finding_is_shown_to_the_model_and_the_slide_is_not_looked_at(opened: Opened) -> None:
    talk = opened()
    name = read_first_finding(talk)
    _, reply = asyncio.run(hear(talk, Question("What is in this region?", name)))
    assert reply.region is not None
    _, reply = asyncio.run(hear(talk, Question("what is the verdict")))
    assert reply.source == "record"
    assert [r.question for r in talk.replies] == ["What is in this region?", "what is the verdict"]


def read_first_finding(talk: Talk) -> str:
    conversation = talk._opened()
    assert conversation.facts is not None
    return conversation.facts.report.verdict.findings[0].id


def test_a_stopped_answer_keeps_what_was_written(opened: Opened) -> None:
    talk = opened()
    pieces, reply = asyncio.run(
        hear(talk, Question("Were any abnormal cells found during the examination?", Box(0, 0, 256, 256)), stop_after=2)
    )
    assert reply.status == "truncated"
    assert reply.text == "".join(pieces)
    assert reply.notes == ("stopped before its end",)
    assert talk.replies == [reply]
    assert not talk.busy


def test_what_was_said_is_there_again(opened: Opened, folder: Path) -> None:
    asyncio.run(hear(opened(), Question("why?")))
    asyncio.run(hear(opened(), Question("what is the verdict")))
    again = opened()
    assert [reply.question for reply in again.replies] == ["why?", "what is the verdict"]
    saved = read_transcript(folder / "chat.json")
    assert list(saved.replies) == again.replies
    assert (folder / "chat.md").is_file()


def test_a_damaged_conversation_is_set_aside_and_not_written_over(opened: Opened, folder: Path) -> None:
    (folder / "chat.json").write_text("{half", encoding="utf-8")
    talk = opened()
    assert talk.replies == []
    assert "not a conversation" in talk.trouble
    asyncio.run(hear(talk, Question("why?")))
    assert (folder / "chat.damaged.json").read_text(encoding="utf-8") == "{half"


@pytest.mark.parametrize("command", ["/save /etc/x", "/SAVE x", "/quit", "/exit"])
def test_the_page_writes_no_file_of_the_askers_choice(opened: Opened, command: str) -> None:
    _, reply = asyncio.run(hear(opened(), Question(command)))
    assert (reply.source, reply.status) == ("program", "failed")
    assert "keeps the conversation by itself" in reply.text


def test_one_question_at_a_time(opened: Opened) -> None:
    talk = opened()

    async def both() -> None:
        first = talk.ask(Question("why?"))
        await anext(first)
        with pytest.raises(SettingError, match="Another question"):
            await anext(talk.ask(Question("why?")))
        async for _ in first:
            pass

    asyncio.run(both())
    assert len(talk.replies) == 1


def test_what_goes_wrong_is_said_in_the_conversation(folder: Path) -> None:
    thread = ThreadPoolExecutor(1)

    def opening() -> Conversation:
        raise RuntimeError("the model <b>fell over</b>")

    talk = Talk(opening, folder, thread)
    _, reply = asyncio.run(hear(talk, Question("why?")))
    assert reply.status == "failed"
    assert "fell over" in reply.text
    assert not talk.busy
    thread.shutdown()
