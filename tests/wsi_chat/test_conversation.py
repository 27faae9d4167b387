"""Conversation: what the record answers, what the model is shown, ids that exist, turns, cutting, saving."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsi_chat
from tilers.field import Field
from wsi_chat import tasks
from wsi_chat.chat.history import Thread
from wsi_chat.chat.record import ID
from wsi_chat.chat.transcript import Transcript, as_markdown, read_transcript
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import Fault, ScriptedEngine
from wsi_chat.errors import AnswerError, OutputError, SettingError
from wsi_chat.schema import Box, Query, Turn


def says(query: Query) -> str | dict[str, float]:
    """Every tile is abnormal, with one hsil at a fixed place."""
    if query.choices:
        return {choice: 0.1 + 0.8 * (n == 1) for n, choice in enumerate(query.choices)}
    if query.task == "ground":
        if query.target != "hsil":
            return f"No {query.target} is found."
        return "hsil 1 is located at <region>64 64 128 128</region>."
    return {"describe": "Cells are seen.", "refer": "HSIL"}.get(query.task, "No abnormal cells were found.")


@pytest.fixture(scope="module")
def run_folder(small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = wsi_chat.analyze(
        small_slide,
        out=tmp_path_factory.mktemp("run"),
        engine=ScriptedEngine(says),
        dialect="embedded",
        specimen="cervix",
        top_k=3,
        pdf=False,
        html=False,
        gallery=0,
    )
    return result.folder


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(says)


@pytest.fixture
def chat(run_folder: Path, engine: ScriptedEngine) -> Iterator[wsi_chat.Conversation]:
    with wsi_chat.Conversation(run_folder, engine=engine) as opened:
        yield opened


# ---------------------------------------------------------------------------------------------- the record


RECORD = [
    ("what is the verdict", "abnormal"),
    ("Is the slide abnormal?", "abnormal"),
    ("why", "reaches the threshold"),
    ("why is it abnormal?", "carried by"),
    ("how many hsil", " HSIL in the 3 tiles"),
    ("how many lsil are there", "No LSIL was located"),
    ("where are the hsil", " at "),
    ("how many findings", "HSIL"),
    ("is it adequate", "Adequacy:"),
    ("which category?", "HSIL"),
    ("how many tiles were read", "screened"),
    ("what are the highest tiles", "0.900"),
    ("which model answered", "scripted"),
    ("how many answers are in the journal", "ground"),
    ("summary please", "."),
    ("tell me about f0001", "f0001: HSIL at"),
]


@pytest.mark.parametrize(("question", "part"), RECORD)
def test_questions_about_the_slide_are_answered_from_the_record(
    chat: wsi_chat.Conversation, engine: ScriptedEngine, question: str, part: str
) -> None:
    reply = chat.say(question)
    assert (reply.source, reply.status) == ("record", "ok")
    assert part in reply.text
    assert engine.asked == []


def test_every_id_that_is_cited_or_written_exists(chat: wsi_chat.Conversation, run_folder: Path) -> None:
    result = wsi_chat.load_result(run_folder)
    there = {f.id for f in result.findings} | set(result.tiles.column("tile_id").to_pylist())
    first = result.findings[0].id
    asked = [q for q, _ in RECORD] + ["/why", "/find hsil", "what is this?", "locate all hsil here", f"/tile {first}"]
    asked += ["/region 100 100 400 400", "is there any hsil here?", "describe what is in view", "/slide"]
    cited = 0
    for question in asked:
        reply = chat.say(question)
        cited += len(reply.cites)
        assert set(reply.cites) <= there
        assert set(ID.findall(reply.text)) <= there
    assert cited > 30


def test_counts_and_places_are_those_of_the_verdict(chat: wsi_chat.Conversation, run_folder: Path) -> None:
    verdict = wsi_chat.load_result(run_folder).report.verdict
    found = [f for f in verdict.findings if f.label == "hsil"]
    reply = chat.say("how many hsil")
    assert reply.text.startswith(f"{len(found)} HSIL")
    assert {b.box for b in reply.boxes} == {f.box for f in found}


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40))
def test_any_text_gets_an_answer_or_none_from_the_record(record: Any, text: str) -> None:
    told = record.answer(text)
    assert told is None or (told.text and all(record.exists(name) for name in told.cites))


@pytest.fixture(scope="module")
def record(run_folder: Path) -> Any:
    from wsi_chat.chat.record import SlideFacts
    from wsi_chat.terminology import load_system

    return SlideFacts(wsi_chat.load_result(run_folder), load_system("cervix"), get_dialect("embedded"))


# ---------------------------------------------------------------------------------------------- what is in view


def test_a_finding_is_shown_around_its_middle_at_the_models_resolution(
    chat: wsi_chat.Conversation, engine: ScriptedEngine, run_folder: Path
) -> None:
    finding = wsi_chat.load_result(run_folder).findings[0]
    reply = chat.say(f"what do you see in {finding.id}, which cell is it?")
    assert (reply.source, reply.task, reply.mpp) == ("model", "refer", 0.5)
    assert reply.region is not None
    assert (reply.region.width, reply.region.height) == (256, 256)
    assert finding.box.clipped(reply.region) == finding.box
    assert finding.id in reply.cites
    field = reply.region
    written = " ".join(str(round(v)) for v in shifted(finding.box, field))
    assert f"<region>{written}</region>" in engine.asked[0].turns[-1].text


def shifted(box: Box, field: Box) -> tuple[float, ...]:
    return box.x0 - field.x0, box.y0 - field.y0, box.x1 - field.x0, box.y1 - field.y0


def test_boxes_of_an_answer_are_level_zero_pixels(chat: wsi_chat.Conversation) -> None:
    chat.say("/region 400 300 650 550")
    reply = chat.say("locate all hsil here")
    assert reply.region is not None
    x, y = reply.region.x0, reply.region.y0
    scale = reply.region.width / 256
    (found,) = reply.boxes
    assert found.box.iou(Box(x + 64 * scale, y + 64 * scale, x + 128 * scale, y + 128 * scale)) == pytest.approx(1)
    assert reply.text.startswith("1 hsil: hsil at ")


def test_with_nothing_in_view_what_carries_the_verdict_is_taken_and_said(
    chat: wsi_chat.Conversation, run_folder: Path
) -> None:
    first = wsi_chat.load_result(run_folder).report.verdict.carrying[0]
    reply = chat.say("describe what you see")
    assert reply.source == "model"
    assert any(first in note for note in reply.notes)


def test_who_has_a_record_is_not_sent_to_make_one(chat: wsi_chat.Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat.facts is not None
    monkeypatch.setattr(chat.facts, "carrying", lambda: None)
    text = chat.say("describe what you see").text
    assert "choose a place with /tile ID or /region" in text
    assert "wsi-chat analyze" not in text


def test_a_question_beyond_the_model_is_not_sent_and_what_it_can_do_is_said(
    chat: wsi_chat.Conversation, engine: ScriptedEngine
) -> None:
    chat.say("/region 100 100 300 300")
    reply = chat.say("Is the chromatin coarse here?")
    assert (reply.source, engine.asked) == ("program", [])
    assert reply.text.startswith("This model was trained on a fixed set of questions")
    assert "locate and count a class" in reply.text


@pytest.mark.parametrize(
    ("line", "says_"),
    [
        ("/bogus", "There is no command /bogus. /help lists the commands."),
        ("/region 1 2 3", "/region 1 2 3: a region is four numbers. Give /region x0 y0 x1 y1 in level-0 pixels"),
        ("/region a b", "/region a b: a region is four numbers."),
        ("/region 5 5 5 90", "/region 5 5 5 90: the region has no area."),
        ("/region nan 0 9 9", "/region nan 0 9 9: a region is four numbers."),
        ("/region 90000 90000 90010 90010", "lies outside"),
        ("/tile t999999", "There is no finding or tile t999999. /find and /why name some that exist."),
        ("/tile", "/tile needs ID."),
        ("/save /nonexistent/folder/x", "cannot be written"),
        ("   ", "Nothing was asked"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_conversation_goes_on(
    chat: wsi_chat.Conversation, line: str, says_: str
) -> None:
    reply = chat.say(line)
    assert (reply.source, reply.status) == ("program", "failed")
    assert says_ in reply.text
    assert "--region" not in reply.text
    assert chat.say("verdict?").source == "record"


def test_a_question_too_long_for_the_model_does_not_end_the_conversation(
    chat: wsi_chat.Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(*_: object, **__: object) -> None:
        raise AnswerError("The question is too long for the model.", hint="Ask it in fewer words.")

    chat.say("/region 100 100 300 300")
    monkeypatch.setattr(type(chat._thread), "query", too_long)
    reply = chat.say("describe what is here")
    assert (reply.status, reply.text) == (
        "failed", "The question is too long for the model. Ask it in fewer words."
    )  # fmt: skip
    assert chat.say("verdict?").source == "record"


def test_a_failed_answer_is_told_and_not_remembered(run_folder: Path) -> None:
    engine = ScriptedEngine(says, faults=[Fault(0, "fail")])
    with wsi_chat.Conversation(run_folder, engine=engine) as chat:
        chat.say("/region 100 100 300 300")
        bad = chat.say("describe what is here")
        assert (bad.status, bad.text) == ("failed", "The model gave no answer: scripted failure")
        good = chat.say("describe what is here")
    assert (good.status, good.text) == ("ok", "Cells are seen.")
    assert [len(query.turns) for query in engine.asked] == [2, 2]


def test_ids_that_a_model_invents_are_pointed_out(run_folder: Path) -> None:
    engine = ScriptedEngine(lambda q: "As in f9999, cells are seen.")
    with wsi_chat.Conversation(run_folder, engine=engine) as chat:
        chat.say("/region 100 100 300 300")
        reply = chat.say("describe what is here")
    assert any("f9999" in note for note in reply.notes)
    assert "f9999" not in reply.cites


# ---------------------------------------------------------------------------------------------- the slide is gone


def test_a_slide_that_has_moved_is_said_and_the_record_still_answers(
    run_folder: Path, small_slide: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run_folder.parent, tmp_path / "run")) / run_folder.name
    (copy.parent / "run.json").unlink()
    with wsi_chat.Conversation(copy, engine=ScriptedEngine(says)) as chat:
        assert any("is not where it was" in note for note in chat.notes)
        assert "abnormal" in chat.say("verdict").text
        assert chat.say("/find hsil").cites
        for line in ("describe this field", "/region 0 0 100 100", "/tile f0001"):
            reply = chat.say(line)
            assert reply.status == "failed"
            assert "is not where it was" in reply.text
    with wsi_chat.Conversation(copy, slide=small_slide, engine=ScriptedEngine(says)) as chat:
        assert chat.say("/tile f0001").status == "ok"


def test_another_slide_in_its_place_is_not_taken_for_it(run_folder: Path, tmp_path: Path) -> None:
    from wsi_chat.datasets.mosaic import write_pyramid

    write_pyramid(tmp_path / "other.tiff", np.full((600, 600, 3), 90, np.uint8), mpp=0.5)
    with wsi_chat.Conversation(run_folder, slide=tmp_path / "other.tiff", engine=ScriptedEngine(says)) as chat:
        assert any("is not the slide that was analyzed" in note for note in chat.notes)
        assert chat.say("describe this field").status == "failed"


def test_a_picture_and_a_large_slide_without_a_record(small_slide: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (256, 256), "white").save(tmp_path / "field.png")
    with wsi_chat.Conversation(tmp_path / "field.png", engine=ScriptedEngine(says), dialect="embedded") as chat:
        assert chat.say("describe it").text == "Cells are seen."
        assert "needs the record" in chat.say("/why").text
        assert not any("suffix" in note for note in chat.notes)
    (tmp_path / "field.png").rename(tmp_path / "field.svs")
    with wsi_chat.Conversation(tmp_path / "field.svs", engine=ScriptedEngine(says), dialect="embedded") as chat:
        assert "the file is a PNG picture of one level, though its suffix is .svs" in chat.notes
    with wsi_chat.Conversation(small_slide, engine=ScriptedEngine(says), dialect="embedded") as chat:
        assert "choose a place" in chat.say("describe it").text
        chat.say("/region 0 0 200 200")
        assert chat.say("describe it").text == "Cells are seen."


def test_a_folder_of_several_slides_must_be_named_closer(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text("{}")
    with pytest.raises(SettingError, match="holds 2 slides"):
        wsi_chat.Conversation(tmp_path)


# ---------------------------------------------------------------------------------------------- turns


def field(name: str, shade: int) -> Field:
    from PIL import Image

    return Field(name, 0, Image.new("RGB", (256, 256), (shade, shade, shade)), Box(0, 0, 256, 256), 0.5)


def test_turns_of_one_picture_share_its_mark(engine: ScriptedEngine) -> None:
    thread, shown = Thread(get_dialect("embedded")), field("f1", 10)
    for number, ask in enumerate((tasks.ground("hsil"), tasks.describe(), tasks.vqa("And now?"))):
        query, _ = thread.query(ask, shown, engine, decoding={})
        assert len(query.images) == 1
        thread.remember(query, f"answer {number}", shown)
    assert query.turns == (
        Turn("system", "You are a helpful assistant."),
        Turn("user", "<image>Locate all hsil."),
        Turn("assistant", "answer 0"),
        Turn("user", "Describe the Cytology diagnosis results."),
        Turn("assistant", "answer 1"),
        Turn("user", "And now?"),
    )


def test_a_model_of_one_picture_starts_anew_and_one_of_several_goes_on(engine: ScriptedEngine) -> None:
    for dialect, turns, images in (("embedded", 2, 1), ("qwen3-vl", 3, 2)):
        thread = Thread(get_dialect(dialect))
        query, _ = thread.query(tasks.describe(), field("a", 1), engine, decoding={})
        thread.remember(query, "One.", field("a", 1))
        query, _ = thread.query(tasks.describe(), field("b", 2), engine, decoding={})
        assert (len(query.turns), len(query.images)) == (turns, images)
        assert sum(turn.text.count("<image>") for turn in query.turns) == images
        assert query.images[-1].getpixel((0, 0)) == (2, 2, 2)


def test_long_conversations_are_cut_by_whole_turns_with_the_picture_kept() -> None:
    class Small(ScriptedEngine):
        def room(self, query: Query) -> int:
            return 900 - sum(len(turn.text) for turn in query.turns) - 64 * len(query.images)

    thread, engine, shown = Thread(get_dialect("embedded")), Small(says), field("f1", 10)
    for number in range(12):
        query, _ = thread.query(tasks.vqa(f"question {number} {'x' * 60}"), shown, engine, decoding={})
        assert query.turns[0].role == "system"
        assert [turn.role for turn in query.turns[1:]] == ["user", "assistant"] * (len(query.turns) // 2 - 1) + ["user"]
        assert query.turns[1].text.startswith("<image>")
        assert (len(query.images), sum(t.text.count("<image>") for t in query.turns)) == (1, 1)
        thread.remember(query, "a" * 40, shown)
    assert thread.dropped > 3
    assert len(thread) + thread.dropped == 12
    with pytest.raises(AnswerError, match="too long"):
        thread.query(tasks.vqa("y" * 2000), shown, engine, decoding={})


def test_keys_tell_conversations_apart(engine: ScriptedEngine) -> None:
    fresh, used = Thread(get_dialect("embedded")), Thread(get_dialect("embedded"))
    first, _ = used.query(tasks.describe(), field("f", 1), engine, decoding={})
    used.remember(first, "One.", field("f", 1))
    a, _ = fresh.query(tasks.ground("hsil"), field("f", 1), engine, decoding={})
    b, _ = used.query(tasks.ground("hsil"), field("f", 1), engine, decoding={})
    assert a.key != b.key
    assert replace(a, key="") != replace(b, key="")


# ---------------------------------------------------------------------------------------------- streaming, saving


def test_streamed_pieces_are_the_answer(chat: wsi_chat.Conversation, run_folder: Path) -> None:
    with wsi_chat.Conversation(run_folder, engine=ScriptedEngine(says)) as other:
        for question in ("verdict", "/region 100 100 300 300", "describe what is here", "locate all hsil here", "/no"):
            pieces = chat.stream(question)
            heard = ""
            while True:
                try:
                    heard += next(pieces)
                except StopIteration as end:
                    reply = end.value
                    break
            assert heard == reply.text == other.say(question).text


def test_a_saved_conversation_reads_back(chat: wsi_chat.Conversation, tmp_path: Path) -> None:
    for question in ("why", "/region 100 100 300 300", "is anything abnormal here?", "locate all hsil here"):
        chat.say(question)
    saved = chat.say(f"/save {tmp_path / 'talk.md'}")
    assert "talk.json" in saved.text
    back = read_transcript(tmp_path / "talk.json")
    assert back.replies == tuple(chat.replies[:-1])
    assert back.about == chat.transcript.about
    text = (tmp_path / "talk.md").read_text()
    assert "Research use only" in text
    assert text.count("**> ") == 4
    (tmp_path / "bad.json").write_text('{"replies": 3}')
    with pytest.raises(OutputError, match="not a conversation"):
        read_transcript(tmp_path / "bad.json")
    with pytest.raises(OutputError, match="cannot be read"):
        read_transcript(tmp_path / "absent.json")


def test_markdown_keeps_marks_as_text() -> None:
    from wsi_chat.chat.transcript import Reply

    reply = Reply(question="*all* <b>", text="# no [link](x)\nnext", source="model")
    text = as_markdown(Transcript(about="s", model="m", dialect="d", replies=(reply,)))
    assert "\\*all\\* \\<b\\>" in text
    assert re.search(r"^# no", text, re.M) is None


# ---------------------------------------------------------------------------------------------- who answers


def test_an_engine_may_be_named_as_in_the_command(
    run_folder: Path, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``chat --engine transformers`` crashed: the name was taken for a loaded engine."""
    asked: list[str] = []

    def load(model: str | None, **settings: Any) -> ScriptedEngine:
        asked.append(settings["engine"].name)
        return engine

    monkeypatch.setattr("wsi_chat.engines.load_engine", load)
    with wsi_chat.Conversation(run_folder, engine="transformers") as opened:
        opened.say("/region 100 100 300 300")
        reply = opened.say("Is anything abnormal here?")
    assert (reply.source, reply.status, asked) == ("model", "ok", ["transformers"])


def test_a_dialect_that_extends_a_family_of_several_images_remembers_across_pictures(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nextends: qwen2.5-vl\n")
    thread = Thread(get_dialect(str(path)))
    engine = ScriptedEngine(says)
    from PIL import Image

    for number in range(2):
        shown = Field(f"t{number:06d}", number, Image.new("RGB", (56, 56), (number, 0, 0)), Box(0, 0, 56, 56), 0.5)
        query, _ = thread.query(tasks.vqa("What is this?"), shown, engine, decoding={})
        thread.remember(query, "A cell.", shown)
    assert [turn.role for turn in query.turns] == ["system", "user", "assistant", "user"]
    assert len(query.images) == 2


def test_half_a_character_in_a_question_is_asked_and_saved(
    small_slide: Path, engine: ScriptedEngine, tmp_path: Path
) -> None:
    with wsi_chat.Conversation(small_slide, engine=engine, dialect="qwen2.5-vl") as chat:
        chat.say("/region 0 0 512 512")
        assert chat.say("What is this \ud83d thing?").text == "No abnormal cells were found."
        assert "What is this \ufffd thing?" in engine.asked[-1].turns[-1].text
        chat.say("/find \ud83d")
        saved, _ = chat.save(tmp_path / "talk")
    said = [reply.question for reply in read_transcript(saved).replies]
    assert said[-2:] == ["What is this \ufffd thing?", "/find \ufffd"]
