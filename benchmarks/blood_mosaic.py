"""How many white-cell boxes sit on a white cell: real blood-smear fields laid out as a slide, through the whole line.

    python benchmarks/blood_mosaic.py ../shared/data/bccd --split test -o runs/blood

The fields are the data set's own list (default: test, never trained on). A box sits on a white cell where its IoU with
an annotated one is at least 0.5; a looser line, the box's centre inside an annotated cell, stands beside it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import wsi_chat
from wsi_chat.datasets.mosaic import BCCD_MPP, BCCD_NAMES, bccd_fields, mosaic_slide
from wsi_chat.schema import Box, LabelledBox


def match(found: list[Box], truth: list[Box], *, iou: float) -> int:
    """Greedy one-to-one matches, the best pair first."""
    pairs = sorted(
        ((a.iou(b), i, j) for i, a in enumerate(found) for j, b in enumerate(truth) if a.iou(b) >= iou), reverse=True
    )
    used_found: set[int] = set()
    used_truth: set[int] = set()
    for _, i, j in pairs:
        if i not in used_found and j not in used_truth:
            used_found.add(i)
            used_truth.add(j)
    return len(used_found)


def centred(found: list[Box], truth: list[Box]) -> int:
    """Boxes whose centre lies inside an annotated cell."""
    return sum(any(t.x0 <= f.center[0] <= t.x1 and t.y0 <= f.center[1] <= t.y1 for t in truth) for f in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--columns", type=int, default=9)
    parser.add_argument("--top-k", type=int, default=None)
    parser.add_argument("--exhaustive", action="store_true")
    parser.add_argument("--model", default=None, help="checkpoint folder; default: the embedded checkpoint")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/blood"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    slide = given.out / f"bccd-{given.split}.tiff"
    truth = mosaic_slide(
        slide, bccd_fields(given.bccd, given.split), mpp=BCCD_MPP, columns=given.columns, names=BCCD_NAMES
    )
    result = wsi_chat.analyze(
        slide,
        specimen="blood-smear",
        out=given.out,
        model=given.model,
        top_k=given.top_k,
        exhaustive=given.exhaustive or None,
    )
    asked = [Box(r["x"], r["y"], r["x"] + r["width"], r["y"] + r["height"]) for r in _detailed(result)]
    print(f"{slide.name}: {len(result.tiles)} tiles, {len(asked)} detailed, {Counter(t.label for t in truth)}")
    for label in ("wbc", "rbc", "platelet"):
        boxes = [finding.box for finding in result.findings if finding.label == label]
        reachable = [t.box for t in truth if t.label == label and _inside(t, asked)]
        hits = match(boxes, reachable, iou=0.5)
        print(
            f"{label:9} boxes {len(boxes):4}  IoU>=.5 {hits:4}  centre on one {centred(boxes, reachable):4}  "
            f"annotated cells in the detailed tiles {len(reachable):4}"
        )
    print(result.folder)


def _detailed(result: wsi_chat.SlideResult) -> list[dict[str, float]]:
    return [row for row in result.tiles.to_pylist() if row["status"] == "detailed"]


def _inside(cell: LabelledBox, tiles: list[Box]) -> bool:
    x, y = cell.box.center
    return any(tile.x0 <= x <= tile.x1 and tile.y0 <= y <= tile.y1 for tile in tiles)


if __name__ == "__main__":
    main()
