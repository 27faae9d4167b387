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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tilers.readers import Backend, Pixels, Region
from tilers.readers.dicom_frames import dicom_levels
from tilers.readers.pieces import PieceBackend, Window, inside
from tilers.readers.scanner_tiff import scanner_levels
from tilers.segments import Empty, fresh
from wsi_chat.errors import SlideUnsupported
from wsi_chat.schema import Remark

ON_GRID = 0.01  # px of the read level: nearer to its pixels OpenSlide's interpolation changes 3 grey levels at most
PROBES = 4  # pieces of each level that are read both ways
CANDIDATES = 32
HABIT = 3  # times as many pieces refused as agreed
FEWEST = 4  # pieces refused: fewer show no habit
MAX_GREY, MEAN_GREY = 3, 0.5  # how far a probe may differ from OpenSlide


class StoredLevel(Protocol):
    """A level as its file stores it: pieces of ``piece`` (height, width) px, side by side.

    ``origin``, ``size``: (x, y) and (width, height) in the level's pixels of what they cover; beside it nothing was
    scanned. ``gaps``: (rows, columns) bool, pieces that only OpenSlide shows, since they were never written.
    """

    @property
    def origin(self) -> tuple[int, int]: ...

    @property
    def size(self) -> tuple[int, int]: ...

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
    "leica": scanner_levels,
    "trestle": scanner_levels,
    "ventana": scanner_levels,
    "hamamatsu": scanner_levels,
    "generic-tiff": scanner_levels,
    "dicom": dicom_levels,
}
"""By OpenSlide's name of the vendor: none for Huron, Akoya, and a file that lost what its vendor is known by."""


class Refused(SlideUnsupported):
    """A strict decoder refuses ``refused`` of ``tried`` pieces that OpenSlide shows."""

    def __init__(self, message: str, *, refused: int, tried: int) -> None:
        super().__init__(message)
        self.refused, self.tried = refused, tried


@dataclass
class Proof:
    """How many pieces of a level, read both ways, agreed, were different, or were refused by a strict decoder."""

    agreed: int = 0
    different: int = 0
    refused: int = 0
    why: str = ""

    @property
    def tried(self) -> int:
        return self.agreed + self.different + self.refused

    @property
    def holds(self) -> bool:
        return self.agreed > self.different or (self.refused > 0 and not self.different)


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
        """Read some pieces both ways; returns what ``decoding`` says.

        Once a piece is refused, more are tried: damage hits some, a writer's habit nearly all. Where it is a habit,
        OpenSlide keeps the file; where half of a level's pieces look different, or none proves anything, the level.
        """
        proofs = [Proof() for _ in self._levels]
        for number, row, column in self._chosen():
            if proofs[number].tried < (CANDIDATES if any(proof.refused for proof in proofs) else PROBES):
                self._compare(proofs[number], number, row, column)
        self._levels = [level if proof.holds else None for level, proof in zip(self._levels, proofs, strict=True)]
        tried, agreed, refused = (
            sum(getattr(proof, name) for proof in proofs) for name in ("tried", "agreed", "refused")
        )
        why = next((proof.why for proof in proofs if proof.why), "")
        is_habit = refused >= FEWEST and refused > HABIT * agreed
        if is_habit or not (agreed or refused) or not any(self._levels):
            if not tried:
                raise SlideUnsupported("OpenSlide reads none of the JPEG tiles tried")
            text = f"of {tried} JPEG tiles tried, {tried - agreed} are not as OpenSlide shows them: {why}"
            raise Refused(text, refused=refused, tried=tried)
        text = f"directly, strictly: {agreed} of {tried} JPEG tiles tried are as OpenSlide shows them"
        others = sum(level is None for level in self._levels)
        if others:
            failed = next((proof.why for proof in proofs if proof.different), self._stored.why)
            text += f"; {others} of {len(proofs)} levels by OpenSlide ({failed})"
        return text

    def _compare(self, proof: Proof, number: int, row: int, column: int) -> None:
        theirs = self._theirs(number, row, column)
        if theirs is None:
            return
        try:
            ours = self.piece(0, number, row, column)[: theirs.shape[0], : theirs.shape[1]]
        except Exception as error:
            proof.refused += 1
            proof.why = f"{error}"
            return
        difference = np.abs(ours.astype(np.int16) - theirs[..., :3])
        if difference.max() <= MAX_GREY and difference.mean() < MEAN_GREY:
            proof.agreed += 1
        else:
            proof.different += 1
            proof.why = f"their colours differ by {difference.max()} grey levels"

    def _theirs(self, number: int, row: int, column: int) -> Pixels | None:
        """A piece as OpenSlide shows it, None where that proves nothing."""
        level = self._levels[number]
        assert level is not None
        (high, wide), (x, y), (across, down) = level.piece, level.origin, level.size
        width, height = min(wide, across - column * wide), min(high, down - row * high)
        scale = self.level_downsamples[number]
        x, y = round((x + column * wide) * scale), round((y + row * high) * scale)
        try:
            pixels = self._through_openslide(x, y, number, width, height)
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

    def expect(self, runs: Iterable[Sequence[Region]]) -> None:
        super().expect([self._moved(region) for region in run] for run in runs)

    def _moved(self, region: Region) -> Region:
        """A region as if its level's pieces began at the level's first pixel."""
        x, y, level, width, height = region
        stored, scale = self._levels[level], self.level_downsamples[level]
        left, top = (0, 0) if stored is None else stored.origin
        return x - round(left * scale), y - round(top * scale), level, width, height

    def place(self, region: Region) -> Window | None:
        x, y, level, width, height = region
        stored = self._levels[level]
        place = None if stored is None else self._place(stored, x, y, level, width, height)
        return None if stored is None or place is None else inside((*place, width, height), stored.size)

    def read_plane(self, plane: int, x: int, y: int, level: int, width: int, height: int) -> Pixels:
        stored = self._levels[level]
        place = None if stored is None else self._place(stored, x, y, level, width, height)
        if stored is None or place is None:
            return self._through_openslide(x, y, level, width, height)
        return self.framed(plane, level, *place, width, height, stored.size)

    def _place(
        self, stored: StoredLevel, x: int, y: int, level: int, width: int, height: int
    ) -> tuple[int, int] | None:
        """Where a region begins in pixels of the level's pieces; None where only OpenSlide shows it."""
        scale = self.level_downsamples[level]
        left, top = round(x / scale), round(y / scale)
        if max(abs(x / scale - left), abs(y / scale - top)) > ON_GRID:
            return None
        left, top = left - stored.origin[0], top - stored.origin[1]
        if self._whole[level]:
            return left, top
        high, wide = stored.piece
        rows = slice(max(0, top // high), max(0, -(-(top + height) // high)))
        columns = slice(max(0, left // wide), max(0, -(-(left + width) // wide)))
        return None if stored.gaps[rows, columns].any() else (left, top)

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
            tried, slide = slide, reopen()  # its errors latch, and a proof may have met one
            tried.close()
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
