"""How fast the synthetic renderer is, and how far trivial classifiers get on its fields.

    python benchmarks/render_speed.py [--fields 100] [--floor 400] [--slide 4096]

Prints ms per field, Mpx/s of slide, and for normal against abnormal fields the AUC of true nucleus sizes, of the
darkest spot and of colour statistics: the floor that a model has to beat.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsi_chat.datasets.render import Field, render_field, render_slide


def colour_features(field: Field) -> list[float]:
    """Means, spreads and dark quantiles of the three channels."""
    pixels = field.image.reshape(-1, 3).astype(np.float64)
    quantiles = np.quantile(pixels, (0.005, 0.02, 0.1, 0.3), axis=0).ravel()
    return [*pixels.mean(axis=0), *pixels.std(axis=0), *quantiles]


def size_features(field: Field) -> list[float]:
    """True nucleus areas (um2): largest, mean; and how many nuclei: better than any segmentation could measure."""
    areas = [(n[2] - n[0]) * (n[3] - n[1]) * field.mpp**2 for c in field.cells if (n := c.nucleus) is not None]
    return [max(areas, default=0.0), float(np.mean(areas)) if areas else 0.0, float(len(areas))]


def auc(features: np.ndarray, truth: np.ndarray) -> float:
    """Cross-validated AUC of a logistic regression."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=500))
    return float(roc_auc_score(truth, cross_val_predict(model, features, truth, cv=10, method="predict_proba")[:, 1]))


def floor(count: int, first_seed: int = 500_000) -> dict[str, float]:
    """AUC of trivial classifiers on `count` default fields."""
    fields = [render_field(first_seed + i) for i in range(count)]
    truth = np.array([field.abnormal for field in fields])
    sizes = np.array([size_features(field) for field in fields])
    colours = np.array([colour_features(field) for field in fields])
    return {
        "abnormal share": float(truth.mean()),
        "largest nucleus": float(roc_auc_score(truth, sizes[:, 0])),
        "nucleus sizes, fitted": auc(sizes, truth),
        "darkest 0.5 % of green": float(roc_auc_score(truth, -colours[:, 7])),
        "colours, fitted": auc(colours, truth),
        "sizes and colours, fitted": auc(np.hstack([sizes, colours]), truth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=100)
    parser.add_argument("--floor", type=int, default=400)
    parser.add_argument("--slide", type=int, default=4096)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    for seed in range(30):
        render_field(seed)
    start, cpu = time.perf_counter(), time.process_time()
    cells = sum(len(render_field(1000 + i).cells) for i in range(options.fields))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    per = 1000 / options.fields
    print(
        f"field 256 px: {cpu * per:.1f} ms CPU, {wall * per:.1f} ms wall, {cells / options.fields:.1f} cells on average"
    )
    start = time.process_time()
    total = sum(range(10**7))
    print(f"yardstick: sum to {total} in {time.process_time() - start:.2f} s CPU")
    if options.slide:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "slide.tiff"
            start = time.perf_counter()
            side = options.slide
            truth = render_slide(path, seed=1, width_px=side, height_px=side, recipe="abnormal", tile=512)
            took = time.perf_counter() - start
            mpx = side**2 / 1e6
            size = path.stat().st_size / 1e6
            print(f"slide {mpx:.1f} Mpx: {mpx / took:.2f} Mpx/s, {size:.1f} MB, {sum(truth.counts.values())} annotated")
    if options.floor:
        for name, value in floor(options.floor).items():
            print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
