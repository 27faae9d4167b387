"""Tile verdicts in, slide verdict out: pooling, merging of cells across tiles, category, adequacy.

Nothing here reads a pixel or asks a model; everything is a pure function of tile verdicts, so a verdict can be
drawn again from a run folder. What is missing (an unreadable tile, a failed answer) is never normal.
"""

from aggregators.adequacy import Supplied, TileSample, estimate
from aggregators.category import CategoryCall, call_category
from aggregators.counts import count_findings
from aggregators.differential import differential
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
    "differential",
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
