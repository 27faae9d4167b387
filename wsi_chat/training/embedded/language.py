"""Stages 2 and 3: the language model learns to answer from the visual tokens, then everything is tuned together.

Beside the usual next-token loss, coordinates have soft targets (a Gaussian of a few px), and two heads of one layer
are shown which visual token an answer is read from; both only exist in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsi_chat.training.embedded.batched import run_language
from wsi_chat.training.embedded.fields import Sample
from wsi_chat.training.embedded.optim import Clock, Optimisers, peers
from wsi_chat.training.embedded.packing import Pack, Packer
from wsi_chat.training.embedded.questions import MAX_OBJECTS, ask
from wsi_chat.training.embedded.stages import Run, Source
from wsi_chat.training.embedded.warmup import dense_loss, dense_targets, order_loss, see, soft_bins

WATCHED_LAYER = 2
POINTING_HEADS = 2


@dataclass(slots=True)
class LanguageLoss:
    """The loss and what it is made of; `start` is the loss on the first token of the answers."""

    total: Tensor
    parts: dict[str, float]


def language_loss(
    model: Any,
    heads: Any,
    pack: Pack,
    tokens: Tensor,
    deepstack: list[Tensor] | None,
    visual_start: int,
    *,
    order: Tensor | None = None,
    sigma: float = 2.0,
    pointing: float = 0.3,
) -> LanguageLoss:
    """Answer loss of a pack given its images' visual tokens (B, 64, D)."""
    language = model.model.language_model
    table = language.embed_tokens.weight
    embeds = language.embed_tokens(pack.ids)
    end = visual_start + tokens.shape[1]
    embeds = torch.cat([embeds[:, :visual_start], tokens, embeds[:, end:]], dim=1)
    watch = min(WATCHED_LAYER, len(language.layers) - 1)
    hidden, scores, entering = run_language(
        language,
        embeds,
        pack.positions,
        pack.allowed,
        deepstack=deepstack,
        visual_start=visual_start,
        watch=watch if pointing > 0 else None,
    )
    with torch.autocast(
        hidden.device.type, enabled=False
    ):  # a coordinate is one of 257 bins: half precision blurs them
        logits = hidden[pack.rows, pack.columns].float() @ table.T
    log_probability = logits.log_softmax(-1)
    each = -log_probability.gather(1, pack.target[:, None])[:, 0]
    coordinate = torch.nonzero(pack.value >= 0).flatten()
    text = torch.nonzero(pack.value < 0).flatten()
    parts = {"text": float((each[text].mean()).detach())}
    total = (each[text] * pack.weight[text]).sum()
    if len(coordinate):
        value, edge = pack.value[coordinate], pack.edge[coordinate]
        wanted = soft_bins(value, sigma)
        entropy = -(wanted * wanted.clamp_min(1e-9).log()).sum(-1)
        among = log_probability[coordinate[:, None], heads.number_ids[edge]]
        soft = -(wanted * among).sum(-1) - entropy
        total = total + soft.sum()
        parts["box"] = float(soft.mean().detach())
        said = among.detach().argmax(-1).float()
        parts["px"] = float((said - value).abs().mean())
    loss = total / pack.weight.sum()
    if scores is not None:
        pointed = torch.nonzero(pack.source >= 0).flatten()
        if len(pointed):
            rows, columns = pack.rows[pointed], pack.columns[pointed]
            # Heads 0 and the first of the second key-value group, so that they do not share a key.
            step = max(1, scores.shape[1] // 2)
            attention = scores[:, ::step][rows, :POINTING_HEADS, columns].log_softmax(-1)
            miss = -attention.gather(-1, pack.source[pointed][:, None, None].expand(-1, attention.shape[1], 1))
            # Where a box is being read the place is known from what was said; before that it must be guessed.
            weight = torch.where(pack.value[pointed] >= 0, 1.0, 0.2)
            point = (miss.mean((1, 2)) * weight).sum() / weight.sum()
            loss = loss + pointing * point
            parts["point"] = float(point.detach())
    if entering is not None and order is not None:
        ordinal = order_loss(heads, entering[:, visual_start:end], order)
        loss = loss + 0.3 * ordinal
        parts["order"] = float(ordinal.detach())
    return LanguageLoss(loss, parts)


def _log(run: Run, average: dict[str, float], parts: dict[str, float], text: str, show: bool) -> None:
    for name, value in parts.items():
        average[name] = 0.97 * average.get(name, value) + 0.03 * value
    if show:
        run.log(text + " " + " ".join(f"{k} {v:.3f}" for k, v in average.items()))


@torch.no_grad()
def cache(run: Run, source: Source, count: int) -> tuple[list[Sample], Tensor]:
    """Visual tokens (count, 64, D) in fp16 of freshly drawn fields; the images are let go."""
    samples: list[Sample] = []
    blocks = []
    while len(samples) < count:
        batch = [source.draw() for _ in range(32)]
        blocks.append(see(run.tower, batch)[0].half())
        empty = np.zeros((0, 0, 3), dtype=np.uint8)
        samples += [Sample(empty, s.labels, s.boxes, s.abnormal, s.domain) for s in batch]
    return samples, torch.cat(blocks)


def learn_language(
    run: Run,
    source: Source,
    minutes: float,
    *,
    batch: int = 8,
    cached: int = 768,
    check: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Stage 2: the tower is frozen and its tokens cached; only the language model learns. Restartable."""
    state = run.load("language") or run.load("warmup")
    packer = Packer(run.tokenizer)
    named = [(n, p) for n, p in run.model.named_parameters() if "visual" not in n]
    optimisers = Optimisers(named)
    step, spent = 0, 0.0
    if state is not None and run.path("language").exists():
        optimisers.restore(state["optimisers"])
        step, spent = state["step"], state["spent"]
    clock = Clock(minutes, spent)
    rng = np.random.default_rng(run.seed + 1000 + step)
    run.log(f"language from step {step}")
    run.refresh_tower()
    samples, features = cache(run, source, cached)
    run.log(f"cached {len(samples)}")
    table = run.model.model.language_model.embed_tokens.weight
    code = torch.cat([run.heads.class_ids, run.heads.number_ids.flatten()])
    saved, average, drawn = clock.spent, dict[str, float](), 0
    while clock.progress < 1:
        if drawn > 4 * len(samples):
            source.pool.refresh()
            run.refresh_tower()
            samples, features = cache(run, source, cached)
            drawn = 0
        chosen = rng.integers(len(samples), size=batch)
        # One box, then two, then many: the curriculum over the first half of the stage.
        most = 1 + int(min(1.0, 2 * clock.progress) ** 2 * (MAX_OBJECTS - 1) + 2 * clock.progress)
        pack = packer.pack([ask(samples[i], rng, most=most) for i in chosen])
        order = dense_targets([samples[i] for i in chosen]).order
        tokens = features[chosen].float()
        result = language_loss(run.model, run.heads, pack, tokens, None, packer.visual_start, order=order)
        result.total.backward()  # type: ignore[no-untyped-call]
        table.grad[code] = 0
        optimisers.step(clock.factor(step, decay=0.15, floor=0.3))
        step, drawn = step + 1, drawn + batch
        line = f"language {step} {clock.spent:.0f}s most {most} length {pack.ids.shape[1]}"
        _log(run, average, result.parts, line, step % 25 == 0)
        if clock.spent - saved > 300:
            run.save("language", optimisers, clock, step)
            saved = clock.spent
            if check is not None:
                run.log(f"language check {step} " + " ".join(f"{k} {v:.3f}" for k, v in check().items()))
    run.save("language", optimisers, clock, step)


def learn_jointly(
    run: Run,
    source: Source,
    minutes: float,
    *,
    batch: int = 11,
    asked: int = 5,
    check: Callable[[], dict[str, float]] | None = None,
    chained: float = 0.1,
) -> None:
    """Stage 3: tower and language model together on fresh fields, dense loss kept on; ends with a falling rate.

    Only the first `asked` fields of a batch are put to the language model, which costs most of the time, while the
    tower, whose readings bound what can be answered, learns from all.
    """
    state = run.load("joint") or run.load("language")
    if state is not None and not run.path("joint").exists():
        run.refresh_tower()
    packer = Packer(run.tokenizer)
    named = [*run.model.named_parameters(), *run.heads.named_parameters()]
    optimisers = Optimisers(named, matrix_lr=2e-3, other_lr=1e-3)
    step, spent = 0, 0.0
    if state is not None and run.path("joint").exists():
        optimisers.restore(state["optimisers"])
        step, spent = state["step"], state["spent"]
    clock = Clock(minutes, spent)
    rank, _ = peers()
    rng = np.random.default_rng(run.seed + 2000 + step + 100_000 * rank)
    run.log(f"joint from step {step}")
    saved, average = clock.spent, dict[str, float]()
    batches: Iterator[list[Sample]] = source.batches(batch)
    for samples in batches:
        if agreed(clock.progress) >= 1:
            break
        tokens, deepstack = see(run.tower, samples)
        targets = dense_targets(samples)
        dense, dense_parts = dense_loss(run.heads, tokens, targets, 2.0)
        pack = packer.pack(
            [ask(sample, rng) for sample in samples[:asked]],
            chained=[bool(rng.random() < chained) for _ in samples[:asked]],
        )
        result = language_loss(
            run.model,
            run.heads,
            pack,
            tokens[:asked],
            [features[:asked] for features in deepstack],
            packer.visual_start,
            order=targets.order[:asked],
        )
        (result.total + dense).backward()  # type: ignore[no-untyped-call]
        optimisers.step(agreed(clock.factor(step, decay=0.5, floor=0.02)))
        step += 1
        if rank > 0:
            continue
        parts = {**result.parts, **{f"d_{k}": v for k, v in dense_parts.items()}}
        line = f"joint {step} {clock.spent:.0f}s length {pack.ids.shape[1]}"
        _log(run, average, parts, line, step % 25 == 0)
        if clock.spent - saved > 540:
            run.save("joint", optimisers, clock, step)
            saved = clock.spent
            if check is not None:
                run.log(f"joint check {step} " + " ".join(f"{k} {v:.3f}" for k, v in check().items()))
    if rank == 0:
        run.save("joint", optimisers, clock, step)


def agreed(value: float) -> float:
    """The first process's value, so that all processes of a run keep one schedule."""
    if peers()[1] == 1:
        return value
    box = torch.tensor([value])
    torch.distributed.broadcast(box, 0)
    return float(box)
