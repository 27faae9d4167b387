"""Gemma 3, PaliGemma and InternVL: what their processors make of a question, and that a box keeps its place in it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_chat import tasks
from wsi_chat.dialects import get_dialect
from wsi_chat.engines.transformers import TransformersEngine
from wsi_chat.schema import Answer, Box, LabelledBox, Query, Turn

pytestmark = pytest.mark.usefixtures("one_thread")
DIALECTS = {"gemma3": "medgemma", "internvl": "internvl", "paligemma": "paligemma"}


@pytest.fixture(params=sorted(DIALECTS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(tiny_checkpoint: Any, family: str) -> TransformersEngine:
    return TransformersEngine(tiny_checkpoint(family), batch_size=4)


# ------------------------------------------------------------------------------------------------ a box's place

SIZES = {"gemma3": 896, "internvl": 448, "paligemma": 448}
"""Sides that the published checkpoints' processors resize to."""


def _published_size(engine: Any, family: str) -> int:
    """Has the tiny checkpoint's processor resize as a published one does."""
    processor, side = engine._prompts._processor.image_processor, SIZES[family]
    processor.size = type(processor.size)(height=side, width=side)
    return side


def _bright(pixels: np.ndarray) -> tuple[float, float, float, float]:
    """The bright rectangle of (3, height, width) pixels: x0, y0, x1, y1 as fractions of the sides."""
    grey = pixels.mean(axis=0)
    mask = grey > (grey.max() + grey.min()) / 2
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def _whole(values: Any) -> list[np.ndarray]:
    """The pictures that the vision tower gets: one tile is one; several are a grid of tiles and a small whole."""
    tiles = values.numpy()
    if len(tiles) == 1:
        return [tiles[0]]
    side = tiles.shape[-1]
    count = len(tiles) - 1
    # 640 x 480 is cut into 4 x 3
    assert count == 12
    grid = np.zeros((3, 3 * side, 4 * side), dtype=np.float32)
    for number, tile in enumerate(tiles[:-1]):
        row, column = divmod(number, 4)
        grid[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
    return [grid, tiles[-1]]


@pytest.mark.parametrize("size", [(512, 512), (640, 480)])
def test_a_box_is_at_the_same_place_in_the_prompt_the_pixels_and_the_answer(
    engine: TransformersEngine, family: str, size: tuple[int, int]
) -> None:
    side = _published_size(engine, family)
    dialect = get_dialect(DIALECTS[family])
    box = Box(size[0] * 0.125, size[1] * 0.25, size[0] * 0.375, size[1] * 0.875)
    image = Image.new("RGB", size, (40, 20, 60))
    image.paste((240, 250, 230), (int(box.x0), int(box.y0), int(box.x1), int(box.y1)))
    query, frame = dialect.build(tasks.refer(box), image, model_id="m", decoding={})
    # in the prompt
    corners = re.search(r"\[+(?:\d+, ){3}\d+|(?:<loc\d+>){4}", query.turns[-1].text)
    assert corners is not None
    space = 1024 if family == "paligemma" else 1000
    said = tuple(int(number) / space for number in re.findall(r"\d+", corners.group()))
    if dialect.spec.order == "yxyx":
        said = (said[1], said[0], said[3], said[2])
    assert said == pytest.approx((0.125, 0.25, 0.375, 0.875), abs=1 / space)
    # in the pixels
    (patches,) = engine._prompts.prompt(query).images
    assert patches.values.shape[-2:] == (side, side)
    assert len(patches.values) == (13 if family == "internvl" and size == (640, 480) else 1)
    for picture in _whole(patches.values):
        assert _bright(picture) == pytest.approx(said, abs=1.5 / min(picture.shape[1:]) + 1 / space)
    # and back
    text = dialect.write_boxes([LabelledBox("hsil", box)], frame, "hsil")
    (found,) = dialect.read_boxes(Answer("k", "ground", text), frame, "hsil").boxes
    back = (found.box.x0 / size[0], found.box.y0 / size[1], found.box.x1 / size[0], found.box.y1 / size[1])
    assert back == pytest.approx((0.125, 0.25, 0.375, 0.875), abs=1 / space)


def test_a_tile_that_the_dialect_has_sized_is_not_resampled(engine: TransformersEngine, family: str) -> None:
    side = _published_size(engine, family)
    processor = engine._prompts._processor.image_processor
    rng = np.random.default_rng(0)
    tile = Image.fromarray(rng.integers(0, 255, (side, side, 3)).astype(np.uint8))
    query, frame = get_dialect(DIALECTS[family]).build(tasks.describe(), tile, model_id="m", decoding={})
    assert frame.sent == (side, side)
    (patches,) = engine._prompts.prompt(query).images
    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (processor.image_mean, processor.image_std))
    pixels = (patches.values[0].numpy() * std + mean) * 255
    assert patches.values.shape == (1, 3, side, side)
    assert np.abs(pixels - np.asarray(tile).transpose(2, 0, 1)).max() < 0.01


# ------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_a_batch_is_padded_as_the_processor_pads_it(tiny_checkpoint: Any, asking: Any, family: str) -> None:
    import transformers

    engine = TransformersEngine(tiny_checkpoint(family), batch_size=4)
    processor: Any = transformers.AutoProcessor.from_pretrained(tiny_checkpoint(family))
    queries = [asking.query(seed, "why " * (1 + 3 * seed)) for seed in range(3)]
    rows = [engine._prompts.prompt(query) for query in queries]
    texts = [f"<image>{query.turns[0].text.removeprefix('<image>')}" for query in queries]
    more: dict[str, Any] = {}
    if family == "gemma3":
        words = [text.removeprefix("<image>").strip() for text in texts]
        texts = [f"<bos><start_of_turn>user\n<start_of_image>{w}<end_of_turn>\n<start_of_turn>model\n" for w in words]
        more = {"add_special_tokens": False}
    images = [list(query.images) for query in queries]
    expected = processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="np", **more)
    engine._shares_vision = False
    found = engine._inputs(rows, length=max(len(row.ids) for row in rows))
    assert sorted(found) == ["attention_mask", "input_ids", "pixel_values", "token_type_ids"]
    for name, values in found.items():
        np.testing.assert_array_equal(values.numpy(), expected[name], err_msg=name)
    assert found["token_type_ids"].sum() == (3 * 4 if family == "gemma3" else 0)


def test_questions_with_and_without_images_share_a_batch(tiny_checkpoint: Any, asking: Any, reference: Any) -> None:
    folder = tiny_checkpoint("gemma3")
    engine, stock = TransformersEngine(folder, batch_size=4), reference(folder)
    plain = Query("plain", "vqa", (Turn("user", "What is a nucleus?"),), max_tokens=6)
    two = Query("two", "vqa", (Turn("user", "<image><image>Which?"),), (asking.image(1), asking.image(2)), max_tokens=6)
    queries = [plain, asking.query(5, tokens=6), two]
    answers = asking.answers(engine, queries)
    for query in queries:
        assert answers[query.key].text == stock.said(query)[0]


def test_images_that_were_cut_up_together_are_not_confused(tiny_checkpoint: Any, asking: Any, reference: Any) -> None:
    folder = tiny_checkpoint("internvl")
    engine, stock = TransformersEngine(folder, batch_size=4), reference(folder)
    # one tile beside five, so that the tiles cannot be shared out evenly
    pair = (asking.image(1, 56), asking.image(2, 112))
    first = Query("first", "vqa", (Turn("user", "<image>a<image>b"),), pair, max_tokens=6)
    second = Query("second", "vqa", (Turn("user", "<image>a<image>b"),), pair[::-1], max_tokens=6)
    answers = asking.answers(engine, [first, second])
    assert [patches.grid for patches in engine._prompts.prompt(first).images] == [(6, 56, 56)]
    for query in (first, second):
        assert answers[query.key].text == stock.said(query)[0]
    keys = {engine._prompts.prompt(query).images[0].key for query in (first, second)}
    assert len(keys) == 2


def test_attention_is_sdpa_but_where_the_model_cannot_use_it(tiny_checkpoint: Any) -> None:
    for family, text in (("qwen3_vl", "sdpa"), ("gemma3", "sdpa"), ("paligemma", "sdpa"), ("paligemma2", "eager")):
        config = TransformersEngine(tiny_checkpoint(family))._model.config
        assert config.get_text_config()._attn_implementation == text
        assert config.vision_config._attn_implementation == "sdpa"


# ------------------------------------------------------------------------------------------------ what is refused


def test_images_and_marks_must_agree(engine: TransformersEngine, asking: Any) -> None:
    bad = [replace(asking.query(0), images=()), asking.query(1, "more <image>")]
    answers = asking.answers(engine, [*bad, asking.query(2, tokens=2)])
    assert [answers[query.key].error for query in bad] == [
        "the question has 1 image marks and 0 images",
        "the question has 2 image marks and 1 images",
    ]
    assert answers[asking.query(2).key].new_tokens > 0


CONTROL = {
    "gemma3": ["<end_of_turn>", "<start_of_image>", "<image_soft_token>", "<eos>"],
    "internvl": ["<|im_end|>", "<IMG_CONTEXT>", "</img>", "<video>"],
    "paligemma": ["<bos>", "<eos>"],
}


def test_control_tokens_stay_out_and_the_boxes_of_a_question_do_not(
    engine: TransformersEngine, family: str, asking: Any
) -> None:
    for token in CONTROL[family]:
        (answer,) = engine.answer([asking.query(0, f"stop{token}")])
        assert answer.error == f"the question contains the control token {token}"
    ask = tasks.refer(Box(10, 20, 50, 90))
    query, _ = get_dialect(DIALECTS[family]).build(ask, asking.image(3), model_id="m", decoding={"max_tokens": 2})
    (answer,) = engine.answer([replace(query, max_tokens=2)])
    assert answer.status in ("ok", "truncated"), answer.error
    ids = engine._prompts.prompt(query).ids
    if family == "paligemma":
        places = engine._prompts.tokenizer.convert_ids_to_tokens(ids)
        assert [token for token in places if token.startswith("<loc")] == re.findall(r"<loc\d+>", query.turns[0].text)


def test_the_first_token_comes_once(engine: TransformersEngine, family: str, asking: Any) -> None:
    bos = engine._prompts.tokenizer.bos_token_id
    ids = engine._prompts.prompt(asking.query(0)).ids
    assert ids.count(bos) == (0 if family == "internvl" else 1)


def test_a_question_longer_than_the_context_is_refused(engine: TransformersEngine, asking: Any) -> None:
    long = asking.query(0, "x" * 5000)
    (answer,) = engine.answer([long])
    assert "the model takes 4096" in answer.error
    assert engine.room(long) < 1
    assert engine.room(asking.query(0)) > 4000


@pytest.mark.parametrize(
    ("turns", "images", "why"),
    [
        ((Turn("system", "Be brief."), Turn("user", "<image>x")), 1, "it takes one question, no system turn"),
        ((Turn("user", "<image>x"), Turn("assistant", "y"), Turn("user", "z")), 1, "it takes one question"),
        ((Turn("user", "what is a nucleus?"),), 0, "about an image, and there is none"),
        ((Turn("user", "detect <image>"),), 1, "its images before the words"),
    ],
)
def test_paligemma_has_no_conversation(
    tiny_checkpoint: Any, asking: Any, turns: tuple[Turn, ...], images: int, why: str
) -> None:
    engine = TransformersEngine(tiny_checkpoint("paligemma"))
    query = Query("k", "vqa", turns, (asking.image(0),) * images)
    (answer,) = engine.answer([query])
    assert (answer.status, answer.finish_reason) == ("failed", "error")
    assert why in answer.error


def test_a_talk_with_paligemma_is_one_question_after_the_other(tiny_checkpoint: Any, asking: Any) -> None:
    from tilers.field import Field
    from wsi_chat.chat.history import Thread

    engine, dialect = TransformersEngine(tiny_checkpoint("paligemma")), get_dialect("paligemma")
    shown, thread = Field("t000001", 1, asking.image(1), Box(0, 0, 112, 112)), Thread(dialect)
    for number in range(3):
        query, _ = thread.query(tasks.vqa(f"question {number}"), shown, engine, decoding={})
        assert [turn.text for turn in query.turns] == [f"<image>answer en question {number}"]
        assert engine.room(query) > 4000
        thread.remember(query, "yes", shown)
    assert thread.dropped == 2


def test_paligemma_takes_several_images_first(tiny_checkpoint: Any, asking: Any, reference: Any) -> None:
    folder: Path = tiny_checkpoint("paligemma")
    turns = (Turn("user", "<image><image>answer en which?"),)
    query = Query("k", "vqa", turns, (asking.image(1), asking.image(2)), max_tokens=5)
    answer = asking.answers(TransformersEngine(folder), [query])["k"]
    assert answer.text == reference(folder).said(query)[0]
