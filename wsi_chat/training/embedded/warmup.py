"""Stage 1: the vision tower learns, per merged token, what lies there and where its box is.

Class and coordinates are predicted through the language model's own token embeddings (four small linear maps from
the visual token), so what the tower writes is already in the words the language model will answer with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_chat.training.embedded import wording
from wsi_chat.training.embedded.architecture import GRID, MERGE, PATCH_PX, VISUAL_TOKENS
from wsi_chat.training.embedded.batched import BatchedTower, here, patchify
from wsi_chat.training.embedded.fields import SIZE, Sample
from wsi_chat.training.embedded.tokenizer import MAX_COORDINATE, ORDINALS, token_id

CELL = SIZE // GRID
NOTHING = 0


@dataclass(frozen=True, slots=True)
class Targets:
    """What each merged token should say: (B, 64) classes at centres and covers (0 = nothing), (B, 64, 4) boxes."""

    centre: Tensor
    cover: Tensor
    boxes: Tensor
    abnormal: Tensor
    order: Tensor
    """(B, 64, 2): at centres, the object's ordinal within its class and among the abnormal cells; 0 for none."""

    def here(self) -> Targets:
        """The same on the device of the run (`torch.set_default_device`)."""
        return Targets(here(self.centre), here(self.cover), here(self.boxes), here(self.abnormal), here(self.order))


def anchor(box: Any) -> int:
    """Index of the merged token that holds a box's centre; this order is the order of answers."""
    column = min(GRID - 1, max(0, int((box[0] + box[2]) / 2 // CELL)))
    row = min(GRID - 1, max(0, int((box[1] + box[3]) / 2 // CELL)))
    return row * GRID + column


def _rank(label: str) -> int:
    order = (*wording.EPITHELIAL, *wording.NUCLEATED, "wbc", "platelet", *wording.ORGANISMS, "rbc", *wording.NORMAL)
    return order.index(label)


def dense_targets(samples: list[Sample]) -> Targets:
    """Targets of a batch on the device of the run; see `plan_targets`."""
    return plan_targets(samples).here()


def plan_targets(samples: list[Sample]) -> Targets:
    """Targets of a batch, as CPU tensors.

    Where two centres share a token the rarer class wins; covers go to the nearest centre.
    """
    count = len(samples)
    centre = np.zeros((count, VISUAL_TOKENS), dtype=np.int64)
    cover = np.zeros((count, VISUAL_TOKENS), dtype=np.int64)
    boxes = np.zeros((count, VISUAL_TOKENS, 4), dtype=np.float32)
    order = np.zeros((count, VISUAL_TOKENS, 2), dtype=np.int64)
    grid = (np.arange(GRID) + 0.5) * CELL
    py, px = np.meshgrid(grid, grid, indexing="ij")
    for i, sample in enumerate(samples):
        if not len(sample.labels):
            continue
        ids = np.array([wording.CLASSES.index(label) + 1 for label in sample.labels])
        b = sample.boxes
        middle, half = (b[:, :2] + b[:, 2:]) / 2, np.maximum((b[:, 2:] - b[:, :2]) / 2, CELL / 2)
        dx = (px.ravel()[None] - middle[:, :1]) / half[:, :1]
        dy = (py.ravel()[None] - middle[:, 1:]) / half[:, 1:]
        distance = np.maximum(np.abs(dx), np.abs(dy))
        nearest = distance.argmin(0)
        inside = distance.min(0) < 1
        cover[i] = np.where(inside, ids[nearest], NOTHING)
        boxes[i] = np.where(inside[:, None], b[nearest], 0)
        ordinals = _ordinals(sample)
        for j in sorted(range(len(ids)), key=lambda k: -_rank(sample.labels[k])):
            token = anchor(b[j])
            centre[i, token] = cover[i, token] = ids[j]
            boxes[i, token] = b[j]
            order[i, token] = ordinals[j]
    flags = np.array([s.abnormal for s in samples], dtype=np.float32)
    return Targets(*(torch.from_numpy(a) for a in (centre, cover, boxes, flags, order)))


def _ordinals(sample: Sample) -> list[tuple[int, int]]:
    """Per cell: its number within its class and within all abnormal cells (0 if normal), as answers count them."""
    ordinals = [(0, 0)] * len(sample.labels)
    counts: dict[str, int] = {}
    for i in reading_order(sample, sample.labels):
        label = sample.labels[i]
        for name in (label, wording.ABNORMAL) if label in wording.EPITHELIAL else (label,):
            counts[name] = counts.get(name, 0) + 1
        ordinals[i] = (counts[label], counts[wording.ABNORMAL] if label in wording.EPITHELIAL else 0)
    return ordinals


def reading_order(sample: Sample, names: Sequence[str]) -> list[int]:
    """Indices of the cells of some classes: row by row of the 32 px grid that holds the centres, then by x."""
    chosen = [i for i, label in enumerate(sample.labels) if label in names]
    return sorted(chosen, key=lambda i: (anchor(sample.boxes[i]), sample.boxes[i][0] + sample.boxes[i][2]))


def soft_bins(values: Tensor, sigma: float) -> Tensor:
    """(..., ) coordinates to (..., 257) distributions: a Gaussian of `sigma` px around each value."""
    bins = torch.arange(MAX_COORDINATE + 1, device=values.device, dtype=values.dtype)
    return torch.softmax(-0.5 * ((bins - values[..., None]) / sigma) ** 2, dim=-1)


class DenseHeads(nn.Module):
    """Maps from visual tokens to the language model's token space: class at centre, class under, four edges."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        width = model.config.text_config.hidden_size
        self.embedding = [model.model.language_model.embed_tokens]
        self.centre = nn.Linear(width, width)
        self.cover = nn.Linear(width, width)
        self.edges = nn.Linear(width, 4 * width)
        self.image = nn.Linear(width, 1)
        self.order = nn.Linear(width, 2 * width)
        for layer in (self.centre, self.cover, self.edges, self.order):
            nn.init.normal_(layer.weight, std=width**-0.5)
        words = ["No", *wording.CLASSES]
        self.class_ids = torch.tensor([token_id(tokenizer, word) for word in words])
        plain = [token_id(tokenizer, str(n)) for n in range(MAX_COORDINATE + 1)]
        spaced = [token_id(tokenizer, f" {n}") for n in range(MAX_COORDINATE + 1)]
        self.number_ids = torch.tensor([plain, spaced, spaced, spaced])
        self.order_ids = torch.tensor([token_id(tokenizer, phrase) for phrase in ORDINALS])

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Visual tokens (B, N, D) to logits: centre and cover (B, N, classes), edges (B, N, 4, 257), image (B,)."""
        table = self.embedding[0].weight
        x = functional.rms_norm(tokens, tokens.shape[-1:])
        names, numbers = table[self.class_ids], table[self.number_ids]
        edges = self.edges(x).view(*x.shape[:-1], 4, -1)
        return (
            self.centre(x) @ names.T,
            self.cover(x) @ names.T,
            torch.einsum("bnkd,kvd->bnkv", edges, numbers),
            self.image(x.mean(1))[:, 0],
        )


def dense_loss(heads: DenseHeads, tokens: Tensor, targets: Targets, sigma: float) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the stage-1 losses and its parts. Edge losses run on covered tokens only, centres in full."""
    table = heads.embedding[0].weight
    x = functional.rms_norm(tokens, tokens.shape[-1:])
    names = table[heads.class_ids]
    weight = torch.ones(len(names))
    weight[NOTHING] = 0.3
    centre = functional.cross_entropy((heads.centre(x) @ names.T).flatten(0, 1), targets.centre.flatten(), weight)
    cover = functional.cross_entropy((heads.cover(x) @ names.T).flatten(0, 1), targets.cover.flatten())
    image = functional.binary_cross_entropy_with_logits(heads.image(x.mean(1))[:, 0], targets.abnormal)
    mask = targets.cover > 0
    importance = torch.where(targets.centre > 0, 1.0, 0.25)[mask]
    chosen = targets.boxes[mask]
    edges = heads.edges(x[mask]).view(-1, 4, x.shape[-1])
    logits = torch.einsum("nkd,kvd->nkv", edges, table[heads.number_ids])
    wanted = soft_bins(chosen, sigma)
    entropy = -(wanted * wanted.clamp_min(1e-9).log()).sum(-1)
    log_probability = logits.log_softmax(-1)
    each = (-(wanted * log_probability).sum(-1) - entropy).mean(-1)
    mean = (log_probability.exp() * torch.arange(MAX_COORDINATE + 1.0)).sum(-1)
    distance = functional.smooth_l1_loss(mean / 16, chosen / 16, reduction="none").mean(-1)
    total = importance.sum().clamp_min(1.0)
    box, far = (each * importance).sum() / total, (distance * importance).sum() / total
    loss = centre + 0.5 * cover + 0.7 * box + 0.7 * far + 0.3 * image
    return loss, {
        "centre": float(centre.detach()),
        "cover": float(cover.detach()),
        "box": float(box.detach()),
        "far": float(far.detach()),
        "image": float(image.detach()),
    }


def order_loss(heads: DenseHeads, hidden: Tensor, order: Tensor) -> Tensor:
    """How well hidden states (B, 64, D) of visual tokens know which object of its class lies there.

    Read through the embeddings of the ordinals, so that `hsil 2` can be looked up by what it says.
    """
    spots = torch.nonzero((order > 0) & (order <= len(heads.order_ids)))
    if not len(spots):
        return hidden.sum() * 0
    x = functional.rms_norm(hidden, hidden.shape[-1:])
    said = heads.order(x).view(*hidden.shape[:2], 2, -1)[spots[:, 0], spots[:, 1], spots[:, 2]]
    logits = said @ heads.embedding[0].weight[heads.order_ids].T
    return functional.cross_entropy(logits, order[spots[:, 0], spots[:, 1], spots[:, 2]] - 1)


def to_tensor(samples: list[Sample]) -> Tensor:
    """uint8 images (B, 256, 256, 3) of a batch."""
    return here(torch.from_numpy(np.stack([s.image for s in samples])))


def see(tower: BatchedTower, samples: list[Sample]) -> tuple[Tensor, list[Tensor]]:
    """Visual tokens and deepstack features of a batch of fields."""
    tokens: tuple[Tensor, list[Tensor]] = tower(patchify(to_tensor(samples), PATCH_PX, MERGE))
    return tokens


@torch.no_grad()
def decode_dense(heads: DenseHeads, tokens: Tensor) -> list[list[tuple[str, list[float], float]]]:
    """What the tower alone would answer: per image (label, box, probability) of every token that names a class."""
    centre, _, edges, _ = heads(tokens)
    probability, best = centre.softmax(-1).max(-1)
    boxes = edges.argmax(-1).float()
    return [
        [
            (wording.CLASSES[int(best[i, j]) - 1], boxes[i, j].tolist(), float(probability[i, j]))
            for j in torch.nonzero(best[i]).flatten().tolist()
        ]
        for i in range(len(tokens))
    ]
