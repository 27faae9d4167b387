"""Damage that decoders pass over: lost sectors, directories that lie. Random damage (benchmarks.fuzz) found it."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tifffile
from PIL import Image

from tilers import open_picture, open_slide
from tilers.foreground import Foreground
from tilers.segments import LOST_SECTOR, check_jpeg_sectors
from tilers.slide import Slide
from tilers.tiff_header import read_tiff_header
from wsi_chat.errors import SlideUnreadable, SlideUnsupported
from wsi_chat.schema import Box, Remark

from .conftest import Faults, textured, write_tiff
from .test_readers import damage

FIELD = textured(300, 220)


def lose_sector(path: Path, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at : at + len(LOST_SECTOR)] = LOST_SECTOR
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("compression", ["lzw", "zstd", "webp", "jpeg2000", "packbits", "lzma", "jpegxl"])
def test_a_lost_sector_in_a_compressed_tile_is_unreadable_and_no_other(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a.tiff"
    how = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    tifffile.imwrite(path, FIELD, tile=(128, 128), photometric="rgb", compression=compression, metadata=None, **how)
    with open_slide(path, mpp=0.5) as sound:
        whole = sound.read_region(0, 0, 0, 300, 220)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        lose_sector(path, page.dataoffsets[1] + page.databytecounts[1] // 3)
    with open_slide(path, mpp=0.5) as slide:
        with pytest.raises(SlideUnreadable):
            slide.read_region(128, 0, 0, 128, 128)
        assert np.array_equal(slide.read_region(0, 0, 0, 128, 128), whole[:128, :128])


def as_jpeg(image: np.ndarray, **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=80, **how)
    return file.getvalue()


def test_zeros_in_jpeg_data_are_a_lost_sector_unless_they_may_be_blank() -> None:
    """Blank glass makes thousands of zero bits where the tables were made for the picture; a scanner's do not."""
    blank = np.full((2048, 2048, 3), 250, np.uint8)
    blank[:256, :256] = textured(256, 256)
    fitted = as_jpeg(blank, optimize=True)
    assert LOST_SECTOR in fitted
    check_jpeg_sectors(fitted)  # drawn as it is
    usual = as_jpeg(textured(300, 220))
    middle = len(usual) // 2
    with pytest.raises(ValueError, match="lost sector"):
        check_jpeg_sectors(usual[:middle] + LOST_SECTOR + usual[middle + len(LOST_SECTOR) :])
    progressive = as_jpeg(blank, progressive=True)
    check_jpeg_sectors(progressive + LOST_SECTOR)  # its scans may hold what looks like one


def test_a_jpeg_picture_whose_decoder_passes_over_a_lost_sector_is_refused(tmp_path: Path) -> None:
    """libjpeg does not even warn where what the zeros stand for happens to fill the picture."""
    passed_over = 0
    for seed in range(20):
        data = bytearray(as_jpeg(textured(220, 160, seed=seed)))
        middle = len(data) // 2 + seed
        data[middle : middle + 512] = LOST_SECTOR
        path = tmp_path / f"{seed}.jpg"
        path.write_bytes(data)
        with pytest.raises(SlideUnreadable):
            open_picture(path)
        with contextlib.suppress(ValueError):
            simplejpeg.decode_jpeg(bytes(data), strict=True)
            passed_over += 1
    assert passed_over


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_picture_with_a_lost_sector_is_refused(tmp_path: Path, lossless: bool) -> None:
    path = tmp_path / "a.webp"
    Image.fromarray(FIELD).save(path, lossless=lossless, quality=95)
    open_picture(path)
    with pytest.raises(SlideUnreadable, match="lost sector"):
        open_picture(lose_sector(path, path.stat().st_size // 2))


def test_tiffslide_refuses_a_tile_that_its_decoder_paints_over(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tiff", FIELD, tile=128, compression="jpeg")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        at = page.dataoffsets[0] + page.databytecounts[0] // 2
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff\xd9" * 4  # the image ends here
    path.write_bytes(data)
    with open_slide(path, reader="tiffslide") as slide:
        with pytest.raises(SlideUnreadable):
            slide.read_region(0, 0, 0, 128, 128)
        assert slide.read_region(128, 0, 0, 128, 128).std() > 10


def test_directories_in_a_circle_are_refused_before_a_library_follows_them(tmp_path: Path) -> None:
    """tifffile would list 20,000 images of such a file, seconds of work, before anybody noticed."""
    path = write_tiff(tmp_path / "a.tiff", FIELD, levels=2)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[-1].offset
    (entries,) = struct.unpack_from("<H", data, last)
    struct.pack_into("<I", data, last + 2 + 12 * entries, first)
    path.write_bytes(data)
    header = read_tiff_header(path)
    assert header is not None
    assert header.objection == "its directories lead in a circle"
    with pytest.raises(SlideUnsupported, match="in a circle"):
        open_slide(path)


def test_compressed_tiles_that_are_called_raw_are_not_shown_as_noise(tiff: Callable[..., Path]) -> None:
    path = damage(tiff("a.tiff", FIELD, compression="jpeg"), "b.svs", "Compression", 0, 1)
    with pytest.raises(SlideUnsupported, match=r"claims tiles of 196,608 uncompressed bytes, but they have \d"):
        open_slide(path)
    with open_slide(tiff("raw.tiff", FIELD, compression=None)) as slide:  # those that are raw are
        assert np.array_equal(slide.read_region(0, 0, 0, 300, 220), FIELD)


def test_a_tile_without_one_of_its_planes_is_unreadable_and_not_black(tmp_path: Path) -> None:
    image, path = textured(300, 220), tmp_path / "a.tiff"
    how = {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 64), "compression": "zlib"}
    tifffile.imwrite(path, np.moveaxis(image, 2, 0), metadata=None, **how)
    across, down = 5, 4
    lost = damage(path, "lost.tiff", "TileByteCounts", across * down + 1, 0)  # of the green plane
    with open_slide(lost, mpp=0.5) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, 64, 64), image[:64, :64])
        with pytest.raises(SlideUnreadable):
            slide.read_region(64, 0, 0, 64, 64)
    bare = lost
    for plane in (0, 2):  # without all of them it was never written
        bare = damage(bare, f"bare{plane}.tiff", "TileByteCounts", plane * across * down + 1, 0)
    with open_slide(bare, mpp=0.5) as slide:
        assert (slide.read_region(64, 0, 0, 64, 64) == 255).all()


def test_a_level_of_other_proportions_is_refused(memory_slide: Callable[..., tuple[Slide, Faults]]) -> None:
    """Its scale would put the tiles where something else lies, or beyond the mask."""
    slide, _ = memory_slide(FIELD, levels=3)
    backend = slide._backend
    backend.shareable = True  # a clone is checked as an opened slide is
    for bad in ([(300, 220), (250, 110)], [(300, 220), (150, 60)], [(300, 220), (600, 440)]):
        backend.level_sizes = bad
        with pytest.raises(SlideUnsupported, match=r"Level 1 of .* is not 300 x 220 px made smaller"):
            slide.clone()
    for rounded in ([(300, 220), (149, 111), (76, 54)], [(3000, 2200), (1500, 1100), (10, 8)]):
        backend.level_sizes = rounded
        slide.clone()


def test_a_mask_that_ends_before_the_slide_gives_its_last_cells_for_the_rest() -> None:
    mask = np.zeros((3, 4), bool)
    mask[2] = True
    ground = Foreground(
        mask=mask, cell=10.0, size=(42, 36), strength=mask.astype(np.float32), scanned=~mask | mask,
        unreadable=~mask & mask, kind="bright", background_rgb=(9, 9, 9), deposit=None, is_blank=False,
        method=Remark("about.rendered"),
    )  # fmt: skip
    assert ground.fraction(Box(0, 33, 42, 36)) == 1.0
    assert ground.fraction(Box(41, 0, 42, 10)) == 0.0


@pytest.mark.parametrize(("claimed", "refused"), [(2**28, False), (2**28 + 1, True), (2**32 - 1, True)])
def test_a_tile_that_claims_more_bytes_than_any_may_have_is_refused_by_the_header(
    tmp_path: Path, claimed: int, refused: bool
) -> None:
    """libtiff made room for 643 MiB in each thread, which ended the process where memory was bounded."""
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, FIELD, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        counts = tiff.pages[0].tags["TileByteCounts"]
        count = counts.count
        values = [*tiff.pages[0].databytecounts[:-1], claimed]
        tag = counts.offset
    data = bytearray(path.read_bytes())
    struct.pack_into("<HI", data, tag + 2, 4, count)  # as LONG, behind everything
    struct.pack_into("<I", data, tag + 8, len(data))
    path.write_bytes(bytes(data) + struct.pack(f"<{count}I", *values))
    header = read_tiff_header(path)
    assert header is not None
    assert ("claims" in header.objection) == refused
    if refused:
        with pytest.raises(SlideUnsupported, match=r"MiB in the file, at most 256 MiB"):
            open_slide(path, mpp=0.5)


@pytest.mark.parametrize("kind", ["deflate", "big", "turned"])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_pyramid_that_lost_its_last_levels_says_so(tmp_path: Path, kept: int, kind: str) -> None:
    """Cut between two directories, it opened with the levels that were left and no word of the others."""
    path = tmp_path / "a.tiff"
    tags = [(274, "H", 1, 3, True)] if kind == "turned" else []
    with tifffile.TiffWriter(path, bigtiff=kind == "big") as writer:
        for step in (1, 2, 4, 8):
            level = np.ascontiguousarray(FIELD[: 216 // step * step : step, : 296 // step * step : step])
            writer.write(
                level, photometric="rgb",
                tile=(64, 64), compression="zlib", metadata=None, subfiletype=int(step > 1), extratags=tags,
            )  # fmt: skip
    with open_slide(path, mpp=0.5) as whole:
        assert len(whole.level_sizes) == 4
        assert not whole.notes
    with tifffile.TiffFile(path) as tiff:
        end = tiff.pages[kept].offset
        assert end >= max(p.dataoffsets[-1] + p.databytecounts[-1] for p in list(tiff.pages)[:kept])
    path.write_bytes(path.read_bytes()[:end])
    with open_slide(path, mpp=0.5) as slide:
        assert len(slide.level_sizes) == kept
        assert slide.notes == (Remark("slide.directories_cut_off", at=end, size=end),)


def test_a_file_that_ends_within_a_directory_says_so(tmp_path: Path) -> None:
    """The place of the next directory is lost with the end of this one."""
    path = write_tiff(tmp_path / "a.tiff", FIELD, levels=2, tile=64)
    with tifffile.TiffFile(path) as tiff:
        at, tags = tiff.pages[0].offset, len(tiff.pages[0].tags)
    end = at + 2 + 12 * tags
    for size in (end, end + 3):
        cut = tmp_path / f"{size}.tiff"
        cut.write_bytes(path.read_bytes()[:size])
        header = read_tiff_header(cut)
        assert header is not None
        assert header.goes_on == size
    assert read_tiff_header(path).goes_on is None  # type: ignore[union-attr]


@pytest.mark.parametrize(("share", "levels"), [(0.5, 1), (0.67, 2), (0.8, 3)])
def test_a_shared_pyramid_that_is_cut_off_says_so(tmp_path: Path, shared_data: Path, share: float, levels: int) -> None:
    data = (shared_data / "slides" / "boxes.tiff").read_bytes()
    path = tmp_path / "a.tiff"
    path.write_bytes(data[: int(len(data) * share)])
    with open_slide(path, mpp=0.5) as slide:
        assert len(slide.level_sizes) == levels
        assert "slide.directories_cut_off" in [note.code for note in slide.notes if isinstance(note, Remark)]
