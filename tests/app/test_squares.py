"""Squares of the pyramid: their pixels, one reading for many, dropped readings, and the bound on what is kept."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tilers import open_slide
from wsi_chat.app.pyramid import Pyramid
from wsi_chat.app.squares import Kept, SlideReader, Workshop
from wsi_chat.schema import Box


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


@pytest.mark.parametrize(("size", "depth"), [((256, 256), 0), ((257, 10), 1), ((4096, 4096), 4), ((1, 1), 0)])
def test_depth_is_the_level_at_which_one_square_holds_the_slide(size: tuple[int, int], depth: int) -> None:
    pyramid = Pyramid(*size)
    assert pyramid.depth == depth
    assert pyramid.grid(depth) == (1, 1)
    assert not pyramid.holds(depth + 1, 0, 0)


def test_squares_cover_the_slide_and_no_more() -> None:
    pyramid = Pyramid(1536, 1000)
    assert pyramid.grid(0) == (6, 4)
    assert pyramid.holds(0, 5, 3)
    assert not pyramid.holds(0, 6, 0)
    assert not pyramid.holds(0, 0, 4)
    assert not pyramid.holds(-1, 0, 0)
    assert pyramid.box(1, 2, 1) == Box(1024, 512, 1536, 1024)


@pytest.mark.parametrize(("z", "x", "y"), [(0, 2, 1), (1, 1, 0), (2, 0, 0), (3, 0, 0)])
def test_a_square_shows_its_place(small_slide: Path, z: int, x: int, y: int) -> None:
    with open_slide(small_slide) as slide:
        reader = SlideReader(slide)
        box = reader.pyramid.box(z, x, y)
        shown = pixels(reader.square(z, x, y))
        assert shown.shape == (256, 256, 3)
        assert np.abs(shown - slide.crop(box, 256)).mean() < 4  # JPEG
        reader.close()


def test_far_squares_of_a_file_without_levels_are_cut_from_the_overview(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    canvas = np.full((2048, 9000, 3), 230, np.uint8)
    for n, color in enumerate(rng.integers(0, 200, (9, 3))):
        canvas[:, n * 1000 : n * 1000 + 500] = color
    path = tmp_path / "flat.png"
    Image.fromarray(canvas).save(path)
    with open_slide(path, mpp=0.5) as slide:
        assert len(slide.level_sizes) == 1
        reader = SlideReader(slide)
        z = reader.pyramid.depth
        shown = pixels(reader.square(z, 0, 0))
        whole = slide.crop(reader.pyramid.box(z, 0, 0), 256).astype(int)
        inside = shown[: 2048 >> z, : 9000 >> z]
        assert np.abs(inside - whole[: inside.shape[0], : inside.shape[1]]).mean() < 12
        reader.close()


def test_kept_pictures_are_bounded_and_the_oldest_goes_first() -> None:
    kept = Kept(capacity=100)
    kept.put("a", b"x" * 40)
    kept.put("b", b"x" * 40)
    assert kept.get("a") is not None  # used last
    kept.put("c", b"x" * 40)
    assert kept.get("b") is None
    assert kept.get("a") is not None
    assert kept.held == 80
    kept.put("a", b"y" * 10)
    assert kept.held == 50
    kept.put("huge", b"x" * 101)
    assert kept.get("huge") is None
    assert kept.held == 50


def test_many_who_ask_for_one_picture_share_a_reading() -> None:
    made = []

    def make() -> bytes:
        made.append(1)
        return b"picture"

    async def ask() -> list[bytes]:
        shop = Workshop(workers=2)
        try:
            return await asyncio.gather(*(shop.picture("key", make) for _ in range(20)))
        finally:
            shop.close()

    assert asyncio.run(ask()) == [b"picture"] * 20
    assert len(made) == 1


def test_a_picture_that_nobody_waits_for_is_not_read() -> None:
    going, read = threading.Event(), []

    async def ask() -> Workshop:
        shop = Workshop(workers=1)
        first = asyncio.ensure_future(shop.picture("slow", lambda: b"slow" if going.wait(10) else b""))
        await asyncio.sleep(0.05)
        unwanted = asyncio.ensure_future(shop.picture("gone", lambda: read.append("gone") or b"gone"))
        shared = [asyncio.ensure_future(shop.picture("both", lambda: read.append("both") or b"both")) for _ in range(2)]
        await asyncio.sleep(0.05)
        unwanted.cancel()
        shared[0].cancel()  # another still waits for that one
        await asyncio.sleep(0)
        going.set()
        assert await first == b"slow"
        assert await shared[1] == b"both"
        shop.close()
        return shop

    shop = asyncio.run(ask())
    assert read == ["both"]
    assert shop.dropped == 1


def test_what_fails_is_said_and_not_kept() -> None:
    async def ask() -> None:
        shop = Workshop(workers=1)
        answers = iter([ValueError("no"), None])

        def make() -> bytes:
            error = next(answers)
            if error is not None:
                raise error
            return b"now"

        with pytest.raises(ValueError, match="no"):
            await shop.picture("key", make)
        assert await shop.picture("key", make) == b"now"
        shop.close()

    asyncio.run(ask())


def test_each_focal_plane_of_a_stack_can_be_seen(shared_data: Path) -> None:
    path = shared_data.parent / "cases" / "ome-tiff-channels-and-stacks" / "zyx3.ome.tif"
    if not path.is_file():
        pytest.skip("the case of a focal stack is not here")
    with open_slide(path, mpp=0.5) as slide:
        reader = SlideReader(slide)
        if reader.planes < 2:
            pytest.skip("tilers reads no focal stacks yet")
        shown = [pixels(reader.square(0, 0, 0, plane)) for plane in range(reader.planes)]
        assert all(np.abs(shown[0] - other).mean() > 1 for other in shown[1:])
        reader.close()
