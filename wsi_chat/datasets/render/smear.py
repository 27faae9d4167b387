"""The conventional smear: cells lie thick and over each other, in a film of mucus, protein and blood."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from wsi_chat.datasets.render.chance import Rng, between
from wsi_chat.datasets.render.stains import F32, Style, patch_of, texture

PREPARATIONS = ("liquid", "conventional")


@dataclass(frozen=True, slots=True)
class Smear:
    """How one conventional field came out.

    `crowding` multiplies the number of cells, `overlap` is how much of a cell may lie on others, `blood` and
    `inflammation` multiply the red cells and the neutrophils, `film` is the ground's optical density, `seed` draws it.
    """

    crowding: float
    overlap: float
    blood: float
    inflammation: float
    film: float
    seed: int


def draw_smear(rng: Rng) -> Smear:
    """A smear at random: most are moderately thick, some bloody, some full of neutrophils."""
    return Smear(
        crowding=between(rng, 0.9, 2.1),
        overlap=between(rng, 0.2, 0.75),
        blood=between(rng, 2, 14) if rng.random() < 0.35 else between(rng, 0, 1),
        inflammation=between(rng, 2, 6) if rng.random() < 0.3 else between(rng, 0.3, 1.5),
        film=float(rng.gamma(1.6, 0.035)),
        seed=int(rng.integers(2**31)),
    )


def film(smear: Smear, style: Style, size: int, scale: float) -> F32:
    """Optical density (3, size, size) of the ground between the cells: clouds and strands of the smearing stroke."""
    rng = np.random.default_rng(smear.seed)
    coarse = patch_of(texture(24.0), size, size, rng)
    fine = patch_of(texture(2.4), size, size, rng)
    stroke = patch_of(texture(6.0), max(8, size // 6), size, rng)
    drawn_out = np.asarray(cv2.resize(stroke, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), float(rng.uniform(0, 180)), 1.5)
    strands = np.asarray(cv2.warpAffine(drawn_out, turn, (size, size), borderMode=cv2.BORDER_REFLECT))
    weights = rng.dirichlet((1.5, 0.6, 1.0)).astype(np.float32)
    relief = weights[0] * coarse + weights[1] * fine * np.float32(min(1.0, scale)) + weights[2] * strands
    plane = np.float32(smear.film) * np.clip(1 + np.float32(1.1) * relief, 0, 4)
    mix = rng.dirichlet((0.8, 0.8, 0.3)).astype(np.float32)
    dye = mix[0] * style.green + mix[1] * style.eosin + mix[2] * (style.haematoxylin * np.float32(0.7))
    return np.asarray(plane[None] * dye[:, None, None], dtype=np.float32)
