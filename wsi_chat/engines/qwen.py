"""Queries as the Qwen-VL family's token ids and image patches; needs no torchvision.

The chat template, the tokenizer and the PIL image processor are the checkpoint's own; one image token is
repeated once per merged patch, as the family's processors do (transformers `replace_image_token`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wsi_chat.engines.chat_template import check_template
from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.engines.prompts import (
    Patches,
    Prompt,
    choice_token_ids,
    count_marks,
    image_key,
    message_parts,
)
from wsi_chat.errors import AnswerError, EngineError
from wsi_chat.schema import Query

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


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
        self._image_id = int(config.image_token_id)
        self._image_token = str(self.tokenizer.convert_ids_to_tokens(self._image_id))
        self.image_id = self._image_id
        self._choice_ids: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}

    def prompt(self, query: Query) -> Prompt:
        """The query as ids and patches. Raises AnswerError where its text or images cannot be used."""
        images = tuple(self._patches(image) for image in query.images)
        messages = [{"role": turn.role, "content": message_parts(turn.text)} for turn in query.turns]
        marks = count_marks(query)
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        pieces = text.split(self._image_token)
        if len(pieces) != marks + 1:
            raise AnswerError(f"the chat template placed {len(pieces) - 1} of {marks} images")
        merged = int(self._processor.merge_size) ** 2
        whole = pieces[0]
        for image, piece in zip(images, pieces[1:], strict=True):
            t, h, w = image.grid
            whole += self._image_token * (t * h * w // merged) + piece
        ids = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
        return Prompt(query, tuple(ids), images, self.choice_ids(query.choices))

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

        multiple = int(self._processor.patch_size) * int(self._processor.merge_size)
        # an image that the dialect has sized already must not be resized once more behind its back
        fits = image.width % multiple == 0 and image.height % multiple == 0
        rgb = image.convert("RGB")
        inputs = self._processor(images=[rgb], do_resize=not fits, return_tensors="pt")
        t, h, w = (int(n) for n in inputs["image_grid_thw"][0])
        return Patches(image_key([rgb]), inputs["pixel_values"].to(torch.float32), (t, h, w))
