"""The registry with plugins, and the backends for plain images, odd TIFFs and damaged ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tilers import open_slide, reader_names, register_reader
from tilers.readers import _plugins, plain, unregister_reader
from wsi_chat.errors import SettingError, SlideUnreadable, SlideUnsupported

from .conftest import Faults, MemoryBackend, textured


def test_the_built_in_readers_in_their_order() -> None:
    assert reader_names()[:5] == ("openslide", "tiff", "tiffslide", "plain", "omezarr")


class FakePoint:
    def __init__(self, name: str, target: object) -> None:
        self.name, self.value, self._target = name, f"kfb_plugin:{name}", target

    def load(self) -> object:
        if isinstance(self._target, Exception):
            raise self._target
        return self._target


def test_an_entry_point_reads_a_new_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = textured(90, 70)
    asked = []

    def opener(path: Path) -> MemoryBackend:
        asked.append(path.name)
        return MemoryBackend([image], Faults(), 0.3)

    opener.suffixes = (".KFB",)
    points = [FakePoint("kfb", opener), FakePoint("broken", ImportError("no such library")), FakePoint("plain", opener)]
    monkeypatch.setattr("tilers.readers.entry_points", lambda group: points if group == "wsi_chat.readers" else [])
    monkeypatch.setattr("tilers.readers._plugins", _plugins.__wrapped__)  # not what an earlier test found
    assert reader_names()[-1] == "kfb"
    path = tmp_path / "slide.kfb"  # the plugin comes before the built-in reader of the same suffix, by its name
    Image.fromarray(image[:10, :10]).save(path, format="PNG")  # another reader would open it too
    with open_slide(path) as slide:
        assert (slide.reader, slide.size, slide.mpp) == ("kfb", (90, 70), 0.3)
    assert asked == ["slide.kfb"]


def test_a_plugin_that_crashes_leaves_other_readers_their_turn(tiff: Callable[..., Path]) -> None:
    def crash(path: Path) -> MemoryBackend:
        raise RuntimeError("segfault of the vendor's library")

    path = tiff("a.tiff", textured(80, 80))
    register_reader("vendor", crash, suffixes=[".tiff"])
    try:
        with open_slide(path) as slide:
            assert slide.reader == "tiff"
        with pytest.raises(SlideUnsupported, match="vendor: segfault"):
            open_slide(path, reader="vendor")
    finally:
        unregister_reader("vendor")


def test_names_of_readers_are_checked(tiff: Callable[..., Path]) -> None:
    with pytest.raises(SettingError, match=r"'cucim'.*openslide, tiff, tiffslide"):
        open_slide(tiff("a.tiff", textured(80, 80)), reader="cucim")
    with pytest.raises(SettingError, match="built in"):
        register_reader("openslide", lambda path: MemoryBackend([textured(9, 9)], Faults(), None))


# ------------------------------------------------------------------------------------------ plain images


@pytest.mark.parametrize(("suffix", "dpi", "mpp"), [("png", 96, None), ("png", 50800, 0.5), ("jpg", 72, None)])
def test_plain_images_and_their_dpi(tmp_path: Path, suffix: str, dpi: int, mpp: float | None) -> None:
    path = tmp_path / f"field.{suffix}"
    image = textured(120, 80)
    Image.fromarray(image).save(path, dpi=(dpi, dpi), quality=95)
    with open_slide(path) as slide:
        assert (slide.reader, slide.size) == ("plain", (120, 80))
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        if suffix == "png":
            assert np.array_equal(slide.read_region(10, 20, 0, 50, 40), image[20:60, 10:60])


def test_a_png_with_transparency_shows_background(tmp_path: Path) -> None:
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[:20, :, :] = (90, 80, 70, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.5) as slide:
        got, scanned = slide.read_with_mask(0, 0, 0, 40, 40)
    assert (got[:20] == (90, 80, 70)).all()
    assert (got[20:] == 255).all()
    assert scanned is not None
    assert not scanned[20:].any()


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    grey = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.5) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, 64, 64)[..., 1], (grey >> 8).astype(np.uint8))


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(textured(200, 100)).save(path)
    monkeypatch.setattr(plain, "MAX_PIXELS", 19_999)
    monkeypatch.setattr(plain, "decode", lambda path, image: pytest.fail("decoded"))
    with pytest.raises(SlideUnsupported, match=r"200 x 100 px.*tiled pyramidal TIFF"):
        open_slide(path)


@pytest.mark.parametrize("limit", [15_000, 5_000])
def test_pillows_bomb_warnings_and_errors_never_surface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(textured(200, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # 20,000 px: a warning above it, an error above twice
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if limit * 2 > 20_000:
            with open_slide(path) as slide:
                assert slide.size == (200, 100)
        else:
            with pytest.raises(SlideUnsupported, match="too large for a plain image"):
                open_slide(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_off_image_is_unreadable_and_not_half_grey(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(textured(300, 300)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SlideUnreadable, match=r"a\.(jpg|png).*cannot be decoded"):
        open_slide(path)


# ------------------------------------------------------------------------------------------ TIFFs


def test_a_stripped_tiff_opens(tiff: Callable[..., Path]) -> None:
    image = textured(300, 200)
    with open_slide(tiff("a.tif", image, tile=None, compression=None)) as slide:
        assert (slide.reader, slide.mpp) == ("tiff", pytest.approx(0.5))
        assert np.array_equal(slide.read_region(30, 40, 0, 100, 90), image[40:130, 30:130])


def test_a_large_one_piece_tiff_is_refused_from_its_header(
    tiff: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilers.segments.MAX_STRIP_BYTES", 100_000)
    path = tmp_strip(tiff, textured(300, 200))
    with pytest.raises(SlideUnsupported, match=r"in one piece of 300 x 200 px.*tiled TIFF"):
        open_slide(path)


def tmp_strip(tiff: Callable[..., Path], image: np.ndarray) -> Path:
    path = tiff("strip.tif", image, tile=None)
    tifffile.imwrite(path, image, photometric="rgb", rowsperstrip=image.shape[0], compression="deflate")
    return path


def test_grey_and_inverted_grey(tmp_path: Path) -> None:
    grey = textured(300, 200)[..., 0]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, grey, tile=(64, 64), photometric="miniswhite")
    with open_slide(path, mpp=0.5) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, 300, 200), np.dstack([255 - grey] * 3))


def damage(path: Path, name: str, tag: str, index: int, value: int) -> Path:
    """A copy of a TIFF with one entry of a tag of its first page overwritten."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        entry = file.pages[0].tags[tag]
        size = {3: 2, 4: 4, 16: 8}[int(entry.dtype)]
        at = entry.valueoffset + index * size
        order = "little" if file.byteorder == "<" else "big"
    data[at : at + size] = value.to_bytes(size, order)
    copy = path.with_name(name)
    copy.write_bytes(data)
    return copy


@pytest.mark.parametrize("reader", ["openslide", "tiff", "tiffslide"])
def test_a_tile_that_was_never_written_is_outside_the_scan(tiff: Callable[..., Path], reader: str) -> None:
    image = textured(600, 600)
    path = damage(tiff("a.tiff", image), "b.tiff", "TileByteCounts", 4, 0)  # the middle one of 3 x 3
    with open_slide(path, reader=reader) as slide:
        got, scanned = slide.read_with_mask(200, 230, 0, 400, 370)
    assert scanned is not None
    assert not scanned[26:282, 56:312].any()
    assert scanned.sum() == 400 * 370 - 256 * 256
    assert (got[26:282, 56:312] == 255).all()
    assert np.array_equal(got[scanned], image[230:, 200:][scanned])


@pytest.mark.parametrize("reader", ["tiff", "tiffslide"])
def test_what_lies_beyond_the_end_is_reported(tiff: Callable[..., Path], reader: str) -> None:
    image = textured(600, 600)
    path = tiff("a.tiff", image)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with open_slide(path, reader=reader) as slide:
        assert "cut off" in slide.notes[0]
        assert np.array_equal(slide.read_region(0, 0, 0, 256, 256), image[:256, :256])
        with pytest.raises(SlideUnreadable, match="beyond the end of the file"):
            slide.read_region(500, 500, 0, 50, 50)


def test_a_scan_that_lost_only_its_tail_still_opens_and_says_so(shared_data: Path, tmp_path: Path) -> None:
    whole = shared_data / "slides" / "CMU-1-Small-Region.svs"
    path = tmp_path / "tail.svs"
    path.write_bytes(whole.read_bytes()[:1_454_216])  # after level 0 and its directory, inside the next image
    with open_slide(path) as slide, open_slide(whole) as sound:
        assert slide.reader == "tiffslide"
        assert slide.mpp_source == "aperio.MPP"
        assert "cut off at byte 1454216" in slide.notes[0]
        ours, theirs = (s.read_region(700, 900, 0, 400, 400).astype(int) for s in (slide, sound))
        assert np.abs(ours - theirs).max() <= 3  # two JPEG 2000/JPEG decoders
