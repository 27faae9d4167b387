"""Answers and messages in Chinese: from the record, on what is in view, from `ask`; the model's words stay its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wsi_chat
from wsi_chat.chat.conversation import Conversation
from wsi_chat.engines import ScriptedEngine
from wsi_chat.schema import Query

HAN = re.compile(r"[\u4e00-\u9fff]")
SAID = "Two cells with dark nuclei are seen."
# what stays as it is: ids, classes, commands, options, files, formats and units
NAMES = re.compile(
    r"[ft]\d{4,}|hsil|lsil|(?:asc-|n?il)\w+|agc|scc|wsi-chat|embedded|scripted\S*|--?[a-z-]+|\S+\.(?:tiff|png)|px|µm|logit"
    r"|platt|candida|hsv|herps|abnormal|normal|mpp|tiff|tags|resolution|sha\S*|screen|ground|describe|openslide|tiffslide|bethesda|system|TBS",
    re.I,
)


def says(query: Query) -> str | dict[str, float]:
    if query.choices:
        return {choice: 0.1 + 0.8 * (n == 1) for n, choice in enumerate(query.choices)}
    if query.task == "ground":
        return f"{query.target} 1 is located at <region>64 64 128 128</region>."
    return SAID


@pytest.fixture(scope="module")
def folder(small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = wsi_chat.analyze(
        small_slide, out=tmp_path_factory.mktemp("zh") / "out", engine=ScriptedEngine(says), dialect="embedded",
        specimen="cervix", top_k=2, format="json", gallery=0, language="zh",
    )  # fmt: skip
    return result.folder


@pytest.fixture
def chat(folder: Path) -> Iterator[Conversation]:
    with Conversation(folder, engine=ScriptedEngine(says)) as opened:
        yield opened


def left_in_english(text: str) -> list[str]:
    """Words of two letters or more beside names."""
    return re.findall(r"[A-Za-z]{2,}", NAMES.sub(" ", text))


@pytest.mark.parametrize(
    ("line", "chinese"),
    [
        ("/bogus", "没有命令 /bogus。用 /help 列出命令。"),
        ("/region a b", "/region a b：区域须为四个数。请以 0 级像素写 /region x0 y0 x1 y1，例如 /region 0 0 512 512。"),
        ("/region 5 5 5 90", "/region 5 5 5 90：该区域没有面积。请写 /region x0 y0 x1 y1，且 x1 > x0、y1 > y0。"),
        ("/tile", "/tile 需要 ID。用 /help 列出命令。"),
        ("/tile t999999", "没有所见或瓦片 t999999。/find 和 /why 会列出已有的编号。"),
        ("/region 90000 90000 90010 90010", "之外。请以 0 级像素给出 x0 y0 x1 y1。"),
        (" ", "没有提出问题。请输入问题，或输入 /help。"),
        ("/save /nonexistent/folder/x", "未能保存："),
    ],
)
def test_what_cannot_be_done_is_said_in_chinese(chat: Conversation, line: str, chinese: str) -> None:
    reply = chat.say(line)
    assert reply.status == "failed"
    assert chinese in reply.text


@pytest.mark.parametrize(
    ("chinese", "english"),
    [
        ("结论是什么？", "What is the verdict?"), ("为什么？", "Why?"), ("标本满意吗？", "Is it adequate?"),
        ("覆盖率是多少？", "What is the coverage?"), ("哪个瓦片最可疑？", "Which is the highest tile?"),
        ("有多少 HSIL？", "How many HSIL are there?"), ("有多少HSIL细胞", "How many HSIL are there?"),
        ("有多少 SCC？", "How many SCC are there?"), ("一共有多少个细胞", "How many cells are there?"),
        ("分类是什么", "Which category is it?"), ("做过分类计数吗", "Is there a differential?"),
        ("日志里有什么？", "What is in the journal?"), ("/why", "/why"), ("/find hsil", "/find hsil"),
        ("/slide", "/slide"), ("/help", "/help"),
    ],
)  # fmt: skip
def test_the_record_answers_in_chinese_what_it_answers_in_english(
    chat: Conversation, chinese: str, english: str
) -> None:
    said = chat.say(chinese)
    assert said.source in ("record", "program"), said
    assert HAN.search(said.text)
    if chinese != "/help":
        assert left_in_english(said.text) == []
    chat.speak("en")
    other = chat.say(english)
    assert not HAN.search(other.text)
    assert (said.cites, said.boxes) == (other.cites, other.boxes), "the same facts"


def test_what_the_model_says_stays_and_what_is_said_about_it_is_chinese(chat: Conversation) -> None:
    shown = chat.say("/tile t000000")
    assert HAN.search(shown.text)
    located = chat.say("Locate all hsil.")
    assert located.source == "model"
    assert re.fullmatch(r"hsil 1 处：hsil 位于 \d+ \d+ \d+ \d+（0 级像素）。", located.text)
    described = chat.say("Describe the Cytology diagnosis results.")
    assert described.text == SAID
    for reply in (located, described):
        assert reply.notes
        assert all(HAN.search(note) and not left_in_english(note) for note in reply.notes)
    chat.speak("en")
    assert chat.say("Locate all hsil.").text.startswith("1 hsil: hsil at ")


def test_ask_answers_in_the_language_of_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "field.png"
    Image.fromarray(np.random.default_rng(0).integers(60, 240, (512, 1024, 3), np.uint8)).save(path)
    given = {"engine": ScriptedEngine(says), "dialect": "embedded", "specimen": "cervix", "mpp": 0.5}
    chinese = wsi_chat.ask(path, "Locate all hsil.", language="zh", zoom=2, **given)
    english = wsi_chat.ask(path, "Locate all hsil.", zoom=2, **given)
    assert re.fullmatch(r"在 \d+ 个视野中标记 hsil \d+ 处。", chinese.answer)
    assert re.fullmatch(r"\d+ hsil located in \d+ fields\.", english.answer)
    assert (HAN.search(chinese.task_reason), HAN.search(english.task_reason)) != (None, None)
    assert chinese.boxes == english.boxes
    whole = wsi_chat.ask(path, "Is anything abnormal?", language="zh", max_fields=2, **given)
    assert whole.choice == "abnormal", "an option is the model's word"
    assert re.search(r"中判为 abnormal 者：2；最高的是 t\d+，概率 0\.900", whole.answer)
    assert whole.notes
    assert all(HAN.search(note) for note in whole.notes)
