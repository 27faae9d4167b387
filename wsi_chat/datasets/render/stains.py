"""Papanicolaou colours and the camera: what differs between laboratories, slides and scanners.

Everything is drawn as optical density (natural log, per RGB channel) and becomes light once, in `develop`. A
style is drawn from a laboratory, then from a slide of that laboratory, then for the field, so that fields of
one laboratory resemble each other and colour alone tells nothing about the diagnosis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

LABS = 40
SLIDES_PER_LAB = 25
_OD_STEPS = 256  # steps of optical density per unit in the development table
_LEVELS = np.arange(6 * _OD_STEPS + 1, dtype=np.float32) / _OD_STEPS
_FRACTION = 16  # the camera counts in sixteenths of a grey level before it rounds

# Optical density per unit of dye, RGB: haematoxylin, light green/fast green (EA), eosin Y (EA), orange G (OG-6).
_DYES = np.array(
    [[1.02, 1.00, 0.60], [0.92, 0.40, 0.44], [0.16, 0.86, 0.58], [0.05, 0.52, 1.05]],
    dtype=np.float32,
)


@dataclass(frozen=True, slots=True)
class Style:
    """How one field looks: dyes (OD per unit, RGB), strengths (factors), and the camera.

    `white` is the RGB value of empty background; `noise` is in grey levels; `blur` is the field's own defocus in um.
    """

    haematoxylin: F32
    green: F32
    eosin: F32
    orange: F32
    nuclear: float
    cytoplasm: float
    eosinophilia: float
    white: tuple[float, float, float]
    gamma: float
    noise: float
    shade: float
    blur: float
    jpeg: int

    def cytoplasm_dye(self, green: float, eosin: float, orange: float) -> F32:
        """OD per unit of cytoplasm for a mix of the three counterstains (weights are normalised)."""
        eosin = eosin * self.eosinophilia
        total = max(green + eosin + orange, 1e-6)
        dye = (green * self.green + eosin * self.eosin + orange * self.orange) / total
        return np.asarray(dye * self.cytoplasm, dtype=np.float32)


def draw_style(rng: np.random.Generator, *, slide: int | None = None, variety: float = 1.0) -> Style:
    """A style for one field; `slide` pins the laboratory and the slide, else they are drawn from `rng`.

    `variety` multiplies every deviation from the mean: 2 gives stains and cameras that few laboratories have.
    """
    number = int(rng.integers(LABS * SLIDES_PER_LAB)) if slide is None else slide % (LABS * SLIDES_PER_LAB)
    lab, one = _habits(number)
    deviation = lab * _SPREAD[0] + one * _SPREAD[1] + rng.standard_normal(_SPREAD.shape[1]) * _SPREAD[2]
    shift = (deviation * variety).tolist()
    room = max(variety - 1.0, 0.0)  # how far beyond the usual limits
    dyes = _DYES * np.exp(np.array(shift[:12], dtype=np.float32)).reshape(4, 3)
    red, green, blue = (min(max(240.0 + shift[12] + balance, 205.0 - 45 * room), 252.0) for balance in shift[13:16])
    return Style(
        haematoxylin=dyes[0],
        green=dyes[1],
        eosin=dyes[2],
        orange=dyes[3],
        white=(red, green, blue),
        nuclear=min(max(math.exp(shift[16]), 0.55 / (1 + 0.4 * room)), 1.7 * (1 + 0.3 * room)),
        cytoplasm=min(max(math.exp(shift[17]), 0.5 / (1 + 0.5 * room)), 1.9 * (1 + 0.3 * room)),
        eosinophilia=math.exp(shift[18]),
        gamma=min(max(1.0 + shift[19], 0.8 - 0.15 * room), 1.25 + 0.25 * room),
        noise=min(max(1.6 + shift[20], 0.4), 4.0 + 4 * room),
        shade=min(max(0.02 + shift[21], 0.0), 0.06 + 0.06 * room),
        blur=abs(shift[22]),
        jpeg=int(min(max(88 + shift[23], 70 - 25 * room), 96)),
    )


# Standard deviations between laboratories, slides of a laboratory, fields of a slide. Columns: 12 dye components (log),
# light, 3 of white balance (grey levels), nuclear, cytoplasmic, eosin strength (log), gamma, noise, shade, blur, JPEG.
_SPREAD = np.array(
    [
        [0.13] * 12 + [5.0] + [3.5] * 3 + [0.16, 0.22, 0.4, 0.08, 0.6, 0.012, 0.12, 6.0],
        [0.06] * 12 + [2.5] + [2.0] * 3 + [0.10, 0.12, 0.2, 0.03, 0.3, 0.006, 0.10, 0.0],
        [0.03] * 12 + [1.5] + [1.0] * 3 + [0.06, 0.08, 0.1, 0.02, 0.3, 0.010, 0.14, 0.0],
    ]
)


@lru_cache(maxsize=2048)
def _habits(number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How laboratory and slide deviate, in standard deviations."""
    lab = np.random.default_rng([7001, number // SLIDES_PER_LAB]).standard_normal(_SPREAD.shape[1])
    one = np.random.default_rng([7002, number]).standard_normal(_SPREAD.shape[1])
    return np.asarray(lab), np.asarray(one)


@lru_cache(maxsize=48)
def texture(sigma_px: float, side: int = 512) -> F32:
    """A periodic zero-mean, unit-variance noise plane (side, side), smooth over `sigma_px`; always the same one."""
    noise = np.random.default_rng([7003, round(sigma_px * 100)]).standard_normal((side, side), dtype=np.float32)
    if sigma_px > 0.05:
        pad = int(4 * sigma_px) + 2
        wrapped = np.pad(noise, pad, mode="wrap")
        blurred = np.asarray(cv2.GaussianBlur(wrapped, (0, 0), sigma_px), dtype=np.float32)
        noise = blurred[pad:-pad, pad:-pad]
        noise = (noise - noise.mean()) / noise.std()
    result = np.ascontiguousarray(noise, dtype=np.float32)
    result.setflags(write=False)
    return result


@lru_cache(maxsize=24)
def mixed_texture(coarse_px: float, fine_px: float) -> F32:
    """A coarse texture with half as much of a fine one."""
    result = texture(coarse_px) + np.float32(0.5) * texture(fine_px)
    result.setflags(write=False)
    return result


def patch_of(plane: F32, height: int, width: int, rng: np.random.Generator) -> F32:
    """A random (..., height, width) window of a periodic texture."""
    side = plane.shape[-1]
    if height > side or width > side:
        repeats = (*(1,) * (plane.ndim - 2), height // side + 2, width // side + 2)
        plane = np.tile(plane, repeats)
    y = int(rng.integers(plane.shape[-2] - height + 1))
    x = int(rng.integers(plane.shape[-1] - width + 1))
    return plane[..., y : y + height, x : x + width]


def round_sigma(sigma_px: float) -> float:
    """Steps of a few percent, so that few textures are kept."""
    return round(min(max(sigma_px, 0.3), 64.0) * 5) / 5


@lru_cache(maxsize=4)
def grain(side: int = 512) -> F32:
    """Periodic sensor noise (3, side, side), unit variance, slightly correlated between neighbours and channels."""
    common = texture(0.4, side)
    planes = [0.6 * common + 0.8 * np.roll(texture(0.4, side), (31 * i + 7, 57 * i + 13), (0, 1)) for i in range(3)]
    result = np.stack(planes).astype(np.float32)
    result.setflags(write=False)
    return result


def develop(od: F32, style: Style, noise: F32) -> U8:
    """Light through optical density `od` (3, h, w), with sensor noise of unit variance (3, h, w); RGB uint8 (h, w, 3).

    Beer-Lambert, then the camera's gamma; done with a table, so that a pixel's value never depends on its neighbours.
    """
    index = np.maximum(od * np.float32(_OD_STEPS) + np.float32(0.5), 0).astype(np.uint16)
    signal = (noise * np.float32(style.noise * _FRACTION)).astype(np.int16)
    curve = np.exp(-_LEVELS * np.float32(style.gamma)) * _FRACTION
    for channel in range(3):
        table = np.round(curve * style.white[channel] + _FRACTION / 2).astype(np.int16)
        signal[channel] += np.take(table, index[channel], mode="clip")
    signal >>= 4
    return np.asarray(cv2.merge([np.clip(plane, 0, 255).astype(np.uint8) for plane in signal]))
