"""Stored samples turned into 8-bit RGB: bit depths in use, photometric interpretations, extra samples.

An interpretation that is not known is refused by its name; nothing is shown in guessed colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tilers.readers import Pixels
from tilers.unreadable import UnsupportedKind
from wsi_chat.schema import Remark

# Camera and scanner values come in these depths, whatever the depth of the numbers that store them.
DEPTHS = (8, 10, 12, 14, 16)
# Values of TIFF's PhotometricInterpretation (TIFF 6.0, section 8 and appendix; Adobe TechNote 3).
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 4, 5, 6, 8
PHOTOMETRICS = {
    WHITE_IS_ZERO: "MinIsWhite",
    BLACK_IS_ZERO: "MinIsBlack",
    RGB: "RGB",
    PALETTE: "palette",
    MASK: "transparency mask",
    CMYK: "CMYK (separated)",
    YCBCR: "YCbCr",
    CIELAB: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLUV",
    34892: "linear raw",
}
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3}
ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA = ALPHAS = (1, 2)
BAND_ROWS = 256  # of a picture, at a time, where copies of all of it would take memory


@dataclass(frozen=True, slots=True)
class Depth:
    """How wide samples become 8 bits: ``top`` is shown as 255. ``note`` says so where the whole range is not used."""

    top: float
    note: Remark | None = None

    def shrink(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """The same samples as uint8, band by band: what is computed between is of a band's size."""
        if values.dtype == np.uint8 and self.top == 255:
            return np.asarray(values, np.uint8)
        if values.ndim == 0 or len(values) <= BAND_ROWS:
            return self._shrunk(values)
        shrunk = np.empty(values.shape, np.uint8)
        for top in range(0, len(values), BAND_ROWS):
            shrunk[top : top + BAND_ROWS] = self._shrunk(values[top : top + BAND_ROWS])
        return shrunk

    def _shrunk(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        bits = int(self.top).bit_length()
        if values.dtype.kind in "ui" and bits >= 8 and self.top == 2**bits - 1:  # the upper byte of the depth in use
            most = min(self.top, np.iinfo(values.dtype).max)
            return np.asarray(np.clip(values, 0, values.dtype.type(most)) >> (bits - 8), np.uint8)
        scaled = np.nan_to_num(values.astype(np.float32), nan=0.0) * np.float32(255 / self.top)
        return np.asarray(np.clip(scaled, 0, 255) + 0.5, np.uint8)


class Numbers:
    """Whether floating-point pixels that are no number (NaN) were met; they are shown as not scanned."""

    def __init__(self) -> None:
        self._missing = self._told = False

    def look(self, values: NDArray[Any]) -> None:
        """Look at stored samples; at none any more once some were missing."""
        if not self._missing and values.dtype.kind == "f":
            self._missing = bool(np.isnan(values).any())

    def opening_notes(self) -> tuple[Remark, ...]:
        """The note, where they were met by now."""
        self._told = self._missing
        return self._notes() if self._told else ()

    def reading_notes(self) -> tuple[Remark, ...]:
        """The note, where they were met only after the opening."""
        return self._notes() if self._missing and not self._told else ()

    @staticmethod
    def _notes() -> tuple[Remark, ...]:
        return (Remark("slide.no_numbers"),)


EIGHT_BITS = Depth(255)


def depth_in_use(low: float, high: float, dtype: np.dtype[np.generic], *, bits: int | None = None) -> Depth:
    """The depth of samples that were seen to lie between ``low`` and ``high``.

    Args:
        bits: significant bits as the file states them, or None.

    Raises:
        SlideUnsupported: values below zero, or far beyond 16 bits, which have no agreed meaning as brightness.
    """
    if dtype.kind == "u" and dtype.itemsize == 1:
        return EIGHT_BITS
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise UnsupportedKind(f"its pixels are {dtype} with values from {low:.4g} to {high:.4g}, not brightness")
    if dtype.kind == "f" and high <= 1:
        return Depth(1.0, Remark("slide.unit_range"))
    depth = next(d for d in DEPTHS if high < 2**d)
    if bits is not None and depth <= bits <= 16:
        depth = max(bits, 8)
    limit = "floating-point" if dtype.kind == "f" else f"{dtype.itemsize * 8}-bit"
    if depth == 16 and dtype.itemsize == 2:
        return Depth(65535)
    return Depth(2**depth - 1, Remark("slide.depth", limit=limit, high=high, bits=depth))


def photometric_name(photometric: int) -> str:
    return PHOTOMETRICS.get(photometric, f"number {photometric}")


def to_rgb(
    samples: NDArray[np.uint8],
    photometric: int,
    *,
    extra: tuple[int, ...] = (),
    palette: NDArray[np.uint8] | None = None,
    black_and_white: NDArray[np.float64] | None = None,
) -> Pixels:
    """8-bit samples (h, w, n) as RGB, or as RGBA where one extra sample is stated to be alpha.

    Extra samples that are not alpha carry no colour and are left out.

    Args:
        photometric: TIFF's PhotometricInterpretation.
        extra: TIFF's ExtraSamples.
        palette: (256, 3), for palette images.
        black_and_white: TIFF's ReferenceBlackWhite for YCbCr: (3, 2).

    Raises:
        SlideUnsupported: the interpretation is not one that can be shown; it is named.
    """
    count = COLOURS.get(photometric)
    if count is None or samples.shape[2] < count:
        raise UnsupportedKind(
            f"its photometric interpretation is {photometric_name(photometric)} with {samples.shape[2]} samples per "
            "pixel, which cannot be shown"
        )
    colours = samples[..., :count]
    convert: dict[int, Callable[[], NDArray[np.uint8]]] = {
        WHITE_IS_ZERO: lambda: np.repeat(255 - colours, 3, axis=2),
        BLACK_IS_ZERO: lambda: np.repeat(colours, 3, axis=2),
        RGB: lambda: colours,
        PALETTE: lambda: _paint(colours, palette),
        CMYK: lambda: cmyk_to_rgb(colours),
        YCBCR: lambda: ycbcr_to_rgb(colours, black_and_white),
        CIELAB: lambda: cielab_to_rgb(colours),
    }
    rgb = convert[photometric]()
    for index, kind in enumerate(extra[: samples.shape[2] - count]):
        if kind in ALPHAS:
            alpha = samples[..., count + index]
            if kind == ASSOCIATED_ALPHA:  # the colours were multiplied by alpha when they were written
                scale = 255 / np.maximum(alpha, 1).astype(np.float32)
                rgb = np.clip(rgb * scale[..., None] + 0.5, 0, 255).astype(np.uint8)
            return np.dstack([rgb, alpha])
    return np.ascontiguousarray(rgb)


def _paint(indices: NDArray[np.uint8], palette: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if palette is None:
        raise UnsupportedKind("its photometric interpretation is palette, but the file holds no colour map")
    return np.asarray(palette[indices[..., 0]], np.uint8)


def cmyk_to_rgb(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """CMYK, 255 is full ink: the plain conversion without a colour profile, ``(1 - ink) * (1 - black)``."""
    light = 255 - ink.astype(np.uint16)
    return ((light[..., :3] * light[..., 3:4] + 127) // 255).astype(np.uint8)


def ycbcr_to_rgb(samples: NDArray[np.uint8], black_and_white: NDArray[np.float64] | None = None) -> NDArray[np.uint8]:
    """YCbCr by Rec. 601, full range unless ReferenceBlackWhite says otherwise (TIFF 6.0, section 21)."""
    values: NDArray[np.floating] = samples.astype(np.float32)
    if black_and_white is not None:
        black, white = black_and_white[:, 0].astype(np.float32), black_and_white[:, 1].astype(np.float32)
        span = np.where(white == black, 1, white - black)
        values = (values - black) / span * np.array([255, 127, 127], np.float32)
    else:
        values = values - np.array([0, 128, 128], np.float32)
    y, cb, cr = values[..., 0], values[..., 1], values[..., 2]
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2)
    return np.asarray(np.clip(rgb + 0.5, 0, 255), np.uint8)


def cielab_to_rgb(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """8-bit CIELAB as TIFF stores it: L* in 0..255 for 0..100, a* and b* as signed bytes; to sRGB."""
    lab = np.empty(samples.shape, np.float32)
    lab[..., 0] = samples[..., 0] * np.float32(100 / 255)
    lab[..., 1:] = np.ascontiguousarray(samples[..., 1:]).view(np.int8)
    rgb = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return np.asarray(np.clip(rgb * 255 + 0.5, 0, 255), np.uint8)
