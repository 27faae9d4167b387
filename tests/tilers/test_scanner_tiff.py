"""Scanners' TIFFs whose tiles are decoded directly: OpenSlide's pixels in every layout, and no damage passed over."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from benchmarks.fuzz.scanner_seeds import (
    LEICA_PLACE,
    write_huron,
    write_leica,
    write_ndpi,
    write_philips,
    write_trestle,
    write_ventana,
)
from tilers import TileStream, open_slide, plan_tiles
from tilers.readers import Pixels
from wsi_chat.errors import SlideUnreadable, SlideUnsupported

from .conftest import textured

WIDTH, HEIGHT, TILE = 512, 384, 128
WRITERS = {
    "philips.tiff": (write_philips, 9),
    "trestle.tif": (write_trestle, 9),
    "ventana.bif": (write_ventana, 4),
    "leica.scn": (write_leica, 9),
    "hamamatsu.ndpi": (write_ndpi, 12),
    "huron.tif": (write_huron, 9),
}
LEVELS_OF_OPENSLIDE = {"ventana.bif": "; 2 of 3 levels by OpenSlide (no tiles of their size are stored)"}
Writer = Callable[..., Path]


def of_openslide(path: Path, x: int, y: int, level: int, width: int, height: int) -> Pixels:
    with openslide.OpenSlide(path) as slide:
        rgba = np.asarray(slide.read_region((x, y), level, (width, height)))
    return np.where(rgba[..., 3:] > 0, rgba[..., :3], 255).astype(np.uint8)


def assert_same(path: Path) -> None:
    """Whole levels, places within them, and beyond their edges."""
    with open_slide(path) as slide:
        for level, (w, h) in enumerate(slide.level_sizes):
            scale = round(slide.level_downsamples[level])
            for x, y, across, down in (
                (0, 0, w, h),
                (w // 3, h // 5, w // 2, h // 2),
                (w - 9, h - 7, 20, 20),
                (-5, -6, 30, 40),
            ):
                region = (x * scale, y * scale, level, across, down)
                assert np.array_equal(slide.read_region(*region), of_openslide(path, *region)), region


@pytest.mark.parametrize("name", WRITERS)
def test_pixels_are_openslides(tmp_path: Path, name: str) -> None:
    write, tried = WRITERS[name]
    path = write(tmp_path / name, textured(WIDTH, HEIGHT))
    with open_slide(path) as slide:
        assert slide.decoding == (
            f"directly, strictly: {tried} of {tried} JPEG tiles tried are as OpenSlide shows them"
            + LEVELS_OF_OPENSLIDE.get(name, "")
        )
        assert slide.mpp == pytest.approx(0.5)
    assert_same(path)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2"])
def test_parts_of_a_picture_with_restart_markers_are_openslides_in_every_subsampling(
    tmp_path: Path, subsampling: str
) -> None:
    path = write_ndpi(tmp_path / "a.ndpi", textured(WIDTH, HEIGHT), subsampling=subsampling)
    with open_slide(path) as slide:
        assert slide.decoding.startswith("directly")
        assert "by OpenSlide" not in slide.decoding
    assert_same(path)


def test_a_picture_without_a_table_of_its_parts_is_left_to_openslide(tmp_path: Path) -> None:
    """Decoded whole, its colours would run over the borders of the parts."""
    path = write_ndpi(tmp_path / "a.ndpi", textured(WIDTH, HEIGHT), table=False)
    with open_slide(path) as slide:
        assert slide.decoding.endswith("; 2 of 6 levels by OpenSlide (no tiles of their size are stored)")
        assert slide.notes == ()
    assert_same(path)


def test_tiles_that_overlap_are_left_to_openslide(tmp_path: Path) -> None:
    path = write_ventana(tmp_path / "a.bif", textured(WIDTH, HEIGHT), overlap=8)
    with open_slide(path) as slide:
        assert slide.size == (488, 368)
        assert slide.decoding == "by OpenSlide; no tiles of their size are stored"
        assert slide.notes == ()
    assert_same(path)


def test_several_areas_are_left_to_openslide(tmp_path: Path) -> None:
    path = write_leica(tmp_path / "a.scn", textured(WIDTH, HEIGHT), places=((96, 64), (700, 100)))
    with open_slide(path) as slide:
        assert slide.decoding == "by OpenSlide; it holds 2 areas, not one"
    assert_same(path)


def test_an_area_that_begins_between_pixels_of_a_level(tmp_path: Path) -> None:
    path = write_leica(tmp_path / "a.scn", textured(WIDTH, HEIGHT), places=((99, 65),))  # 49.5 and 32.5 at level 1
    with open_slide(path) as slide:
        assert slide.decoding.startswith("directly, strictly: 4 of 5")
        assert "; 2 of 3 levels by OpenSlide (their colours differ by" in slide.decoding
        for level, downsample in enumerate(slide.level_downsamples):
            region = (128, 96, level, int(300 / downsample), int(200 / downsample))
            assert np.array_equal(slide.read_region(*region), of_openslide(path, *region))


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_left_over_of_a_tile_makes_it_unreadable(tmp_path: Path, name: str) -> None:
    """Lost to other data: OpenSlide stops after the last row of pixels and shows glass."""
    path = WRITERS[name][0](tmp_path / name, textured(WIDTH, HEIGHT))
    origin = LEICA_PLACE if name == "leica.scn" else (0, 0)
    with tifffile.TiffFile(path) as tiff:
        page = next(page for page in tiff.pages if page.is_tiled)
        index = 5
        at, count = page.dataoffsets[index], page.databytecounts[index]
        high, wide = page.tilelength, page.tilewidth
        row, column = divmod(index, page.imagewidth // wide)
        tables = len(page.jpegtables or b"") > 0
    data = bytearray(path.read_bytes())
    end = bytes(data[at + count - 2 : at + count])
    start = _blank(bytes(data[at : at + count]), tables, name == "hamamatsu.ndpi")
    data[at : at + count] = start + bytes([17] * (count - len(start) - 2)) + end
    (tmp_path / "hurt").mkdir()
    hurt = tmp_path / "hurt" / name
    hurt.write_bytes(data)
    x, y = origin[0] + column * wide, origin[1] + row * high
    assert np.ptp(of_openslide(hurt, x, y, 0, wide, high), axis=(0, 1)).max() < 2  # no error, and no texture
    with open_slide(hurt) as slide:
        assert slide.decoding.startswith("directly")
        with pytest.raises(SlideUnreadable):
            slide.read_region(x + 1, y + 1, 0, 5, 5)
        assert np.array_equal(slide.read_region(x, y - 20, 0, 40, 20), of_openslide(path, x, y - 20, 0, 40, 20))
        plan = plan_tiles(slide, None, tile_px=64, mpp=0.5, overlap=0.0)
        lost = [p.tile for p in TileStream(slide, plan) if p.status == "unreadable"]
        assert lost
        assert all(t.x < x + wide and t.x + 64 > x and t.y < y + high and t.y + 64 > y for t in lost)


def _blank(old: bytes, tables: bool, part: bool) -> bytes:
    """JPEG data of one colour, without their end, that may take a tile's place."""
    if part:  # one block of each component that repeats what was before: zeros in the standard tables
        file = io.BytesIO()
        Image.new("RGB", (TILE, 8), "white").save(file, "JPEG", quality=80, subsampling="4:2:2")
        data = file.getvalue()
        scan = data.index(b"\xff\xda")
        return data[scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big") : -2]
    made = tifffile.TiffFile(io.BytesIO(_tiff_of_one_colour()))
    page = made.pages[0]
    assert tables == bool(page.jpegtables)
    return bytes(_tiff_of_one_colour()[page.dataoffsets[0] : page.dataoffsets[0] + page.databytecounts[0] - 2])


def _tiff_of_one_colour() -> bytes:
    file = io.BytesIO()
    image = np.full((TILE, TILE, 3), 200, np.uint8)
    tifffile.imwrite(
        file, image, tile=(TILE, TILE), compression="jpeg", compressionargs={"level": 80}, photometric="ycbcr"
    )
    return file.getvalue()


def test_a_restart_marker_of_another_number_is_no_part_of_the_picture(tmp_path: Path) -> None:
    """Offsets in the table that lead behind another marker: OpenSlide shows what lies there."""
    path = write_ndpi(tmp_path / "a.ndpi", textured(WIDTH, HEIGHT))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        table = tiff.pages[0].tags[65426]
        at = table.valueoffset
        starts = [int(value) for value in table.value]
    data[at + 4 * 21 : at + 4 * 22] = starts[22].to_bytes(4, "little")  # part 20 goes on to the end of 21, 21 is empty
    data[at + 4 * 50 : at + 4 * 52] = starts[51].to_bytes(4, "little") + starts[52].to_bytes(4, "little")
    (tmp_path / "hurt").mkdir()
    hurt = tmp_path / "hurt" / "a.ndpi"
    hurt.write_bytes(data)
    with open_slide(path) as sound, open_slide(hurt) as slide:
        assert slide.decoding.startswith("directly")
        for part in range(len(starts)):
            region = (part % 4 * TILE, part // 4 * 8, 0, TILE, 8)
            if part in (20, 21, 49, 50, 51):
                with pytest.raises(SlideUnreadable):
                    slide.read_region(*region)
            else:
                assert np.array_equal(slide.read_region(*region), sound.read_region(*region))


def test_fewer_tiles_than_the_xml_says_are_refused(tmp_path: Path) -> None:
    """OpenSlide would take the length of a tile from memory that is not its own, and abort the process."""
    path = write_ventana(tmp_path / "a.bif", textured(WIDTH, HEIGHT))
    with tifffile.TiffFile(path) as tiff:
        at = next(page for page in tiff.pages if page.is_tiled).tags["ImageWidth"].valueoffset
    data = bytearray(path.read_bytes())
    data[at : at + 2] = (256).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(SlideUnsupported, match="2 x 3 tiles lists 12 for a level of 512 x 384 px"):
        open_slide(path)
