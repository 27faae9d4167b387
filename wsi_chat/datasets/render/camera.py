"""What a microscope's camera adds to a finished picture: light, white balance, focus, sensor noise, compression.

The renderer's own scanner is a good one. Photographs taken down a microscope differ far more from each other; this
turns a rendered field into one of them. Nothing moves, so boxes stay where they are.
"""

from __future__ import annotations

import cv2
import numpy as np

from wsi_chat.datasets.render.stains import F32, U8, grain, patch_of

Rng = np.random.Generator


def photograph(image: U8, rng: Rng, *, strength: float = 1.0) -> U8:
    """An RGB picture (h, w, 3) as another camera would have taken it; `strength` 0 changes next to nothing, 1 a lot."""
    height, width = image.shape[:2]
    light = image.astype(np.float32) * np.float32(1 / 255)
    light = colour(light, rng, strength)
    light *= illumination(height, width, rng, strength)[..., None]
    if rng.random() < 0.55 * strength:
        light = focus(light, rng, strength)
    if rng.random() < 0.35 * strength:
        light = coarser(light, rng)
    noise = patch_of(grain(), height, width, rng).transpose(1, 2, 0)
    grey_levels = strength * float(rng.gamma(1.5, 2.2))
    light *= np.float32(255)
    light += noise * np.float32(grey_levels) * (np.float32(0.6) if rng.random() < 0.5 else np.float32(1.0))
    pixels = np.clip(light, 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        quality = int(np.clip(rng.normal(82 - 12 * strength, 12), 30, 97))
        _, packed = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        pixels = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR_RGB))
    return pixels


def colour(light: F32, rng: Rng, strength: float) -> F32:
    """White balance, saturation, a slight mixing of the channels, gamma and contrast; light is 0..1."""
    mixing = np.eye(3) + rng.normal(0, 0.05 * strength, (3, 3))
    mixing /= mixing.sum(axis=1, keepdims=True)
    saturation = float(np.exp(rng.normal(0, 0.28 * strength)))
    grey = np.full((3, 3), 1 / 3)
    balance = np.exp(rng.normal(0, 0.07 * strength, 3)) * np.exp(rng.normal(-0.03, 0.09 * strength))
    matrix = (np.diag(balance) @ (saturation * np.eye(3) + (1 - saturation) * grey) @ mixing).astype(np.float32)
    mixed = np.clip(np.asarray(cv2.transform(light, matrix)), 0, 1)
    gamma = float(np.exp(rng.normal(0, 0.22 * strength)))
    levels = np.linspace(0, 1, 1025, dtype=np.float32) ** np.float32(gamma)
    black = float(rng.uniform(0, 0.12)) * strength * (rng.random() < 0.4)
    curve = np.float32(black) + np.float32(1 - black) * levels
    return np.asarray(np.take(curve, (mixed * 1024).astype(np.int16)), dtype=np.float32)


def illumination(height: int, width: int, rng: Rng, strength: float) -> F32:
    """Uneven light (h, w) around 1: a slope and a falling-off from a centre that need not be the picture's."""
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope_x, slope_y = rng.normal(0, 0.05 * strength, 2)
    centre_x, centre_y = rng.normal(0, 0.5, 2)
    fall = abs(rng.normal(0, 0.06 * strength))
    away = (x - np.float32(centre_x)) ** 2 + (y - np.float32(centre_y)) ** 2
    return np.asarray(1 + np.float32(slope_x) * x + np.float32(slope_y) * y - np.float32(fall) * away, dtype=np.float32)


def focus(light: F32, rng: Rng, strength: float) -> F32:
    """Out of focus, or sharpened by the camera until edges ring; channels may be a fraction of a pixel apart."""
    if rng.random() < 0.6:
        sigma = 0.4 + abs(float(rng.normal(0, 1.0 * strength)))
        result = np.asarray(cv2.GaussianBlur(light, (0, 0), sigma), dtype=np.float32)
    else:
        soft = np.asarray(cv2.GaussianBlur(light, (0, 0), float(rng.uniform(0.7, 2.0))), dtype=np.float32)
        result = light + np.float32(rng.uniform(0.2, 1.2) * strength) * (light - soft)
    if rng.random() < 0.3:
        for channel, (dx, dy) in zip((0, 2), rng.normal(0, 0.5, (2, 2)), strict=True):
            shift = np.array([[1, 0, dx], [0, 1, dy]])
            size = (light.shape[1], light.shape[0])
            plane = np.ascontiguousarray(result[..., channel])
            result[..., channel] = cv2.warpAffine(plane, shift, size, borderMode=cv2.BORDER_REPLICATE)
    return result


def coarser(light: F32, rng: Rng) -> F32:
    """A picture that was taken or stored at fewer pixels and enlarged again."""
    height, width = light.shape[:2]
    share = float(rng.uniform(0.45, 0.9))
    small = cv2.resize(light, (round(width * share), round(height * share)), interpolation=cv2.INTER_AREA)
    how = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(small, (width, height), interpolation=how), dtype=np.float32)
