"""Tile verdicts in, slide verdict out: pooling, merging of cells across tiles, category, adequacy.

Nothing here reads a pixel or asks a model; everything is a pure function of tile verdicts, so a verdict can be
drawn again from a run folder. What is missing (an unreadable tile, a failed answer) is never normal.

Names are imported on first use, so that a check of a setting loads no geometry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi_chat.lazy import on_first_use

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

__getattr__, __dir__ = on_first_use(
    __name__,
    __all__,
    {
        ".adequacy": ("Supplied", "TileSample", "estimate"),
        ".category": ("CategoryCall", "call_category"),
        ".counts": ("count_findings",),
        ".merge": ("merge_boxes",),
        ".pooling": (
            "POOLS",
            "findings_share",
            "fraction_above",
            "maximum",
            "mean",
            "noisy_or_corrected",
            "topk_mean_logit",
        ),
        ".sampling": ("Frame", "draw"),
        ".verdict": ("aggregate",),
    },
)
