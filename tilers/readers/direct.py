"""Slides that OpenSlide opens and whose JPEG data are decoded directly and strictly; or OpenSlide itself.

OpenSlide says what lies where; `tilers.readers.scanner_tiff` and `tilers.readers.dicom_frames` find the stored pieces.
OpenSlide decodes them with libjpeg-turbo in its accurate mode, and so does this module (see
``tilers.segments.decode_jpeg``): the pixels are the same, bit for bit. What it adds is that a piece is decoded once for
all threads and all the regions that share it, and that data which OpenSlide passes over are an error: it stops after
the last row of pixels, and never learns of the bytes left over by which wrong pixels are known. Every file proves
itself when it is opened: some of its pieces are read both ways.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tilers.readers import Backend, Pixels
from tilers.readers.dicom_frames import dicom_levels
from tilers.readers.pieces import PieceBackend
from tilers.readers.scanner_tiff import scanner_levels
from tilers.segments import Empty, fresh
from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Remark

ON_GRID = 0.01  # px of the read level: nearer to its pixels OpenSlide's interpolation changes 3 grey levels at most
PROBES = 4  # pieces of each level that are read both ways
CANDIDATES = 32
MAX_GREY, MEAN_GREY = 3, 0.5  # how far a probe may differ from OpenSlide


class StoredLevel(Protocol):
    """A level as its file stores it: pieces of ``piece`` (height, width) px, side by side from its first pixel on.

    ``gaps``: (rows, columns) bool, pieces that only OpenSlide shows, since they were never written.
    """

    @property
    def piece(self) -> tuple[int, int]: ...

    @property
    def gaps(self) -> NDArray[np.bool_]: ...

    def decode(self, row: int, column: int, empty: Empty = fresh) -> Pixels:
        """A piece, (height, width, 3) RGB, decoded strictly into what ``empty`` makes. May raise anything: damage."""


class StoredLevels(Protocol):
    """What a file stores, level by level, None where one cannot be decoded directly; ``why`` the last cannot."""

    @property
    def levels(self) -> Sequence[StoredLevel | None]: ...

    @property
    def why(self) -> str: ...

    def close(self) -> None: ...


MAX_REFUSALS = 256
_refusals: dict[tuple[str, int, int], Exception] = {}
"""Why files are left to OpenSlide: its handles are opened anew after every error, and need not be proved again."""

Finder = Callable[[Path, Backend], StoredLevels]
FINDERS: dict[str, Finder] = {
    "aperio": scanner_levels,
    "philips": scanner_levels,
    "trestle": scanner_levels,
    "hamamatsu": scanner_levels,
    "dicom": dicom_levels,
}
"""By OpenSlide's name of the vendor."""


class Refused(SlideUnsupported):
    """A strict decoder refuses ``refused`` of ``tried`` pieces that OpenSlide shows."""

    def __init__(self, message: str, *, refused: int, tried: int) -> None:
        super().__init__(message)
        self.refused, self.tried = refused, tried


class DirectBackend(PieceBackend):
    """A scanner's slide for all threads: JPEG pieces directly, whatever else through an OpenSlide handle.

    A region goes through OpenSlide where a piece was never written (OpenSlide shows the coarser level there, or
    nothing), where the region lies between the pixels of a level with a fractional downsample, and on levels that are
    stored otherwise.

    Args:
        slide: the handle, which the new backend closes.
        reopen: another one, in place of one that has failed (OpenSlide's errors latch).
        stored: what the file stores, which the new backend closes.

    Raises:
        SlideUnsupported: no level of the file can be decoded directly with OpenSlide's pixels; the reason.
    """

    def __init__(self, slide: Backend, reopen: Callable[[], Backend], stored: StoredLevels) -> None:
        super().__init__()
        self._slide = slide
        self._reopen = reopen
        self._stored = stored
        self._levels = list(stored.levels)
        self._lock = threading.Lock()
        try:
            if not any(self._levels):
                raise SlideUnsupported(stored.why)
            self._take_over(slide)
            self.decoding = self._probe()
            self._whole = [level is not None and not level.gaps.any() for level in self._levels]
        except BaseException:
            stored.close()
            raise

    def _take_over(self, slide: Backend) -> None:
        self.level_sizes, self.level_downsamples = slide.level_sizes, slide.level_downsamples
        self.resolutions, self.objective_power = slide.resolutions, slide.objective_power
        self.vendor, self.bounds, self.background = slide.vendor, slide.bounds, slide.background
        self.properties, self.notes = slide.properties, slide.notes

    # ------------------------------------------------------------------------------------------ proof

    def _probe(self) -> str:
        """Read some pieces both ways.

        Pieces that OpenSlide cannot read prove nothing, nor do those that it shows as empty. Once one of the others is
        refused, more are tried: damage hits some, a writer's habit nearly all. If most are refused, OpenSlide keeps the
        file; if most of a level look different, it keeps the level.
        """
        levels = range(len(self._levels))
        agreed, different, refused = ([0] * len(levels) for _ in range(3))
        why = "OpenSlide reads none of the JPEG tiles tried"
        for number, row, column in self._chosen():
            tried = agreed[number] + different[number] + refused[number]
            if tried >= (CANDIDATES if sum(refused) else PROBES):
                continue
            theirs = self._theirs(number, row, column)
            if theirs is None:
                continue
            try:
                ours = self.piece(0, number, row, column)[: theirs.shape[0], : theirs.shape[1]]
            except Exception as error:
                refused[number] += 1
                why = f"{error}"
                continue
            difference = np.abs(ours.astype(np.int16) - theirs[..., :3])
            if difference.max() <= MAX_GREY and difference.mean() < MEAN_GREY:
                agreed[number] += 1
            else:
                different[number] += 1
                why = f"their colours differ by {difference.max()} grey levels"
        for number in levels:
            if different[number] > agreed[number]:
                self._levels[number] = None
        tried = sum(agreed) + sum(different) + sum(refused)
        if not any(agreed) or sum(refused) > sum(agreed) or not any(self._levels):
            if tried:
                why = f"of {tried} JPEG tiles tried, {tried - sum(agreed)} are not as OpenSlide shows them: {why}"
            raise Refused(why, refused=sum(refused), tried=tried)
        text = f"directly, strictly: {sum(agreed)} of {tried} JPEG tiles tried are as OpenSlide shows them"
        others = sum(level is None for level in self._levels)
        if others:
            text += f"; {others} of {len(levels)} levels by OpenSlide ({why if any(different) else self._stored.why})"
        return text

    def _theirs(self, number: int, row: int, column: int) -> Pixels | None:
        """A piece as OpenSlide shows it, None where that proves nothing."""
        level = self._levels[number]
        assert level is not None
        high, wide = level.piece
        across, down = self.level_sizes[number]
        width, height = min(wide, across - column * wide), min(high, down - row * high)
        scale = self.level_downsamples[number]
        try:
            pixels = self._through_openslide(
                round(column * wide * scale), round(row * high * scale), number, width, height
            )
        except Exception:
            return None
        return None if pixels[..., 3:].size and pixels[..., 3:].min() < 255 else pixels

    def _chosen(self) -> Iterator[tuple[int, int, int]]:
        """(level, row, column) of some written pieces of each level, where level and slide pixels coincide.

        After the PROBES that are meant come others, up to CANDIDATES.
        """
        for number, level in enumerate(self._levels):
            if level is None:
                continue
            gaps = level.gaps
            whole = self.level_downsamples[number].is_integer()
            rows, columns = np.nonzero(~gaps if whole else ~gaps[:1, :1])
            meant, others = (np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int) for n in (PROBES, CANDIDATES))
            for place in dict.fromkeys((*meant, *others)):
                yield number, int(rows[place]), int(columns[place])

    # ------------------------------------------------------------------------------------------ pixels

    def grid(self, level: int) -> tuple[int, int, int, int] | None:
        stored = self._levels[level]
        return None if stored is None else (*stored.gaps.shape, *stored.piece)

    def piece(self, plane: int, level: int, row: int, column: int) -> Pixels:
        stored = self._levels[level]
        assert stored is not None
        return stored.decode(row, column, self._buffers.empty)

    def read_plane(self, plane: int, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        if self._is_direct(x, y, level, width, height):
            return super().read_plane(plane, x, y, level, width, height)
        return self._through_openslide(x, y, level, width, height)

    def _is_direct(self, x: int, y: int, level: int, width: int, height: int) -> bool:
        stored = self._levels[level]
        if stored is None:
            return False
        scale = self.level_downsamples[level]
        left, top = round(x / scale), round(y / scale)
        if max(abs(x / scale - left), abs(y / scale - top)) > ON_GRID:
            return False
        if self._whole[level]:
            return True
        high, wide = stored.piece
        rows = slice(max(0, top // high), max(0, -(-(top + height) // high)))
        columns = slice(max(0, left // wide), max(0, -(-(left + width) // wide)))
        return not stored.gaps[rows, columns].any()

    def _through_openslide(self, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        slide = self._slide
        try:
            return slide.read(x, y, level, width, height)
        except Exception:
            with self._lock:
                if self._slide is slide:  # others may be reading with it: it closes when the last of them lets go
                    self._slide = self._reopen()
            raise

    def close(self) -> None:
        self._stored.close()
        self._slide.close()


def direct_or_openslide(path: Path, slide: Backend, reopen: Callable[[], Backend]) -> Backend:
    """The one place where it is decided who decodes a slide that OpenSlide has opened; ``decoding`` says why.

    Where a strict decoder refuses pieces that OpenSlide shows, and OpenSlide keeps the file, a note says so: a report
    on such a slide may rest on pixels that are wrong.
    """
    find = FINDERS.get(slide.vendor)
    if find is None:
        slide.decoding = f"by OpenSlide; only tiles of {', '.join(FINDERS)} are decoded directly, and this is "
        slide.decoding += slide.vendor or "?"
        return slide
    refusal = _refusals.get(_state(path))
    if refusal is None:
        try:
            return DirectBackend(slide, reopen, find(path, slide))
        except Exception as error:  # whatever stands against it, OpenSlide still reads the file
            refusal = error
        if len(_refusals) >= MAX_REFUSALS:
            _refusals.clear()
        _refusals[_state(path)] = refusal.with_traceback(None)
    slide.decoding = f"by OpenSlide; {getattr(refusal, 'message', '') or f'{type(refusal).__name__}: {refusal}'}"
    if isinstance(refusal, Refused) and refusal.refused:
        slide.notes = (*slide.notes, Remark("slide.strict_refused", n=refusal.refused, tried=refusal.tried))
    return slide


def _state(path: Path) -> tuple[str, int, int]:
    """By which a file is known again that has not changed."""
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns
