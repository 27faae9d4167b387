"""The log-probabilities of the tokens that a model generates, written down while it does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class TokenLogs:
    """A logits processor that changes nothing.

    Args:
        drawn: tokens are sampled, so that which one it was is known at the next step; otherwise it is the most
            probable one.
    """

    def __init__(self, *, drawn: bool) -> None:
        self._drawn = drawn
        self._steps: list[torch.Tensor] = []
        self._last: torch.Tensor | None = None

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        logs = torch.log_softmax(scores.float(), dim=-1)
        if self._drawn:
            self._settle(ids)
            self._last = logs
        else:
            self._steps.append(logs.amax(dim=-1))
        return scores

    def _settle(self, ids: torch.Tensor) -> None:
        if self._last is not None:
            self._steps.append(self._last.gather(1, ids[:, -1:]).squeeze(1))
            self._last = None

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (rows, generated tokens) on the CPU. ``ids``: prompt and answer, (rows, all tokens)."""
        import torch

        self._settle(ids)
        return torch.stack(self._steps, dim=1).cpu()


def seed_of(keys: Sequence[str], seed: int) -> int:
    """The seed of a batch that is sampled: the same questions together draw the same words."""
    return int.from_bytes(hashlib.sha256(f"{seed} {' '.join(keys)}".encode()).digest()[:6], "big")
