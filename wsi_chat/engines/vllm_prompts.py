"""Questions as vLLM's renderer gives them, each wording rendered once and only the picture made anew.

Screening asks thousands of tiles the same words. The first question of a wording goes through vLLM's own renderer
(chat template, tokenizer, the model's processor); the next ones take its tokens around the picture and put the new
picture's patches in, which a table makes (see `patches`). What comes out is the same, tokens and pixels: this is tried
when the engine starts, and where it is not so (another family, another version of vLLM) the renderer makes them all.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_chat.engines.loading import describe_error
from wsi_chat.engines.patches import Cut, PatchTable, read_off
from wsi_chat.picture import image_sha256
from wsi_chat.schema import Query, Turn

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

log = logging.getLogger(__name__)

Render = Callable[[Query], Coroutine[Any, Any, Any]]
WORDINGS = 512
PICTURES = 32
"""Pictures whose patches are kept, so that the questions about one tile share them."""
THREADS = 4
PROBE_SIDE = 256


@dataclass(frozen=True, slots=True)
class _Wording:
    """Token ids before, between and after the pictures of a question."""

    pieces: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture as the engine core takes it: vLLM's item, its hash, and how many tokens stand for it."""

    item: Any
    key: str
    tokens: int


class VLLMPrompts:
    """Prompts for one engine, as `vllm.AsyncLLM.generate` takes them.

    Args:
        vllm: the engine, whose renderer and model's processor are used.
        render: the plain way from a query to a prompt.
        bounds: fewest and most pixels of a picture that the processor leaves as it is; None: it resizes all.
    """

    def __init__(self, vllm: Any, render: Render, bounds: tuple[int, int] | None) -> None:
        self._vllm, self._render, self._bounds = vllm, render, bounds
        self._table: PatchTable | None = None
        self._image_token = -1
        self._wordings: OrderedDict[tuple[Turn, ...], asyncio.Task[_Wording]] = OrderedDict()
        self._pictures: OrderedDict[str, _Picture] = OrderedDict()
        self._items: dict[tuple[int, int, int], Any] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "wsi-chat-patches")

    @property
    def quick(self) -> bool:
        """Whether questions are put together here, and not by vLLM's renderer."""
        return self._table is not None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pictures.clear()

    async def prompt(self, query: Query) -> Any:
        """A query as vLLM takes it. Raises what its renderer raises."""
        if not (self._table is not None and query.images and all(map(self._as_it_is, query.images))):
            return await self._render(query)
        try:
            wording = await self._wording(query)
        except Exception:
            # perhaps of the one question that was rendered for all with these words, and not of this one
            self._wordings.pop(query.turns, None)
            return await self._render(query)
        run = asyncio.get_running_loop().run_in_executor
        pictures = [await run(self._pool, self._seen, image) for image in query.images]
        return self._joined(wording, pictures)

    async def prove(self) -> None:
        """Read the processor's table off it, and take it only where whole prompts come out the same."""
        try:
            self._table = await self._measured()
            if self._table is not None and not await self._same():
                self._table = None
        except Exception as error:
            log.debug("questions go through vLLM's renderer: %s", describe_error(error))
            self._table = None
        self._wordings.clear()
        self._pictures.clear()
        if self._table is None:
            log.info("this model's questions go through vLLM's own renderer, at a few milliseconds each")

    # ------------------------------------------------------------------------------------------ pictures

    def _as_it_is(self, image: Image.Image) -> bool:
        """Whether the model's processor would leave the picture's size alone."""
        if self._bounds is None or self._table is None or not self._table.cut.fits(image):
            return False
        narrow, wide = sorted(image.size)
        return self._bounds[0] <= narrow * wide <= self._bounds[1] and wide <= 200 * narrow

    def _seen(self, image: Image.Image) -> _Picture:
        """The picture's item; one that was asked about a moment ago is not made again."""
        assert self._table is not None
        # the same pixels, the same key: the caches of prefixes and of images go by it
        key = image_sha256(image)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        cut = self._table.cut
        grid = cut.grid(image)
        patches = self._table.patches(np.asarray(image))
        if grid not in self._items:
            self._items[grid] = self._item(patches, grid)
        like = self._items[grid]
        item = type(like)({**like, "pixel_values": replace(like["pixel_values"], data=patches)})
        picture = _Picture(item, key, math.prod(grid) // cut.merge**2)
        with self._lock:
            self._pictures[key] = picture
            while len(self._pictures) > PICTURES:
                self._pictures.popitem(last=False)
        return picture

    def _item(self, patches: Tensor, grid: tuple[int, int, int]) -> Any:
        """What the model's fields make of a picture of this size: the item for it, and the pattern of others."""
        import torch
        from transformers import BatchFeature
        from vllm.multimodal.inputs import MultiModalKwargsItems

        made = BatchFeature({"pixel_values": patches, "image_grid_thw": torch.tensor([grid], dtype=torch.int64)})
        fields = self._vllm.renderer.get_mm_processor()._get_mm_fields_config(made, {})
        return MultiModalKwargsItems.from_hf_inputs(made, fields)["image"][0]

    async def _measured(self) -> PatchTable | None:
        """The table of the model's processor, as vLLM calls it."""
        side = self._probe_side()
        if side is None:
            return None
        processor = self._vllm.renderer.get_mm_processor().info.get_image_processor()
        cut = Cut(int(processor.patch_size), int(processor.merge_size), int(processor.temporal_patch_size))
        side = round(side / cut.multiple) * cut.multiple
        loop = asyncio.get_running_loop()

        def process(image: Image.Image) -> Any:
            prompt = asyncio.run_coroutine_threadsafe(self._render(_probe_query(image)), loop).result()
            (item,) = prompt["mm_kwargs"]["image"]
            return item["pixel_values"].data

        return await loop.run_in_executor(self._pool, read_off, process, cut, (side, side))

    def _probe_side(self) -> int | None:
        if self._bounds is None:
            return None
        low, high = (math.isqrt(bound) for bound in self._bounds)
        return min(max(PROBE_SIDE, low), high)

    # ------------------------------------------------------------------------------------------ words

    async def _wording(self, query: Query) -> _Wording:
        """The words of a question as tokens: rendered once, however many questions with them come at once."""
        if query.turns not in self._wordings:
            self._wordings[query.turns] = asyncio.ensure_future(self._worded(query))
            while len(self._wordings) > WORDINGS:
                self._wordings.popitem(last=False)
        self._wordings.move_to_end(query.turns)
        return await asyncio.shield(self._wordings[query.turns])

    async def _worded(self, query: Query) -> _Wording:
        """What is left of a rendered prompt without its pictures."""
        prompt = await self._render(query)
        ids, pieces, end = prompt["prompt_token_ids"], [], 0
        for place in sorted(prompt["mm_placeholders"]["image"], key=lambda place: int(place.offset)):
            pieces.append(tuple(ids[end : place.offset]))
            end = place.offset + place.length
            self._image_token = ids[place.offset]
        return _Wording((*pieces, tuple(ids[end:])))

    def _joined(self, wording: _Wording, pictures: list[_Picture]) -> Any:
        from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

        ids, places = list(wording.pieces[0]), []
        for picture, piece in zip(pictures, wording.pieces[1:], strict=True):
            places.append(PlaceholderRange(offset=len(ids), length=picture.tokens))
            ids += [self._image_token] * picture.tokens
            ids += piece
        return {
            "type": "multimodal",
            "prompt_token_ids": ids,
            "mm_kwargs": MultiModalKwargsItems({"image": [picture.item for picture in pictures]}),
            "mm_hashes": {"image": [picture.key for picture in pictures]},
            "mm_placeholders": {"image": places},
        }

    async def _same(self) -> bool:
        """Whether two pictures in one question come out as the renderer gives them, every part of the prompt."""
        import torch
        from PIL import Image

        assert self._table is not None
        multiple = self._table.cut.multiple
        side = round((self._probe_side() or 0) / multiple) * multiple
        first, second = (Image.new("RGB", (side, side), colour) for colour in ((1, 2, 3), (250, 120, 7)))
        query = replace(_probe_query(first), images=(first, second))
        query = replace(query, turns=(Turn("system", "Be brief."), Turn("user", "<image>One, <image>two?")))
        ours = await self.prompt(replace(query, images=(second, first)))
        theirs = await self._render(replace(query, images=(second, first)))
        if set(theirs) - {"prompt", "arrival_time"} != set(ours) or set(theirs["mm_kwargs"]) != {"image"}:
            return False
        if ours["prompt_token_ids"] != theirs["prompt_token_ids"]:
            return False
        if list(theirs["mm_placeholders"]["image"]) != ours["mm_placeholders"]["image"]:
            return False
        for mine, other in zip(ours["mm_kwargs"]["image"], theirs["mm_kwargs"]["image"], strict=True):
            if set(mine) != set(other):
                return False
            for name in mine:
                a, b = mine[name].data, other[name].data
                if a.dtype != b.dtype or not torch.equal(a, b):
                    return False
        return True


def _probe_query(image: Image.Image) -> Query:
    return Query("", "describe", (Turn("user", "<image>"),), (image,))
