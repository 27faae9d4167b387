"""Outlines in um around (0, 0), and how they are filled with soft edges."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_chat.datasets.render.chance import between
from wsi_chat.datasets.render.stains import F32

Points = NDArray[np.float64]
Form = Literal["polygon", "round", "column", "spindle", "tadpole"]

_N = 44
_THETA = np.linspace(0, 2 * np.pi, _N, endpoint=False)
_UNIT = np.stack([np.cos(_THETA), np.sin(_THETA)], axis=1)
_ORDER = np.arange(2, 8)
_HARMONICS = np.concatenate([np.cos(np.outer(_ORDER, _THETA)), np.sin(np.outer(_ORDER, _THETA))])
_FALL = np.tile(1 / np.sqrt(_ORDER - 1), 2) / np.sqrt(2)
_SHIFT = 4  # sub-pixel bits of OpenCV's polygon filling


def rotate(points: Points, angle: float) -> Points:
    """Points turned by `angle` (radians)."""
    c, s = float(np.cos(angle)), float(np.sin(angle))
    return np.asarray(points @ np.array([[c, s], [-s, c]]))


def blob(
    rng: np.random.Generator,
    width: float,
    height: float,
    *,
    rough: float = 0.04,
    notches: int = 0,
    depth: float = 0.25,
) -> Points:
    """A closed curve of the given axes (um): an ellipse with low harmonics of amplitude `rough` and sharp notches."""
    radius: NDArray[np.float64] = 1 + (rng.normal(0, rough, _FALL.size) * _FALL) @ _HARMONICS
    for _ in range(notches):
        gap = np.angle(np.exp(1j * (_THETA - between(rng, 0, 2 * np.pi))))
        radius -= depth * between(rng, 0.6, 1.2) * np.exp(-((gap / between(rng, 0.16, 0.38)) ** 2))
    return np.asarray(np.maximum(radius, 0.3)[:, None] * _UNIT * (width / 2, height / 2))


def polygonal(rng: np.random.Generator, width: float, height: float) -> Points:
    """The angular plate of a mature squamous cell: 4-7 corners, slightly cut."""
    corners = int(rng.integers(4, 8))
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners + between(rng, 0, 6.3)
    radius = rng.uniform(0.8, 1.12, corners)
    points = np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=1)
    for cut in (0.13, 0.25):
        following = np.roll(points, -1, axis=0)
        points = np.stack([points + cut * (following - points), following - cut * (following - points)], axis=1)
        points = points.reshape(-1, 2)
    edge = 1 + rng.normal(0, 0.012, (len(points), 1))
    return points * edge * (width / 2, height / 2)


def outline(form: Form, rng: np.random.Generator, width: float, height: float, rough: float) -> Points:
    """The cytoplasm's outline (um), long axis along x for the elongated forms."""
    if form == "polygon":
        return polygonal(rng, width, height)
    if form == "round":
        return blob(rng, width, height, rough=rough)
    t = np.linspace(-1, 1, 24)
    bend = rng.normal(0, 0.16) * width
    if form == "column":
        taper = between(rng, 0.55, 0.95)
        profile = (1 - np.abs(t) ** 5) ** 0.5 * (1 + (taper - 1) * (t + 1) / 2)
        bend *= 0.35
    elif form == "spindle":
        profile = (1 - t**2) ** between(rng, 0.9, 1.5) + 0.05
    else:  # tadpole: a head, then a tail
        head = np.sqrt(np.clip(1 - ((t + 0.55) / 0.45) ** 2, 0, 1))
        tail = np.where(t > -0.55, np.clip(1 - (t + 0.55) / 1.55, 0, 1) ** between(rng, 1.1, 2.0), 0)
        profile = np.maximum(head, tail) + 0.03
    wobble = 1 + rng.normal(0, rough, t.size)
    upper = np.stack([t * width / 2, profile * wobble * height / 2 + bend * t**2], axis=1)
    lower = np.stack([t * width / 2, -profile * wobble[::-1] * height / 2 + bend * t**2], axis=1)
    return np.concatenate([upper, lower[::-1]])


class Canvas:
    """A small pixel frame around an object's centre: fills outlines given in um as float32 planes in 0..1.

    `x`, `y` are the offsets (px) of its corner from the object's centre, `pad` the room (px) left for blur.
    """

    __slots__ = ("height", "scale", "width", "x", "y")

    def __init__(self, points: Points, scale: float, pad: float) -> None:
        low = np.floor(points.min(axis=0) * scale - pad).astype(int)
        high = np.ceil(points.max(axis=0) * scale + pad).astype(int)
        self.scale = scale
        self.x, self.y = int(low[0]), int(low[1])
        self.width, self.height = int(high[0] - low[0]) + 1, int(high[1] - low[1]) + 1

    def blank(self) -> F32:
        """A plane of zeros."""
        return np.zeros((self.height, self.width), dtype=np.float32)

    def _fixed(self, points: Points) -> NDArray[np.int32]:
        grid = 1 << _SHIFT
        fixed = points * (self.scale * grid)
        fixed[:, 0] -= (self.x + 0.5) * grid
        fixed[:, 1] -= (self.y + 0.5) * grid
        return np.rint(fixed, out=fixed).astype(np.int32)

    def fill(self, *outlines: Points, soft: float = 0.5) -> F32:
        """The union of closed outlines; `soft` is the edge's Gaussian sigma in px."""
        plane = np.zeros((self.height, self.width), dtype=np.uint8)
        for points in outlines:
            cv2.fillPoly(plane, [self._fixed(points)], 255, cv2.LINE_AA, _SHIFT)
        return self._soften(plane, soft)

    def stroke(self, *lines: Points, width_um: float, closed: bool = False, soft: float = 0.5) -> F32:
        """Lines of a given width (um; at least one pixel)."""
        plane = np.zeros((self.height, self.width), dtype=np.uint8)
        thick = max(1, round(width_um * self.scale))
        fixed = [self._fixed(points) for points in lines]
        cv2.polylines(plane, fixed, closed, 255, thick, cv2.LINE_AA, _SHIFT)
        result = self._soften(plane, soft)
        thin = width_um * self.scale
        return result * np.float32(thin) if thin < 1 else result

    def dots(self, centres: Points, radius_um: float | NDArray[np.float64], soft: float = 0.5) -> F32:
        """Filled discs; a disc smaller than a pixel is drawn fainter, not larger."""
        plane = np.zeros((self.height, self.width), dtype=np.uint8)
        radii = np.broadcast_to(np.asarray(radius_um, dtype=np.float64), (len(centres),)) * self.scale
        for (x, y), radius in zip(self._fixed(centres), radii, strict=True):
            grey = 255 if radius >= 0.7 else int(255 * max(radius / 0.7, 0.25))
            cv2.circle(plane, (int(x), int(y)), max(int(radius * (1 << _SHIFT)), 8), grey, -1, cv2.LINE_AA, _SHIFT)
        return self._soften(plane, soft)

    @staticmethod
    def _soften(plane: NDArray[np.uint8], soft: float) -> F32:
        return _smooth(plane.astype(np.float32) * np.float32(1 / 255), soft)

    def ramp(self, centre: Points, axes: tuple[float, float], angle: float) -> F32:
        """1 at `centre` (um) falling to 0 on the ellipse of the given half axes (um) and beyond."""
        c, s = np.cos(angle), np.sin(angle)
        x = (np.arange(self.width, dtype=np.float32) + np.float32(self.x + 0.5)) / self.scale - centre[0]
        y = (np.arange(self.height, dtype=np.float32) + np.float32(self.y + 0.5)) / self.scale - centre[1]
        u = (x * (c / axes[0]))[None, :] + (y * (s / axes[0]))[:, None]
        v = (y * (c / axes[1]))[:, None] - (x * (s / axes[1]))[None, :]
        return np.asarray(np.maximum(1 - (u * u + v * v), 0), dtype=np.float32)

    def dye(self, layers: list[tuple[F32, F32]], blur: float) -> F32:
        """Planes (h, w) with their dyes (3,) as optical density (3, h, w), out of focus by `blur` px."""
        od = np.zeros((3, self.height, self.width), dtype=np.float32)
        for plane, colour in layers:
            seen = _smooth(plane, blur) if blur > 0.45 else plane
            for channel in range(3):
                od[channel] += seen * np.float32(colour[channel])
        return od


def _smooth(plane: F32, sigma: float) -> F32:
    """A Gaussian blur; wide ones as repeated box filters, whose cost does not grow with sigma."""
    if sigma <= 0.2:
        return plane
    if sigma <= 2.0:
        side = 3 if sigma < 0.65 else 5 if sigma < 1.2 else 2 * int(2.5 * sigma) + 1
        return np.asarray(cv2.GaussianBlur(plane, (side, side), sigma))
    side = max(3, int(np.sqrt(4 * sigma * sigma + 1)) | 1)
    result = plane
    for _ in range(3):
        result = np.asarray(cv2.boxFilter(result, -1, (side, side)), dtype=np.float32)
    return result
