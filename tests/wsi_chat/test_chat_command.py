"""`wsi-chat chat` as a program: questions piped in, answers on stdout, end of input, Ctrl-C, saving."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsi_chat.chat.conversation import Conversation
from wsi_chat.chat.transcript import read_transcript
from wsi_chat.commands.chat import talk
from wsi_chat.engines import ScriptedEngine
from wsi_chat.schema import Query


def says(query: Query) -> str:
    return "Cells are seen." if query.task == "describe" else f"No {query.target} is found."


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (256, 256), "white").save(tmp_path / "field.png")
    return tmp_path / "field.png"


@pytest.fixture
def chat(picture: Path) -> Iterator[Conversation]:
    with Conversation(picture, engine=ScriptedEngine(says), dialect="embedded", mpp=0.5, specimen="cervix") as opened:
        yield opened


def piped(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_piped_questions_are_answered_in_order_until_quit(
    chat: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, "describe it", "", "locate all hsil", "/quit", "describe it")
    assert talk(chat) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "Cells are seen.",
        "[shown 0 0 256 256 at 0.5 µm/px]",
        "No hsil is located here.",
        "[shown 0 0 256 256 at 0.5 µm/px]",
    ]
    assert err.startswith("Research use only.")


def test_json_gives_one_object_a_line(
    chat: Conversation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, "describe it", "/bogus")
    assert talk(chat, as_json=True) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["source"], row["status"]) for row in rows] == [("model", "ok"), ("program", "failed")]


def test_the_end_of_input_ends_it_and_saves(
    chat: Conversation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    piped(monkeypatch, "describe it")
    assert talk(chat, save=tmp_path / "talk") == 0
    assert [reply.text for reply in read_transcript(tmp_path / "talk.json").replies] == ["Cells are seen."]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_ctrl_c_stops_an_answer_and_at_the_prompt_the_conversation(
    picture: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Interrupted(ScriptedEngine):
        def stream(self, query: Query):  # type: ignore[no-untyped-def]
            yield "Cells"
            raise KeyboardInterrupt

    typed = iter(["describe it", "/help"])

    def prompt(_: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise KeyboardInterrupt from None

    out = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("builtins.input", prompt)
    with Conversation(picture, engine=Interrupted(says), dialect="embedded", mpp=0.5) as chat:
        assert talk(chat, save=tmp_path / "talk") == 130
    said = out.getvalue()
    assert said.startswith("Cells\n")
    assert "/region x0 y0 x1 y1" in said
    assert [r.question for r in read_transcript(tmp_path / "talk.json").replies] == ["/help"]


def test_ctrl_d_at_the_prompt_is_a_clean_end(chat: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    def prompt(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setattr("builtins.input", prompt)
    assert talk(chat) == 0


def test_lines_break_between_words_and_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    from wsi_chat.commands.chat import _Writer

    writer = _Writer(20)
    text = "The verdict is abnormal, carried by f0001\nand t000042."
    for letter in text:
        writer.write(letter)
    writer.end()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 20
    assert out.split() == text.split()
