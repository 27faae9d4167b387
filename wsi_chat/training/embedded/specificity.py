"""What a slide asks of a tile: how many abnormal tiles ring where next to no hard normal one may.

A slide has hundreds of tiles, so a field AUC says little. Tiles are cut from rendered slides as `wsi-chat analyze` cuts
them; the normal ones are of hard normal slides (atrophy, repair, inflammation), the abnormal ones hold what a slide
holds, mostly a single abnormal cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_chat.datasets.render import Field
from wsi_chat.training.embedded.fields import HELD_OUT_SEED, Sample, sample_of
from wsi_chat.training.embedded.pool import slide_tiles, wide
from wsi_chat.training.embedded.scores import auc

SPECIFICITIES = (0.99, 0.999)
TILES_SEED = HELD_OUT_SEED + 200_000
WIDE_SEED = HELD_OUT_SEED + 300_000

Chances = Callable[[Sequence[Sample]], NDArray[np.float64]]


def sensitivity_at(negative: NDArray[np.float64], positive: NDArray[np.float64], specificity: float) -> dict[str, Any]:
    """Sensitivity at the lowest threshold that calls at most 1 - `specificity` of the negatives; Wilson interval.

    `negative` (n,) and `positive` (m,) are probabilities. A threshold is only met from above, so ties are not called.
    """
    allowed = int(np.floor((1 - specificity) * len(negative) + 1e-9))
    threshold = float(np.sort(negative)[::-1][allowed]) if allowed < len(negative) else 0.0
    hit, count = int((positive > threshold).sum()), len(positive)
    low, high = wilson(hit, count)
    return {"sensitivity": hit / max(count, 1), "low": low, "high": high, "threshold": threshold}


def wilson(hit: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); (0, 1) of nothing."""
    if count == 0:
        return 0.0, 1.0
    share = hit / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = z / (1 + z**2 / count) * float(np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)))
    return middle - spread, middle + spread


def tiles_of(recipe: str, count: int, *, seed: int, wanted: Callable[[Field], bool]) -> list[Sample]:
    """`count` tiles of rendered slides of a recipe, in the usual preparation, of those that are wanted."""
    found: list[Sample] = []
    rng = np.random.default_rng(seed)
    while len(found) < count:
        found += [sample_of(tile) for tile in slide_tiles(seed, rng, recipe=recipe, usual=True) if wanted(tile)]
        seed += 1
    return found[:count]


def hard_tiles(chances: Chances, *, negatives: int, positives: int) -> dict[str, Any]:
    """AUC and sensitivities on slide tiles of seeds that were never trained on."""
    normal = tiles_of("hard_normal", negatives, seed=TILES_SEED, wanted=lambda tile: bool(tile.cells))
    abnormal = tiles_of("abnormal", positives, seed=TILES_SEED + 50_000, wanted=lambda tile: tile.abnormal)
    low, high = chances(normal), chances(abnormal)
    report: dict[str, Any] = {
        "hard_normal_tiles": len(normal),
        "abnormal_tiles": len(abnormal),
        "auc": auc([*low, *high], [False] * len(low) + [True] * len(high)),
        "called_abnormal_at_half": float((low >= 0.5).mean()),
        "found_at_half": float((high >= 0.5).mean()),
    }
    for specificity in SPECIFICITIES:
        report[f"at_{specificity:g}"] = sensitivity_at(low, high, specificity)
    return report


def wide_fields(chances: Chances, count: int) -> dict[str, float]:
    """AUC on fields that look as other laboratories' might: conventional smears, rare stains, 0.35 to 0.7 um/px."""
    rng = np.random.default_rng(WIDE_SEED)
    recipes = ("abnormal", "hard_normal", "abnormal", "normal")
    fields = [sample_of(wide(WIDE_SEED + i, recipes[i % 4], rng)) for i in range(count)]
    truth = [field.abnormal for field in fields]
    return {"fields": count, "auc": auc(chances(fields).tolist(), truth)}
