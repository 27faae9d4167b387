"""Queries as token ids and pixels through the checkpoint's own transformers processor: Gemma 3, PaliGemma, InternVL.

The processor's image part is its PIL one, also where torchvision is installed, so that the pixels do not depend on
it. A family without a chat template (PaliGemma) takes one question, its images first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wsi_chat.engines.chat_template import check_template
from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.engines.prompts import (
    EarlierTurns,
    Patches,
    Prompt,
    choice_token_ids,
    control_tokens,
    count_marks,
    image_key,
    message_parts,
)
from wsi_chat.errors import AnswerError, EngineError
from wsi_chat.schema import Query

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

MODEL_TYPES = ("gemma3", "internvl", "paligemma")
BARE = ("paligemma",)
"""Families that are asked without a chat template."""

UNUSED = ("input_ids", "attention_mask", "pixel_values", "labels")
"""What the engine makes itself; PaliGemma's processor adds labels, which are for training."""


class ProcessedPrompts:
    """Turns queries into prompts for one checkpoint. Raises EngineError where its processor cannot be loaded."""

    joined = True

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        folder = str(checkpoint.path)
        try:
            self._processor = _load_processor(folder, checkpoint.model_type)
        except Exception as error:
            raise EngineError(
                f"the processor of {folder} cannot be loaded: {error}",
                hint="Copy the checkpoint again, with its tokenizer, processor and preprocessor files.",
            ) from error
        self.tokenizer: Any = self._processor.tokenizer
        self._template = self._processor.chat_template or self.tokenizer.chat_template
        if not self._template and checkpoint.model_type not in BARE:
            raise EngineError(
                f"checkpoint {folder} has no chat template", hint="Add its chat_template.jinja to the folder."
            )
        if self._template:
            check_template(self._template, folder)
        self._control = control_tokens(self.tokenizer, self._processor)
        self._choice_ids: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}

    def prompt(self, query: Query) -> Prompt:
        """The query as ids and pixels. Raises AnswerError where its text or images cannot be used."""
        count_marks(query)
        text = self._chat(query) if self._template else self._bare(query)
        images = [image if image.mode == "RGB" else image.convert("RGB") for image in query.images]
        bos = self.tokenizer.bos_token
        # a template that writes the first token itself must not get it twice
        once = {"add_special_tokens": False} if self._template and bos and text.startswith(bos) else {}
        # as numpy: PaliGemma's processor reads its own tensors in a way that numpy 2 warns of
        given = self._processor(images=images or None, text=[text], return_tensors="np", **once)
        ids = given["input_ids"][0].tolist()
        columns = {name: tuple(given[name][0].tolist()) for name in given if name not in UNUSED}
        odd = [name for name, numbers in columns.items() if len(numbers) != len(ids)]
        if odd:
            raise AnswerError(f"the model's processor gives {odd[0]}, which this engine cannot pass on")
        if query.choices not in self._choice_ids:
            self._choice_ids[query.choices] = choice_token_ids(self.tokenizer, query.choices)
        patches = _patches(images, given["pixel_values"]) if images else ()
        return Prompt(query, tuple(ids), patches, self._choice_ids[query.choices], columns)

    def _chat(self, query: Query) -> str:
        """The query in the checkpoint's chat template, an image token of the processor's where an image stands."""
        messages = [{"role": turn.role, "content": message_parts(turn.text, self._control)} for turn in query.turns]
        text: str = self._processor.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
        )
        placed = text.count(self._processor.image_token)
        if placed != len(query.images):
            raise AnswerError(f"the chat template placed {placed} of {len(query.images)} images")
        return text

    def _bare(self, query: Query) -> str:
        """The one question as the processor takes it, which adds the first token and the newline at its end."""
        roles = [turn.role for turn in query.turns]
        if roles != ["user"]:
            kind = EarlierTurns if roles[0] == "user" else AnswerError
            raise kind("this model has no chat template: it takes one question, no system turn and no earlier ones")
        if not query.images:
            raise AnswerError("this model answers questions about an image, and there is none")
        parts = message_parts(query.turns[0].text, self._control)
        kinds = [part["type"] for part in parts]
        if kinds != sorted(kinds):
            raise AnswerError("this model takes its images before the words")
        words = "".join(part.get("text", "") for part in parts)
        return f"{self._processor.image_token}" * len(query.images) + words

    def per_token(self, rows: Sequence[Prompt], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The processor's further columns, e.g. token_type_ids; padding is of type 0, as its tokenizer pads."""
        import torch

        columns = {name: torch.zeros_like(ids) for name in rows[0].columns}
        for number, prompt in enumerate(rows):
            for name, numbers in prompt.columns.items():
                columns[name][number, ids.shape[1] - len(numbers) :] = torch.tensor(numbers)
        return columns

    def per_image(self, images: Sequence[Patches]) -> dict[str, Tensor]:
        """Nothing: these models are told the pixels alone."""
        return {}


def _patches(images: Sequence[Image.Image], pixels: NDArray[Any]) -> tuple[Patches, ...]:
    """One entry for each image; for all together where the processor cut them up and no longer tells them apart."""
    import torch

    groups = [[image] for image in images] if len(pixels) == len(images) else [list(images)]
    each = len(pixels) // len(groups)
    grid = (each, int(pixels.shape[-2]), int(pixels.shape[-1]))
    values = torch.from_numpy(pixels).to(torch.float32)
    parts = [values[start : start + each] for start in range(0, len(values), each)]
    keys = [image_key(group) for group in groups]
    return tuple(Patches(key, part, grid) for key, part in zip(keys, parts, strict=True))


def _load_processor(folder: str, model_type: str) -> Any:
    import transformers

    where: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    loader: Any = _internvl_of_images() if model_type == "internvl" else transformers.AutoProcessor
    processor = loader.from_pretrained(folder, **where)
    images: Any = transformers.AutoImageProcessor
    processor.image_processor = images.from_pretrained(folder, backend="pil", **where)
    return processor


def _internvl_of_images() -> Any:
    """InternVL's processor without its part for videos, which needs torchvision."""
    from transformers.models.internvl.processing_internvl import InternVLProcessor

    class ImagesOnly(InternVLProcessor):  # type: ignore[misc, unused-ignore]
        # the parts that are loaded are read off this signature
        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, image_seq_length: int = 256,
            chat_template: Any = None, **rest: Any,
        ) -> None:  # fmt: skip
            super().__init__(
                image_processor, tokenizer, image_seq_length=image_seq_length, chat_template=chat_template, **rest
            )

    return ImagesOnly
