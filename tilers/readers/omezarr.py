"""OME-Zarr (NGFF 0.4 on zarr v2, 0.5 on zarr v3): RGB images and multi-channel fluorescence.

Channels of fluorescence are mixed additively with their ``omero`` colours and windows. A chunk that was never
written is transparent, not the fill value; a chunk that cannot be decoded fails the read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tilers.properties import allow_listed, number, origin_of
from tilers.readers import Backend, Pixels, Resolution, WindowBackend
from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Remark

UM = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
MAX_CHUNK_BYTES = 256 * 2**20
# Red, green, blue first: the order that viewers give unnamed channels.
DEFAULT_COLOURS = ("0000FF", "00FF00", "FF0000", "FFFFFF", "FF00FF", "00FFFF", "FFFF00")


@dataclass(frozen=True, slots=True)
class _Channel:
    index: int
    rgb: tuple[float, float, float]  # 0..1
    low: float
    high: float


class OmeZarrBackend(WindowBackend):
    """One multiscale image of an OME-Zarr folder."""

    def __init__(self, path: Path) -> None:
        group: Any = zarr.open_group(str(path), mode="r")
        meta = _metadata(group)
        if "multiscales" not in meta and "0" in group:  # bioformats2raw puts the first image in a group "0"
            path, group = path / "0", group["0"]
            meta = _metadata(group)
        if not meta.get("multiscales"):
            raise SlideUnsupported("a zarr folder without multiscales metadata")
        scales = meta["multiscales"][0]
        self._axes = [_axis_name(axis) for axis in scales.get("axes", ())] or list("tczyx")
        self._arrays: list[Any] = [group[entry["path"]] for entry in scales["datasets"]]
        self._folders = [path / entry["path"] for entry in scales["datasets"]]
        for array in self._arrays:
            _check(array, self._axes)
        x, y = self._axes.index("x"), self._axes.index("y")
        self.level_sizes = tuple((int(a.shape[x]), int(a.shape[y])) for a in self._arrays)
        w0, h0 = self.level_sizes[0]
        self.level_downsamples = tuple((w0 / w + h0 / h) / 2 for w, h in self.level_sizes)
        self.properties = allow_listed(
            {
                "ome.version": meta.get("version", scales.get("version", "")),
                "zarr.format": group.metadata.zarr_format,
                **origin_of(group.attrs.get("description")),
            }
        )
        resolution = _resolution(scales, x, y)
        self.resolutions = (resolution,) if resolution else ()
        self._channels = self._choose_channels(meta.get("omero") or {})
        if self._channels is not None:
            self.background = (0, 0, 0)
        skipped = [n for n in self._axes if n in "tz" and self._arrays[0].shape[self._axes.index(n)] > 1]
        self.notes = tuple(Remark("slide.first_position", axis=repr(name)) for name in skipped)

    def _choose_channels(self, omero: Mapping[str, Any]) -> list[_Channel] | None:
        """None for an RGB image; else the channels to mix."""
        array = self._arrays[0]
        count = int(array.shape[self._axes.index("c")]) if "c" in self._axes else 1
        said: Sequence[Mapping[str, Any]] = omero.get("channels") or ()
        colours = [str(c.get("color", "")).upper()[-6:] for c in said]
        rgb = ["FF0000", "00FF00", "0000FF"]
        if array.dtype == np.uint8 and (count == 1 or (count == 3 and (not colours or colours == rgb))):
            return None
        chosen = []
        for i in range(count):
            channel = said[i] if i < len(said) else {}
            if channel.get("active") is False:
                continue
            colour = colours[i] if i < len(colours) and len(colours[i]) == 6 else DEFAULT_COLOURS[i % 7]
            r, g, b = (int(colour[j : j + 2], 16) / 255 for j in (0, 2, 4))
            low, high = self._window_of(i, channel.get("window") or {})
            chosen.append(_Channel(i, (r, g, b), low, high))
        return chosen

    def _window_of(self, index: int, window: Mapping[str, Any]) -> tuple[float, float]:
        low, high = number(window.get("start")), number(window.get("end"))
        if low is not None and high is not None and high > low:
            return low, high
        smallest = np.asarray(self._arrays[-1][self._selection(slice(None), slice(None), index)])
        return float(smallest.min()), max(float(np.percentile(smallest, 99.9)), float(smallest.min()) + 1)

    def _selection(self, ys: slice, xs: slice, channel: int | slice) -> tuple[int | slice, ...]:
        place: dict[str, int | slice] = {"y": ys, "x": xs, "c": channel}
        return tuple(place.get(name, 0) for name in self._axes)

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        ys, xs = slice(y, y + height), slice(x, x + width)
        array = self._arrays[level]
        if self._channels is None:
            data = np.asarray(array[self._selection(ys, xs, slice(None))])
            kept = [n for n in self._axes if n in "cyx"]
            data = data.transpose([kept.index(n) for n in "yxc" if n in kept])
            rgb = data if data.ndim == 3 else data[..., None]
            rgb = np.repeat(rgb, 3, axis=2) if rgb.shape[2] == 1 else rgb
        else:
            mixed = np.zeros((height, width, 3), np.float32)
            kept = [n for n in self._axes if n in "yx"]
            for channel in self._channels:
                plane = np.asarray(array[self._selection(ys, xs, channel.index)], np.float32)
                plane = plane if kept == ["y", "x"] else plane.T
                level_of = np.clip((plane - channel.low) / (channel.high - channel.low), 0, 1)
                mixed += level_of[..., None] * np.asarray(channel.rgb, np.float32)
            rgb = (np.clip(mixed, 0, 1) * 255 + 0.5).astype(np.uint8)
        alpha = self._written(level, ys, xs)
        return np.ascontiguousarray(rgb) if alpha is None else np.dstack([rgb, alpha])

    def _written(self, level: int, ys: slice, xs: slice) -> NDArray[np.uint8] | None:
        """Alpha of a window: 0 where no chunk file of any channel exists; None where all of it is written."""
        array, folder = self._arrays[level], self._folders[level]
        chunks = array.shards or array.chunks
        cy, cx = chunks[self._axes.index("y")], chunks[self._axes.index("x")]
        rows, cols = range(ys.start // cy, -(-ys.stop // cy)), range(xs.start // cx, -(-xs.stop // cx))
        exists = np.zeros((len(rows), len(cols)), bool)
        layers = self._channel_chunks(chunks)
        for i, row in enumerate(rows):
            for j, col in enumerate(cols):
                place = {"y": row, "x": col}
                keys = (
                    array.metadata.encode_chunk_key(
                        tuple(layer if name == "c" else place.get(name, 0) for name in self._axes)
                    )
                    for layer in layers
                )
                exists[i, j] = any((folder / key).is_file() for key in keys)
        if exists.all():
            return None
        alpha = np.where(exists, 255, 0).astype(np.uint8).repeat(cy, axis=0).repeat(cx, axis=1)
        top, left = ys.start - rows.start * cy, xs.start - cols.start * cx
        return alpha[top : top + ys.stop - ys.start, left : left + xs.stop - xs.start]

    def _channel_chunks(self, chunks: Sequence[int]) -> list[int]:
        """Chunk numbers along the channel axis that are shown; writers leave out chunks that hold only zeros."""
        if "c" not in self._axes:
            return [0]
        at = self._axes.index("c")
        shown = range(self._arrays[0].shape[at]) if self._channels is None else [c.index for c in self._channels]
        return sorted({index // chunks[at] for index in shown})

    def close(self) -> None:
        self._arrays = []


def _metadata(group: Any) -> dict[str, Any]:
    attributes = dict(group.attrs)
    return dict(attributes.get("ome", attributes))  # 0.5 nests everything under "ome"


def _axis_name(axis: Any) -> str:
    return str(axis["name"] if isinstance(axis, Mapping) else axis).lower()


def _check(array: Any, axes: Sequence[str]) -> None:
    if len(axes) != array.ndim or "x" not in axes or "y" not in axes:
        raise SlideUnsupported(f"axes {''.join(axes)!r} do not fit an array of shape {tuple(array.shape)}")
    if array.dtype.kind not in "uif":
        raise SlideUnsupported(f"pixels are {array.dtype}")
    chunk = int(np.prod(array.chunks)) * array.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES:
        raise SlideUnsupported(f"one chunk is {chunk / 2**20:.0f} MiB; write it with smaller chunks")


def _resolution(scales: Mapping[str, Any], x: int, y: int) -> Resolution | None:
    """µm/px of level 0: the dataset's scale times the image's, in the axes' units."""
    axes = scales.get("axes", ())
    size = [1.0, 1.0]
    found = False
    for holder in (scales["datasets"][0], scales):
        for transform in holder.get("coordinateTransformations", ()):
            if transform.get("type") == "scale":
                found = True
                size = [size[0] * float(transform["scale"][x]), size[1] * float(transform["scale"][y])]
    units = [axes[i].get("unit") if i < len(axes) and isinstance(axes[i], Mapping) else None for i in (x, y)]
    if not found or any(unit not in UM for unit in units):
        return None  # a scale without a unit says nothing about micrometres
    return Resolution(size[0] * UM[str(units[0])], size[1] * UM[str(units[1])], "ome-zarr coordinateTransformations")


def open_backend(path: Path) -> Backend:
    """Open an OME-Zarr folder.

    Raises:
        SlideUnsupported: not a folder with OME-Zarr metadata, or one whose arrays cannot be shown.
    """
    marks = ("zarr.json", ".zgroup", ".zattrs")
    if not path.is_dir() or not any((path / mark).is_file() for mark in marks):
        raise SlideUnsupported("not an OME-Zarr folder")
    try:
        return OmeZarrBackend(path)
    except SlideUnsupported:
        raise
    except Exception as error:
        raise SlideUnsupported(f"{type(error).__name__}: {error}") from error
