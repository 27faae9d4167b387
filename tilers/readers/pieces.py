"""Slides that are stored in pieces (tiles or strips): each piece is decoded once and shared by all threads.

Pieces are kept within CACHE_BYTES. Who knows what will be read announces it (``Backend.expect``): a piece is then kept
until its last announced use and dropped at once after it, so that the tiles on both sides of a border, and all that
overlap in one place, cost one decoding between them.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tilers.buffers import Buffers
from tilers.readers import Pixels, Region, WindowBackend

CACHE_BYTES = 64 * 2**20
STRIPES = 61  # locks that pieces share while they are decoded; far more than reading threads

Key = tuple[int, int, int, int]
"""(level, plane, row, column) of a piece."""


class PieceCache:
    """Decoded pieces of one slide, for all of its threads, within ``limit`` bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._decoding = [threading.Lock() for _ in range(STRIPES)]
        self._pieces: OrderedDict[Key, Pixels] = OrderedDict()
        self._uses: dict[tuple[int, int], NDArray[np.uint16]] = {}
        self._bytes = 0

    def expect(self, level: int, plane: int, shape: tuple[int, int], spans: Iterable[tuple[slice, slice]]) -> None:
        """Announce uses of the pieces of a level that has ``shape`` (rows, columns) of them, one per span and piece."""
        with self._lock:
            uses = self._uses.setdefault((level, plane), np.zeros(shape, np.uint16))
            for span in spans:
                uses[span] += 1

    def take(self, keys: Sequence[Key], decode: Callable[[Key], Pixels]) -> list[Pixels]:
        """Use pieces of one level and plane: those held, the others decoded, each by one thread while others wait.

        Raises what ``decode`` raises.
        """
        with self._lock:
            found = {key: self._pieces[key] for key in keys if key in self._pieces}
            if len(found) == len(keys):
                self._count_use(keys)
                return list(found.values())
        try:
            for wait in (False, True):  # first those that no other thread is at
                for key in keys:
                    piece = found.get(key)
                    if piece is None and (piece := self._decoded(key, decode, wait=wait)) is not None:
                        found[key] = piece
            return [found[key] for key in keys]
        finally:
            with self._lock:
                self._count_use(keys)

    def claim(self, key: Key) -> bool:
        """Whether a piece is not held and announced for one more use; that use is then the caller's, who decodes it.

        Nobody else will ask for it, so it need be neither kept nor copied.
        """
        with self._lock:
            uses = self._uses.get(key[:2])
            if uses is None or uses[key[2:]] != 1 or key in self._pieces:
                return False
            uses[key[2:]] = 0
            return True

    def _decoded(self, key: Key, decode: Callable[[Key], Pixels], *, wait: bool) -> Pixels | None:
        """The piece, decoded unless it is held by now; None where another thread is decoding and ``wait`` is false."""
        decoding = self._decoding[hash(key) % STRIPES]
        if not decoding.acquire(blocking=wait):
            return None
        try:
            with self._lock:
                held = self._pieces.get(key)
            if held is not None:
                return held
            piece = decode(key)
            with self._lock:
                self._pieces[key] = piece
                self._bytes += piece.nbytes
                self._shrink()
            return piece
        finally:
            decoding.release()

    def _count_use(self, keys: Sequence[Key]) -> None:
        """One announced use of each piece is over; after its last one it is dropped. Others become the latest used.

        The caller holds the lock.
        """
        uses = self._uses.get(keys[0][:2])
        for key in keys:
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

    def expect(self, regions: Iterable[Region]) -> None:
        by_level: dict[int, list[tuple[slice, slice]]] = {}
        for x, y, level, width, height in regions:
            grid = self.grid(level)
            if grid is None:
                continue
            rows, columns, high, wide = grid
            scale = self.level_downsamples[level]
            left, top = round(x / scale), round(y / scale)
            span = np.s_[
                max(0, top // high) : min(rows, -(-(top + height) // high)),
                max(0, left // wide) : min(columns, -(-(left + width) // wide)),
            ]
            by_level.setdefault(level, []).append(span)
        for level, spans in by_level.items():
            rows, columns, _, _ = self.grid(level) or (0, 0, 1, 1)
            for plane in range(self.planes):
                self._cache.expect(level, plane, (rows, columns), spans)

    def window(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        return self.plane_window(self.planes // 2, level, x, y, width, height)

    def plane_window(self, plane: int, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """A window as an array of its own, which nobody else holds."""
        grid = self.grid(level)
        assert grid is not None, f"level {level} is not stored in pieces"
        _, _, high, wide = grid
        rows, columns = range(y // high, -(-(y + height) // high)), range(x // wide, -(-(x + width) // wide))
        keys = [(level, plane, row, column) for row in rows for column in columns]
        if (height, width) == (high, wide) and len(keys) == 1 and self._cache.claim(keys[0]):
            return self._decode_key(keys[0])
        pieces = self._cache.take(keys, self._decode_key)
        channels = max(piece.shape[2] for piece in pieces)
        out = self._buffers.empty((height, width, channels))
        for (_, _, row, column), piece in zip(keys, pieces, strict=True):
            top, left = row * high - y, column * wide - x
            y0, x0 = max(0, top), max(0, left)
            y1, x1 = min(height, top + piece.shape[0]), min(width, left + piece.shape[1])
            part = piece[y0 - top : y1 - top, x0 - left : x1 - left]
            if part.shape[2] == channels:
                out[y0:y1, x0:x1] = part
            else:
                out[y0:y1, x0:x1, :3] = part
                out[y0:y1, x0:x1, 3] = 255
        return out

    def _decode_key(self, key: Key) -> Pixels:
        level, plane, row, column = key
        return self.piece(plane, level, row, column)
