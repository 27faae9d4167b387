"""Memory for pixels that is used again: fresh pages from the system cost a tile more than copying its pixels does."""

from __future__ import annotations

import math
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

IDLE_BYTES = 16 * 2**20
ALIGNED = 32  # bytes: libjpeg-turbo writes rows that begin there past the processor's caches, and others into them
PLACE = 16  # bytes behind such an address: pixels are still in the cache when they are used


class Buffers:
    """Arrays of uint8 whose memory comes back when nobody holds them, or any view of them, any more.

    Args:
        idle_bytes: how much memory may wait to be used again; what comes back beyond it is released.
    """

    def __init__(self, idle_bytes: int = IDLE_BYTES) -> None:
        self._limit = idle_bytes
        self._lock = threading.Lock()
        self._idle: defaultdict[int, list[_Memory]] = defaultdict(list)
        self._idle_bytes = 0
        self._lent: dict[int, _Loan] = {}

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """An array of this shape, C-contiguous and writable, its content arbitrary."""
        size = math.prod(shape)
        with self._lock:
            idle = self._idle.get(size)
            memory = idle.pop() if idle else None
            if memory is not None:
                self._idle_bytes -= size
        if memory is None:
            memory = _Memory(size)
        # A view refers to the array that its memory belongs to. That is this one, since a bytearray is no array: it
        # lives as long as any of its views.
        owner = np.frombuffer(memory.bytes, np.uint8, size, memory.start)
        loan = _Loan(owner, self._come_back)
        loan.memory = memory
        self._lent[id(loan)] = loan
        return owner.reshape(shape)

    def _come_back(self, loan: _Loan) -> None:
        """Called wherever the last holder lets go, in the middle of anything: it must not wait for a lock."""
        del self._lent[id(loan)]
        if not self._lock.acquire(blocking=False):
            return  # then it is released; it is not worth waiting for
        try:
            size = loan.memory.size
            if self._idle_bytes + size > self._limit:  # memory of sizes that came earlier gives way
                kept = self._idle[size]
                self._idle = defaultdict(list, {size: kept})
                self._idle_bytes = len(kept) * size
            if self._idle_bytes + size <= self._limit:
                self._idle[size].append(loan.memory)
                self._idle_bytes += size
        finally:
            self._lock.release()


class _Memory:
    """``size`` bytes from ``start`` on, at a good address."""

    __slots__ = ("bytes", "size", "start")

    def __init__(self, size: int) -> None:
        self.bytes, self.size = bytearray(size + ALIGNED), size
        self.start = (PLACE - np.frombuffer(self.bytes, np.uint8).ctypes.data) % ALIGNED


class _Loan(weakref.ref[NDArray[np.uint8]]):
    """A weak reference to a lent array, with its memory."""

    __slots__ = ("memory",)
    memory: _Memory
    __callback__: Callable[[_Loan], None]
