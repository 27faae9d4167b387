"""Conversations as tensors: the ids that the engine would ask with, the answers behind them, loss on the answers alone.

Every assistant turn is checked against the prompt that inference would send up to it, so that training sees the
very tokens that the engine will.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsi_chat.dialects import Dialect
from wsi_chat.engines.checkpoint import Checkpoint
from wsi_chat.engines.prompts import CONTROL, Patches, Prompt
from wsi_chat.engines.qwen import QwenPrompts
from wsi_chat.errors import AnswerError, EngineError, SettingError, WsiChatError
from wsi_chat.schema import Query, Turn
from wsi_chat.training.data import Conversation, pictures

if TYPE_CHECKING:
    from PIL import Image

IGNORED = -100
"""The label of a token that bears no loss, in torch's and transformers' convention."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation: ``ids`` and ``labels`` of the same length (`IGNORED` outside the answers), and its images."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    images: tuple[Patches, ...]


class _Prompts(QwenPrompts):
    """The engine's prompts; the pictures of one conversation are cut into patches once, not once per turn."""

    def __init__(self, checkpoint: Checkpoint, config: Any) -> None:
        super().__init__(checkpoint, config)
        self.patches: dict[int, Patches] = {}

    def _patches(self, image: Image.Image) -> Patches:
        if id(image) not in self.patches:
            self.patches[id(image)] = super()._patches(image)
        return self.patches[id(image)]

    @property
    def side_per_token(self) -> int:
        """Pixels of one side of the square that becomes one token."""
        return int(self._processor.patch_size) * int(self._processor.merge_size)


class Encoder:
    """Encodes for one checkpoint in one dialect. Raises EngineError where the chat template cannot be learned from."""

    def __init__(self, checkpoint: Checkpoint, config: Any, dialect: Dialect) -> None:
        self.dialect = dialect
        self._prompts = _Prompts(checkpoint, config)
        self.tokenizer = self._prompts.tokenizer
        self.image_id = self._prompts.image_id
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.end_id = self._end()
        self._room = getattr(config.get_text_config(), "max_position_embeddings", None)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end(self) -> int:
        """The token with which the template closes an assistant's turn, found by having it close one."""
        first = self.prompt((Turn("user", "a"),), []).ids
        both = self.prompt((Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")), []).ids
        answer = self._ids("b")
        after = len(first) + len(answer)
        if both[: len(first)] != first or list(both[len(first) : after]) != answer or len(both) <= after:
            raise EngineError(
                "the checkpoint's chat template does not keep earlier turns as they were said",
                hint="Train with the chat template of the Qwen-VL family.",
            )
        return int(both[after])

    def prompt(self, turns: tuple[Turn, ...], images: Sequence[Image.Image], choices: tuple[str, ...] = ()) -> Prompt:
        """The prompt that the engine sends for these turns. Raises AnswerError where their text cannot be sent."""
        return self._prompts.prompt(Query("", "vqa", turns, tuple(images), choices))

    def encode(self, talk: Conversation) -> Encoded:
        """A conversation with its pictures.

        Raises:
            SlideError: a picture cannot be read. SettingError: the text cannot be used; both name the line.
        """
        try:
            return self._encoded(talk.turns, pictures(talk, self.dialect))
        except (AnswerError, SettingError) as error:
            raise SettingError(f"{talk.place}: {error.message}", hint=error.hint or "Mend the line.") from error

    def _encoded(self, turns: tuple[Turn, ...], images: list[Image.Image]) -> Encoded:
        self._prompts.patches.clear()
        ids: tuple[int, ...] = ()
        labels: list[int] = []
        prompt: Prompt | None = None
        for place, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            shown = sum(earlier.text.count("<image>") for earlier in turns[:place])
            prompt = self.prompt(turns[:place], images[:shown])
            if prompt.ids[: len(ids)] != ids:
                raise AnswerError(f"turn {place + 1} changes how the turns before it are tokenised")
            answer = (*self._ids(turn.text), self.end_id)
            if self.image_id in answer or self.end_id in answer[:-1]:
                raise AnswerError(f"turn {place + 1} contains a control token")
            labels += [IGNORED] * (len(prompt.ids) - len(ids))
            labels += answer
            ids = (*prompt.ids, *answer)
        self._prompts.patches.clear()
        if prompt is None:
            raise AnswerError("there is no assistant's turn to learn from")
        return Encoded(ids, tuple(labels), prompt.images)

    def length(self, talk: Conversation) -> int:
        """Its length in tokens, near enough for grouping: the text's tokens and one per merged patch."""
        side = self._prompts.side_per_token
        text = sum(len(self._ids(turn.text)) + 5 for turn in talk.turns)
        sent = [self.dialect.frame(size).sent for size in talk.sizes]
        return text + sum(max(1, round(width / side)) * max(1, round(height / side)) for width, height in sent)

    def limit(self, wanted: int | None) -> int | None:
        """The longest conversation in tokens: what is wanted, and no more than the model takes."""
        bounds = [bound for bound in (wanted, self._room) if bound is not None]
        return min(bounds) if bounds else None

    # ------------------------------------------------------------------------------------------ tensors

    def batch(self, rows: Sequence[tuple[int, ...]], images: Sequence[Patches], *, left: bool) -> dict[str, Any]:
        """Model inputs: ids and mask (rows, length) padded on one side; the images of all rows in order."""
        import torch

        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for number, row in enumerate(rows):
            where = slice(length - len(row), length) if left else slice(0, len(row))
            ids[number, where] = torch.tensor(row)
            mask[number, where] = 1
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": ((ids == self.image_id) & mask.bool()).int(),
        }
        if images:
            inputs["pixel_values"] = torch.cat([image.values for image in images])
            inputs["image_grid_thw"] = torch.tensor([image.grid for image in images])
        return inputs

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """A training batch: `batch` padded on the right, and labels (rows, length)."""
        import torch

        inputs = self.batch([row.ids for row in rows], [image for row in rows for image in row.images], left=False)
        labels = torch.full(inputs["input_ids"].shape, IGNORED, dtype=torch.long)
        for number, row in enumerate(rows):
            labels[number, : len(row.labels)] = torch.tensor(row.labels)
        return {**inputs, "labels": labels}


class Conversations:
    """Conversations as torch's data loader takes them: indexed, encoded when asked for."""

    def __init__(self, talks: Sequence[Conversation], encoder: Encoder, lengths: Sequence[int]) -> None:
        self.talks, self.encoder, self.lengths = talks, encoder, lengths

    def __len__(self) -> int:
        return len(self.talks)

    def __getitem__(self, index: int) -> Encoded:
        return self.encoder.encode(self.talks[index])


def fitting(
    talks: Sequence[Conversation], encoder: Encoder, limit: int | None
) -> tuple[list[Conversation], list[int], list[str]]:
    """The conversations that fit the model, their lengths, and the places (file:line) of those that do not.

    Each is encoded once by text alone, so that a line that cannot be used is known before training.
    """
    kept, lengths, long = [], [], []
    for talk in talks:
        _check_words(talk)
        length = encoder.length(talk)
        if limit is not None and length > limit:
            long.append(talk.place)
        else:
            kept.append(talk)
            lengths.append(length)
    return kept, lengths, long


def _check_words(talk: Conversation) -> None:
    for turn in talk.turns:
        found = CONTROL.search(turn.text)
        if found:
            error: WsiChatError = SettingError(
                f"{talk.place}: the {turn.role}'s turn contains the control token {found.group()}",
                hint="Remove it: the chat template places such tokens.",
            )
            raise error
