"""Pieces of a slide: shared by all threads, decoded once, used by single windows and by runs of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilers.readers import Pixels, Region
from tilers.readers.pieces import PieceBackend, PieceCache, spans

from .conftest import textured


class Grid(PieceBackend):
    """A picture in pieces of 16 px, which counts what is decoded."""

    def __init__(self, image: Pixels, limit: int) -> None:
        super().__init__()
        self._cache = PieceCache(limit)
        self.image, self.decoded, self.lock = image, Counter[tuple[int, int]](), threading.Lock()
        self.level_sizes, self.level_downsamples = ((image.shape[1], image.shape[0]),), (1.0,)

    def grid(self, level: int) -> tuple[int, int, int, int]:
        return -(-self.image.shape[0] // 16), -(-self.image.shape[1] // 16), 16, 16

    def piece(self, plane: int, level: int, row: int, column: int) -> Pixels:
        with self.lock:
            self.decoded[row, column] += 1
        return np.array(self.image[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16])

    def close(self) -> None:
        pass


REGIONS = st.lists(
    st.tuples(st.integers(-9, 99), st.integers(-9, 69), st.just(0), st.integers(1, 60), st.integers(1, 60)), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(regions=REGIONS, limit=st.sampled_from([1, 3000, 10**6]), announced=st.booleans())
def test_regions_are_the_picture_and_announced_pieces_are_decoded_once(
    regions: list[tuple[int, int, int, int, int]], limit: int, announced: bool
) -> None:
    image = textured(100, 70)
    backend = Grid(image, limit)
    if announced:
        backend.expect([region] for region in regions)
    for x, y, level, w, h in regions:
        framed = np.pad(image, ((9, 130), (9, 160), (0, 0)))[y + 9 : y + 9 + h, x + 9 : x + 9 + w]
        read = backend.read(x, y, level, w, h)
        assert np.array_equal(read[..., :3], framed)
        assert backend._cache._bytes <= max(limit, 16 * 16 * 3)
        assert backend._cache._bytes == sum(piece.nbytes for piece in backend._cache._pieces.values())
    if limit == 10**6:
        assert set(backend.decoded.values()) <= {1}
        assert not (announced and backend._cache._pieces)


def test_a_piece_that_one_tile_alone_wants_is_handed_over_and_not_kept() -> None:
    backend = Grid(textured(64, 64), 10**6)
    backend.expect([[(16, 32, 0, 16, 16)], [(32, 32, 0, 16, 16)], [(32, 32, 0, 20, 16)]])
    mine = backend.read(16, 32, 0, 16, 16)
    assert backend._cache._pieces == {}
    assert np.array_equal(mine, backend.image[32:48, 16:32])
    mine[:] = 0
    assert np.array_equal(backend.read(16, 32, 0, 16, 16), backend.image[32:48, 16:32])  # unannounced: decoded again
    shared = backend.read(32, 32, 0, 16, 16)  # wanted once more: kept, and not the caller's to change
    shared[:] = 0
    assert np.array_equal(backend.read(32, 32, 0, 20, 16), backend.image[32:48, 32:52])
    assert backend.decoded[2, 1] == 2
    assert backend.decoded[2, 2] == 1


def test_threads_that_want_the_same_piece_decode_it_once() -> None:
    backend = Grid(textured(320, 320), 10**6)
    regions: Iterable[tuple[int, ...]] = [(x, y, 0, 40, 40) for y in range(0, 280, 20) for x in range(0, 280, 20)]
    backend.expect([region] for region in list(regions) * 4)  # type: ignore[misc]
    threads = [threading.Thread(target=lambda: [backend.read(*r) for r in regions]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(backend.decoded.values()) == {1}
    assert backend._cache._pieces == {}


def test_a_thread_decodes_what_is_free_before_it_waits_for_another() -> None:
    backend = Grid(textured(64, 64), 10**6)
    begun, other = threading.Event(), threading.Event()
    decode = backend.piece

    def piece(plane: int, level: int, row: int, column: int) -> Pixels:
        if (row, column) == (0, 0):
            begun.set()
            assert other.wait(20), "the second thread waits for the first, and decodes nothing"
        elif (row, column) == (0, 1):
            other.set()
        return decode(plane, level, row, column)

    backend.piece = piece  # type: ignore[method-assign]
    read: list[Pixels] = []
    first = threading.Thread(target=lambda: read.append(backend.read(0, 0, 0, 10, 10)))
    first.start()
    assert begun.wait(20)
    assert np.array_equal(backend.read(0, 0, 0, 30, 10), backend.image[:10, :30])
    first.join()
    assert np.array_equal(read[0], backend.image[:10, :10])
    assert backend.decoded[0, 0] == 1


def test_what_a_failed_decoding_leaves_behind_is_nothing() -> None:
    backend = Grid(textured(64, 64), 10**6)
    backend.expect([[(0, 0, 0, 40, 40)], [(20, 20, 0, 40, 40)]])
    decode, backend.piece = backend.piece, lambda *_: (_ for _ in ()).throw(OSError("a hiccup"))  # type: ignore[method-assign]
    with pytest.raises(OSError, match="hiccup"):
        backend.read(0, 0, 0, 40, 40)
    backend.piece = decode  # type: ignore[method-assign]
    assert np.array_equal(backend.read(20, 20, 0, 40, 40), backend.image[20:60, 20:60])
    assert backend._cache._bytes == 0


# ------------------------------------------------------------------------------------------ runs


def _shown(image: Pixels, region: Region) -> Pixels | None:
    """What a run should give of a region: its pixels, or None where it reaches beyond the picture."""
    x, y, _, w, h = region
    inside = x >= 0 and y >= 0 and x + w <= image.shape[1] and y + h <= image.shape[0]
    return image[y : y + h, x : x + w] if inside else None


@settings(max_examples=80, deadline=None)
@given(
    runs=st.lists(REGIONS.filter(bool), max_size=5), limit=st.sampled_from([1, 3000, 10**6]), announced=st.booleans()
)
def test_runs_are_the_picture_and_their_announced_pieces_are_decoded_once(
    runs: list[list[Region]], limit: int, announced: bool
) -> None:
    image = textured(100, 70)
    backend = Grid(image, limit)
    if announced:
        backend.expect(runs)
    for run in runs:
        for region, pixels in zip(run, backend.read_run(0, run), strict=True):
            wanted = _shown(image, region)
            if wanted is None or pixels is None:
                assert wanted is pixels, region
                backend.read(*region)  # by itself, as whoever gets None does
            else:
                assert np.array_equal(pixels, wanted)
                pixels[:] = 0  # it is the caller's alone
        assert backend._cache._bytes == sum(piece.nbytes for piece in backend._cache._pieces.values())
    if limit == 10**6 and announced and all(_shown(image, region) is not None for region in chain(*runs)):
        assert set(backend.decoded.values()) <= {1}
        assert not backend._cache._pieces


def test_a_damaged_piece_costs_a_run_the_regions_that_show_it() -> None:
    backend = Grid(textured(64, 64), 10**6)
    decode = backend.piece

    def piece(plane: int, level: int, row: int, column: int) -> Pixels:
        if (row, column) == (1, 1):
            raise ValueError("damaged")
        return decode(plane, level, row, column)

    backend.piece = piece  # type: ignore[method-assign]
    run = [(0, 0, 0, 16, 16), (8, 8, 0, 16, 16), (16, 16, 0, 16, 16), (32, 16, 0, 32, 40)]
    backend.expect([run])
    read = backend.read_run(0, run)
    assert [pixels is None for pixels in read] == [False, True, True, False]
    for pixels, region in zip(read, run, strict=True):
        assert pixels is None or np.array_equal(pixels, _shown(backend.image, region))
    assert backend._cache._pieces == {}
    with pytest.raises(ValueError, match="damaged"):
        backend.read(*run[1])


def test_lack_of_memory_is_no_damage() -> None:
    backend = Grid(textured(64, 64), 10**6)
    backend.piece = lambda *_: (_ for _ in ()).throw(MemoryError())  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        backend.read_run(0, [(0, 0, 0, 16, 16), (8, 8, 0, 16, 16)])


def test_large_pieces_are_not_held_by_the_dozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are announced and read one region after another."""
    monkeypatch.setattr("tilers.readers.pieces.RUN_PIECE_PX", 16 * 16 - 1)
    backend = Grid(textured(64, 64), 10**6)
    run = [(0, 0, 0, 40, 20), (20, 0, 0, 40, 20)]
    backend.expect([run])
    assert backend.read_run(0, run) == [None, None]
    for region in run:
        assert np.array_equal(backend.read(*region), _shown(backend.image, region))
    assert set(backend.decoded.values()) == {1}
    assert backend._cache._pieces == {}


@given(offset=st.integers(0, 40), length=st.integers(1, 200), side=st.integers(1, 50))
def test_spans_cover_a_stretch_from_the_first_pixel_to_the_last(offset: int, length: int, side: int) -> None:
    offset %= side
    shown = np.full(length, -1)
    for number, there, here in spans(offset, length, side):
        assert 0 <= there.start < there.stop <= side
        shown[here] = np.arange(number * side, (number + 1) * side)[there]
    assert shown.tolist() == list(range(offset, offset + length))


def test_threads_that_read_overlapping_runs_decode_each_piece_once() -> None:
    backend = Grid(textured(320, 320), 10**6)
    runs = [[(x, y, 0, 40, 40) for x in range(0, 280, 20)] for y in range(0, 280, 20)]
    backend.expect(runs)
    wrong: list[Region] = []

    def read(part: Iterable[list[Region]]) -> None:
        for run in part:
            for region, pixels in zip(run, backend.read_run(0, run), strict=True):
                if pixels is None or not np.array_equal(pixels, _shown(backend.image, region)):
                    wrong.append(region)

    threads = [threading.Thread(target=read, args=(runs[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(backend.decoded.values()) == {1}
    assert backend._cache._pieces == {}
