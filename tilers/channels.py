"""Planes that are stored one by one: the channels of a colour picture, or fluorescence that is to be mixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilers.samples import EIGHT_BITS, Depth, depth_in_use
from tilers.unreadable import UnsupportedKind
from wsi_chat.schema import Remark

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
    """How channels become RGB: as red, green, blue (and alpha) or grey of ``depth``, or mixed from ``channels``.

    ``uncoloured``: how many of the mixed channels have no colour in the file, and got one of ours.
    """

    channels: tuple[Channel, ...] = ()
    depth: Depth = EIGHT_BITS
    alpha: bool = False
    grey: bool = False
    uncoloured: int = 0

    @property
    def notes(self) -> tuple[Remark, ...]:
        """What a reader of the picture must know of its brightness and colours."""
        depth = () if self.depth.note is None else (self.depth.note,)
        if not self.uncoloured:
            return depth
        return (*depth, Remark("slide.false_colours", n=len(self.channels), unnamed=self.uncoloured))

    @property
    def shown(self) -> tuple[int, ...]:
        """Indices of the channels that have to be read."""
        if self.channels:
            return tuple(channel.index for channel in self.channels)
        return (0, 1, 2, 3)[: 1 if self.grey else 4 if self.alpha else 3]

    @property
    def is_dark(self) -> bool:
        return bool(self.channels)

    def __call__(self, planes: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
        """(h, w) arrays, one per ``shown`` channel, as (h, w, 3) or (h, w, 4).

        Where a channel holds no number (NaN), nothing was scanned: alpha is 0 there.
        """
        unscanned = _unscanned(planes)
        if unscanned is not None:
            shown = self([np.nan_to_num(plane, nan=0.0) for plane in planes])
            return np.dstack([shown[..., :3], np.where(unscanned, 0, 255).astype(np.uint8)])
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
    count: int,
    dtype: np.dtype[Any],
    sample: Callable[[int], NDArray[Any]],
    statements: Sequence[ChannelStatement],
    *,
    bits: int | None = None,
) -> Mixing:
    """Colours of a picture or channels to mix, judged by what the file says and by a sample of each channel.

    Three channels whose colours are red, green and blue, absent or all the same are a colour picture if they have 8
    bits or a bright background; a fourth that is all 0 or full is its alpha. One channel without a colour is grey.
    Everything else is mixed additively, as fluorescence is.

    Args:
        count, dtype: of the channels.
        sample: values of one channel, any shape; called only where they matter.
        bits: significant bits as the file states them.

    Raises:
        SlideUnsupported: values that are not brightness, or channels on a bright background without colours.
    """
    sample = _numbers_of(sample)
    colours = [statement.colour.upper() for statement in statements[:3]]
    plain = not any(colours) or len(set(colours)) == 1 or tuple(colours) == RGB_COLOURS
    plain = plain and all(statement.shown for statement in statements[:3])
    if plain and (count == 3 or (count == 4 and _is_alpha(sample(3)))):
        depth = EIGHT_BITS if dtype == np.uint8 else _bright_depth([sample(i) for i in range(3)], dtype, bits)
        if depth is not None:
            return Mixing(depth=depth, alpha=count == 4)
    unnamed = not any(statement.colour or statement.window for statement in statements)
    if unnamed and count > 1 and all(statement.shown for statement in statements):
        _refuse_bright(count, dtype, sample, bits)
    alone = statements[0] if statements else ChannelStatement()
    if count == 1 and not alone.colour and alone.window is None:
        depth = EIGHT_BITS if dtype == np.uint8 else _bright_depth([sample(0)], dtype, bits)
        if depth is not None:
            return Mixing(depth=depth, grey=True)
        statements = [replace(alone, colour="FFFFFF")]
    channels, uncoloured = [], 0
    for i in range(count):
        statement = statements[i] if i < len(statements) else ChannelStatement()
        if not statement.shown:
            continue
        stated = len(statement.colour) == 6
        uncoloured += not stated
        colour = statement.colour if stated else DEFAULT_COLOURS[i % len(DEFAULT_COLOURS)]
        r, g, b = (int(colour[j : j + 2], 16) / 255 for j in (0, 2, 4))
        low, high = statement.window or _window(sample(i))
        channels.append(Channel(i, (r, g, b), low, high))
    if not channels:
        raise UnsupportedKind("none of its channels is marked as shown")
    return Mixing(channels=tuple(channels), uncoloured=uncoloured)


def _unscanned(planes: Sequence[NDArray[Any]]) -> NDArray[np.bool_] | None:
    """Where a plane holds no number, (h, w); None where all of them hold numbers everywhere."""
    if planes[0].dtype.kind != "f":
        return None
    found: NDArray[np.bool_] = np.any([np.isnan(plane) for plane in planes], axis=0)
    return found if found.any() else None


def _numbers_of(sample: Callable[[int], NDArray[Any]]) -> Callable[[int], NDArray[Any]]:
    """The same samples without what is no number."""

    def numbers(channel: int) -> NDArray[Any]:
        values = sample(channel)
        if values.dtype.kind != "f":
            return values
        known = values[~np.isnan(values)]
        return known if known.size else np.zeros(1, values.dtype)

    return numbers


def _refuse_bright(count: int, dtype: np.dtype[Any], sample: Callable[[int], NDArray[Any]], bits: int | None) -> None:
    """Refuse channels of unknown colour whose background is bright: added up, they are white or a wrong colour."""
    samples = [sample(i) for i in range(count)]
    varied = [values for values in samples if values.min() < values.max()]
    if varied and _bright_depth(varied, dtype, bits) is not None:
        raise UnsupportedKind(
            f"it has {count} channels on a bright background, and nothing says which of them are red, green and blue"
        )


def _bright_depth(samples: Sequence[NDArray[Any]], dtype: np.dtype[Any], bits: int | None) -> Depth | None:
    """The depth of wide red, green and blue on a bright background; None where the background is dark."""
    low, high = min(float(s.min()) for s in samples), max(float(s.max()) for s in samples)
    depth = depth_in_use(low, high, dtype, bits=bits)
    bright = all(float(np.median(s)) > BRIGHT * min(depth.top, high) for s in samples)
    return depth if bright else None


def _is_alpha(sample: NDArray[Any]) -> bool:
    top = np.iinfo(sample.dtype).max if sample.dtype.kind in "ui" else 1
    ends = float(((sample == 0) | (sample == top)).mean())
    return ends > 0.95 and bool((sample == top).any())


def _window(sample: NDArray[Any]) -> tuple[float, float]:
    low = float(sample.min())
    return low, max(float(np.percentile(sample.astype(np.float32), 99.9)), low + 1)
