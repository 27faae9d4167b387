"""OME-Zarr (NGFF 0.4 on zarr v2, 0.5 on zarr v3): colour pictures, multi-channel fluorescence, focal stacks.

Of a converter's folder with several images the scan is found by names, sizes and resolution; labels and macros are
never opened. Channels of fluorescence are mixed additively with their ``omero`` colours and windows. A chunk that was
never written is transparent, not the fill value; a chunk that cannot be decoded fails the read. Nothing is read on
opening but metadata and, where the range of values has to be learnt, a few windows of the smallest level.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import WrapperStore

from tilers.channels import ChannelStatement, Mixing, choose_mixing
from tilers.ome import MAX_XML, parse_ome_xml, unit_um
from tilers.properties import allow_listed, number, origin_of
from tilers.readers import Backend, Pixels, Resolution, WindowBackend
from tilers.remote import STORE_MARKS, RemotePath, digest_of, zarr_store
from tilers.samples import Numbers
from tilers.scan_choice import ImageInFile, choose_scan, describe_left_out
from tilers.unreadable import REWRITE, UnsupportedKind
from wsi_chat.errors import SlideError, SlideUnsupported
from wsi_chat.remarks import counted
from wsi_chat.schema import Remark

log = logging.getLogger(__name__)

MAX_CHUNK_BYTES = 256 * 2**20
MAX_CHUNKS_PER_WINDOW = 4096  # of 512 x 512 px; a folder of 1 x 1 px chunks would be read for hours
MAX_SIDE = 4_000_000
MAX_COARSEST_PIXELS = 40_000_000_000  # a level that must be read whole for the mask: 200,000 x 200,000 px
MAX_IMAGES = 1000
MULTISCALES = "Write it as OME-Zarr with multiscales metadata (bioformats2raw or ome-zarr-py can)."
SAMPLE_PX = 512  # side of the windows that show which values are in use
SAMPLES = 3  # of them along each axis
SAMPLED_CHUNKS, SAMPLE_BYTES = 64, 64 * 2**10  # behind an address, what a fingerprint is made of


@dataclass(frozen=True, slots=True)
class _Image:
    """One multiscale image of a folder: where it lies, its metadata, and how the choice of the scan sees it."""

    path: Path
    group: Any
    meta: dict[str, Any]
    candidate: ImageInFile


class _Noting(WrapperStore[Any]):
    """A store that notes the keys at which it holds nothing: behind an address, asking for each again is slow."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.missing: set[str] = set()

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        found = await super().get(key, prototype, byte_range)
        if found is None:
            self.missing.add(key)
        return found


class OmeZarrBackend(WindowBackend):
    """One multiscale image of an OME-Zarr folder."""

    def __init__(self, path: Path) -> None:
        self._top = path
        self._remote = _Noting(zarr_store(path)) if isinstance(path, RemotePath) else None
        images = _images(path, self._remote or str(path))
        chosen = choose_scan([image.candidate for image in images])
        path, group, meta = images[chosen].path, images[chosen].group, images[chosen].meta
        scales = meta["multiscales"][0]
        self._axes = [_axis_name(axis) for axis in scales.get("axes", ())] or list("tczyx")
        self._arrays: list[Any] = [group[entry["path"]] for entry in scales["datasets"]]
        self._folders = [path / entry["path"] for entry in scales["datasets"]]
        for array in self._arrays:
            _check(array, self._axes)
        _check_levels(self._arrays, self._axes)
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
        self.planes = self._length("z")
        self.notes = describe_left_out([image.candidate for image in images], [chosen])
        if self._length("t") > 1:
            self.notes = (*self.notes, Remark("slide.first_time", n=self._length("t")))
        self._numbers = Numbers()
        self._mixing = self._choose_mixing(meta.get("omero") or {})
        if self._mixing.is_dark:
            self.background = (0, 0, 0)
        if self._remote is not None:
            self.digest = self._fingerprint()
        self.notes = (*self.notes, *self._mixing.notes, *self._numbers.opening_notes())

    def _length(self, axis: str) -> int:
        return int(self._arrays[0].shape[self._axes.index(axis)]) if axis in self._axes else 1

    def _choose_mixing(self, omero: Mapping[str, Any]) -> Mixing:
        stated: Sequence[Mapping[str, Any]] = [c for c in omero.get("channels") or () if isinstance(c, Mapping)]
        statements = [_statement(channel) for channel in stated]
        count = self._length("c")
        if self._arrays[0].dtype == np.uint8 and count == 1 and not any(s.window for s in statements):
            return Mixing(grey=True)
        return choose_mixing(count, self._arrays[0].dtype, self._sample, statements)

    def _sample(self, channel: int) -> NDArray[Any]:
        """Values of one channel from up to SAMPLES x SAMPLES windows of the smallest level."""
        width, height = self.level_sizes[-1]
        array, plane = self._arrays[-1], self.planes // 2
        parts = []
        for y in _spread(height):
            for x in _spread(width):
                place = self._selection(slice(y, y + SAMPLE_PX), slice(x, x + SAMPLE_PX), channel, plane)
                try:
                    parts.append(np.asarray(array[place]).ravel())
                    self._numbers.look(parts[-1])
                except Exception as error:  # a damaged chunk teaches nothing; its region fails when it is read
                    log.debug("a window that was to show the range of values cannot be read: %s", error)
        return np.concatenate(parts) if parts else np.zeros(1, array.dtype)

    def _selection(self, ys: slice, xs: slice, channel: int | slice, plane: int) -> tuple[int | slice, ...]:
        place: dict[str, int | slice] = {"y": ys, "x": xs, "c": channel, "z": plane}
        return tuple(place.get(name, 0) for name in self._axes)

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self.plane_window(self.planes // 2, level, x, y, width, height)

    def plane_window(self, plane: int, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        ys, xs = slice(y, y + height), slice(x, x + width)
        alpha = None
        if self._remote is None:
            alpha = self._written(level, plane, ys, xs)
            if alpha is not None and not alpha.any():  # nothing to read: most of a sparse scan
                return np.zeros((height, width, 4), np.uint8)
        data = np.asarray(self._arrays[level][self._selection(ys, xs, slice(None), plane)])
        axes = [name for name in self._axes if name in "cyx"]
        data = data.transpose([axes.index(name) for name in "cyx" if name in axes])
        layers = data if data.ndim == 3 else data[None]
        stored = [layers[index] for index in self._mixing.shown]
        for layer in stored:
            self._numbers.look(layer)
        shown = self._mixing(stored)
        if self._remote is not None:  # reading told what is there
            alpha = self._written(level, plane, ys, xs)
        if alpha is None:
            return np.ascontiguousarray(shown)
        if shown.shape[2] == 4:
            alpha = np.minimum(alpha, shown[..., 3])
        return np.dstack([shown[..., :3], alpha])

    def reading_notes(self) -> tuple[Remark, ...]:
        return self._numbers.reading_notes()

    def _written(self, level: int, plane: int, ys: slice, xs: slice) -> NDArray[np.uint8] | None:
        """Alpha of a window: 0 where no chunk file of any channel exists; None where all of it is written."""
        array, folder = self._arrays[level], self._folders[level]
        chunks = array.shards or array.chunks
        cy, cx = chunks[self._axes.index("y")], chunks[self._axes.index("x")]
        depth = plane // chunks[self._axes.index("z")] if "z" in self._axes else 0
        rows, cols = range(ys.start // cy, -(-ys.stop // cy)), range(xs.start // cx, -(-xs.stop // cx))
        exists = np.zeros((len(rows), len(cols)), bool)
        layers = self._channel_chunks(chunks)
        for i, row in enumerate(rows):
            for j, col in enumerate(cols):
                place = {"y": row, "x": col, "z": depth}
                keys = (
                    array.metadata.encode_chunk_key(
                        tuple(layer if name == "c" else place.get(name, 0) for name in self._axes)
                    )
                    for layer in layers
                )
                exists[i, j] = any(self._is_there(folder / key) for key in keys)
        if exists.all():
            return None
        alpha = np.where(exists, 255, 0).astype(np.uint8).repeat(cy, axis=0).repeat(cx, axis=1)
        top, left = ys.start - rows.start * cy, xs.start - cols.start * cx
        return alpha[top : top + ys.stop - ys.start, left : left + xs.stop - xs.start]

    def _is_there(self, chunk: Path) -> bool:
        """Whether a chunk is a file; behind an address, one that was just read."""
        if self._remote is None:
            return chunk.is_file()
        return chunk.relative_to(self._top).as_posix() not in self._remote.missing

    def _fingerprint(self) -> str:
        """Of a folder behind an address, whose files may not be listed: metadata and chunks of the smallest levels."""
        digest = hashlib.sha256(repr(self.level_sizes).encode())
        keys: list[str] = []
        for array, folder in zip(reversed(self._arrays), reversed(self._folders), strict=True):
            digest.update(json.dumps(array.metadata.to_dict(), sort_keys=True, default=str).encode())
            grid = [-(-n // c) for n, c in zip(array.shape, array.shards or array.chunks, strict=True)]
            count = math.prod(grid)
            for i in range(0, count, max(1, count // SAMPLED_CHUNKS)):
                place = tuple(int(n) for n in np.unravel_index(i, grid))
                keys.append((folder / array.metadata.encode_chunk_key(place)).relative_to(self._top).as_posix())
        assert isinstance(self._top, RemotePath)
        digest.update(digest_of(self._top, keys[:SAMPLED_CHUNKS], most=SAMPLE_BYTES))
        return digest.hexdigest()

    def _channel_chunks(self, chunks: Sequence[int]) -> list[int]:
        """Chunk numbers along the channel axis that are shown; writers leave out chunks that hold only zeros."""
        if "c" not in self._axes:
            return [0]
        at = self._axes.index("c")
        return sorted({index // chunks[at] for index in self._mixing.shown})

    def close(self) -> None:
        self._arrays = []


def _metadata(group: Any) -> dict[str, Any]:
    attributes = dict(group.attrs)
    return dict(attributes.get("ome", attributes))  # 0.5 nests everything under "ome"


def _images(path: Path, store: Any) -> list[_Image]:
    """The multiscale images of a folder: itself, or its numbered groups as bioformats2raw and plates write them.

    Raises:
        SlideUnsupported: there is none.
    """
    try:
        root: Any = zarr.open_group(store, mode="r")
    except zarr.errors.ContainsArrayError as error:
        raise UnsupportedKind("a bare zarr array without OME metadata", hint=MULTISCALES) from error
    meta = _metadata(root)
    if meta.get("multiscales"):
        return [_Image(path, root, meta, _candidate(root, meta, ""))]
    names = _series_names(path)
    images = []
    for number_, series in enumerate(_series_paths(root)):
        if series not in root:
            break
        group = root[series]
        meta = _metadata(group)
        if meta.get("multiscales"):
            name = f"{series} {names[number_] if number_ < len(names) else ''}"
            images.append(_Image(path / series, group, meta, _candidate(group, meta, name)))
    if not images:
        wells = (meta.get("plate") or {}).get("wells") or ()
        if wells:
            place = f"{path.name}/{wells[0].get('path', 'A/1')}/0"
            raise UnsupportedKind(
                f"a plate of {counted(len(wells), 'well')}", hint=f"Give the folder of one field of one well: {place}."
            )
        raise UnsupportedKind("a zarr folder without multiscales metadata", hint=MULTISCALES)
    return images


def _series_paths(root: Any) -> list[str]:
    """Groups of the images: those that the group OME lists, else 0, 1, 2, ... (bioformats2raw.layout)."""
    listed = _metadata(root["OME"]).get("series") if "OME" in root else None
    if isinstance(listed, list) and listed:
        inside = [s for s in map(str, listed[:MAX_IMAGES]) if not s.startswith("/") and ".." not in s.split("/")]
        return [series for series in inside if series.strip("/")]
    return [str(number_) for number_ in range(MAX_IMAGES)]


def _series_names(path: Path) -> list[str]:
    """Names of the images in the OME-XML that bioformats2raw writes beside them."""
    xml = path / "OME" / "METADATA.ome.xml"
    if not xml.is_file() or xml.stat().st_size > MAX_XML:
        return []
    try:
        return [image.name for image in parse_ome_xml(xml.read_text(encoding="utf-8", errors="replace"))]
    except SlideUnsupported:
        return []


def _candidate(group: Any, meta: Mapping[str, Any], name: str) -> ImageInFile:
    scales = meta["multiscales"][0]
    axes = [_axis_name(axis) for axis in scales.get("axes", ())] or list("tczyx")
    array = group[scales["datasets"][0]["path"]]
    if "x" not in axes or "y" not in axes or len(axes) != array.ndim:
        raise SlideUnsupported(f"axes {''.join(axes)!r} do not fit an array of shape {tuple(array.shape)}")
    x, y = axes.index("x"), axes.index("y")
    omero = meta.get("omero") or {}
    words = [name, str(scales.get("name") or ""), str(omero.get("name") or "")]
    return ImageInFile(" ".join(words), (int(array.shape[x]), int(array.shape[y])), bool(_resolution(scales, x, y)))


def _statement(channel: Mapping[str, Any]) -> ChannelStatement:
    window = channel.get("window") or {}
    low, high = number(window.get("start")), number(window.get("end"))
    stated = (low, high) if low is not None and high is not None and high > low else None
    colour = str(channel.get("color") or "").upper()[-6:]
    return ChannelStatement(colour if _is_hex(colour) else "", stated, channel.get("active") is not False)


def _is_hex(colour: str) -> bool:
    return len(colour) == 6 and all(c in "0123456789ABCDEF" for c in colour)


def _spread(length: int) -> list[int]:
    """Starts of at most SAMPLES windows of SAMPLE_PX along an axis."""
    last = max(0, length - SAMPLE_PX)
    return sorted({last * i // (SAMPLES - 1) for i in range(SAMPLES)})


def _check_levels(arrays: Sequence[Any], axes: Sequence[str]) -> None:
    x, y = axes.index("x"), axes.index("y")
    for array in arrays:
        width, height = int(array.shape[x]), int(array.shape[y])
        if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            raise SlideUnsupported(f"a level claims {width:,} x {height:,} px")
        cx, cy = (min(int(array.chunks[i]), int(array.shape[i])) for i in (x, y))
        if -(-min(width, 512) // cx) * -(-min(height, 512) // cy) > MAX_CHUNKS_PER_WINDOW:
            raise UnsupportedKind(
                f"its chunks are {cx} x {cy} px, too small to be read; write it with larger ones", hint=REWRITE
            )
    width, height = int(arrays[-1].shape[x]), int(arrays[-1].shape[y])
    if width * height > MAX_COARSEST_PIXELS:
        raise UnsupportedKind(
            f"its smallest level has {width:,} x {height:,} px; write it with smaller levels", hint=REWRITE
        )


def _axis_name(axis: Any) -> str:
    return str(axis["name"] if isinstance(axis, Mapping) else axis).lower()


def _check(array: Any, axes: Sequence[str]) -> None:
    if len(axes) != array.ndim:
        raise SlideUnsupported(f"axes {''.join(axes)!r} do not fit an array of shape {tuple(array.shape)}")
    if array.dtype.kind not in "uif":
        raise UnsupportedKind(f"pixels are {array.dtype}")
    chunk = math.prod(int(n) for n in array.chunks) * array.dtype.itemsize
    if chunk > MAX_CHUNK_BYTES:
        raise UnsupportedKind(f"one chunk is {chunk / 2**20:.0f} MiB; write it with smaller chunks", hint=REWRITE)


def _resolution(scales: Mapping[str, Any], x: int, y: int) -> Resolution | None:
    """µm/px of level 0: the dataset's scale times the image's, in the axes' units."""
    axes = scales.get("axes", ())
    size = [1.0, 1.0]
    stated = False
    for holder in (scales["datasets"][0], scales):
        for transform in holder.get("coordinateTransformations", ()):
            if transform.get("type") == "scale":
                stated = True
                size = [size[0] * float(transform["scale"][x]), size[1] * float(transform["scale"][y])]
    units = [axes[i].get("unit") if i < len(axes) and isinstance(axes[i], Mapping) else None for i in (x, y)]
    factors = [unit_um(unit) for unit in units]
    if not stated or factors[0] is None or factors[1] is None:
        return None  # a scale without a unit says nothing about micrometres
    return Resolution(size[0] * factors[0], size[1] * factors[1], "ome-zarr coordinateTransformations")


def open_backend(path: Path) -> Backend:
    """Open an OME-Zarr folder.

    Raises:
        SlideUnsupported: not a folder with OME-Zarr metadata, or one whose arrays cannot be shown.
    """
    if not path.is_dir() or not any((path / mark).is_file() for mark in STORE_MARKS):
        raise SlideUnsupported("not an OME-Zarr folder")
    try:
        return OmeZarrBackend(path)
    except SlideError:
        raise
    except Exception as error:
        raise SlideUnsupported(f"{type(error).__name__}: {error}") from error
