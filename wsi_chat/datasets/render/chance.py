"""Small random draws as plain Python numbers; several times cheaper than numpy's scalar draws."""

from __future__ import annotations

import math

import numpy as np

Rng = np.random.Generator


def between(rng: Rng, low: float, high: float) -> float:
    """Uniform in [low, high)."""
    return float(low) + float(high - low) * rng.random()


def turn(rng: Rng) -> float:
    """A direction in radians."""
    return 2 * math.pi * rng.random()


def tint(rng: Rng, green: float, pink: float, orange: float) -> tuple[float, float, float]:
    """Weights of the three counterstains: one leads. The arguments are the chances of leading."""
    pick = rng.random() * (green + pink + orange)
    share = 0.4 * rng.random()
    first = rng.random() ** 2
    mix = [share * first, share * (1 - first) * 0.8, share * (1 - first) * 0.2]
    mix[0 if pick < green else 1 if pick < green + pink else 2] += 1
    return mix[0], mix[1], mix[2]


def offset(rng: Rng, spread: float) -> tuple[float, float]:
    """A small displacement, Gaussian of the given spread, cut at twice of it."""
    x, y = (max(-2.0, min(2.0, value)) * spread for value in rng.standard_normal(2).tolist())
    return x, y
