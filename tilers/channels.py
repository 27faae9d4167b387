"""Planes that are stored one by one: the channels of a colour picture, or fluorescence that is to be mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilers.samples import EIGHT_BITS, Depth, depth_in_use

# Red, green, blue come last of the single colours: the order that viewers give unnamed channels.
DEFAULT_COLOURS = ("0000FF", "00FF00", "FF0000", "FFFFFF", "FF00FF", "00FFFF", "FFFF00")
RGB_COLOURS = ("FF0000", "00FF00", "0000FF")
BRIGHT = 0.5  # glass, the commonest part of a bright-field scan, lies in the upper half of the range in use


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel that is shown: its index, its colour (0..1) and the values that become none and all of it."""

    index: int
    rgb: tuple[float, float, float]
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ChannelStatement:
    """What a file says of one channel: colour as RRGGBB or "", a display window or None, whether it is shown."""

    colour: str = ""
    window: tuple[float, float] | None = None
    shown: bool = True


@dataclass(frozen=True, slots=True)
class Mixing:
    """How channels become RGB: as red, green, blue (and alpha) of ``depth``, or mixed from ``channels``."""

    channels: tuple[Channel, ...] = ()
    depth: Depth = EIGHT_BITS
    alpha: bool = False

    @property
    def shown(self) -> tuple[int, ...]:
        """Indices of the channels that have to be read."""
        return tuple(channel.index for channel in self.channels) or (0, 1, 2, 3)[: 4 if self.alpha else 3]

    @property
    def is_dark(self) -> bool:
        return bool(self.channels)

    def __call__(self, planes: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
        """(h, w) arrays, one per ``shown`` channel, as (h, w, 3) or (h, w, 4)."""
        if not self.channels:
            if len(planes) == 1:
                return np.repeat(self.depth.shrink(planes[0])[..., None], 3, axis=2)
            return np.stack([self.depth.shrink(plane) for plane in planes], axis=2)
        mixed = np.zeros((*planes[0].shape, 3), np.float32)
        for channel, plane in zip(self.channels, planes, strict=True):
            share = np.clip((plane.astype(np.float32) - channel.low) / (channel.high - channel.low), 0, 1)
            mixed += share[..., None] * np.asarray(channel.rgb, np.float32)
        return (np.clip(mixed, 0, 1) * 255 + 0.5).astype(np.uint8)


def choose_mixing(
    samples: Sequence[NDArray[Any]], statements: Sequence[ChannelStatement], *, bits: int | None = None
) -> Mixing:
    """Colours of a picture or channels to mix, judged by what the file says and by a sample of each channel.

    Three channels whose colours are red, green and blue, absent or all the same are a colour picture if they have 8
    bits or a bright background; a fourth that is all 0 or full is its alpha. Everything else is mixed additively.

    Args:
        samples: values of every channel, any shape.
        bits: significant bits as the file states them.

    Raises:
        SlideUnsupported: values that are not brightness.
    """
    dtype = samples[0].dtype
    count = len(samples)
    colours = [statement.colour.upper() for statement in statements[:3]]
    plain = not any(colours) or len(set(colours)) == 1 or tuple(colours) == RGB_COLOURS
    if count in (3, 4) and plain and all(statement.shown for statement in statements[:3]):
        low, high = min(float(s.min()) for s in samples[:3]), max(float(s.max()) for s in samples[:3])
        if count == 3 or _is_alpha(samples[3]):
            depth = depth_in_use(low, high, dtype, bits=bits)
            if dtype == np.uint8 or all(float(np.median(s)) > BRIGHT * min(depth.top, high) for s in samples[:3]):
                return Mixing(depth=depth, alpha=count == 4)
    channels = []
    for i, sample in enumerate(samples):
        statement = statements[i] if i < len(statements) else ChannelStatement()
        if not statement.shown:
            continue
        colour = statement.colour if len(statement.colour) == 6 else DEFAULT_COLOURS[i % len(DEFAULT_COLOURS)]
        r, g, b = (int(colour[j : j + 2], 16) / 255 for j in (0, 2, 4))
        low, high = statement.window or _window(sample)
        channels.append(Channel(i, (r, g, b), low, high))
    return Mixing(channels=tuple(channels))


def _is_alpha(sample: NDArray[Any]) -> bool:
    top = np.iinfo(sample.dtype).max if sample.dtype.kind == "u" else 1
    ends = float(((sample == 0) | (sample == top)).mean())
    return ends > 0.95 and bool((sample == top).any())


def _window(sample: NDArray[Any]) -> tuple[float, float]:
    low = float(sample.min())
    return low, max(float(np.percentile(sample.astype(np.float32), 99.9)), low + 1)
