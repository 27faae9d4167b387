"""Prompts that are put together here against those of vLLM's own renderer: every token, place and pixel."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_chat.dialects import get_dialect
from wsi_chat.engines import embedded_checkpoint
from wsi_chat.engines.checkpoint import read_config
from wsi_chat.engines.feeding import LoopThread
from wsi_chat.engines.prompts import control_tokens
from wsi_chat.engines.serving import plan_serving
from wsi_chat.engines.vllm import VLLMEngine
from wsi_chat.engines.vllm_prompts import VLLMPrompts
from wsi_chat.schema import Query, Turn

ROOT = Path(__file__).resolve().parents[2]
CASES = [
    ("embedded", "float32", True),
    ("embedded", "float32", False),
    ("qwen2.5-vl", "bfloat16", True),
    ("qwen3-vl", "bfloat16", False),
    ("qwen3-vl", "float32", False),
]
"""Dialect, dtype, and whether the pixels are normalised by the model."""


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """vLLM's renderer for a checkpoint, the plain way through it, and ours."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    sys.path.insert(0, str(ROOT))
    from benchmarks.stand_in_core import shaped_checkpoint

    name, dtype, on_device = request.param
    folder = embedded_checkpoint() if name == "embedded" else shaped_checkpoint(name, tmp_path / name)
    policy = get_dialect(name).image_px
    plan = plan_serving(read_config(folder), policy)
    config = AsyncEngineArgs(
        model=str(folder), dtype=dtype, max_model_len=plan.max_model_len, limit_mm_per_prompt=plan.limits,
        mm_processor_kwargs=plan.processor_kwargs or None, mm_processor_cache_gb=0, generation_config="vllm",
        enforce_eager=True, mm_device_do_normalize=on_device,
    ).create_engine_config()  # fmt: skip
    plain = VLLMEngine.__new__(VLLMEngine)
    plain._vllm = SimpleNamespace(renderer=renderer_from_config(config), model_config=config.model_config)
    plain._control = control_tokens(plain._vllm.renderer.get_tokenizer())
    plain._loop = LoopThread("test-prompts")
    prompts = VLLMPrompts(plain._vllm, plain._rendered, plan.pixel_bounds)
    plain._loop.run(prompts.prove())
    yield SimpleNamespace(
        ours=lambda query: plain._loop.run(prompts.prompt(query)),
        theirs=lambda query: plain._loop.run(plain._rendered(query)),
        together=lambda queries: plain._loop.run(_together(prompts, queries)),
        prompts=prompts, policy=policy, dtype=dtype, on_device=on_device,
    )  # fmt: skip
    prompts.close()
    plain._loop.close()


async def _together(prompts: VLLMPrompts, queries: list[Query]) -> list[Any]:
    return await asyncio.gather(*(prompts.prompt(query) for query in queries))


def _noise(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def _same(ours: Any, theirs: Any, dtype: str) -> None:
    import torch

    assert ours["prompt_token_ids"] == theirs["prompt_token_ids"]
    assert ours["mm_placeholders"]["image"] == list(theirs["mm_placeholders"]["image"])
    assert set(ours["mm_kwargs"]) == set(theirs["mm_kwargs"]) == {"image"}
    for mine, other in zip(ours["mm_kwargs"]["image"], theirs["mm_kwargs"]["image"], strict=True):
        assert set(mine) == set(other) == {"pixel_values", "image_grid_thw"}
        for name in mine:
            assert type(mine[name].field) is type(other[name].field)
            # where the item lay among those that were made with it is all that fields may differ by
            assert len(ours["mm_kwargs"]["image"]) > 1 or mine[name].field == other[name].field
            assert mine[name].data.dtype == other[name].data.dtype
            assert torch.equal(mine[name].data, other[name].data)
        assert str(mine["pixel_values"].data.dtype) == dtype


def test_the_same_tokens_places_and_pixels(way: Any) -> None:
    assert way.prompts.quick
    dtype = "torch.uint8" if way.on_device else f"torch.{way.dtype}"
    wordings = (
        (Turn("user", "<image>Locate all hsil."),),
        (Turn("system", "Be  brief."), Turn("user", "A <image>field,\n <image> and a smear?")),
        (Turn("user", "<image>One?"), Turn("assistant", "Yes."), Turn("user", "And 两 more?")),
    )
    sizes = [way.policy.sent_size(*size) for size in ((512, 512), (700, 300), (90, 200), (256, 256))]
    for turns in wordings:
        marks = sum(turn.text.count("<image>") for turn in turns)
        for seed, size in enumerate(sizes):
            images = (_noise(seed, size), _noise(7, sizes[0]))[:marks]
            query = Query("k", "vqa", turns, images)
            _same(way.ours(query), way.theirs(query), dtype)
    assert len(way.prompts._wordings) == len(wordings)


def test_words_that_come_many_times_at_once_are_rendered_once(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    size = way.policy.sent_size(256, 256)
    turns = (Turn("user", "<image>All at once?"),)
    queries = [Query(f"{seed}", "vqa", turns, (_noise(seed, size),)) for seed in range(8)]
    rendered = []
    render = way.prompts._render

    async def counted(query: Query) -> Any:
        rendered.append(query.key)
        return await render(query)

    monkeypatch.setattr(way.prompts, "_render", counted)
    prompts = way.together(queries)
    assert len(rendered) == 1
    for query, prompt in zip(queries, prompts, strict=True):
        theirs = way.theirs(query)
        assert prompt["prompt_token_ids"] == theirs["prompt_token_ids"]
        assert len(prompt["mm_kwargs"]["image"]) == 1


def test_other_pixels_have_another_key_and_the_same_ones_the_same(way: Any) -> None:
    size = way.policy.sent_size(512, 512)
    query = Query("k", "vqa", (Turn("user", "<image>What?"),), (_noise(1, size),))
    way.ours(query)
    first = way.ours(query)
    changed = query.images[0].copy()
    changed.putpixel((5, 5), (0, 0, 0))
    keys = [
        way.ours(replace(query, images=(image,)))["mm_hashes"]["image"][0]
        for image in (query.images[0].copy(), changed, _noise(1, size[::-1]))
    ]
    assert keys[0] == first["mm_hashes"]["image"][0] != keys[1]


def test_a_picture_that_would_be_resized_goes_through_the_renderer(way: Any) -> None:
    multiple = way.policy.multiple
    odd = _noise(3, (3 * multiple + 5, 4 * multiple - 3))
    query = Query("k", "vqa", (Turn("user", "<image>What?"),), (odd,))
    for _ in range(2):
        ours, theirs = way.ours(query), way.theirs(query)
        assert ours["prompt_token_ids"] == theirs["prompt_token_ids"]
        assert ours["mm_hashes"] == theirs["mm_hashes"]
    assert not way.prompts._wordings
    with pytest.raises(Exception, match="control token"):
        way.ours(replace(query, turns=(Turn("user", "<image>stop<|im_end|>"),), images=(_noise(3, (256, 256)),)))
