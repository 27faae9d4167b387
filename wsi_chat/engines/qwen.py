"""Queries as the Qwen-VL family's token ids and image patches; needs no torchvision.

The chat template, the tokenizer and the PIL image processor are the checkpoint's own; one image token is
repeated once per merged patch, as the family's processors do (transformers `replace_image_token`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.errors import AnswerError, EngineError
from wsi_chat.schema import Query

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
IMAGE_MARK = "<image>"
CONTROL = re.compile(r"<\|(?:im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>")


@dataclass(frozen=True, slots=True)
class Patches:
    """One image as the vision tower takes it: (patches, values) floats and its (t, h, w) grid of patches."""

    key: tuple[int, int, str]
    values: Tensor
    grid: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A query ready for the model. ``choice_ids``: for each choice the ids of the tokens that spell it."""

    query: Query
    ids: tuple[int, ...]
    images: tuple[Patches, ...]
    choice_ids: tuple[tuple[int, ...], ...] = ()


class QwenPrompts:
    """Turns queries into prompts for one checkpoint of the family. Raises EngineError where it cannot load."""

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

        Raises AnswerError for a choice that is no single token of this tokenizer.
        """
        if choices not in self._choice_ids:
            self._choice_ids[choices] = choice_token_ids(self.tokenizer, choices)
        return self._choice_ids[choices]

    def _patches(self, image: Image.Image) -> Patches:
        import hashlib

        import torch

        multiple = int(self._processor.patch_size) * int(self._processor.merge_size)
        # an image that the dialect has sized already must not be resized once more behind its back
        fits = image.width % multiple == 0 and image.height % multiple == 0
        rgb = image.convert("RGB")
        inputs = self._processor(images=[rgb], do_resize=not fits, return_tensors="pt")
        t, h, w = (int(n) for n in inputs["image_grid_thw"][0])
        digest = hashlib.blake2b(rgb.tobytes(), digest_size=16).hexdigest()
        return Patches((rgb.width, rgb.height, digest), inputs["pixel_values"].to(torch.float32), (t, h, w))


def choice_token_ids(tokenizer: Any, choices: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The single tokens that spell each choice, with and without a leading space, none shared by two choices.

    Raises AnswerError for a choice that is no single token of this tokenizer.
    """
    spelled: list[set[int]] = []
    for choice in choices:
        found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (choice, f" {choice}")]
        spelled.append({int(ids[0]) for ids in found if len(ids) == 1})
    own = []
    for number, ids in enumerate(spelled):
        alone = ids - set().union(*(other for n, other in enumerate(spelled) if n != number))
        if not alone:
            raise AnswerError(f"choice {choices[number]!r} is not one token of this model's tokenizer")
        own.append(tuple(sorted(alone)))
    return tuple(own)


def count_marks(query: Query) -> int:
    """The image marks of a query. Raises AnswerError where there are not as many as images."""
    marks = sum(turn.text.count(IMAGE_MARK) for turn in query.turns)
    if marks != len(query.images):
        raise AnswerError(f"the question has {marks} image marks and {len(query.images)} images")
    return marks


def message_parts(text: str) -> list[dict[str, str]]:
    """A turn's text as the parts of a chat message, images where their marks stand.

    Raises AnswerError for a control token in the text: it would end the turn or open an image of its own.
    """
    control = CONTROL.search(text)
    if control:
        raise AnswerError(f"the question contains the control token {control.group()}")
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_MARK)):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
