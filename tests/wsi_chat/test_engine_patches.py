"""Pixels and tokens of a question against transformers' own processor and tokenizer: the same to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image, ImageFilter

from wsi_chat.dialects import get_dialect
from wsi_chat.engines import embedded_checkpoint, read_checkpoint
from wsi_chat.engines.patches import Cut, read_off
from wsi_chat.schema import Query, Turn

pytestmark = pytest.mark.usefixtures("one_thread")
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}


def _processor(patch: int, **more: Any) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(patch_size=patch, **more)


def _process(processor: Any, dtype: Any) -> Callable[[Image.Image], Any]:
    def process(image: Image.Image) -> Any:
        return processor(images=[image], do_resize=False, return_tensors="pt")["pixel_values"].to(dtype)

    return process


def _noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("patch", "more"), [(14, CLIP), (16, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})])
def test_the_table_gives_the_processors_pixels_to_the_bit(patch: int, more: dict[str, Any], dtype: str) -> None:
    import torch

    cut = Cut(patch, 2, 2)
    process = _process(_processor(patch, **more), getattr(torch, dtype))
    table = read_off(process, cut, (2 * cut.multiple, cut.multiple))
    assert table is not None

    @settings(max_examples=12, deadline=None, database=None)
    @given(some.integers(0, 2**32 - 1), some.integers(1, 5), some.integers(1, 5))
    def same(seed: int, across: int, down: int) -> None:
        image = _noise(seed, across * cut.multiple, down * cut.multiple)
        ours, theirs = table.patches(np.asarray(image)), process(image)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
        assert len(ours) == np.prod(cut.grid(image))

    same()


def test_numbers_that_are_left_to_the_model_stay_bytes() -> None:
    import torch

    raw = _processor(16, do_rescale=False, do_normalize=False)
    process = _process(raw, torch.uint8)
    table = read_off(process, Cut(16, 2, 2), (64, 32))
    assert table is not None
    assert table.dtype == torch.uint8
    image = _noise(5, 96, 64)
    assert torch.equal(table.patches(np.asarray(image)), process(image))


def test_memory_is_used_again_only_when_nothing_holds_it() -> None:
    import torch

    cut = Cut(16, 2, 2)
    table = read_off(_process(_processor(16), torch.bfloat16), cut, (64, 32))
    assert table is not None
    images = [_noise(seed, 64, 96) for seed in range(96)]
    wanted = [_process(_processor(16), torch.bfloat16)(image) for image in images]
    held: dict[int, Any] = {}
    random = np.random.default_rng(0)
    used, again = set(), 0
    for number, image in enumerate(images):
        patches = table.patches(np.asarray(image))
        again += patches.data_ptr() in used
        used.add(patches.data_ptr())
        # whatever shares its memory holds it: the tensor, a part of it, other numbers in it, an array
        held[number] = (patches, patches[3:], patches.view(torch.uint8), patches.view(torch.int16).numpy())[number % 4]
        del patches
        for old in random.permutation(sorted(held))[: len(held) // 3]:
            del held[int(old)]
        for old, kept in held.items():
            same = (wanted[old], wanted[old][3:], wanted[old].view(torch.uint8), wanted[old].view(torch.int16))[old % 4]
            assert torch.equal(torch.as_tensor(kept), same)
    assert again > 32


def test_pictures_of_another_size_get_memory_of_that_size() -> None:
    import torch

    cut = Cut(16, 2, 2)
    process = _process(_processor(16), torch.float32)
    table = read_off(process, cut, (64, 32))
    assert table is not None
    for seed, (width, height) in enumerate([(64, 64), (32, 64), (96, 64), (64, 64), (32, 32)]):
        image = _noise(seed, width, height)
        assert torch.equal(table.patches(np.asarray(image)), process(image))


def test_a_processor_that_does_more_than_a_table_can_is_left_alone() -> None:
    import torch

    plain = _process(_processor(16), torch.float32)
    size = (64, 64)

    def odd(image: Image.Image) -> Any:
        values = plain(image)
        values[3, 100] += 1e-6
        return values

    for process in (
        lambda image: plain(image.filter(ImageFilter.BoxBlur(1))),  # looks at neighbours
        lambda image: plain(image.convert("L").convert("RGB")),  # mixes channels
        lambda image: plain(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),  # another order
        lambda image: plain(image.resize((32, 32))),  # another size
        lambda image: plain(image).double(),
        odd,
    ):
        assert read_off(process, Cut(16, 2, 2), size) is None
    assert read_off(plain, Cut(16, 2, 2), size) is not None
    assert read_off(plain, Cut(16, 1, 2), size) is None  # it merges 2 x 2
    assert read_off(plain, Cut(16, 2, 1), size) is None


# ------------------------------------------------------------------------------------------------ whole questions


@pytest.fixture(params=["embedded", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def folder(request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path]) -> Path:
    return embedded_checkpoint() if request.param == "embedded" else tiny_checkpoint(str(request.param))


@pytest.fixture
def prompts(folder: Path) -> Any:
    import transformers

    from wsi_chat.engines.qwen import QwenPrompts

    return QwenPrompts(read_checkpoint(folder), transformers.AutoConfig.from_pretrained(folder))


def _plain(folder: Path, query: Query) -> tuple[list[int], list[Any]]:
    """Ids and pixels as transformers makes them of the whole conversation, every image token written out."""
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    messages = []
    for turn in query.turns:
        parts: list[dict[str, str]] = []
        for number, words in enumerate(turn.text.split("<image>")):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": words}] if words else []
        messages.append({"role": turn.role, "content": parts})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pieces, pixels = text.split("<|image_pad|>"), []
    whole = pieces[0]
    for image, piece in zip(query.images, pieces[1:], strict=True):
        seen = processor(images=[image], do_resize=False, return_tensors="pt")
        pixels.append(seen["pixel_values"])
        whole += "<|image_pad|>" * (int(seen["image_grid_thw"].prod()) // 4) + piece
    return tokenizer(whole, add_special_tokens=False)["input_ids"], pixels


def test_a_question_is_the_plain_ways_tokens_and_pixels_also_when_its_words_are_known(
    folder: Path, prompts: Any
) -> None:
    import torch

    assert prompts._table is not None
    multiple = prompts._cut.multiple
    wordings = (
        (Turn("user", "<image>Locate all hsil."),),
        (Turn("system", "Be  brief."), Turn("user", "A <image>field,\n <image> and a smear?  Yes")),
        (Turn("user", "<image>One?"), Turn("assistant", "Yes."), Turn("user", "And 两 more\u200b?")),
        (Turn("user", "No picture."),),
    )
    for turns in wordings:
        marks = sum(turn.text.count("<image>") for turn in turns)
        for seed in range(3):
            sizes = [((2 + seed + n) * multiple, (5 - seed) * multiple) for n in range(marks)]
            images = tuple(_noise(10 * seed + n, *size) for n, size in enumerate(sizes))
            query = Query("k", "vqa", turns, images)
            prompt = prompts.prompt(query)
            ids, pixels = _plain(folder, query)
            assert list(prompt.ids) == ids
            assert len(prompt.images) == len(pixels)
            assert all(torch.equal(ours.values, theirs) for ours, theirs in zip(prompt.images, pixels, strict=True))
    assert len(prompts._wordings) == len(wordings)


def test_words_are_written_once_and_pictures_cut_once(prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written, cut = [], []
    template, patches = prompts.tokenizer.apply_chat_template, prompts._table.patches
    monkeypatch.setattr(
        prompts.tokenizer, "apply_chat_template", lambda *a, **k: written.append(1) or template(*a, **k)
    )
    monkeypatch.setattr(prompts._table, "patches", lambda pixels: cut.append(1) or patches(pixels))
    side = 4 * prompts._cut.multiple
    tiles = [_noise(seed, side, side) for seed in range(3)]
    query = Query("k", "ground", (Turn("user", "<image>Locate all hsil."),))
    for tile in tiles:
        for label in ("hsil", "lsil", "scc"):
            turns = (Turn("user", f"<image>Locate all {label}."),)
            # a question may bring the same pixels in another object
            prompts.prompt(replace(query, turns=turns, images=(tile.copy(),)))
    assert (len(written), len(cut)) == (3, 3)
    changed = tiles[-1].copy()
    changed.putpixel((0, 0), (1, 2, 3))
    prompts.prompt(replace(query, images=(changed,)))
    assert len(cut) == 4


def test_what_is_kept_is_bounded(prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wsi_chat.engines.qwen as qwen

    monkeypatch.setattr(qwen, "WORDINGS", 2)
    monkeypatch.setattr(qwen, "PICTURES", 2)
    side = 2 * prompts._cut.multiple
    for number in range(5):
        prompts.prompt(Query("k", "vqa", (Turn("user", f"<image>{number}?"),), (_noise(number, side, side),)))
    assert (len(prompts._wordings), len(prompts._pictures)) == (2, 2)


@pytest.mark.parametrize("name", ["embedded", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_tiles_as_a_dialect_sends_them_are_cut_as_they_are(name: str) -> None:
    policy = get_dialect(name).image_px
    for size in ((512, 512), (256, 256), (700, 333)):
        sent = Image.new("RGB", policy.sent_size(*size))
        assert Cut(policy.multiple // 2, 2, 2).fits(sent)
    assert not Cut(policy.multiple // 2, 2, 2).fits(Image.new("RGB", (policy.multiple + 1, policy.multiple)))
    assert not Cut(policy.multiple // 2, 2, 2).fits(Image.new("L", (policy.multiple, policy.multiple)))
