"""Batches prepared by worker processes, for a device that is faster than one thread can draw and pack.

Each worker draws fields, asks about them and packs; what travels to the trainer are small CPU tensors in shared memory.
Masks are made on the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from wsi_chat.training.embedded.fields import Bccd, Pool
from wsi_chat.training.embedded.packing import Arranged, Packer
from wsi_chat.training.embedded.pbc import Pbc
from wsi_chat.training.embedded.questions import ask
from wsi_chat.training.embedded.stages import Mix, Source
from wsi_chat.training.embedded.tokenizer import build_tokenizer
from wsi_chat.training.embedded.warmup import Targets, plan_targets

BLOOD_LISTS = ("train", "val")
"""Lists of BCCD that are learned from; `test` never is."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the workers draw from and how large a batch is; only its first `asked` fields are asked about.

    Folders that are None are left out of the mix.
    """

    pool: Path
    bccd: Path | None = None
    pbc: Path | None = None
    mix: Mix = field(default_factory=Mix)
    batch: int = 80
    asked: int = 48
    chained: float = 0.1

    def source(self, seed: int) -> Source:
        """A stream of its own for one process."""
        bccd = Bccd(self.bccd, BLOOD_LISTS) if self.bccd else None
        pbc = Pbc(self.pbc) if self.pbc else None
        return Source(Pool(self.pool), bccd, pbc, seed=seed, mix=self.mix)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch on the CPU: images (B, 256, 256, 3) uint8, the tower's targets, and questions about the first ones."""

    images: Tensor
    targets: Targets
    questions: Arranged


class Batches(IterableDataset[Prepared]):
    """An endless stream of prepared batches; every worker has its own seed."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self.recipe, self.seed = recipe, seed

    def __iter__(self) -> Iterator[Prepared]:
        worker = get_worker_info()
        if worker is not None:
            os.nice(5)  # the process that feeds the device goes first
            torch.set_num_threads(1)
            cv2.setNumThreads(1)
        source = self.recipe.source(self.seed * 1000 + (worker.id if worker else 0))
        packer = Packer(build_tokenizer())
        while True:
            yield prepare(self.recipe, source, packer)


def prepare(recipe: Recipe, source: Source, packer: Packer) -> Prepared:
    """One batch."""
    samples = [source.draw() for _ in range(recipe.batch)]
    rng = source.rng
    asked = [ask(sample, rng) for sample in samples[: recipe.asked]]
    chained = [bool(rng.random() < recipe.chained) for _ in asked]
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    return Prepared(images, plan_targets(samples), packer.arrange(asked, chained=chained))


def load(recipe: Recipe, *, workers: int, seed: int) -> Iterator[Prepared]:
    """Batches of `workers` processes; with 0, prepared where they are asked for."""
    options: dict[str, Any] = {}
    if workers:
        options = {"prefetch_factor": 3, "multiprocessing_context": "spawn"}
    loader: DataLoader[Prepared] = DataLoader(Batches(recipe, seed), batch_size=None, num_workers=workers, **options)
    with torch.device("cpu"):
        return iter(loader)
