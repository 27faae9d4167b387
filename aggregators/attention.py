"""Gated-attention multiple-instance learning on the tiles of a slide (Ilse, Tomczak, Welling, ICML 2018, eq. 8-9).

    h_i = relu(W x_i)      a = softmax_i(w . (tanh(V h_i) * sigmoid(U h_i)))      logits = C sum_i a_i h_i

Slides have different numbers of tiles; a batch is one long list of tiles with the slide of each, so nothing is
padded. Training is seeded and on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_chat.errors import SettingError

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
Bag = NDArray[np.float32]

HIDDEN, GATE = 32, 16
TOP_TILES = 128
"""The head sees so many tiles of a slide, those with the highest probability: what is far below them says little, and
rare abnormal tiles would drown in it (published slide-level recipes feed the top 100 to 200 instances)."""
BATCH = 16
RATE, DECAY, DROPOUT = 1e-2, 1e-2, 0.25
NAMES = (
    "embed.weight",
    "embed.bias",
    "v.weight",
    "v.bias",
    "u.weight",
    "u.bias",
    "gate.weight",
    "out.weight",
    "out.bias",
)


@dataclass(frozen=True, slots=True)
class AttentionHead:
    """Weights by name (`NAMES`), float32, and the mean and scale (features,) that tiles are standardised with."""

    weights: dict[str, NDArray[np.float32]]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    epochs: int

    def log_probabilities(self, bags: Sequence[Bag]) -> Floats:
        """Slides as (tiles, features) arrays -> (slides, classes) log-probabilities."""
        import torch

        rows = []
        parameters = {name: torch.from_numpy(value) for name, value in self.weights.items()}
        with torch.inference_mode():
            for start in range(0, len(bags), 4 * BATCH):
                tiles, slide, count = _pack(
                    [top_tiles(bag) for bag in bags[start : start + 4 * BATCH]], self.mean, self.scale
                )
                rows.append(torch.log_softmax(_forward(parameters, tiles, slide, count)[0].double(), dim=1).numpy())
        return np.concatenate(rows)

    def attention(self, bag: Bag) -> Floats:
        """Attention of one slide's `top_tiles`, in their order, summing to 1."""
        import torch

        parameters = {name: torch.from_numpy(value) for name, value in self.weights.items()}
        with torch.inference_mode():
            tiles, slide, count = _pack([top_tiles(bag)], self.mean, self.scale)
            found: Floats = _forward(parameters, tiles, slide, count)[1].double().numpy()
        return found


def checkpoints(slides: int) -> tuple[int, ...]:
    """Epochs at which a training on so many slides is looked at; the inner folds choose one.

    Small cohorts take more epochs for as many steps.
    """
    batches = -(-slides // BATCH)
    return tuple(max(epochs, -(-steps // batches)) for epochs, steps in ((3, 60), (6, 120), (12, 240)))


def top_rows(bag: Bag) -> NDArray[np.intp]:
    """Places of the `TOP_TILES` rows with the highest logit (column 0), highest first; ties by the other columns."""

    rows = np.arange(len(bag))
    if len(bag) > TOP_TILES:
        least = np.partition(bag[:, 0], -TOP_TILES)[-TOP_TILES]
        rows = np.flatnonzero(bag[:, 0] >= least)
    logits = bag[rows, 0]
    # a thousand columns are sorted by only where the first does not decide
    untied = len(np.unique(logits)) == len(logits)
    order = np.argsort(-logits) if untied else np.lexsort(-bag[rows].T[::-1])
    found: NDArray[np.intp] = rows[order][:TOP_TILES]
    return found


def top_tiles(bag: Bag) -> Bag:
    """The rows of `top_rows`; the same array where it is these already."""

    chosen = top_rows(bag)
    return bag if np.array_equal(chosen, np.arange(len(bag))) else bag[chosen]


def standardised(rows: Bag, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> Bag:
    """Tiles in units of the cohort's spread; far outliers are held at eight of them, what is unknown (NaN) is at 0."""

    found: Bag = np.clip((rows - mean) / scale, -8, 8).astype(np.float32, copy=False)
    found[np.isnan(found)] = 0.0
    return found


def moments(bags: Sequence[Bag]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale (features,) of what is known in the rows of all bags; scale 1 where nothing varies."""

    width = bags[0].shape[1]
    count, total, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    for bag in bags:
        count += (~np.isnan(bag)).sum(axis=0)
        total += np.nansum(bag, axis=0, dtype=np.float64)
    mean = total / np.maximum(count, 1)
    for bag in bags:
        squares += np.nansum((bag - mean) ** 2, axis=0)
    spread = np.sqrt(squares / np.maximum(count, 1))
    return mean.astype(np.float32), np.where(spread > 1e-6, spread, 1.0).astype(np.float32)


def train_attention(
    bags: Sequence[Bag],
    y: NDArray[np.intp],
    *,
    classes: int,
    weights: Floats,
    seed: int,
    epochs: Sequence[int],
) -> Iterator[AttentionHead]:
    """Train once and give the head as it stands after each of ``epochs`` (rising).

    Args:
        bags: (tiles, features) of each slide, unstandardised; column 0 is the logit, NaN is not known.
        y: (slides,) class indices. weights: (slides,) sample weights, mean 1.
    """
    import torch

    tops = [top_tiles(bag) for bag in bags]
    mean, scale = moments(tops)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng([seed, 5])
    parameters = _start(len(mean), classes, generator)
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, weight_decay=DECAY)
    target, weight = torch.from_numpy(np.asarray(y, dtype=np.int64)), torch.from_numpy(weights.astype(np.float32))
    done = 0
    for until in epochs:
        for _ in range(done, until):
            order = rng.permutation(len(tops))
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                # standardised batch by batch: a cohort with image features is not held twice
                tiles, slide, count = _pack([tops[i] for i in chosen], mean, scale)
                logits, _ = _forward(parameters, tiles, slide, count, dropout=DROPOUT, generator=generator)
                loss = torch.nn.functional.cross_entropy(logits, target[chosen], reduction="none")
                optimizer.zero_grad()
                torch.autograd.backward((loss * weight[chosen]).mean())
                optimizer.step()
        done = until
        frozen = {name: value.detach().numpy().copy() for name, value in parameters.items()}
        yield AttentionHead(frozen, mean, scale, until)


def _start(width: int, classes: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    import torch

    shapes = {
        "embed.weight": (HIDDEN, width), "embed.bias": (HIDDEN,), "v.weight": (GATE, HIDDEN), "v.bias": (GATE,),
        "u.weight": (GATE, HIDDEN), "u.bias": (GATE,), "gate.weight": (1, GATE), "out.weight": (classes, HIDDEN),
        "out.bias": (classes,),
    }  # fmt: skip
    parameters = {}
    for name, shape in shapes.items():
        value = torch.zeros(shape)
        if name.endswith("weight"):
            torch.nn.init.xavier_uniform_(value, generator=generator)
        parameters[name] = value.requires_grad_()
    return parameters


def _pack(
    bags: Sequence[Bag], mean: NDArray[np.float32], scale: NDArray[np.float32]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """All tiles (total, features), standardised, the slide of each (total,), and the number of slides."""
    import torch

    slide = np.repeat(np.arange(len(bags)), [len(bag) for bag in bags])
    return torch.from_numpy(standardised(np.concatenate(bags), mean, scale)), torch.from_numpy(slide), len(bags)


def _forward(
    parameters: dict[str, torch.Tensor],
    tiles: torch.Tensor,
    slide: torch.Tensor,
    count: int,
    *,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (slides, classes) and attention (tiles,)."""
    import torch

    linear = torch.nn.functional.linear
    hidden = torch.relu(linear(tiles, parameters["embed.weight"], parameters["embed.bias"]))
    if dropout:
        mask = torch.rand(hidden.shape, generator=generator) >= dropout
        hidden = hidden * mask / (1 - dropout)
    gate = torch.tanh(linear(hidden, parameters["v.weight"], parameters["v.bias"]))
    gate = gate * torch.sigmoid(linear(hidden, parameters["u.weight"], parameters["u.bias"]))
    score = linear(gate, parameters["gate.weight"]).squeeze(1)
    top = torch.full((count,), -torch.inf).scatter_reduce(0, slide, score.detach(), "amax")
    raised = torch.exp(score - top[slide])
    attention = raised / torch.zeros(count).index_add(0, slide, raised)[slide]
    pooled = torch.zeros(count, hidden.shape[1]).index_add(0, slide, attention[:, None] * hidden)
    return linear(pooled, parameters["out.weight"], parameters["out.bias"]), attention


def to_bytes(head: AttentionHead) -> bytes:
    """The head as safetensors."""
    from safetensors.numpy import save

    tensors: dict[str, Any] = {**head.weights, "mean": head.mean, "scale": head.scale}
    data: bytes = save(tensors, metadata={"epochs": str(head.epochs)})
    return data


def from_bytes(data: bytes, *, classes: int, features: int) -> AttentionHead:
    """A head from safetensors, its shapes checked.

    Raises:
        SettingError: it is no such file, or has other classes or features than said.
    """
    from safetensors.numpy import load

    hint = "Fit the aggregator again."
    try:
        tensors = load(data)
    except Exception as error:
        raise SettingError(f"the attention head's weights cannot be read: {error}.", hint=hint) from error
    shapes = {name: value.shape for name, value in tensors.items()}
    wanted = {
        "embed.weight": (HIDDEN, features),
        "out.weight": (classes, HIDDEN),
        "mean": (features,),
        "scale": (features,),
    }
    if set(shapes) != {*NAMES, "mean", "scale"} or any(shapes[name] != shape for name, shape in wanted.items()):
        raise SettingError(
            f"the attention head's weights are not for {features} features, {classes} classes.", hint=hint
        )
    if not all(np.isfinite(value).all() for value in tensors.values()):
        raise SettingError("the attention head's weights are not all numbers.", hint=hint)
    return AttentionHead({name: tensors[name] for name in NAMES}, tensors["mean"], tensors["scale"], epochs=0)
