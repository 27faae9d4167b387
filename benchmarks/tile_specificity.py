"""How many abnormal tiles ring where next to no normal one may, from analyzed rendered slides and their truth.

`python benchmarks/tile_specificity.py MANIFEST RUNS [MANIFEST RUNS ...]`: every manifest is one of `wsi-chat synth
cohort`, every RUNS the folder that `wsi-chat cohort MANIFEST -o RUNS` wrote. A tile is abnormal if at least half of an
abnormal cell's box lies in it, normal if its slide is; tiles of abnormal slides that show none are left out. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_chat.datasets.render import ABNORMAL
from wsi_chat.scoring.fitting import LabelledSlide, read_labelled
from wsi_chat.training.embedded.scores import auc
from wsi_chat.training.embedded.specificity import SPECIFICITIES, sensitivity_at

HALF = 0.5


def tiles(row: LabelledSlide) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """p(abnormal) of a slide's screened tiles, and which of them show an abnormal cell by half or more."""
    assert row.folder is not None
    table = row.folder.tiles_table(["x", "y", "width", "height", "p_screen"])
    x, y, width, height, p = (
        np.array([np.nan if value is None else value for value in table[name].to_pylist()], dtype=float)
        for name in ("x", "y", "width", "height", "p_screen")
    )
    truth = json.loads(row.sample.path.with_suffix("").with_suffix(".truth.json").read_text(encoding="utf-8"))
    seen = np.zeros(len(x))
    for cell in truth["cells"]:
        if cell["label"] in ABNORMAL:
            x0, y0, x1, y1 = cell["box"]
            wide = np.clip(np.minimum(x + width, x1) - np.maximum(x, x0), 0, None)
            high = np.clip(np.minimum(y + height, y1) - np.maximum(y, y0), 0, None)
            seen = np.maximum(seen, wide * high / ((x1 - x0) * (y1 - y0)))
    asked = ~np.isnan(p)
    return p[asked], seen[asked] >= HALF


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, nargs="+", metavar="MANIFEST RUNS")
    options = parser.parse_args()
    normal: dict[str, list[NDArray[np.float64]]] = {"hard normal slides": [], "all normal slides": []}
    abnormal: list[NDArray[np.float64]] = []
    for manifest, runs in zip(options.pairs[::2], options.pairs[1::2], strict=True):
        for row in read_labelled(manifest, runs):
            if row.folder is None or row.problem:
                print(f"left out: {row.id}: {row.problem}")
                continue
            p, shown = tiles(row)
            if row.label == "abnormal":
                abnormal.append(p[shown])
                continue
            normal["all normal slides"].append(p)
            if row.sample.extra.get("recipe") == "hard_normal":
                normal["hard normal slides"].append(p)
    high = np.concatenate(abnormal)
    print(f"| tiles, against {len(high)} abnormal ones | AUC | called abnormal at 0.5 |", end="")
    print(*(f" sensitivity at {s:.1%} |" for s in SPECIFICITIES), sep="")
    print("|---|---|---|" + "---|" * len(SPECIFICITIES))
    for name, parts in normal.items():
        low = np.concatenate(parts)
        area = auc([*low, *high], [False] * len(low) + [True] * len(high))
        found = [sensitivity_at(low, high, specificity) for specificity in SPECIFICITIES]
        cells = " | ".join(f"{f['sensitivity']:.3f} ({f['low']:.3f}-{f['high']:.3f})" for f in found)
        print(f"| {name} ({len(low)} tiles) | {area:.4f} | {(low >= HALF).mean():.4f} | {cells} |")


if __name__ == "__main__":
    main()
