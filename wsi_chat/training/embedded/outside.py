"""Fields that show nothing of the model's domain: glass, texture, tissue sections, pen marks.

They teach the model to say that no cells are seen. All are drawn; no histology slide is used, so that real ones
measure how well the lesson carries.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_chat.training.embedded.fields import SIZE, U8, Sample

F32 = NDArray[np.float32]


def outside(rng: np.random.Generator) -> Sample:
    """One field (256, 256, 3) without any cell to name; its domain is that of the questions that will be asked."""
    kind = rng.random()
    if kind < 0.2:
        image = glass(rng)
    elif kind < 0.4:
        image = texture(rng)
    elif kind < 0.5:
        image = pen(glass(rng), rng)
    else:
        image = tissue(rng)
    if rng.random() < 0.3:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 4.0))), dtype=np.float32)
    noisy = image + rng.normal(0, rng.uniform(0.5, 4.0), image.shape)
    domain = "cervix" if rng.random() < 0.75 else "blood"
    pixels = np.clip(noisy, 0, 255).astype(np.uint8)
    return Sample(pixels, (), np.zeros((0, 4), dtype=np.float32), False, domain)


def clouds(rng: np.random.Generator, scale: float, *, stretch: float = 1.0) -> F32:
    """Smooth noise (256, 256), mean 0 and deviation 1; `scale` is its grain in px, `stretch` draws it out in x."""
    high, wide = max(2, round(SIZE / scale)), max(2, round(SIZE / scale / stretch))
    coarse = rng.normal(size=(high, wide)).astype(np.float32)
    fine = np.asarray(cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC))
    angle = float(rng.uniform(0, 360)) if stretch > 1 else 0.0
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, 1.0)
    turned = np.asarray(cv2.warpAffine(fine, turn, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT))
    return np.asarray((turned - turned.mean()) / (turned.std() + 1e-6), dtype=np.float32)


def glass(rng: np.random.Generator) -> F32:
    """Empty glass: a bright, nearly even ground with a slow gradient."""
    ground = rng.uniform(170, 255) + rng.uniform(-12, 12, 3)
    return np.asarray(ground + rng.uniform(0, 6) * clouds(rng, 128)[..., None], dtype=np.float32)


def texture(rng: np.random.Generator) -> F32:
    """Several grains of noise between two colours: debris, mucus, a blurred or torn tissue."""
    low, high = rng.uniform(60, 220, 3), rng.uniform(120, 255, 3)
    mix = sum(weight * clouds(rng, scale) for scale, weight in ((4, 0.3), (16, 0.6), (64, 1.0)))
    share = 1 / (1 + np.exp(-rng.uniform(0.7, 3) * np.asarray(mix)))[..., None]
    return np.asarray(low + (high - low) * share, dtype=np.float32)


def pen(image: F32, rng: np.random.Generator) -> F32:
    """One to three strokes of a marker pen."""
    image = np.ascontiguousarray(image)
    for _ in range(int(rng.integers(1, 4))):
        points = rng.uniform(-40, SIZE + 40, (4, 1, 2)).astype(np.int32)
        colour = [float(v) for v in rng.uniform(0, 160, 3)]
        cv2.polylines(image, [points], False, colour, int(rng.integers(6, 60)), cv2.LINE_AA)
    return image


def tissue(rng: np.random.Generator) -> F32:
    """A section stained with haematoxylin and eosin: fibres or sheets of pink, crowded small nuclei, gaps.

    Nuclei lie side by side without the cytoplasm of a free cell around them.
    """
    pink = np.array([rng.uniform(190, 240), rng.uniform(110, 190), rng.uniform(150, 215)])
    fibres = clouds(rng, rng.uniform(4, 14), stretch=rng.uniform(1, 8))
    image = pink + (rng.uniform(6, 22) * fibres)[..., None] * np.array([0.7, 1.2, 0.8])
    ink = np.zeros((SIZE, SIZE), dtype=np.float32)
    size = rng.uniform(2.0, 12.0)
    crowd = clouds(rng, rng.uniform(20, 120)) > rng.normal(0, 0.8)
    for x, y in rng.uniform(0, SIZE, (int(rng.integers(40, 900)), 2)):
        if not crowd[int(y), int(x)] and rng.random() < 0.8:
            continue
        radius = size * np.exp(rng.normal(0, 0.25))
        axes = (max(1, round(radius)), max(1, round(radius * rng.uniform(0.35, 1))))
        angle = float(rng.uniform(0, 180))
        cv2.ellipse(ink, (int(x), int(y)), axes, angle, 0, 360, float(rng.uniform(0.5, 1)), -1, cv2.LINE_AA)
    ink = np.asarray(cv2.GaussianBlur(ink, (0, 0), float(rng.uniform(0.4, 1.5))), dtype=np.float32)
    ink *= 1 + 0.2 * clouds(rng, 3)
    stain = np.array([rng.uniform(0.4, 0.7), rng.uniform(0.55, 0.8), rng.uniform(0.2, 0.45)])
    image = image * (1 - np.clip(ink, 0, 1.2)[..., None] * stain)
    if rng.random() < 0.6:
        torn = (clouds(rng, rng.uniform(25, 90)) > rng.uniform(-0.8, 1.6)).astype(np.float32)
        gaps = np.asarray(cv2.GaussianBlur(torn, (0, 0), 1.5))[..., None]
        image = image * (1 - gaps) + rng.uniform(225, 250) * gaps
    return np.asarray(image, dtype=np.float32)


def sheet(count: int = 36, *, seed: int = 0) -> U8:
    """A contact sheet of such fields, six to a row, for the eye."""
    rng = np.random.default_rng(seed)
    tiles = [outside(rng).image for _ in range(count)]
    rows = [np.concatenate(tiles[i : i + 6], axis=1) for i in range(0, count, 6)]
    return np.concatenate(rows)
