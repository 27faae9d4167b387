"""Slides that are stored in pieces (tiles or strips): each piece is decoded once and shared by all threads.

Pieces are kept within CACHE_BYTES. Who knows what will be read announces it (``Backend.expect``): a piece is then kept
until its last announced use and dropped at once after it, so that the tiles on both sides of a border, and all that
overlap in one place, cost one decoding between them. Windows that are read together use each of their pieces once, and
take their turn at what the threads share once: small turns, since threads that wait for each other cost more than
putting tiles together does.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, product
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from tilers.buffers import Buffers
from tilers.readers import Pixels, Region, WindowBackend

CACHE_BYTES = 64 * 2**20
RUN_PIECE_PX = 2**20  # pieces of more px are not held by the dozen; regions that show them are read one by one
STRIPES = 61  # locks that pieces share while they are decoded; far more than reading threads

Key = tuple[int, int, int, int]
"""(level, plane, row, column) of a piece."""
Place = tuple[int, int]
"""Row and column of a piece."""
Window = tuple[int, int, int, int]
"""x, y, width and height in the pixels of a level's pieces."""
Part = tuple[Key, tuple[slice, slice], tuple[slice, slice]]
"""What a window shows of a piece: which piece, which of its (rows, columns), and where they go."""


class PieceCache:
    """Decoded pieces of one slide, for all of its threads, within ``limit`` bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._decoding = [threading.Lock() for _ in range(STRIPES)]
        self._pieces: OrderedDict[Key, Pixels] = OrderedDict()
        self._uses: dict[tuple[int, int], NDArray[np.uint16]] = {}
        self._bytes = 0

    def expect(self, level: int, plane: int, shape: tuple[int, int], places: Iterable[Place]) -> None:
        """Announce one use of each of these pieces of a level that has ``shape`` (rows, columns) of them."""
        with self._lock:
            if (level, plane) not in self._uses:
                self._uses[level, plane] = np.zeros(shape, np.uint16)
            uses = self._uses[level, plane]
            for place in places:
                uses[place] += 1

    def take(self, keys: Collection[Key], decode: Callable[[Key], Pixels]) -> dict[Key, Pixels | Exception]:
        """Use pieces of one level and plane: those held, the others decoded, each by one thread while others wait.

        Where ``decode`` fails, what it raises stands for the piece; lack of memory is raised.
        """
        with self._lock:
            found: dict[Key, Pixels | Exception] = {key: self._pieces[key] for key in keys if key in self._pieces}
            if len(found) == len(keys):
                self._count_use(keys)
                return found
        try:
            for wait in (False, True):  # first those that no other thread is at
                for key in keys:
                    if key not in found and (piece := self._decoded(key, decode, wait=wait)) is not None:
                        found[key] = piece
            return found
        finally:
            with self._lock:
                self._count_use(keys)

    def claim(self, keys: Iterable[Key]) -> set[Key]:
        """Those pieces that are not held and announced for one more use; it is then the caller's, who decodes them.

        Nobody else will ask for them, so they need be neither kept nor copied.
        """
        with self._lock:
            return {key for key in keys if self._claim(key)}

    def _claim(self, key: Key) -> bool:
        uses = self._uses.get(key[:2])
        if uses is None or uses[key[2:]] != 1 or key in self._pieces:
            return False
        uses[key[2:]] = 0
        return True

    def _decoded(self, key: Key, decode: Callable[[Key], Pixels], *, wait: bool) -> Pixels | Exception | None:
        """The piece, decoded unless it is held by now; None where another thread is decoding and ``wait`` is false."""
        decoding = self._decoding[hash(key) % STRIPES]
        if not decoding.acquire(blocking=wait):
            return None
        try:
            with self._lock:
                held = self._pieces.get(key)
            if held is not None:
                return held
            piece = _attempted(decode, key)
            if isinstance(piece, Exception):
                return piece
            with self._lock:
                self._pieces[key] = piece
                self._bytes += piece.nbytes
                self._shrink()
            return piece
        finally:
            decoding.release()

    def _count_use(self, keys: Collection[Key]) -> None:
        """One announced use of each piece is over; after its last one it is dropped. Others become the latest used.

        The caller holds the lock.
        """
        for key in keys:
            uses = self._uses.get(key[:2])
            left = 0 if uses is None else uses.item(key[2:])
            if left and uses is not None:
                uses[key[2:]] = left - 1
            if left == 1:
                self._drop(key)
            elif key in self._pieces:
                self._pieces.move_to_end(key)

    def _shrink(self) -> None:
        """Drop the least recently used pieces; where all are still to be used, the newest."""
        while self._bytes > self._limit and len(self._pieces) > 1:
            idle = next((key for key in self._pieces if not self._is_wanted(key)), None)
            self._drop(next(reversed(self._pieces)) if idle is None else idle)

    def _is_wanted(self, key: Key) -> bool:
        uses = self._uses.get(key[:2])
        return uses is not None and bool(uses[key[2:]])

    def _drop(self, key: Key) -> None:
        piece = self._pieces.pop(key, None)
        if piece is not None:
            self._bytes -= piece.nbytes


def _attempted(decode: Callable[[Key], Pixels], key: Key) -> Pixels | Exception:
    """The piece, or what its decoding raises; lack of memory says nothing of a piece and is raised."""
    try:
        return decode(key)
    except MemoryError:
        raise
    except Exception as error:
        return error


class PieceBackend(WindowBackend):
    """A backend whose levels are grids of pieces."""

    shareable = True
    shares_pieces = True

    def __init__(self) -> None:
        self._cache = PieceCache()
        self._buffers = Buffers()

    @abstractmethod
    def grid(self, level: int) -> tuple[int, int, int, int] | None:
        """(rows, columns, height, width): how many pieces a level has, and their size; None if it is not in pieces."""

    @abstractmethod
    def piece(self, plane: int, level: int, row: int, column: int) -> Pixels:
        """Decode a piece, (height, width, 3) RGB or (height, width, 4) RGBA. May raise anything."""

    def expect(self, runs: Iterable[Sequence[Region]]) -> None:
        for run in runs:
            for together in [run] if self._holds(run) else [[region] for region in run]:
                self._expect(together)

    def _expect(self, run: Sequence[Region]) -> None:
        used: dict[int, set[Place]] = {}
        for region in run:
            used.setdefault(region[2], set()).update(self._places(region))
        for level, places in used.items():
            rows, columns, _, _ = self.grid(level) or (0, 0, 1, 1)
            for plane in range(self.planes):
                self._cache.expect(level, plane, (rows, columns), places)

    def _places(self, region: Region) -> Iterator[Place]:
        """Which pieces of its level a region shows."""
        x, y, level, width, height = region
        grid = self.grid(level)
        if grid is None:
            return iter(())
        rows, columns, high, wide = grid
        scale = self.level_downsamples[level]
        left, top = round(x / scale), round(y / scale)
        return product(
            range(max(0, top // high), min(rows, -(-(top + height) // high))),
            range(max(0, left // wide), min(columns, -(-(left + width) // wide))),
        )

    def place(self, region: Region) -> Window | None:
        """Where a region lies in its level's pieces; None where they alone do not show it."""
        x, y, level, width, height = region
        scale = self.level_downsamples[level]
        return inside((round(x / scale), round(y / scale), width, height), self.level_sizes[level])

    def _holds(self, run: Sequence[Region]) -> bool:
        """Whether the pieces of a run are small enough to be held all at once."""
        grids = [self.grid(level) for level in {region[2] for region in run}]
        return all(grid is None or grid[2] * grid[3] <= RUN_PIECE_PX for grid in grids)

    def read_run(self, plane: int, regions: Sequence[Region]) -> list[Pixels | None]:
        if not self._holds(regions):
            return [None] * len(regions)
        shown: list[Pixels | None] = []
        for level, run in groupby(regions, key=itemgetter(2)):
            places = [self.place(region) for region in run]
            windows = [place for place in places if place is not None]
            read = iter(self.windows(plane, level, windows) if windows else ())
            for place in places:
                pixels = None if place is None else next(read)
                shown.append(None if isinstance(pixels, Exception) else pixels)
        return shown

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self.plane_window(self.planes // 2, level, x, y, width, height)

    def plane_window(self, plane: int, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """A window as an array of its own, which nobody else holds."""
        (pixels,) = self.windows(plane, level, [(x, y, width, height)])
        if isinstance(pixels, Exception):
            raise pixels
        return pixels

    def windows(self, plane: int, level: int, windows: Sequence[Window]) -> list[Pixels | Exception]:
        """Windows of a level, as arrays of their own; of one that cannot be read, why. Lack of memory is raised."""
        grid = self.grid(level)
        assert grid is not None, f"level {level} is not stored in pieces"
        _, _, high, wide = grid
        cuts = []
        for x, y, width, height in windows:
            (row, dy), (column, dx) = divmod(y, high), divmod(x, wide)
            cuts.append(
                [
                    ((level, plane, row + i, column + j), (there_y, there_x), (here_y, here_x))
                    for i, there_y, here_y in spans(dy, height, high)
                    for j, there_x, here_x in spans(dx, width, wide)
                ]
            )
        uses = Counter(key for cut in cuts for key, _, _ in cut)
        own = self._cache.claim(
            cut[0][0]
            for cut, window in zip(cuts, windows, strict=True)
            if window[2:] == (wide, high) and len(cut) == 1 and uses[cut[0][0]] == 1
        )
        pieces = self._cache.take([key for key in uses if key not in own], self._decode_key)
        return [
            _attempted(self._decode_key, cut[0][0]) if cut[0][0] in own else self._joined(cut, pieces, width, height)
            for cut, (_, _, width, height) in zip(cuts, windows, strict=True)
        ]

    def _joined(
        self, cut: Sequence[Part], pieces: Mapping[Key, Pixels | Exception], width: int, height: int
    ) -> Pixels | Exception:
        """A window from the parts of pieces that it shows, or why one of them is not to be had."""
        parts: list[Pixels] = []
        for key, _, _ in cut:
            piece = pieces[key]
            if isinstance(piece, Exception):
                return piece
            parts.append(piece)
        channels = max(piece.shape[2] for piece in parts)
        out = self._buffers.empty((height, width, channels))
        for piece, (_, there, here) in zip(parts, cut, strict=True):
            if piece.shape[2] == channels:
                out[here] = piece[there]
            else:
                out[here][..., :3] = piece[there]
                out[here][..., 3] = 255
        return out

    def _decode_key(self, key: Key) -> Pixels:
        level, plane, row, column = key
        return self.piece(plane, level, row, column)


def inside(window: Window, size: tuple[int, int]) -> Window | None:
    """The window, None where it reaches beyond a level of this (width, height)."""
    x, y, width, height = window
    return window if 0 <= x <= size[0] - width and 0 <= y <= size[1] - height else None


@lru_cache(4096)
def spans(offset: int, length: int, side: int) -> tuple[tuple[int, slice, slice], ...]:
    """What a stretch of pixels shows of pieces in a row: how many pieces on, which pixels of it, and where they go.

    Args:
        offset: px of the first piece before the stretch begins.
        length: px of the stretch.
        side: px of each piece.
    """
    found, at = [], 0
    for number in range(-(-(offset + length) // side)):
        first = offset if number == 0 else 0
        count = min(side - first, length - at)
        found.append((number, slice(first, first + count), slice(at, at + count)))
        at += count
    return tuple(found)
