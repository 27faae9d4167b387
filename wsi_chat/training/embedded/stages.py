"""State that survives a restart, the stream of fields, and stage 1's loop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsi_chat.training.embedded.architecture import build_model, start_patch_filters
from wsi_chat.training.embedded.batched import BatchedTower
from wsi_chat.training.embedded.fields import Bccd, Pool, Sample
from wsi_chat.training.embedded.optim import Clock, Optimisers
from wsi_chat.training.embedded.outside import outside
from wsi_chat.training.embedded.pbc import Pbc
from wsi_chat.training.embedded.scores import f1, matches
from wsi_chat.training.embedded.tokenizer import build_tokenizer
from wsi_chat.training.embedded.warmup import (
    DenseHeads,
    decode_dense,
    dense_loss,
    dense_targets,
    see,
)

REFRESH_SECONDS = 30
"""How often new shards of the pool are looked for."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of what is no rendered cervix in the stream: drawn strangers, then, of the rest, BCCD and typed blood."""

    strange: float = 0.06
    blood: float = 0.17
    typed: float = 0.27


class Source:
    """Random training fields: rendered cervix, blood smears with and without types, and what is neither."""

    def __init__(
        self, pool: Pool, bccd: Bccd | None, pbc: Pbc | None = None, *, seed: int, mix: Mix | None = None
    ) -> None:
        self.pool, self.bccd, self.pbc, self.mix = pool, bccd, pbc, mix or Mix()
        self.rng = np.random.default_rng(seed)
        self.refreshed = time.monotonic()

    def draw(self) -> Sample:
        """One field."""
        if time.monotonic() - self.refreshed > REFRESH_SECONDS:
            self.pool.refresh()
            self.refreshed = time.monotonic()
        if self.rng.random() < self.mix.strange:
            return outside(self.rng)
        which = self.rng.random()
        if self.bccd is not None and which < self.mix.blood:
            return self.bccd.draw(self.rng)
        if self.pbc is not None and which < self.mix.blood + self.mix.typed:
            return self.pbc.draw(self.rng)
        return self.pool.draw(self.rng)

    def batches(self, size: int) -> Iterator[list[Sample]]:
        """Endless batches, prepared ahead by a background thread."""
        ready: queue.Queue[list[Sample]] = queue.Queue(maxsize=4)

        def fill() -> None:
            while True:
                ready.put([self.draw() for _ in range(size)])

        threading.Thread(target=fill, daemon=True).start()
        while True:
            yield ready.get()


class Run:
    """Model, heads and optimisers of one training run, kept in a folder."""

    def __init__(self, folder: Path, *, seed: int = 7) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer = build_tokenizer()
        self.model: Any = build_model(self.tokenizer, seed=seed)
        self.heads = DenseHeads(self.model, self.tokenizer)
        self.tower = BatchedTower(self.model.model.visual)
        self.seed = seed

    def path(self, stage: str) -> Path:
        """Where a stage keeps its state."""
        return self.folder / f"{stage}.pt"

    def save(self, stage: str, optimisers: Optimisers, clock: Clock, step: int) -> None:
        """Write the stage's state, replacing the last one in one move."""
        partial = self.path(stage).with_suffix(".part")
        torch.save(
            {
                "model": self.model.state_dict(),
                "heads": self.heads.state_dict(),
                "optimisers": optimisers.state_dict(),
                "spent": clock.spent,
                "step": step,
            },
            partial,
        )
        partial.rename(self.path(stage))

    def load(self, stage: str) -> dict[str, Any] | None:
        """Restore model and heads of a stage; None if it has not begun."""
        if not self.path(stage).exists():
            return None
        state: dict[str, Any] = torch.load(self.path(stage), weights_only=True, map_location=torch.get_default_device())
        self.model.load_state_dict(state["model"])
        self.model.tie_weights()
        self.heads.load_state_dict(state["heads"], strict=False)
        return state

    def refresh_tower(self) -> bool:
        """Take the tower and the dense heads of the latest warm-up state; false if there is none.

        The language stage may run beside the warm-up: both leave the embeddings of integers and classes alone, so
        that what the tower writes and what the language model reads stay one code.
        """
        path = self.path("warmup")
        if not path.exists():
            return False
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=torch.get_default_device())
        tower = {name: value for name, value in state["model"].items() if ".visual." in name}
        self.model.load_state_dict(tower, strict=False)
        self.heads.load_state_dict(state["heads"], strict=False)
        return True

    def log(self, text: str) -> None:
        """One line to the run's log."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        with (self.folder / "log.txt").open("a") as file:
            file.write(line + "\n")


def score_dense(run: Run, samples: list[Sample], threshold: float = 0.5) -> dict[str, float]:
    """F1 at IoU 0.5 of the tower's own readings, with class (`f1`) and without (`box_f1`), and token accuracy."""
    hit = loose = found = truth = right = total = 0
    for start in range(0, len(samples), 32):
        part = samples[start : start + 32]
        with torch.no_grad():
            tokens, _ = see(run.tower, part)
            best = run.heads(tokens)[0].argmax(-1)
        centre = dense_targets(part).centre
        right += int((best == centre)[centre > 0].sum())
        total += int((centre > 0).sum())
        for sample, answer in zip(part, decode_dense(run.heads, tokens), strict=True):
            said = [(name, box) for name, box, p in answer if p >= threshold]
            real = [(name, list(box)) for name, box in zip(sample.labels, sample.boxes, strict=True)]
            hit += matches(said, real)
            loose += matches([("x", b) for _, b in said], [("x", b) for _, b in real])
            found, truth = found + len(said), truth + len(real)
    return {"f1": f1(hit, found, truth), "box_f1": f1(loose, found, truth), "token": right / max(total, 1)}


def warm_up(
    run: Run,
    source: Source,
    minutes: float,
    *,
    batch: int = 16,
    check: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Stage 1 for `minutes` of training time; restartable."""
    state = run.load("warmup")
    named = [(n, p) for n, p in run.model.named_parameters() if "visual" in n]
    optimisers = Optimisers(named + list(run.heads.named_parameters()))
    run.model.requires_grad_(False)
    for _, parameter in named:
        parameter.requires_grad_(True)
    step, spent = 0, 0.0
    if state is None:
        patches = np.concatenate([_patches(source.draw(), source.rng) for _ in range(200)])
        start_patch_filters(run.model.model.visual, patches)
    else:
        optimisers.restore(state["optimisers"])
        step, spent = state["step"], state["spent"]
    clock = Clock(minutes, spent)
    run.log(f"warm-up from step {step}")
    saved, average, checked = clock.spent, dict[str, float](), False
    for samples in source.batches(batch):
        if clock.progress >= 1:
            break
        tokens, _ = see(run.tower, samples)
        sigma = 1.5 + 6.0 * max(0.0, 1 - step / 600)
        loss, parts = dense_loss(run.heads, tokens, dense_targets(samples), sigma)
        loss.backward()  # type: ignore[no-untyped-call]
        optimisers.step(clock.factor(step))
        step += 1
        for name, value in parts.items():
            average[name] = 0.95 * average.get(name, value) + 0.05 * value
        if step % 25 == 0:
            rate = batch * step / clock.spent
            text = " ".join(f"{k} {v:.3f}" for k, v in average.items())
            run.log(f"warm-up {step} {clock.spent:.0f}s {rate:.1f}/s {text} pool {len(source.pool)}")
        if clock.spent - saved > 200:
            run.save("warmup", optimisers, clock, step)
            saved = clock.spent
            if check is not None and (checked := not checked):
                run.log(f"warm-up check {step} " + " ".join(f"{k} {v:.3f}" for k, v in check().items()))
    run.save("warmup", optimisers, clock, step)


def _patches(sample: Sample, rng: np.random.Generator) -> np.ndarray:
    """Twenty random 16 px patches of a field, normalised as the processor does, channels first."""
    spots = rng.integers(0, 240, (20, 2))
    cut = np.stack([sample.image[y : y + 16, x : x + 16] for y, x in spots]).astype(np.float32)
    return (cut / 127.5 - 1).transpose(0, 3, 1, 2)
