"""Optimiser and clock of the recipe: Muon for the hidden matrices, AdamW for the rest, schedules by wall time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on a stack (n, rows, columns): replaces singular values by about 1.

    Coefficients: K. Jordan et al., Muon (2024), https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


def peers() -> tuple[int, int]:
    """Rank and number of the training processes that share this run; (0, 1) where it runs alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_gradients(parameters: Iterable[Any]) -> None:
    """Average gradients over the processes of a run, in one message; a missing gradient counts as zero."""
    _, count = peers()
    if count == 1:
        return
    held = list(parameters)
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in held]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= count
    for parameter, part in zip(held, torch.split(flat, [g.numel() for g in grads]), strict=True):
        parameter.grad = part.view_as(parameter)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix; updates are scaled to the size of an AdamW step (rms 0.2 lr)."""

    def __init__(self, params: Iterable[Any], lr: float = 2e-3, momentum: float = 0.95, decay: float = 0.02) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape are orthogonalised together, each process doing its share of them."""
        rank, count = peers()
        for group in self.param_groups:
            stacks: dict[tuple[int, ...], list[Any]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stacks.setdefault(tuple(parameter.shape), []).append(parameter)
            for shape, members in stacks.items():
                pushed = []
                for parameter in members:
                    state = self.state[parameter]
                    if "buffer" not in state:
                        state["buffer"] = torch.zeros_like(parameter)
                    state["buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                    pushed.append(parameter.grad.lerp(state["buffer"], group["momentum"]))
                stack = torch.stack(pushed)
                updates = torch.zeros_like(stack)
                updates[rank::count] = orthogonalise(stack[rank::count], 4) * (0.2 * max(shape) ** 0.5)
                if count > 1:
                    dist.all_reduce(updates)
                for parameter, update in zip(members, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"])


class Optimisers:
    """The pair of optimisers over a model's parameters, and one learning-rate factor for both."""

    def __init__(self, named: list[tuple[str, Tensor]], *, matrix_lr: float = 2e-3, other_lr: float = 1e-3) -> None:
        hidden: list[Tensor] = []
        rest: list[Tensor] = []
        for name, parameter in named:
            inside = ".blocks." in name or ".layers." in name
            (hidden if inside and parameter.ndim == 2 else rest).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        if hidden:
            self.parts.append(Muon(hidden, lr=matrix_lr))
        self.base = [part.param_groups[0]["lr"] for part in self.parts]
        self.parameters = hidden + rest

    def step(self, factor: float, clip: float = 1.0) -> float:
        """Clip, update with learning rates scaled by `factor`, clear gradients; returns the gradient norm."""
        share_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, clip))
        for part, lr in zip(self.parts, self.base, strict=True):
            part.param_groups[0]["lr"] = lr * factor
            part.step()
            part.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        """State of both parts."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore `state_dict`."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)

    def restore(self, states: list[dict[str, Any]]) -> bool:
        """`load_state_dict` where the states fit these parameters; otherwise begins afresh and returns false."""
        sizes = [len(part.param_groups[0]["params"]) for part in self.parts]
        if [len(state["param_groups"][0]["params"]) for state in states] != sizes:
            return False
        self.load_state_dict(states)
        return True


class Clock:
    """Training time spent, in seconds, across restarts."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.total = minutes * 60
        self.before = spent
        self.start = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds of training so far."""
        return self.before + time.monotonic() - self.start

    @property
    def progress(self) -> float:
        """Fraction of the time that is used, 0..1."""
        return min(1.0, self.spent / self.total)

    def factor(self, step: int, *, warm: int = 100, decay: float = 0.3, floor: float = 0.05) -> float:
        """Linear warm-up over `warm` steps, flat, then a linear fall to `floor` over the last `decay` of the time."""
        fall = min(1.0, (1 - self.progress) / decay)
        return min(1.0, (step + 1) / warm) * max(floor, fall)
