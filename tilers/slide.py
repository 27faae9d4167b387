"""An open slide: its size, its scale and where that comes from, and pixels by region.

A failed read is retried once on a fresh handle (OpenSlide's errors latch) and then raises SlideUnreadable; no
region is ever replaced by white or black. Pixels outside the scan take the slide's background colour.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tilers.fingerprint import fingerprint
from tilers.readers import Backend, Pixels, candidates
from tilers.reduce import view
from tilers.resolution import resolve_mpp
from tilers.tiff_header import read_tiff_header
from wsi_chat.errors import (
    ResolutionUnknown,
    SlideNotFound,
    SlideUnreadable,
    SlideUnsupported,
    WsiChatError,
)
from wsi_chat.schema import Box, SlideRecord

log = logging.getLogger(__name__)


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
        properties: allow-listed, nothing personal.
        notes: what a reader of the report should know of the file (cut off, pixels not square ...).
    """

    def __init__(
        self, path: Path, *, reader: str, opener: Callable[[Path], Backend], backend: Backend, mpp: float | None
    ) -> None:
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
        self.objective_power = backend.objective_power
        self.bounds: Box | None = backend.bounds
        self.background_rgb = backend.background
        self.properties = dict(backend.properties)
        self.notes = (*backend.notes, *settled.notes)
        self._opener = opener
        self._backend = backend
        self._lock = threading.Lock()
        self._flag = mpp
        self._fingerprint: str | None = None
        self._owns_backend = True

    def __repr__(self) -> str:
        scale = f"{self.mpp:.4g} µm/px ({self.mpp_source})" if self.mpp else "mpp unknown"
        levels = len(self.level_sizes)
        return f"<Slide {self.path.name}: {self.size[0]} x {self.size[1]} px, {levels} levels, {scale}>"

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

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over sizes and sampled content; see ``tilers.fingerprint``."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.path, self.level_sizes)
        return self._fingerprint

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
                f"{self.path.name} has no usable micrometres per pixel: {reason}.",
                hint="Give the scan's resolution with --mpp, for instance --mpp 0.25 for a 40x scan.",
            )
        return self.mpp

    def clone(self) -> Slide:
        """The same slide on a handle of its own, for another thread (shared where the reader allows it).

        Raises:
            SlideUnreadable: the file cannot be opened again.
        """
        backend = self._backend if self._backend.shareable else self._open_again()
        twin = Slide(self.path, reader=self.reader, opener=self._opener, backend=backend, mpp=self._flag)
        twin._owns_backend = not self._backend.shareable
        twin._fingerprint = self._fingerprint
        return twin

    def _open_again(self) -> Backend:
        try:
            return self._opener(self.path)
        except Exception as error:
            raise SlideUnreadable(
                f"{self.path.name} can no longer be opened: {error}.",
                hint="Check that the file is still there and its disk is connected.",
            ) from error

    # ------------------------------------------------------------------------------------------ pixels

    def read_region(self, x: int, y: int, level: int, w: int, h: int) -> NDArray[np.uint8]:
        """Pixels of a region, (h, w, 3) RGB uint8; ``x, y`` at level 0, ``w, h`` at ``level``.

        The region may reach beyond the slide: pixels without data take the background colour.

        Raises:
            SlideUnreadable: the region could not be read, not even on a fresh handle.
        """
        return self.read_with_mask(x, y, level, w, h)[0]

    def read_with_mask(
        self, x: int, y: int, level: int, w: int, h: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Like ``read_region``, and where the scan holds data: (h, w) bool, or None where it does everywhere."""
        return self._composite(self._read(x, y, level, w, h))

    def _read(self, x: int, y: int, level: int, w: int, h: int) -> Pixels:
        backend = self._backend
        try:
            return backend.read(x, y, level, w, h)
        except MemoryError:
            raise
        except Exception as error:
            log.debug("%s: read at (%d, %d) level %d failed: %s", self.path.name, x, y, level, error)
            first = error
        try:
            return self._reopened(backend).read(x, y, level, w, h)
        except MemoryError:
            raise
        except Exception as error:
            with contextlib.suppress(WsiChatError):
                self._reopened(self._backend)  # the failed handle is dead; the next region deserves a live one
            raise SlideUnreadable(
                f"{self.path.name}: {w} x {h} px at ({x}, {y}) of level {level} cannot be read: {error}.",
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
        alpha = pixels[..., 3]
        rgb = np.ascontiguousarray(pixels[..., :3])
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
        longer = max(self.size)
        return view(self, Box(0, 0, *self.size), min(max_px, longer))

    def crop(self, box: Box, px: int) -> NDArray[np.uint8]:
        """A box (level-0 px) as (h, w, 3) RGB, its longer side ``px`` px; beyond the slide it shows background.

        Raises:
            SettingError: the box is empty.
            SlideUnreadable: nothing of it could be read.
        """
        return view(self, box, px)

    def record(self, id: str) -> SlideRecord:  # noqa: A002  the field's name in the report
        """The slide as the report states it.

        Raises:
            ResolutionUnknown: see ``require_mpp``.
        """
        return SlideRecord(
            id=id,
            file_name=self.path.name,
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
        )


def open_slide(path: str | Path, *, mpp: float | None = None, reader: str | None = None) -> Slide:
    """Open a slide with the first reader that takes it.

    Args:
        path: a slide file, an image, one .dcm file of a DICOM series, or an OME-Zarr folder.
        mpp: µm per level-0 pixel; overrides the file's own metadata.
        reader: the only reader to try.

    Raises:
        SlideNotFound: no such file, or a folder that is not a slide.
        SlideUnsupported: no reader opens it; the message has each reader's reason.
        SlideUnreadable: an image that is damaged.
        SettingError: ``mpp`` is implausible or ``reader`` unknown.
    """
    path = Path(path)
    _check_path(path)
    _check_header(path)
    reasons = []
    for candidate in candidates(path, reader):
        try:
            backend = candidate.open(path)
        except SlideUnreadable:
            raise
        except Exception as error:  # a plugin may raise anything
            reasons.append(f"{candidate.name}: {getattr(error, 'message', '') or error}")
            continue
        try:
            return Slide(path, reader=candidate.name, opener=candidate.open, backend=backend, mpp=mpp)
        except BaseException:
            backend.close()
            raise
    raise SlideUnsupported(
        f"{path.name} cannot be opened as a slide: {_diagnosis(path)}{'; '.join(reasons)}.",
        hint="Check that the file was copied completely; `wsi-chat doctor` lists the readers.",
    )


def _check_path(path: Path) -> None:
    if not path.exists():
        raise SlideNotFound(f"There is no file {path}.", hint="Check the path and its spelling.")
    if path.is_dir():
        names = {p.name for p in path.iterdir()}
        if not names & {"zarr.json", ".zgroup", ".zattrs"}:
            raise SlideNotFound(
                f"{path} is a folder, not a slide.",
                hint="Give a file in it (for DICOM any one .dcm of the series), or an OME-Zarr folder.",
            )
    elif path.stat().st_size == 0:
        raise SlideUnsupported(f"{path.name} is empty (0 bytes).", hint="Copy the file again from its source.")


def _check_header(path: Path) -> None:
    """Refuse what makes a library abort the process or allocate without bound, before any library sees the file."""
    header = read_tiff_header(path)
    if header is not None and header.objection:
        raise SlideUnsupported(
            f"{path.name} cannot be opened as a slide: {header.objection}.",
            hint="Copy the file again from its source; it looks damaged.",
        )


def _diagnosis(path: Path) -> str:
    """What the first bytes tell of a file that nothing opens; empty, or ending in a separator."""
    if path.is_dir():
        return ""
    with path.open("rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    orders: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
    order = orders.get(head[:2])
    if order is not None and len(head) >= 8:
        version = int.from_bytes(head[2:4], order)
        start = int.from_bytes(head[4:8] if version == 42 else head[8:16], order)
        if version in (42, 43) and start >= size:
            return f"it is cut off (its directory should be at byte {start}, the file ends at {size}); "
        return ""
    text = head.decode("utf-8", errors="replace")
    if all(c.isprintable() or c.isspace() for c in text):
        return f"it is a text file, whatever its suffix {path.suffix!r} says; "
    return ""
