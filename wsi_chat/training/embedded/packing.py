"""Conversations as tensors: one image prefix, several questions behind it, a mask that keeps them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi_chat.training.embedded import wording
from wsi_chat.training.embedded.architecture import GRID, VISUAL_TOKENS
from wsi_chat.training.embedded.batched import here
from wsi_chat.training.embedded.questions import Question
from wsi_chat.training.embedded.tokenizer import MAX_COORDINATE, ORDINALS, token_id


@dataclass(frozen=True, slots=True)
class Pack:
    """A batch of packed conversations.

    `ids` (B, S), `positions` (3, B, S), `allowed` (B, S, S). The loss runs where `rows, columns` (N,) look: there the
    next token is `target`, with `weight`; `value` is its coordinate in px or -1, `edge` 0 for x1 and 1 for the others,
    `source` the absolute index of the visual token it is read from or -1.
    """

    ids: Tensor
    positions: Tensor
    allowed: Tensor
    rows: Tensor
    columns: Tensor
    target: Tensor
    weight: Tensor
    value: Tensor
    edge: Tensor
    source: Tensor


@dataclass(frozen=True, slots=True)
class Arranged:
    """A pack before its mask is made: small CPU tensors that worker processes can hand over.

    `segments` (B, S) numbers the question a token belongs to: 0 is the shared image prefix, -1 is padding. `spots` are
    the fields of `Pack` from `rows` to `source`.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    spots: tuple[Tensor, ...]

    def pack(self) -> Pack:
        """The pack on the device of the run (`torch.set_default_device`)."""
        segments = here(self.segments)
        length = segments.shape[1]
        key, query = segments[:, None, :], segments[:, :, None]
        causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
        own = torch.eye(length, dtype=torch.bool, device=segments.device)
        allowed = causal & ((key == 0) | (key == query)) & ((key >= 0) | own)
        return Pack(here(self.ids), here(self.positions), allowed, *(here(spot) for spot in self.spots))


class Packer:
    """Turns questions into tensors with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._core = tokenizer.backend_tokenizer
        pad = token_id(tokenizer, "<|image_pad|>")
        self.prefix = [
            *self._ids(
                "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            ),
        ]
        self.visual_start = len(self.prefix)
        self.prefix += [pad] * VISUAL_TOKENS + self._ids("<|vision_end|>")
        start = self.visual_start
        grid = np.arange(VISUAL_TOKENS)
        image = np.stack([np.zeros_like(grid), grid // GRID, grid % GRID]) + start
        text = np.arange(start)
        self.prefix_positions = np.concatenate(
            [np.tile(text, (3, 1)), image, np.full((3, 1), start + GRID)],
            axis=1,
        )
        self.next_position = start + GRID + 1
        self.middle = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self.between = self._ids("\n<|im_start|>user\n")
        self.end = token_id(tokenizer, "<|im_end|>")
        self.pad = int(tokenizer.pad_token_id)
        self.open = {token_id(tokenizer, text) for text in (wording.BOX_OPEN, *ORDINALS)}
        self.close = token_id(tokenizer, wording.BOX_CLOSE)
        self.numbers: dict[int, int] = {}
        for n in range(MAX_COORDINATE + 1):
            self.numbers[token_id(tokenizer, str(n))] = n
            self.numbers[token_id(tokenizer, f" {n}")] = n
        self.letters = {token_id(tokenizer, letter) for letter in wording.LETTERS}

    def _ids(self, text: str) -> list[int]:
        return list(self._core.encode(text, add_special_tokens=False).ids)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a single-turn query about one image, up to where the answer begins."""
        return self.prefix + self._ids(text) + self.middle

    def pack(self, conversations: list[list[Question]], *, chained: list[bool] | None = None) -> Pack:
        """Pack one list of questions per image. A chained list is one multi-turn conversation."""
        return self.arrange(conversations, chained=chained).pack()

    def arrange(self, conversations: list[list[Question]], *, chained: list[bool] | None = None) -> Arranged:
        """As `pack`, up to the mask."""
        flags = chained or [False] * len(conversations)
        ids, positions, segments = [], [], []
        loss: list[tuple[int, int, int, float, int, int, int]] = []
        for row, (questions, chain) in enumerate(zip(conversations, flags, strict=True)):
            line = list(self.prefix)
            place = [self.prefix_positions]
            segment = [0] * len(line)
            position = self.next_position
            for number, question in enumerate(questions, start=1):
                lead = self.between if chain and number > 1 else []
                head = [*lead, *self._ids(question.prompt), *self.middle]
                body: list[tuple[int, int]] = []
                for piece in question.pieces:
                    source = -1 if piece.source is None else self.visual_start + piece.source
                    body += [(token, source) for token in self._ids(piece.text)]
                first = len(line) + len(head)
                line += [*head, *(token for token, _ in body), self.end]
                length = len(line) - first + len(head)
                if not chain:
                    position = self.next_position
                place.append(np.tile(np.arange(position, position + length), (3, 1)))
                position += length
                segment += [1 if chain else number] * length
                edge = -1
                for offset, (token, source) in enumerate([*body, (self.end, -1)]):
                    value = self.numbers[token] if 0 <= edge < 4 else -1
                    weight = 0.15 if token == self.close else 0.5 if token in self.open else 1.0
                    if offset == 0:
                        # The first token decides the answer; among some hundred tokens it would go unheard.
                        weight = 6.0 if token in self.letters else 2.0
                    loss.append((row, first + offset - 1, token, weight, value, min(edge, 1), source))
                    edge = 0 if token in self.open else edge + 1 if 0 <= edge < 4 else -1
            ids.append(line)
            positions.append(np.concatenate(place, axis=1))
            segments.append(segment)
        length = max(map(len, ids))
        batch = len(ids)
        all_ids = np.full((batch, length), self.pad, dtype=np.int64)
        all_positions = np.zeros((3, batch, length), dtype=np.int64)
        all_segments = np.full((batch, length), -1, dtype=np.int64)
        for i, line in enumerate(ids):
            all_ids[i, : len(line)] = line
            all_positions[:, i, : len(line)] = positions[i]
            all_segments[i, : len(line)] = segments[i]
        whole, real = torch.int64, torch.float32
        types = (whole, whole, whole, real, real, whole, whole)
        columns = zip(*loss, strict=True)
        spots = tuple(torch.tensor(spot, dtype=kind, device="cpu") for spot, kind in zip(columns, types, strict=True))
        return Arranged(
            torch.from_numpy(all_ids), torch.from_numpy(all_positions), torch.from_numpy(all_segments), spots
        )
