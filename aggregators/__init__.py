"""Tile verdicts in, slide verdict out: pooling, merging of cells across tiles, category, adequacy.

Nothing here reads a pixel or asks a model; everything is a pure function of tile verdicts, so a verdict can be
drawn again from a run folder. What is missing (an unreadable tile, a failed answer) is never normal.

Names are imported on first use, so that a check of a setting loads no geometry.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aggregators.adequacy import Supplied, TileSample, estimate
    from aggregators.category import CategoryCall, call_category
    from aggregators.counts import count_findings
    from aggregators.merge import merge_boxes
    from aggregators.pooling import (
        POOLS,
        findings_share,
        fraction_above,
        maximum,
        mean,
        noisy_or_corrected,
        topk_mean_logit,
    )
    from aggregators.sampling import Frame, draw
    from aggregators.verdict import aggregate

__all__ = [
    "POOLS",
    "CategoryCall",
    "Frame",
    "Supplied",
    "TileSample",
    "aggregate",
    "call_category",
    "count_findings",
    "draw",
    "estimate",
    "findings_share",
    "fraction_above",
    "maximum",
    "mean",
    "merge_boxes",
    "noisy_or_corrected",
    "topk_mean_logit",
]

_HOMES = {
    "CategoryCall": "category",
    "Frame": "sampling",
    "POOLS": "pooling",
    "Supplied": "adequacy",
    "TileSample": "adequacy",
    "aggregate": "verdict",
    "call_category": "category",
    "count_findings": "counts",
    "draw": "sampling",
    "estimate": "adequacy",
    "findings_share": "pooling",
    "fraction_above": "pooling",
    "maximum": "pooling",
    "mean": "pooling",
    "merge_boxes": "merge",
    "noisy_or_corrected": "pooling",
    "topk_mean_logit": "pooling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aggregators' has no attribute {name!r}")
    return getattr(import_module(f"aggregators.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
