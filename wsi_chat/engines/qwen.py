"""Queries as the Qwen-VL family's token ids and image patches; needs no torchvision.

The chat template, the tokenizer and the PIL image processor are the checkpoint's own; one image token is
repeated once per merged patch, as the family's processors do (transformers `replace_image_token`). Words that were
asked before are not written again, and a table does the processor's work to the bit (see `patches`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_chat.engines.chat_template import check_template
from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.engines.loading import describe_error
from wsi_chat.engines.patches import Cut, read_off
from wsi_chat.engines.prompts import (
    IMAGE_MARK,
    Patches,
    Prompt,
    choice_token_ids,
    count_marks,
    image_key,
    message_parts,
)
from wsi_chat.errors import AnswerError, EngineError
from wsi_chat.schema import Query, Turn

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WORDINGS = 512
"""Wordings whose tokens are kept: screening asks every tile the same."""
PICTURES = 8
"""Pictures whose patches are kept for the next question about the same tile."""


class QwenPrompts:
    """Turns queries into prompts for one checkpoint of the family. Raises EngineError where it cannot load."""

    joined = False

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        folder = str(checkpoint.path)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise EngineError(
                f"tokenizer or image processor of {folder} cannot be loaded: {error}",
                hint="Copy the checkpoint again, with its tokenizer and preprocessor files.",
            ) from error
        if not self.tokenizer.chat_template:
            raise EngineError(
                f"checkpoint {folder} has no chat template", hint="Add its chat_template.jinja to the folder."
            )
        check_template(self.tokenizer.chat_template, folder)
        try:
            self._image_id = int(config.image_token_id)
            self._image_token = str(self.tokenizer.convert_ids_to_tokens(self._image_id))
        except Exception as error:
            raise EngineError(
                f"{folder}: the image's token is {str(config.image_token_id)[:100]!r}: {describe_error(error)}",
                hint="Set image_token_id in config.json, or copy the checkpoint again.",
            ) from error
        self.image_id = self._image_id
        self._choice_ids: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}
        self._wordings: OrderedDict[tuple[Turn, ...], tuple[tuple[int, ...], ...]] = OrderedDict()
        self._pictures: OrderedDict[tuple[int, int, str], Patches] = OrderedDict()
        sizes = (self._processor.patch_size, self._processor.merge_size, self._processor.temporal_patch_size)
        try:
            self._cut = Cut(*map(int, sizes))
            self._table = read_off(self._processed, self._cut, (2 * self._cut.multiple, self._cut.multiple))
        except Exception as error:  # what it says of a mean, a size ... is checked when the first picture is made
            raise EngineError(
                f"the image processor of {folder} cannot be used: {describe_error(error)}",
                hint="Copy the checkpoint again, with its preprocessor_config.json.",
            ) from error

    def prompt(self, query: Query) -> Prompt:
        """The query as ids and patches. Raises AnswerError where its text or images cannot be used."""
        count_marks(query)
        images = tuple(self._patches(image) for image in query.images)
        pieces = self._wording(query.turns)
        ids = list(pieces[0])
        for image, piece in zip(images, pieces[1:], strict=True):
            ids += [self._image_id] * (math.prod(image.grid) // self._cut.merge**2)
            ids += piece
        return Prompt(query, tuple(ids), images, self.choice_ids(query.choices))

    def _wording(self, turns: tuple[Turn, ...]) -> tuple[tuple[int, ...], ...]:
        """Token ids before, between and after the images of these turns; the same words are written once.

        An image token is special and thus a piece of its own to the tokenizer, however often it is repeated.
        """
        if turns not in self._wordings:
            messages = [{"role": turn.role, "content": message_parts(turn.text)} for turn in turns]
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            pieces: list[list[int]] = [[]]
            for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
                if token == self._image_id:
                    pieces.append([])
                else:
                    pieces[-1].append(int(token))
            marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
            if len(pieces) != marks + 1:
                raise AnswerError(f"the chat template placed {len(pieces) - 1} of {marks} images")
            self._wordings[turns] = tuple(map(tuple, pieces))
            if len(self._wordings) > WORDINGS:
                self._wordings.popitem(last=False)
        self._wordings.move_to_end(turns)
        return self._wordings[turns]

    def choice_ids(self, choices: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """The single tokens that spell each choice, with and without a leading space, none shared.

        Raises AnswerError for a choice that is not a single token of this tokenizer.
        """
        if choices not in self._choice_ids:
            self._choice_ids[choices] = choice_token_ids(self.tokenizer, choices)
        return self._choice_ids[choices]

    def per_token(self, rows: Sequence[Prompt], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Which tokens are an image's: the rotary positions are worked out from them."""
        return {"mm_token_type_ids": ((ids == self.image_id) & mask.bool()).int()}

    def per_image(self, images: Sequence[Patches]) -> dict[str, Tensor]:
        """The (t, h, w) grid of patches of each image."""
        import torch

        return {"image_grid_thw": torch.tensor([image.grid for image in images])}

    def _patches(self, image: Image.Image) -> Patches:
        import torch

        rgb = image if image.mode == "RGB" else image.convert("RGB")
        key = image_key([rgb])
        if key in self._pictures:
            self._pictures.move_to_end(key)
            return self._pictures[key]
        # an image that the dialect has sized already must not be resized once more behind its back
        if self._table is not None and self._cut.fits(rgb):
            found = Patches(key, self._table.patches(np.asarray(rgb)), self._cut.grid(rgb))
        else:
            inputs = self._processor(images=[rgb], do_resize=not self._cut.fits(rgb), return_tensors="pt")
            t, h, w = (int(n) for n in inputs["image_grid_thw"][0])
            found = Patches(key, inputs["pixel_values"].to(torch.float32), (t, h, w))
        self._pictures[key] = found
        if len(self._pictures) > PICTURES:
            self._pictures.popitem(last=False)
        return found

    def _processed(self, image: Image.Image) -> Tensor:
        """The patches of an image that `Cut.fits`, as the checkpoint's processor makes them."""
        import torch

        values: Tensor = self._processor(images=[image], do_resize=False, return_tensors="pt")["pixel_values"]
        return values.to(torch.float32)
