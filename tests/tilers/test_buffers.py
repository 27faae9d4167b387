"""Memory that is used again: never while anybody looks at it, and never more of it than may wait."""

from __future__ import annotations

import gc
import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilers.buffers import Buffers


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_when_its_array_is_gone() -> None:
    buffers = Buffers()
    first = buffers.empty((4, 5, 3))
    assert first.shape == (4, 5, 3)
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    assert first.flags.writeable
    place = address(first)
    del first
    gc.collect()
    assert address(buffers.empty((5, 4, 3))) == place
    assert buffers._lent == {}  # the last one was thrown away at once


def test_a_view_of_a_view_keeps_the_memory() -> None:
    buffers = Buffers()
    array = buffers.empty((8, 8, 3))
    array[:] = 7
    view = array[2:][:, 3:][..., 1].T
    del array
    gc.collect()
    other = buffers.empty((8, 8, 3))
    other[:] = 9
    assert (view == 7).all()
    place = address(view) - (2 * 8 + 3) * 3 - 1
    del view
    gc.collect()
    assert address(buffers.empty((8, 8, 3))) == place


def test_what_others_made_of_an_array_keeps_the_memory() -> None:
    buffers = Buffers()
    array = buffers.empty((6, 6, 3))
    array[:] = 5
    shown = memoryview(array)
    del array
    gc.collect()
    buffers.empty((6, 6, 3))[:] = 1
    assert shown[5, 5, 2] == 5


def test_no_more_waits_than_the_limit() -> None:
    buffers = Buffers(idle_bytes=250)
    held = [buffers.empty((10, 10)) for _ in range(5)]
    held.clear()
    gc.collect()
    assert buffers._idle_bytes == sum(m.size for many in buffers._idle.values() for m in many) == 200


def test_memory_of_another_size_gives_way() -> None:
    buffers = Buffers(idle_bytes=250)
    held = [buffers.empty((100,)) for _ in range(2)]
    held.clear()
    gc.collect()
    place = address(held_now := buffers.empty((240,)))
    del held_now
    gc.collect()
    assert buffers._idle_bytes == 240
    assert address(buffers.empty((240,))) == place


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from([(3,), (2, 3), (7,), (300,)]), st.integers(0, 5)), max_size=40),
    limit=st.sampled_from([0, 6, 10**6]),
)
def test_arrays_that_are_held_never_change(steps: list[tuple[tuple[int, ...], int]], limit: int) -> None:
    buffers = Buffers(idle_bytes=limit)
    held: dict[int, tuple[np.ndarray, int]] = {}
    for number, (shape, slot) in enumerate(steps):
        held.pop(slot, None)
        array = buffers.empty(shape)
        array[:] = number
        held[slot] = (array, number)
        assert all((kept == value).all() for kept, value in held.values())
        assert buffers._idle_bytes <= limit


def test_threads_that_pass_arrays_on_never_see_them_change() -> None:
    buffers = Buffers()
    wrong: list[int] = []

    def work(name: int) -> None:
        held = []
        for number in range(400):
            array = buffers.empty((64,))
            array[:] = (number + name) % 251
            held.append((array[3:], (number + name) % 251))
            if len(held) > number % 7:
                kept, value = held.pop(0)
                wrong.extend([number] if not (kept == value).all() else [])

    threads = [threading.Thread(target=work, args=(n * 60,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert wrong == []
    assert buffers._lent == {}


@given(shape=st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 4)))
def test_arrays_begin_where_libjpeg_turbo_leaves_pixels_in_the_cache(shape: tuple[int, int, int]) -> None:
    array = Buffers().empty(shape)
    assert address(array) % 32 == 16
    assert array.size == shape[0] * shape[1] * shape[2]
