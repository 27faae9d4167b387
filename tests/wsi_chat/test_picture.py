"""Pictures over arrays: to whoever looks, draws, compares or sends them, the images that Pillow would have made."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image, ImageDraw

from wsi_chat.dialects.frame import fit
from wsi_chat.engines.messages import receive, send
from wsi_chat.picture import ArrayPicture, image_sha256


def _pixels(seed: int = 0, width: int = 7, height: int = 5) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=30, deadline=None, database=None)
@given(some.integers(0, 2**32 - 1), some.integers(1, 40), some.integers(1, 40))
def test_it_shows_what_a_pillow_image_of_the_same_pixels_shows(seed: int, width: int, height: int) -> None:
    pixels = _pixels(seed, width, height)
    ours, theirs = ArrayPicture(pixels), Image.fromarray(pixels)
    assert (ours.mode, ours.size, ours.width, ours.height) == ("RGB", (width, height), width, height)
    assert np.array_equal(np.asarray(ours), pixels)
    assert ours.tobytes() == theirs.tobytes()
    assert ours == theirs
    assert theirs == ours
    assert image_sha256(ours) == image_sha256(theirs)
    assert ours.getpixel((0, height - 1)) == theirs.getpixel((0, height - 1))
    half = (max(1, width // 2), height)
    assert ours.resize(half).tobytes() == theirs.resize(half).tobytes()
    assert ours.convert("L").tobytes() == theirs.convert("L").tobytes()
    assert ours.copy().tobytes() == ours.crop().tobytes() == theirs.tobytes()
    assert ours.tobytes("raw", "BGR") == theirs.tobytes("raw", "BGR")
    files = io.BytesIO(), io.BytesIO()
    for image, file in zip((ours, theirs), files, strict=True):
        image.save(file, "PNG")
    assert files[0].getvalue() == files[1].getvalue()


def test_pixels_are_read_without_a_copy_and_cannot_be_written_through() -> None:
    pixels = _pixels()
    seen = np.asarray(ArrayPicture(pixels))
    assert np.shares_memory(seen, pixels)
    assert not seen.flags.writeable
    assert pixels.flags.writeable


@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.putpixel((1, 1), (1, 2, 3)),
        lambda image: image.paste((4, 5, 6), (0, 0, 2, 2)),
        lambda image: ImageDraw.Draw(image).line((0, 0, 6, 4), fill=(9, 9, 9)),
        lambda image: image.thumbnail((3, 3)),
        lambda image: image.putalpha(7),
    ],
)
def test_a_picture_that_is_changed_shows_the_change_and_its_array_does_not(looked_at: bool, change: Any) -> None:
    pixels = _pixels()
    ours, theirs, before = ArrayPicture(pixels), Image.fromarray(pixels), image_sha256(Image.fromarray(pixels))
    if looked_at:
        assert (ours.sha256, ours.getpixel((0, 0))) == (before, theirs.getpixel((0, 0)))
    seen = np.asarray(ours)
    change(ours)
    change(theirs)
    assert ours.tobytes() == theirs.tobytes()
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert image_sha256(ours) == image_sha256(theirs) != before
    assert np.array_equal(seen, pixels)
    assert np.array_equal(pixels, _pixels())
    back = pickle.loads(pickle.dumps(ours.convert("RGB"), 5))
    assert back.tobytes() == theirs.convert("RGB").tobytes()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("hashed", [False, True])
def test_it_is_pickled_with_its_hash(protocol: int, hashed: bool) -> None:
    picture = ArrayPicture(_pixels(3))
    if hashed:
        assert picture.sha256
    back = pickle.loads(pickle.dumps(picture, protocol))
    assert isinstance(back, ArrayPicture)
    assert back._sha256 == picture._sha256
    assert (back, back.sha256) == (picture, image_sha256(Image.fromarray(_pixels(3))))
    assert copy.deepcopy(picture) == picture


def test_one_that_was_changed_is_pickled_as_it_is_now() -> None:
    picture = ArrayPicture(_pixels(3))
    assert picture.sha256
    picture.putpixel((0, 0), (1, 2, 3))
    for protocol in (2, 4, 5):
        back = pickle.loads(pickle.dumps(picture, protocol))
        assert back.tobytes() == picture.tobytes()
        assert image_sha256(back) == image_sha256(picture)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 4), (0, 5, 3), (1, 4, 5, 3)])
def test_what_is_no_rgb_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no RGB picture"):
        ArrayPicture(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float32"):
        ArrayPicture(np.zeros((4, 5, 3), np.float32))


def test_pixels_that_do_not_lie_in_a_row_are_laid_out_anew() -> None:
    whole = _pixels(1, 20, 20)
    part = whole[3:9, 4:15]
    assert ArrayPicture(part).tobytes() == Image.fromarray(np.ascontiguousarray(part)).tobytes()


@pytest.mark.parametrize("size", [(7, 5), (14, 10), (3, 4)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_picture_is_fitted_as_pillow_does_and_no_longer_tied_to_the_one_given(size: Any, mode: str) -> None:
    given_ = Image.fromarray(_pixels(2)).convert(mode)
    plain = given_
    if mode == "RGBA":
        plain = Image.alpha_composite(Image.new("RGBA", given_.size, "white"), given_)
    plain = plain.convert("RGB")
    wanted = plain if plain.size == size else plain.resize(size, Image.Resampling.BICUBIC)
    fitted = fit(given_, size)
    assert fitted == wanted
    given_.paste(0, (0, 0, 7, 5))
    assert fitted == wanted
    assert fit(fitted, size) is fitted


# ------------------------------------------------------------------------------------------------ sent to a process


@settings(max_examples=25, deadline=None, database=None)
@given(some.lists(some.tuples(some.integers(1, 90), some.integers(1, 90), some.booleans()), max_size=4))
def test_what_is_sent_is_received_pictures_of_every_kind_among_it(wanted: list[tuple[int, int, bool]]) -> None:
    images = [
        (ArrayPicture if over_array else Image.fromarray)(_pixels(n, width, height))
        for n, (width, height, over_array) in enumerate(wanted)
    ]
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:

        def talk() -> None:
            for message in (("first", images), None, "last"):
                send(ours, message)

        sender = threading.Thread(target=talk)
        sender.start()
        name, got = receive(theirs)
        assert (name, receive(theirs), receive(theirs)) == ("first", None, "last")
        sender.join()
    assert got == images
    assert [image_sha256(image) for image in got] == [image_sha256(image) for image in images]


def test_a_picture_larger_than_the_pipe_holds_is_sent_whole_and_uncopied() -> None:
    picture = ArrayPicture(_pixels(5, 900, 700))
    assert picture.sha256
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        sender = threading.Thread(target=send, args=(ours, [picture, picture]))
        sender.start()
        one, other = receive(theirs)
        sender.join()
    assert one is other
    assert (one, one._sha256) == (picture, picture.sha256)
    assert not np.asarray(one).flags.writeable


def test_a_sender_that_dies_in_the_middle_is_an_end_and_no_picture() -> None:
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        ours.send((pickle.dumps("anything"), [1000]))
        ours.close()
        with pytest.raises(EOFError):
            receive(theirs)


def test_a_receiver_that_is_gone_is_an_oserror() -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with ours, pytest.raises(OSError):  # noqa: PT011, which one depends on how far it came
        send(ours, ArrayPicture(_pixels(5, 900, 700)))


def test_threads_that_save_one_picture_at_once_all_save_it() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    wanted = io.BytesIO()
    Image.fromarray(pixels).save(wanted, "PNG")
    saved: list[bytes] = []

    def save(picture: ArrayPicture, begin: threading.Barrier) -> None:
        begin.wait()
        file = io.BytesIO()
        picture.save(file, "PNG")
        saved.append(file.getvalue())

    for _ in range(60):
        picture, begin = ArrayPicture(pixels), threading.Barrier(6)
        threads = [threading.Thread(target=save, args=(picture, begin)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert saved == [wanted.getvalue()] * 360
