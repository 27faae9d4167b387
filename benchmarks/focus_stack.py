"""Detection on stacks of focal planes: the sharpest plane of each tile, all planes fused, and the middle plane.

    PYTHONPATH=. python benchmarks/focus_stack.py [--fields 120] [--seed 1] [--json FILE]

Rendered fields of the embedded model's tile size whose cells lie at different depths, written as OME-TIFF stacks,
read by ``open_slide(z=...)`` and ``TileStream`` as a run reads them, then screened and asked for boxes by the embedded
model. Two kinds of thickness: an uneven deposit (all cells of a field at one depth) and thick groups (every cell at
its own). "in focus" is the same fields with every cell sharp: the most that any choice of plane could give.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from tilers import TileStream, open_slide, plan_tiles
from wsi_chat.datasets.render.field import ABNORMAL, ABNORMAL_VISIBLE, Plan, annotate, expose, paint, plan_field
from wsi_chat.datasets.render.groups import draw_item

PLANES_UM = (-8.0, -4.0, 0.0, 4.0, 8.0)
# A 20x objective of NA 0.75 in a mountant of n = 1.5: the cone of light widens by NA / sqrt(n^2 - NA^2) per µm of
# depth; a Gaussian of half that radius has about the disc's second moment.
BLUR_PER_UM = 0.5 * 0.75 / math.sqrt(1.5**2 - 0.75**2)
FIELD_PX, MPP = 256, 0.5
FIRST_SEED = 900_700_000  # of the held-out seeds, and none that another measurement uses

Planes = list[NDArray[np.uint8]]


def render_stack(plan: Plan, depths: NDArray[np.float64], planes_um: tuple[float, ...] = PLANES_UM) -> Planes:
    """One field at every focal plane, (size, size, 3) each; ``depths``: µm of each of the plan's items."""
    images = []
    for focus in planes_um:
        blurred = [
            replace(item, defocus=float(np.hypot(item.defocus, BLUR_PER_UM * abs(depth - focus))))
            for item, depth in zip(plan.items, depths, strict=True)
        ]
        sprites = tuple(
            (draw_item(item, plan.style, scale=1 / plan.mpp), x, y)
            for item, (_, x, y) in zip(blurred, plan.sprites, strict=True)
        )
        images.append(expose(plan, paint(replace(plan, sprites=sprites))))
    return images


def write_stacks(path: Path, stacks: list[Planes]) -> None:
    """Fields side by side in one slide, one column a field, as an OME-TIFF with Z."""
    planes = [np.concatenate([stack[z] for stack in stacks], axis=1) for z in range(len(stacks[0]))]
    metadata = {"axes": "ZYXS", "PhysicalSizeX": MPP, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": MPP,
                "PhysicalSizeYUnit": "µm"}  # fmt: skip
    tifffile.imwrite(
        path, np.stack(planes), photometric="rgb", tile=(FIELD_PX, FIELD_PX), compression="deflate", metadata=metadata
    )


def read_fields(path: Path, z: str) -> tuple[Planes, list[int | None]]:
    """The tiles as a run with this setting reads them, one a field, and the planes they show."""
    with open_slide(path, z=z) as slide:
        plan = plan_tiles(slide, None, tile_px=FIELD_PX, mpp=MPP, overlap=0)
        patches = sorted(TileStream(slide, plan), key=lambda patch: patch.tile.x)
    assert all(patch.pixels is not None for patch in patches)
    return [patch.pixels for patch in patches if patch.pixels is not None], [patch.z for patch in patches]


def main() -> None:
    from sklearn.metrics import roc_auc_score

    from wsi_chat.training.embedded.evaluate import Speaker, load
    from wsi_chat.training.embedded.fields import Sample
    from wsi_chat.training.embedded.measure import chances, grounding

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plans = [plan_field(FIRST_SEED + 10_000 * options.seed + i, size=FIELD_PX, mpp=MPP) for i in range(options.fields)]
    cells = [annotate(plan) for plan in plans]
    abnormal = [any(c.label in ABNORMAL and c.visible >= ABNORMAL_VISIBLE for c in found) for found in cells]
    rng = np.random.default_rng(options.seed)
    speaker = Speaker(*load(Path(__file__).parents[1] / "wsi_chat" / "embedded"))
    results: dict[str, dict[str, float]] = {}

    def measure(name: str, images: Planes) -> None:
        samples = [
            Sample(image, tuple(c.label for c in found), np.array([c.box for c in found], np.float32).reshape(-1, 4),
                   is_abnormal, "cervix")
            for image, found, is_abnormal in zip(images, cells, abnormal, strict=True)
        ]  # fmt: skip
        boxes, _ = grounding(speaker, samples)
        auc = float(roc_auc_score(abnormal, chances(speaker, samples)))
        f1 = boxes["f1"]["value"]
        results[name] = {"auc": auc, "f1": f1, "recall": boxes["recall"], "precision": boxes["precision"]}
        print(
            f"{name:34} screening AUC {auc:.3f}   boxes at IoU .5: F1 {f1:.3f}  recall {boxes['recall']:.3f}"
            f"  precision {boxes['precision']:.3f}  ({boxes['boxes']} boxes)",
            flush=True,
        )

    measure("in focus", [expose(plan, paint(plan)) for plan in plans])
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("uneven deposit", "thick groups"):
            path = Path(folder) / f"{kind}.ome.tif"
            low, high = PLANES_UM[0], PLANES_UM[-1]
            stacks = []
            for plan in plans:
                one = rng.uniform(low, high)
                count = len(plan.items)
                depths = np.full(count, one) if kind == "uneven deposit" else rng.uniform(low, high, count)
                stacks.append(render_stack(plan, depths))
            write_stacks(path, stacks)
            for z in ("best", "fused", "mid"):
                images, planes = read_fields(path, z)
                measure(f"{kind}, z {z}", images)
                if z == "best":
                    print(f"{'':34} planes shown: {dict(sorted(Counter(planes).items(), key=str))}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
