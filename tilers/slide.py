"""An open slide: its size, its scale and where that comes from, and pixels by region.

A failed read is retried once on a fresh handle (OpenSlide's errors latch) and then raises SlideUnreadable; no
region is ever replaced by white or black. Pixels outside the scan take the slide's background colour.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from tilers.cards import slide_card
from tilers.fingerprint import fingerprint
from tilers.focus import NEIGHBOURHOOD_PX, NEIGHBOURHOOD_UM, fixed_plane, focus_score, fuse_planes, read_focus
from tilers.photographs import is_photograph
from tilers.readers import Backend, Pixels, Region
from tilers.reduce import shrink, view
from tilers.resolution import resolve_mpp
from wsi_chat.errors import (
    ResolutionUnknown,
    SlideUnreadable,
    SlideUnsupported,
    WsiChatError,
    as_utf8,
)
from wsi_chat.names import Names
from wsi_chat.remarks import put_otherwise
from wsi_chat.schema import ASSUMED_SCALE, Box, FieldRecord, Remark, SlideRecord, Tile, field_at

log = logging.getLogger(__name__)

MAX_SIDE = 4_000_000
MAX_COARSEST_PIXELS = 40_000_000_000  # 200,000 x 200,000 px
ROUNDING_PX, MISFIT = 2.0, 0.05  # by how much a level may miss the proportions of the first: rounding, padding


class Slide:
    """A slide file that is open for reading; a context manager. Use ``open_slide`` to make one.

    Attributes:
        path: the file.
        reader: name of the reader that opened it.
        size: (width, height) in level-0 pixels.
        level_sizes, level_downsamples: per level, level 0 first.
        mpp: µm per level-0 pixel, or None; ``mpp_source`` says who stated it (``flag``, a property's name,
            ``tiff resolution tags``, ``objective power (derived)`` or ``unknown``).
        mpp_stated: what the file says where the user's value takes its place, or None.
        bounds: the scanned area in level-0 pixels where the file states one.
        background_rgb: the colour outside the scan.
        planes: how many focal planes it has; ``candidate_planes``: those among which the sharpest is shown, one
            where the setting ``z`` names it. ``fused``: they are shown as one picture.
        shares_pieces: whether regions may be read one by one at no more cost than together; see `readers.Backend`.
        decoding: who decodes the pixels and why, where there is a choice; "" where there is none.
        properties: allow-listed, nothing personal.
        fields: places of the photographs that are shown side by side; empty for a slide, which is one picture.
        notes: what a reader of the report should know of the file (cut off, pixels not square ...).
    """

    def __init__(
        self,
        path: Path,
        *,
        reader: str,
        opener: Callable[[Path], Backend],
        backend: Backend,
        mpp: float | None,
        z: str | int = "best",
        names: Names | None = None,
    ) -> None:
        if mpp is not None:
            backend.disregard_scales()
        _check_sizes(path, backend)
        self.names = names or Names(as_utf8(path.name))
        settled = resolve_mpp(backend.resolutions, objective_power=backend.objective_power, flag=mpp)
        self.path = path
        self.reader = reader
        self.level_sizes = tuple((int(w), int(h)) for w, h in backend.level_sizes)
        self.level_downsamples = tuple(float(d) for d in backend.level_downsamples)
        self.size = self.level_sizes[0]
        self.mpp = settled.value
        self.mpp_source = settled.source
        self.implausible_mpp = settled.implausible
        self.mpp_stated = settled.stated
        self.vendor = backend.vendor
        self.decoding = backend.decoding
        self.shares_pieces = backend.shares_pieces
        self.objective_power = backend.objective_power
        self.bounds: Box | None = backend.bounds
        self.background_rgb = backend.background
        self.properties = dict(backend.properties)
        self.fields: tuple[FieldRecord, ...] = tuple(self._shown(field) for field in backend.fields)
        self.planes = max(1, int(backend.planes))
        plane = fixed_plane(read_focus(z), self.planes, self.name)
        self.candidate_planes = tuple(range(self.planes)) if plane is None else (plane,)
        self.fused = len(self.candidate_planes) > 1 and read_focus(z) == "fused"
        notes = (*backend.notes, *settled.notes, *self._stack_notes())
        self.notes = tuple(put_otherwise(note, self.names.hide) for note in notes)
        self._opener = opener
        self._backend = backend
        self._lock = threading.Lock()
        self._flag = mpp
        self._z = z
        self._fingerprint: str | None = None
        self._owns_backend = True
        self._overview: tuple[NDArray[np.uint8], tuple[float, float]] | None = None

    @property
    def name(self) -> str:
        """What the slide is called in documents and messages: its file's name, or a pseudonym."""
        return self.names.slide

    def _shown(self, field: FieldRecord) -> FieldRecord:
        """A photograph as documents show it."""
        return field.model_copy(update={"name": self.names.field(field.name), "error": self.names.hide(field.error)})

    def __repr__(self) -> str:
        scale = f"{self.mpp:.4g} µm/px ({self.mpp_source})" if self.mpp else "mpp unknown"
        levels = len(self.level_sizes)
        return f"<Slide {self.name}: {self.size[0]} x {self.size[1]} px, {levels} levels, {scale}>"

    def _repr_html_(self) -> str:

        return slide_card(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; calling it twice is harmless."""
        if self._owns_backend:
            self._owns_backend = False
            self._backend.close()

    def _stack_notes(self) -> tuple[Remark, ...]:
        if self.planes == 1:
            return ()
        if len(self.candidate_planes) > 1:
            return (Remark("slide.stack_fused" if self.fused else "slide.stack_sharpest", n=self.planes),)
        return (Remark("slide.stack_plane", n=self.planes, plane=self.candidate_planes[0]),)

    @property
    def reading_notes(self) -> tuple[Remark, ...]:
        """What became known while the slide was read so far, by it and its clones where they share a handle."""
        return tuple(self._backend.reading_notes())

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over sizes and sampled content; see ``tilers.fingerprint``."""
        if self._fingerprint is None:
            self._fingerprint = self._backend.digest or fingerprint(self.path, self.level_sizes)
        return self._fingerprint

    @property
    def is_photograph(self) -> bool:
        """Whether a camera took it, one field at a time: no scan of a slide."""
        return bool(self.fields) or (len(self.level_sizes) == 1 and is_photograph(self.path))

    def assume_mpp(self, mpp: float) -> None:
        """Take a photograph of unknown scale for one at ``mpp``; its record says that this is no measurement."""
        self.mpp, self.mpp_source = mpp, ASSUMED_SCALE

    def read_tile(self, tile: Tile, *, z: int | None = None) -> NDArray[np.uint8]:
        """A tile's pixels as they are read, (h, w, 3); of several fields only the one in which it begins.

        Where that field is smaller than the tile, the rest shows background, as beyond the edge of a slide.

        Raises:
            SlideUnreadable: see `read_region`.
        """
        width, height = tile.read_px
        own = field_at(self.fields, tile.box) if self.fields else None
        if own is None:
            return self.read_region(tile.x, tile.y, tile.level, width, height, z=z)
        w, h = (min(size, round(edge - at)) for size, edge, at in (
            (width, own.box.x1, tile.x), (height, own.box.y1, tile.y),
        ))  # fmt: skip
        pixels = self.read_region(tile.x, tile.y, 0, w, h, z=z)
        if (w, h) == (width, height):
            return pixels
        out = np.empty((height, width, 3), np.uint8)
        out[:] = self.background_rgb
        out[:h, :w] = pixels
        return out

    def require_mpp(self) -> float:
        """µm per level-0 pixel.

        Raises:
            ResolutionUnknown: the slide gives no plausible value and none was supplied.
        """
        if self.mpp is None:
            reason = "it states none"
            if self.implausible_mpp:
                reason = f"it states {', '.join(self.implausible_mpp)}, which is not plausible"
            raise ResolutionUnknown(
                f"{self.name} has no usable micrometres per pixel: {reason}.",
                hint="Give the scan's resolution with --mpp, for instance --mpp 0.25 for a 40x scan.",
            )
        return self.mpp

    def clone(self) -> Slide:
        """The same slide on a handle of its own, for another thread (shared where the reader allows it).

        Raises:
            SlideUnreadable: the file cannot be opened again.
        """
        backend = self._backend if self._backend.shareable else self._open_again()
        twin = Slide(
            self.path,
            reader=self.reader,
            opener=self._opener,
            backend=backend,
            mpp=self._flag,
            z=self._z,
            names=self.names,
        )
        twin._owns_backend = not self._backend.shareable
        twin._fingerprint = self._fingerprint
        twin.mpp, twin.mpp_source = self.mpp, self.mpp_source
        return twin

    def _open_again(self) -> Backend:
        try:
            return self._opener(self.path)
        except Exception as error:
            raise SlideUnreadable(
                f"{self.name} can no longer be opened: {self.names.hide(str(error))}.",
                hint="Check that the file is still there and its disk is connected.",
            ) from error

    # ------------------------------------------------------------------------------------------ pixels

    def expect(self, runs: Iterable[Sequence[Region]]) -> None:
        """A hint that these regions will be read, each once, by this slide or its clones; see `Backend.expect`."""
        self._backend.expect(runs)

    def read_run(self, regions: Sequence[Region], *, z: int) -> list[NDArray[np.uint8] | None]:
        """Regions that lie together, each as `read_region` shows it; None for one that has to be read by itself.

        That is none of a reader that gains nothing by it, and none that is damaged: `read_region` says why.
        """
        try:
            shown = self._backend.read_run(z, regions)
        except MemoryError:
            raise
        except Exception as error:
            log.debug("%s: %d regions are read one by one: %s", self.name, len(regions), error)
            return [None] * len(regions)
        return [None if pixels is None else self._composite(pixels)[0] for pixels in shown]

    def read_region(self, x: int, y: int, level: int, w: int, h: int, *, z: int | None = None) -> NDArray[np.uint8]:
        """Pixels of a region, (h, w, 3) RGB uint8; ``x, y`` at level 0, ``w, h`` at ``level``.

        The region may reach beyond the slide: pixels without data take the background colour. ``z`` is a focal plane,
        counted from 0; None shows the plane that the slide was opened for, the sharpest of this region, or all as one.

        Raises:
            SlideUnreadable: the region could not be read, not even on a fresh handle.
        """
        return self.read_with_mask(x, y, level, w, h, z=z)[0]

    def read_with_mask(
        self, x: int, y: int, level: int, w: int, h: int, *, z: int | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Like ``read_region``, and where the scan holds data: (h, w) bool, or None where it does everywhere."""
        if self.fused and z is None:
            return self._read_fused(x, y, level, w, h)
        planes = self.candidate_planes if z is None else (z,)
        best = self._composite(self._read(x, y, level, w, h, planes[0]))
        for plane in planes[1:]:
            other = self._composite(self._read(x, y, level, w, h, plane))
            best = max(best, other, key=lambda shown: focus_score(shown[0]))
        return best

    def _read_fused(
        self, x: int, y: int, level: int, w: int, h: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """All planes as one picture; one that cannot be read gives way to those that can."""
        shown, lost = [], None
        for plane in self.candidate_planes:
            try:
                shown.append(self._composite(self._read(x, y, level, w, h, plane)))
            except SlideUnreadable as error:
                lost = error
        if not shown:
            assert lost is not None
            raise lost
        scanned = [mask for _, mask in shown if mask is not None]
        where = np.any(scanned, axis=0) if len(scanned) == len(shown) else None
        sigma = NEIGHBOURHOOD_PX
        if self.mpp is not None:
            sigma = NEIGHBOURHOOD_UM / (self.mpp * self.level_downsamples[level])
        return fuse_planes((pixels for pixels, _ in shown), sigma=max(1.0, sigma)), where

    def _read(self, x: int, y: int, level: int, w: int, h: int, plane: int) -> Pixels:
        backend = self._backend
        try:
            return backend.read_plane(plane, x, y, level, w, h)
        except MemoryError:
            raise
        except Exception as error:
            log.debug("%s: read at (%d, %d) level %d failed: %s", self.name, x, y, level, error)
            first = error
        try:
            return self._reopened(backend).read_plane(plane, x, y, level, w, h)
        except MemoryError:
            raise
        except Exception as error:
            with contextlib.suppress(WsiChatError):
                self._reopened(self._backend)  # the failed handle is dead; the next region deserves a live one
            said = error.message if isinstance(error, WsiChatError) else str(error)  # its hint is given below
            reason = self.names.hide(said).rstrip(".")
            raise SlideUnreadable(
                f"{self.name}: {w} x {h} px at ({x}, {y}) of level {level} cannot be read: {reason}.",
                hint="Copy the file again from its source; it looks damaged or cut off.",
            ) from first

    def _reopened(self, failed: Backend) -> Backend:
        """A live handle in place of one that failed (another thread may have replaced it already)."""
        with self._lock:
            if self._backend is failed and not failed.shareable:
                fresh = self._open_again()
                self._backend = fresh
                with contextlib.suppress(Exception):
                    failed.close()
            return self._backend

    def _composite(self, pixels: Pixels) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        if pixels.shape[2] == 3:
            return pixels, None
        alpha = cv2.extractChannel(pixels, 3)
        if not alpha.any():  # beyond the scan: most of a sparse one
            return np.full((*alpha.shape, 3), self.background_rgb, np.uint8), alpha > 0
        rgb = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB), np.uint8)
        if alpha.min() == 255:
            return rgb, None
        weight = alpha[..., None].astype(np.float32) / 255
        ground = np.asarray(self.background_rgb, np.float32)
        mixed = rgb.astype(np.float32) * weight + ground * (1 - weight)
        return (mixed + 0.5).astype(np.uint8), alpha > 0

    def overview(self, max_px: int = 2048) -> NDArray[np.uint8]:
        """The whole slide as (h, w, 3) RGB, its longer side at most ``max_px`` px, read in bounded pieces.

        Pieces that cannot be read are drawn in ``tilers.reduce.UNREADABLE_RGB``. No label or macro is opened.

        Raises:
            SlideUnreadable: nothing of the slide could be read.
        """
        px = min(max_px, max(self.size))
        if self._overview is not None and max(self._overview[1]) >= px:
            return shrink(*self._overview, px)
        return view(self, Box(0, 0, *self.size), px, z=self.middle_plane)

    @property
    def middle_plane(self) -> int:
        """The focal plane of overviews: the one that is shown, or the middle one of those to choose from."""
        return self.candidate_planes[len(self.candidate_planes) // 2]

    def keep_overview(self, pixels: NDArray[np.uint8], cell: float) -> None:
        """Let ``overview`` shrink this picture of the whole slide instead of reading the slide again.

        For who has read the level anyway: the foreground mask of a slide without smaller levels.

        Args:
            pixels: (h, w, 3); one of them is ``cell`` x ``cell`` level-0 px, and the last ones may reach beyond.
        """
        self._overview = pixels, (self.size[0] / cell, self.size[1] / cell)

    def crop(self, box: Box, px: int, *, alone: bool = False) -> NDArray[np.uint8]:
        """A box (level-0 px) as (h, w, 3) RGB, its longer side ``px`` px; beyond the slide it shows background.

        Args:
            alone: of several fields, show only the one that the box belongs to.

        Raises:
            SettingError: the box is empty.
            SlideUnreadable: nothing of it could be read.
        """
        own = field_at(self.fields, Box(*box.center, *box.center)) if alone else None
        inside = None if own is None else box.clipped(own.box)
        if inside is None or inside == box:
            return view(self, box, px)
        scale = px / max(box.width, box.height)
        out = np.empty((max(1, round(box.height * scale)), max(1, round(box.width * scale)), 3), np.uint8)
        out[:] = self.background_rgb
        part = view(self, inside, max(1, round(max(inside.width, inside.height) * scale)))
        left, top = (round((at - edge) * scale) for at, edge in ((inside.x0, box.x0), (inside.y0, box.y0)))
        part = part[: out.shape[0] - top, : out.shape[1] - left]
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
        return out

    def record(self, id: str) -> SlideRecord:  # noqa: A002  the field's name in the report
        """The slide as the report states it.

        Raises:
            ResolutionUnknown: see ``require_mpp``.
        """
        return SlideRecord(
            id=id,
            file_name=self.name,
            fingerprint=self.fingerprint,
            reader=self.reader,
            width=self.size[0],
            height=self.size[1],
            levels=len(self.level_sizes),
            mpp=self.require_mpp(),
            mpp_source=self.mpp_source,
            objective_power=self.objective_power,
            vendor=self.vendor,
            bounds=self.bounds,
            properties=self.properties,
            fields=self.fields,
        )


def _check_sizes(path: Path, backend: Backend) -> None:
    """Refuse sizes that no scanner makes: the mask reads the coarsest level whole."""
    sizes = [(int(w), int(h)) for w, h in backend.level_sizes]
    if not sizes or any(not (0 < w <= MAX_SIDE and 0 < h <= MAX_SIDE) for w, h in sizes):
        raise SlideUnsupported(
            f"{path.name} claims levels of {sizes[:3]} px.", hint="Copy the file again from its source."
        )
    if sizes[-1][0] * sizes[-1][1] > MAX_COARSEST_PIXELS:
        raise SlideUnsupported(
            f"The smallest level of {path.name} has {sizes[-1][0]:,} x {sizes[-1][1]:,} px.",
            hint="Convert it to a pyramidal TIFF with smaller levels.",
        )
    for number, size in enumerate(sizes[1:], start=1):
        if not _is_smaller(size, sizes[0]):
            (w, h), (w0, h0) = size, sizes[0]
            raise SlideUnsupported(
                f"Level {number} of {path.name} has {w:,} x {h:,} px, which is not {w0:,} x {h0:,} px made smaller: "
                "a tile would be read where something else lies.",
                hint="Copy the file again from its source; it looks damaged.",
            )


def _is_smaller(size: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Whether one factor, not below 1, makes a level of this size of the whole, but for rounding and padding."""
    off = [max(ROUNDING_PX, MISFIT * side) for side in size]
    least = max(w0 / (w + d) for w0, w, d in zip(whole, size, off, strict=True))
    most = min((w0 / (w - d) for w0, w, d in zip(whole, size, off, strict=True) if w > d), default=math.inf)
    return max(least, 1.0) <= most
