"""What every family's prompts have in common: image marks, control tokens, the tokens of a choice, images by content.

`Prompts` is what the transformers engine asks of a family; `wsi_chat.engines.qwen` and `.processed` are the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from wsi_chat.errors import AnswerError
from wsi_chat.picture import image_sha256
from wsi_chat.schema import Query

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

IMAGE_MARK = "<image>"
CONTROL = re.compile(r"<\|(?:im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>")
"""Qwen-VL's."""

ANY_CONTROL = re.compile(
    CONTROL.pattern
    + r"|<\|(?:begin_of_text|end_of_text|start_header_id|end_header_id|eot_id)\|>|</?s>|<(?:bos|eos|pad)>"
    + r"|<(?:start|end)_of_(?:turn|image)>|<image_soft_token>|</?img>|<IMG_CONTEXT>"
)
"""Of every family that has a dialect: for a server's model, whose tokenizer is not at hand."""

GRAMMAR = re.compile(r"</?(?:ref|box|quad)>|<(?:loc\d{4}|seg\d{3})>|<\|(?:object_ref|box|quad)_(?:start|end)\|>")
"""Tokens with which boxes are written: special to some tokenizers, and yet part of a question."""


class EarlierTurns(AnswerError):
    """A question with earlier turns, to a model that takes one question by itself."""


@dataclass(frozen=True, slots=True)
class Patches:
    """One image as the vision tower takes it: float ``values`` and their shape as ``grid``.

    Qwen-VL: (patches, values) and its (t, h, w) grid of patches. Others: (tiles, 3, height, width) and (tiles,
    height, width). ``key`` is the same for the same pixels.
    """

    key: tuple[int, int, str]
    values: Tensor
    grid: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A query ready for the model.

    ``choice_ids``: for each choice the ids of the tokens that spell it. ``columns``: further inputs with one number
    for each id, e.g. token_type_ids, by name.
    """

    query: Query
    ids: tuple[int, ...]
    images: tuple[Patches, ...]
    choice_ids: tuple[tuple[int, ...], ...] = ()
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class Prompts(Protocol):
    """One checkpoint's way from a query to the inputs of its model.

    ``joined``: whether the model takes the vision tower's features of all images as one tensor, or as one for each.
    """

    tokenizer: Any
    joined: bool

    def prompt(self, query: Query) -> Prompt:
        """The query as ids and images. Raises AnswerError where its text or images cannot be used."""
        ...

    def per_token(self, rows: Sequence[Prompt], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Inputs beside ``ids`` and ``mask``, like these (rows, length) and padded on the left."""
        ...

    def per_image(self, images: Sequence[Patches]) -> dict[str, Tensor]:
        """Inputs beside the pixels, one row for each image; the vision tower takes them too, in this order."""
        ...


def image_key(images: Sequence[Image.Image]) -> tuple[int, int, str]:
    """The same for the same pixels: width and height of the first, and a hash over all."""
    return images[0].width, images[0].height, " ".join(map(image_sha256, images))


def control_tokens(tokenizer: Any, *beside: Any) -> re.Pattern[str]:
    """The tokens that would end a turn or open an image of their own, but for those that boxes are written with.

    Args:
        beside: whatever else may name such tokens, e.g. the processor.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.update(tokenizer.all_special_tokens)
    for name in ("image_token", "boi_token", "eoi_token", "start_image_token", "end_image_token", "video_token"):
        special.update(str(token) for token in (getattr(side, name, None) for side in (tokenizer, *beside)) if token)
    tokens = sorted(token for token in special if token != IMAGE_MARK and not GRAMMAR.fullmatch(token))
    return re.compile("|".join(re.escape(token) for token in tokens) or r"(?!)")


def choice_token_ids(tokenizer: Any, choices: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The single tokens that spell each choice, with and without a leading space, none shared by two choices.

    Raises AnswerError for a choice that is not a single token of this tokenizer.
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


def message_parts(text: str, control: re.Pattern[str] = CONTROL) -> list[dict[str, str]]:
    """A turn's text as the parts of a chat message, images where their marks stand.

    Raises AnswerError for a control token in the text: it would end the turn or open an image of its own.
    """
    found = control.search(text)
    if found:
        raise AnswerError(f"the question contains the control token {found.group()}")
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_MARK)):
        if number:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
