"""The colour of the empty slide, bright or dark, and how far a spot stands out from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", np.uint8, np.float32)

DARK_MODE = 60  # the commonest luminance of a fluorescence slide lies below; glass lies far above
BRIGHT_GLASS = 180  # luminance that glass reaches in bright field
NEUTRAL = 0.15  # (max - min) / max of a colour that is glass and no stain
BAND = 0.88  # glass is what lies within 12 % of the brightest, shading included
NOISE = 6.0  # standard deviations of the background's own noise
CEILING = 1.25  # an absorbance of 0.1, the palest superficial cytoplasm, stays foreground on noisy glass too
TEXTURE = 0.05  # log10(brightest / darkest) within a cell of glass; grain and dust stay below, a cell's edge does not
LEAST_GLASS = 0.01  # share of the grid that must be glass before its colour is trusted
LEAST_GLASS_CELLS = 8  # and the number of grid cells
TINT = 0.2  # (max - min) / max of glass under a tinted lamp; a layer of stained cytoplasm has more


@dataclass(frozen=True, slots=True)
class Background:
    """``rgb``: colour of the empty slide. ``noise``: its robust deviation, in the unit of ``strength``.

    ``fill``: cells that the scanner painted black in a bright-field slide, or None. ``certain``: enough empty glass was
    seen to trust the colour; without it, nothing can be called empty.
    """

    kind: Literal["bright", "dark"]
    rgb: tuple[int, int, int]
    noise: float
    fill: NDArray[np.bool_] | None
    certain: bool = True

    def strength(self, low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The largest difference from the background in any channel.

        Bright: log10 absorbance of the darkest spot. Dark: signal of the brightest spot, as a share of 255.
        """
        if self.kind == "bright":
            tables = [_absorbance(value) for value in self.rgb]
            each = [tables[c][low[..., c]] for c in range(3)]
        else:
            each = [
                np.maximum(high[..., c] - np.float32(self.rgb[c]), np.float32(0)) / np.float32(255) for c in range(3)
            ]
        return _largest(*each)

    def threshold(self, *, absorbance: float, signal: float) -> float:
        """What ``strength`` must exceed: the given least value, or more on a noisy background.

        Bright: at most `CEILING` times the given value. Uneven glass then costs tiles; it must not cost pale cells.
        """
        if self.kind == "bright":
            return min(max(absorbance, NOISE * self.noise), CEILING * absorbance)
        return max(signal / 255, NOISE * self.noise)


def _absorbance(background: int) -> NDArray[np.float32]:
    levels = np.maximum(np.arange(256), 1)
    return np.maximum(np.log10(max(background, 1) / levels), 0).astype(np.float32)


def texture(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.float32]:
    """log10 of the brightest over the darkest spot within each cell, in the channel where they differ most.

    Args:
        low, high: (rows, columns, 3) uint8.

    Returns:
        (rows, columns) float32, 0 for a cell of one colour. Needs no background: a cell that differs within itself
        is not empty glass, whatever the glass looks like.
    """
    logs = np.log10(np.arange(1, 257)).astype(np.float32)
    return _largest(*(logs[high[..., c]] - logs[low[..., c]] for c in range(3)))


def estimate_background(
    mean: NDArray[np.uint8], valid: NDArray[np.bool_], *, flat: NDArray[np.bool_] | None = None
) -> Background:
    """Estimate the background from the mean colours of a slide's cells.

    Exact white and exact black are often painted by the scanner where it did not scan; they are left out of the
    estimate as long as something else is left. Bright glass is looked for among flat cells only: in a crowded field
    most cells hold part of a red cell or of cytoplasm, and their mean colour is not that of the glass.

    Args:
        mean: (rows, columns, 3) uint8; at least one cell must be valid.
        valid: (rows, columns) bool.
        flat: (rows, columns) bool, cells without structure (`texture` at most `TEXTURE`); None takes all for flat.
    """
    colours = mean[valid]
    black, white = _top(colours) == 0, _least(colours) >= 254
    rest = colours[~black & ~white]
    if len(rest) < max(4, len(colours) // 1000):  # nothing but fill, or almost
        if black.sum() > white.sum():
            return Background("dark", (0, 0, 0), 0.0, None)
        return Background("bright", (255, 255, 255), 0.0, None)
    if _is_dark(rest, black_share=float(black.mean())):
        return _dark(colours)
    fill = (_top(mean) == 0) & valid if black.any() else None
    # Pure white counts as fill only where some other glass exists: not beside nothing but stain.
    taken = ~black & ~white if _has_glass(rest) else ~black
    smooth = np.ones(len(colours), bool) if flat is None else flat[valid]
    return _bright(colours[taken], smooth[taken], fill)


def _luminance(colours: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(colours @ np.array([0.299, 0.587, 0.114], np.float32), np.float32)


def _has_glass(colours: NDArray[np.uint8]) -> bool:
    top, least = _top(colours).astype(np.float32), _least(colours)
    neutral = (top - least) <= NEUTRAL * top
    return bool((neutral & (top >= BRIGHT_GLASS)).mean() >= 0.02)


def _is_dark(rest: NDArray[np.uint8], *, black_share: float) -> bool:
    histogram = np.bincount(_luminance(rest).astype(np.int64), minlength=256).astype(float)
    smooth = np.convolve(histogram, np.ones(9) / 9, mode="same")
    if int(smooth.argmax()) < DARK_MODE:
        return True
    # Signal on a background clipped to exact black, against bright field with unscanned area painted black.
    return black_share > 0.5 and not _has_glass(rest)


def _bright(colours: NDArray[np.uint8], flat: NDArray[np.bool_], fill: NDArray[np.bool_] | None) -> Background:
    luminance = _luminance(colours)
    bright = luminance >= BAND * np.percentile(luminance, 98)
    glass = bright & flat
    rgb = _median(_histograms(colours[glass if glass.any() else bright]), np.arange(256.0))
    certain = bool(
        glass.sum() >= max(LEAST_GLASS_CELLS, LEAST_GLASS * len(colours)) and rgb.max() - rgb.min() <= TINT * rgb.max()
    )
    band = _histograms(colours[glass if certain else bright])
    r, g, b = (round(float(v)) for v in rgb)
    spread = np.log10(np.maximum(rgb, 1)[:, None] / np.maximum(np.arange(256.0), 1))
    return Background("bright", (r, g, b), _deviation(band, spread), fill, certain)


def _dark(colours: NDArray[np.uint8]) -> Background:
    luminance = _luminance(colours)
    band = _histograms(colours[luminance <= np.percentile(luminance, 50)])
    rgb = _median(band, np.arange(256.0))
    r, g, b = (round(float(v)) for v in rgb)
    return Background("dark", (r, g, b), _deviation(band, (np.arange(256.0) - rgb[:, None]) / 255), None)


# ------------------------------------------------------------------------------------------ by channel and by value
#
# A slide has up to 16 million cells. NumPy reduces an axis of three slowly, and 256 values are sorted faster than they.


def _top(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest channel of each colour."""
    return _largest(*(colours[..., c] for c in range(3)))


def _least(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The smallest channel of each colour."""
    return np.minimum(np.minimum(colours[..., 0], colours[..., 1]), colours[..., 2])


def _largest(r: NDArray[Number], g: NDArray[Number], b: NDArray[Number]) -> NDArray[Number]:
    return np.maximum(np.maximum(r, g), b)


def _histograms(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(3, 256): how often each value occurs in each channel of (n, 3) colours."""
    return np.stack([np.bincount(colours[:, c], minlength=256) for c in range(3)])


def _median(counts: NDArray[np.int64], values: NDArray[np.floating]) -> NDArray[np.float64]:
    """(3,): the median of each channel, of which each of the 256 ``values`` occurs as often as ``counts`` says.

    Args:
        counts: (3, 256).
        values: (256,), or (3, 256) where they differ between the channels.
    """
    medians = []
    for times, own in zip(counts, np.broadcast_to(values, counts.shape), strict=True):
        order = np.argsort(own)
        until = np.cumsum(times[order])
        middle = [own[order[np.searchsorted(until, place, side="right")]] for place in
                  ((until[-1] - 1) // 2, until[-1] // 2)]  # fmt: skip
        medians.append((middle[0] + middle[1]) / 2)
    return np.array(medians)


def _deviation(counts: NDArray[np.int64], values: NDArray[np.floating]) -> float:
    """Median absolute deviation, scaled to a normal distribution's standard deviation; the largest channel's."""
    away = np.abs(values - _median(counts, values)[:, None])
    return float(1.4826 * _median(counts, away).max())
