"""Flat pictures: upright, RGB, checked, and the same through ``open_picture`` and ``open_slide``."""

from __future__ import annotations

import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from tilers import open_slide
from tilers.picture import open_picture, picture_size
from tilers.samples import BAND_ROWS, Depth
from wsi_chat.errors import SlideNotFound, SlideUnreadable, SlideUnsupported

from .conftest import textured


def save(path: Path, image: np.ndarray, *, orientation: int = 1, **options: object) -> Path:
    picture = Image.fromarray(image)
    if path.suffix == ".tif":
        picture.save(path, tiffinfo={274: orientation}, **options)  # type: ignore[arg-type]
    else:
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(path, exif=exif, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "tiled.tif"])
def test_every_orientation_is_upright_everywhere(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = textured(90, 64)
    path = tmp_path / f"a.{suffix}"
    if suffix == "tiled.tif":
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, image, photometric="rgb", tile=(32, 48), extratags=tags, metadata=None)
    else:
        save(path, image, orientation=orientation, **({"lossless": True} if suffix == "webp" else {}))
    if suffix == "tiled.tif":
        wanted = np.asarray(_oriented(Image.fromarray(image), orientation))
    else:
        with Image.open(path) as stored:
            wanted = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    size = (90, 64) if orientation < 5 else (64, 90)
    assert picture_size(path) == size
    picture = open_picture(path)
    assert (picture.mode, picture.size) == ("RGB", size)
    assert np.array_equal(np.asarray(picture), wanted)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.size == size
        assert np.array_equal(slide.read_region(0, 0, 0, *size), wanted)
        assert np.array_equal(slide.read_region(20, 30, 0, 40, 25), wanted[30:55, 20:60])


@pytest.mark.parametrize(
    ("written", "shown", "remark"),
    [
        ("a.jpg", "a.svs", "the file is a JPEG picture of one level, though its suffix is .svs"),
        ("a.png", "a.JPG", "the file is a PNG picture of one level, though its suffix is .jpg"),
        ("a.jpg", "a.JPEG", None),
        ("a.png", "a", None),
    ],
)
def test_a_picture_under_another_suffix_is_remarked_on(
    tmp_path: Path, written: str, shown: str, remark: str | None
) -> None:
    save(tmp_path / written, textured(64, 64)).rename(tmp_path / shown)
    with open_slide(tmp_path / shown, mpp=0.5) as slide:
        assert slide.size == (64, 64)
        assert [note for note in slide.notes if "suffix" in note] == ([] if remark is None else [remark])


def _oriented(image: Image.Image, orientation: int) -> Image.Image:
    exif = image.getexif()
    exif[0x0112] = orientation
    return ImageOps.exif_transpose(image)


def test_transparent_pixels_of_a_picture_are_white(tmp_path: Path) -> None:
    rgba = np.zeros((10, 20, 4), np.uint8)
    rgba[:5] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = np.asarray(open_picture(tmp_path / "a.png"))
    assert (got[:5] == (10, 20, 30)).all()
    assert (got[5:] == 255).all()


def test_cmyk_jpegs_keep_their_colours(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), (200, 120, 60), np.uint8)
    Image.fromarray(image).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    got = np.asarray(open_picture(tmp_path / "a.jpg")).reshape(-1, 3).mean(axis=0)
    assert got == pytest.approx((200, 120, 60), abs=4)


@pytest.mark.parametrize("depth", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_pngs_are_scaled_by_the_depth_in_use(tmp_path: Path, depth: int, channels: int) -> None:
    import imagecodecs

    image = textured(60, 40)[..., :channels]
    image[0, 0] = 255
    wide = (image.astype(np.uint16) << (depth - 8)).squeeze()
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(wide))
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png"))[..., :channels], image)
    with open_slide(tmp_path / "a.png") as slide:
        assert [f"{depth}-bit values" in note for note in slide.notes] == ([True] if depth < 16 else [])


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_a_zeroed_sector_is_refused(tmp_path: Path, progressive: bool) -> None:
    path = save(tmp_path / "a.jpg", textured(300, 300), quality=90, progressive=progressive)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 512] = bytes(512)
    path.write_bytes(data)
    with pytest.raises(SlideUnreadable, match=r"a\.jpg: the image cannot be decoded: .*(orrupt JPEG|lost sector)"):
        open_picture(path)


def test_a_png_whose_last_checksum_is_wrong_is_refused(tmp_path: Path) -> None:
    import struct
    import zlib

    path = save(tmp_path / "a.png", textured(100, 100))
    data = path.read_bytes()
    at = data.rindex(b"IDAT") - 4
    (length,) = struct.unpack(">I", data[at : at + 4])
    body = data[at + 8 : at + 8 + length - 4] + b"\0\0\0\0"  # zlib's checksum of the pixels, with a right CRC around it
    chunk = data[at : at + 4] + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    path.write_bytes(data[:at] + chunk + data[at + 12 + length :])
    with pytest.raises(SlideUnreadable, match=r"a\.png.*incorrect data check"):
        open_picture(path)


def test_pictures_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SlideNotFound, match=r"no picture .*nowhere\.png"):
        open_picture(tmp_path / "nowhere.png")
    (tmp_path / "a.png").write_text("no picture")
    for read in (open_picture, picture_size):
        with pytest.raises(SlideUnsupported, match=r"a\.png cannot be read as a picture"):
            read(tmp_path / "a.png")


def test_a_picture_of_too_many_pixels_is_refused_from_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilers.readers.plain.MAX_PIXELS", 5_000)
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, textured(100, 60))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(SlideUnsupported, match=r"100 x 60 px"):
                open_picture(path)


@pytest.mark.parametrize("top", [65535.0, 4095.0, 1000.0, 1.0])
def test_samples_shrink_band_by_band_to_the_same_values(top: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(0, top, (2 * BAND_ROWS + 7, 5, 4)).astype(np.float32 if top == 1 else np.uint16)
    depth = Depth(top)
    rows = np.stack([depth.shrink(row) for row in values])
    assert np.array_equal(depth.shrink(values), rows)
    assert int(rows.max()) >= 253


def test_a_sixteen_bit_picture_takes_its_samples_and_its_pixels_and_no_third_copy(tmp_path: Path) -> None:
    """Copies of the samples took 28 bytes a pixel: 3.2 GiB for a picture of 120 million."""
    path = tmp_path / "deep.png"
    path.write_bytes(imagecodecs.png_encode(np.full((2000, 3000, 4), 40_000, np.uint16)))
    tracemalloc.start()
    try:
        with open_slide(path, mpp=0.5) as slide:
            assert slide.read_with_mask(2999, 1999, 0, 1, 1)[0].shape == (1, 1, 3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / (2000 * 3000) < 16


@pytest.mark.parametrize(("colour", "depth", "most"), [(0, 16, 120), (2, 16, 93), (6, 16, 70), (6, 8, 120)])
def test_pictures_too_large_to_decode_are_refused_by_their_header(
    colour: int, depth: int, most: int, tmp_path: Path
) -> None:
    def png(width: int, height: int) -> Path:
        head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"nothing")), (b"IEND", b"")]
        path = tmp_path / f"{width}.png"
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
        )
        return path

    with pytest.raises(SlideUnsupported, match=f"at most {most} million pixels"):
        open_slide(png(10_000, most * 100 + 200))
    with pytest.raises(SlideUnreadable):  # of a size that is decoded, and cut off
        open_slide(png(10_001, most * 100 - 200))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "coloured.png", "coloured.bmp"])
def test_a_picture_of_one_bit_is_refused_in_every_format(tmp_path: Path, name: str) -> None:
    """The TIFF was refused, the PNG with the same pixels was screened."""
    bits = Image.fromarray(textured(200, 150)).convert("1")
    if name.startswith("coloured"):
        bits = Image.frombytes("P", bits.size, np.asarray(bits).astype(np.uint8).tobytes())
        bits.putpalette([110, 60, 140, 238, 236, 240])
    path = tmp_path / name
    bits.save(path, **({"bits": 1} if name == "coloured.png" else {}))
    if name == "coloured.bmp":
        path.write_bytes(one_bit_bmp(np.asarray(bits)))
    for attempt in (open_slide, open_picture):
        with pytest.raises(SlideUnsupported, match="its pixels have 1 bit, black or white, which shows no cells"):
            attempt(path)
    with pytest.raises(SlideUnsupported) as caught:
        open_slide(path)
    assert "8-bit RGB" in caught.value.hint


def one_bit_bmp(pixels: np.ndarray) -> bytes:
    """A BMP of two colours that are not black and white, which Pillow opens as a palette image."""
    packed = np.packbits(pixels[::-1], axis=1)
    rows = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).tobytes()
    height, width = pixels.shape
    head = struct.pack("<2sIII", b"BM", 62 + len(rows), 0, 62)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 1, 0, len(rows), 0, 0, 2, 2)
    return head + info + bytes([140, 60, 110, 0, 240, 236, 238, 0]) + rows


def test_a_picture_of_two_colours_in_more_bits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.asarray(Image.fromarray(textured(200, 150)).convert("1")).astype(np.uint8) * 255).save(path)
    assert set(np.unique(np.asarray(open_picture(path)))) == {0, 255}
