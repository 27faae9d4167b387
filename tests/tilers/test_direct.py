"""JPEG tiles of Aperio's slides decoded directly: OpenSlide's pixels, strictly, each once; or OpenSlide itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile

from tilers import TileStream, find_foreground, open_slide, plan_tiles
from tilers.readers import Pixels
from tilers.readers.direct import DirectBackend
from tilers.readers.scanner_tiff import TiledLevel
from wsi_chat.errors import SlideUnreadable
from wsi_chat.schema import Box

from .conftest import halved, textured

WIDTH, HEIGHT, TILE = 1100, 900, 128


def write_svs(path: Path, *, levels: int = 3, compression: str = "jpeg", **how: Any) -> Path:
    """A slide in Aperio's layout: tiles of 128 px, levels halved twice each time (downsamples 1, 4 and 16.1)."""
    image = textured(WIDTH, HEIGHT)
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            h, w = image.shape[:2]
            text = f"Aperio Image Library v11.2.1 \n{WIDTH}x{HEIGHT} [0,0 {w}x{h}] (128x128) JPEG/RGB Q=90"
            text += "|AppMag = 20|MPP = 0.5" if level == 0 else ""
            writer.write(
                image, tile=(TILE, TILE), compression=compression, metadata=None, description=text,
                **{"photometric": "ycbcr", **how},
            )  # fmt: skip
            image = halved(halved(image))
    return path


def place_of_tile(path: Path, level: int, index: int) -> tuple[int, int]:
    """Offset and length of a tile's bytes."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        return page.dataoffsets[index], page.databytecounts[index]


def of_openslide(path: Path, x: int, y: int, level: int, width: int, height: int) -> Pixels:
    with openslide.OpenSlide(path) as slide:
        rgba = np.asarray(slide.read_region((x, y), level, (width, height)))
    return np.where(rgba[..., 3:] > 0, rgba[..., :3], 255).astype(np.uint8)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_pixels_are_openslides_at_every_subsampling(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    path = write_svs(tmp_path / "a.svs", subsampling=subsampling)
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert slide.mpp_source == "aperio.MPP"
        assert slide.decoding == "directly, strictly: 9 of 9 JPEG tiles tried are as OpenSlide shows them"
        for x, y, w, h in (
            (0, 0, WIDTH, HEIGHT),
            (77, 131, 300, 260),
            (WIDTH - 50, HEIGHT - 60, 90, 90),
            (-20, -9, 60, 60),
        ):
            assert np.array_equal(slide.read_region(x, y, 0, w, h), of_openslide(path, x, y, 0, w, h))
        for level in (1, 2):  # between the pixels of a level OpenSlide interpolates, and so it reads them
            for x, y in ((0, 0), (400, 200), (401, 203)):
                assert np.array_equal(slide.read_region(x, y, level, 40, 40), of_openslide(path, x, y, level, 40, 40))


def test_a_real_scan_is_decoded_directly_with_openslides_pixels(shared_data: Path) -> None:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide:
        assert slide.decoding.startswith("directly, strictly: 4 of 4")
        assert np.array_equal(slide.read_region(0, 0, 0, *slide.size), of_openslide(path, 0, 0, 0, *slide.size))


@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_every_tile_of_the_file_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: float
) -> None:
    path = write_svs(tmp_path / "a.svs", levels=1)
    decoded: Counter[tuple[int, ...]] = Counter()
    decode = DirectBackend.piece

    def counted(self: DirectBackend, *key: int) -> Pixels:
        decoded[key] += 1
        return decode(self, *key)

    with open_slide(path) as slide:
        monkeypatch.setattr(DirectBackend, "piece", counted)
        plan = plan_tiles(slide, None, tile_px=200, mpp=0.5, overlap=overlap)
        patches = list(TileStream(slide, plan, workers=3, focus=False))
        assert all(np.array_equal(p.pixels, of_openslide(path, p.tile.x, p.tile.y, 0, 200, 200)) for p in patches)
        assert {p.focus for p in patches} == {None}
        assert slide._backend._cache._bytes == 0  # what nobody needs any more is not kept
    assert len(decoded) == 9 * 8
    assert set(decoded.values()) == {1}


def test_few_tiles_are_shared_among_the_threads_and_many_go_in_larger_runs(tmp_path: Path) -> None:
    with open_slide(write_svs(tmp_path / "a.svs", levels=1)) as slide:
        plan = plan_tiles(slide, None, tile_px=100, mpp=0.5, overlap=0)
        sizes = {n: [len(b.tiles) for b in TileStream(slide, plan, tiles=plan.tiles[:n])._blocks] for n in (3, 17, 99)}
    assert sizes[3] == [1, 1, 1]
    assert sizes[17] == [2] * 8 + [1]
    assert sizes[99] == [12] * 8 + [3]


@pytest.mark.parametrize("how", ["zeros", "bytes that belong to nothing"])
def test_a_damaged_tile_is_unreadable_and_never_asked_of_openslide(tmp_path: Path, how: str) -> None:
    """OpenSlide itself passes over surplus bytes before a marker, behind which pixels are wrong."""
    path = write_svs(tmp_path / "a.svs", levels=1)
    at, count = place_of_tile(path, 0, 9 * 3 + 4)
    data = bytearray(path.read_bytes())
    if how == "zeros":
        data[at + count // 2 : at + count - 2] = bytes(count - 2 - count // 2)
    else:
        data[at + count - 60 : at + count] = bytes([*data[at + count - 60 : at + count - 12], 0xFF, 0xD9, *bytes(10)])
        data[at + count - 14 : at + count] = bytes([17] * 12) + b"\xff\xd9"
    (tmp_path / "hurt.svs").write_bytes(data)
    hurt = Box(4 * TILE, 3 * TILE, 5 * TILE, 4 * TILE)
    with open_slide(tmp_path / "hurt.svs") as slide, open_slide(path) as sound:
        assert slide.decoding.startswith("directly")
        plan = plan_tiles(slide, None, tile_px=100, mpp=0.5, overlap=0.0)
        statuses = Counter()
        for patch in TileStream(slide, plan):
            t = patch.tile
            statuses[patch.status] += 1
            if t.box.intersection(hurt) > 0:
                assert (patch.status, patch.pixels) == ("unreadable", None)
            else:
                assert np.array_equal(patch.pixels, sound.read_region(t.x, t.y, 0, 100, 100))
        assert statuses["unreadable"] == 6  # 3 x 2 tiles of the plan lie on it


def test_tiles_that_were_never_written_are_shown_as_openslide_shows_them(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        counts = file.pages[0].tags["TileByteCounts"]
        data[counts.valueoffset + 4 * 11 : counts.valueoffset + 4 * 12] = bytes(4)
        assert counts.dtype == 4
    path.write_bytes(data)
    with open_slide(path) as slide:
        assert slide.decoding.startswith("directly")
        for x, y in ((2 * TILE, TILE), (2 * TILE - 40, TILE - 30)):
            wanted = of_openslide(path, x, y, 0, TILE, TILE)
            assert np.array_equal(slide.read_region(x, y, 0, TILE, TILE), wanted)


def test_other_colours_than_openslides_leave_the_file_to_openslide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import simplejpeg

    path = write_svs(tmp_path / "a.svs", subsampling=(2, 2))
    decode = simplejpeg.decode_jpeg

    def fast(*given: Any, **how: Any) -> Any:
        return decode(*given, **how, fastdct=True, fastupsample=True)

    monkeypatch.setattr("tilers.segments.simplejpeg.decode_jpeg", fast)
    with open_slide(path) as slide:
        assert slide.decoding.startswith(
            "by OpenSlide; of 9 JPEG tiles tried, 9 are not as OpenSlide shows them: their"
        )
        assert np.array_equal(slide.read_region(3, 5, 0, 300, 300), of_openslide(path, 3, 5, 0, 300, 300))
        plan = plan_tiles(slide, None, tile_px=200, mpp=0.5)
        assert all(
            np.array_equal(p.pixels, of_openslide(path, p.tile.x, p.tile.y, 0, 200, 200))
            for p in TileStream(slide, plan)
        )


def test_a_writer_whose_tiles_a_strict_decoder_refuses_is_left_to_openslide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*given: Any, **how: Any) -> Any:
        raise ValueError("3 extraneous bytes before marker 0xd9")

    monkeypatch.setattr("tilers.readers.scanner_tiff.decode_jpeg", refuses)
    with open_slide(write_svs(tmp_path / "a.svs")) as slide:
        assert slide.decoding.endswith("are not as OpenSlide shows them: 3 extraneous bytes before marker 0xd9")
        assert [(note.code, dict(note.fields)) for note in slide.notes] == [  # type: ignore[union-attr]
            ("slide.strict_refused", {"n": 39, "tried": 39})
        ]
        assert slide.read_region(0, 0, 0, 50, 50).shape == (50, 50, 3)


def test_one_damaged_tile_among_those_tried_does_not_turn_the_decision(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", levels=1)
    at, count = place_of_tile(path, 0, 0)  # the first tile is always tried
    data = bytearray(path.read_bytes())
    data[at + count - 14 : at + count] = bytes([17] * 12) + b"\xff\xd9"
    path.write_bytes(data)
    with open_slide(path) as slide:
        assert slide.decoding == "directly, strictly: 31 of 32 JPEG tiles tried are as OpenSlide shows them"
        assert slide.notes == ()
        with pytest.raises(SlideUnreadable):
            slide.read_region(0, 0, 0, 50, 50)


def test_two_thirds_of_the_tiles_refused_are_damage_and_no_habit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = TiledLevel.decode

    def refuses(self: TiledLevel, row: int, column: int, *given: Any) -> Pixels:
        if (row + column) % 3:
            raise ValueError("3 extraneous bytes before marker 0xd9")
        return decode(self, row, column, *given)

    monkeypatch.setattr(TiledLevel, "decode", refuses)
    with open_slide(write_svs(tmp_path / "a.svs", levels=1)) as slide:
        assert slide.decoding.startswith("directly, strictly: ")
        assert slide.notes == ()
        assert slide.read_region(0, 0, 0, TILE, TILE).shape == (TILE, TILE, 3)
        with pytest.raises(SlideUnreadable):
            slide.read_region(TILE, 0, 0, TILE, TILE)


@pytest.mark.parametrize(
    ("tried", "decoding"), [(3, "directly, strictly: 0 of 3"), (4, "by OpenSlide; of 4 JPEG tiles")]
)
def test_so_few_tiles_that_are_all_refused_are_damage_and_no_habit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: int, decoding: str
) -> None:
    def refuses(*given: Any) -> Any:
        raise ValueError("3 extraneous bytes before marker 0xd9")

    monkeypatch.setattr(TiledLevel, "decode", refuses)
    monkeypatch.setattr("tilers.readers.direct.CANDIDATES", tried)
    with open_slide(write_svs(tmp_path / "a.svs", levels=1)) as slide:
        assert slide.decoding.startswith(decoding)
        if tried == 3:
            with pytest.raises(SlideUnreadable):
                slide.read_region(0, 0, 0, 50, 50)


def test_what_is_no_jpeg_says_so(tmp_path: Path) -> None:
    with open_slide(write_svs(tmp_path / "a.svs", compression="deflate", photometric="rgb")) as slide:
        assert slide.decoding == "by OpenSlide; its tiles are compressed as DEFLATE, no 8-bit JPEG"
        assert slide.notes == ()


def test_an_openslide_handle_that_failed_is_replaced(tmp_path: Path) -> None:
    """Its errors latch; the level with fractional downsamples is read through it by all threads."""
    with open_slide(write_svs(tmp_path / "a.svs")) as slide:
        backend = slide._backend
        wanted = slide.read_region(401, 203, 1, 60, 50)
        failed = backend._slide

        def broken(*_: int) -> Pixels:
            raise OSError("latched")

        failed.read = broken
        assert np.array_equal(slide.read_region(401, 203, 1, 60, 50), wanted)  # retried on the fresh handle
        assert backend._slide is not failed


# ------------------------------------------------------------------------------------------ the mask


def test_the_mask_does_not_depend_on_the_number_of_threads_and_tells_its_progress(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs")
    told: list[tuple[str, int, int]] = []
    with open_slide(path, mpp=2.0) as slide:
        alone = find_foreground(slide, workers=1)
        together = find_foreground(slide, workers=3, progress=lambda *now: told.append(now))
    assert np.array_equal(alone.mask, together.mask)
    assert np.array_equal(alone.strength, together.strength)
    assert told == [("mask", 0, 1), ("mask", 1, 1)]
