"""The order of an epoch: shuffled, with conversations of like length side by side, the same for a seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MEGA_BATCHES = 50
"""Batches that are sorted by length together: enough to save padding, few enough to stay shuffled."""


class LengthGrouped:
    """Indices of an epoch. ``batch`` rows that follow each other are of like length; the longest come first.

    The order depends on the seed and the epoch alone, so that a resumed run goes on where it stopped.
    """

    def __init__(self, lengths: Sequence[int], batch: int, *, seed: int, grouped: bool = True) -> None:
        self.lengths, self.batch, self.seed, self.grouped = np.asarray(lengths), batch, seed, grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths))
        if self.grouped:
            size = self.batch * MEGA_BATCHES
            mega = [order[start : start + size] for start in range(0, len(order), size)]
            sorted_ = [part[np.argsort(-self.lengths[part], kind="stable")] for part in mega]
            order = np.concatenate(sorted_) if sorted_ else order
            whole = len(order) // self.batch
            batches = [order[n * self.batch : (n + 1) * self.batch] for n in range(whole)]
            rest = order[whole * self.batch :]
            # the longest batch first, so that memory runs out at once or never
            longest = max(range(whole), key=lambda n: int(self.lengths[batches[n]].max()), default=0)
            shuffled = [n for n in rng.permutation(whole).tolist() if n != longest]
            turned = [batches[n] for n in ([longest, *shuffled] if whole else [])]
            order = np.concatenate([*turned, rest]) if turned else order
        yield from (int(index) for index in order)
