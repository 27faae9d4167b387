"""Photographs of fields as one specimen: which files, their places on the canvas, reads, plans, what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tilers import TileStream, find_foreground, open_slide, plan_tiles, slide_of
from tilers.photographs import Found, is_photograph, lay_out, listing_text, photographs_in
from tilers.reduce import UNREADABLE_RGB
from wsi_chat.errors import SettingError, SlideNotFound, SlideUnreadable
from wsi_chat.schema import ORIGIN, RENDERED_NOTE, Box, field_at


def picture(path: Path, seed: int, width: int = 300, height: int = 240, **save: object) -> np.ndarray:
    """A picture in which no two places look alike; lossless."""
    pixels = np.random.default_rng(seed).integers(0, 200, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return pixels


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Fields 2, 10 and 30 of unlike size, in this order."""
    folder = tmp_path / "case 7"
    folder.mkdir()
    sizes = {"field 10.png": (300, 240), "field 2.png": (320, 200), "field 30.png": (310, 220)}
    made = {name: picture(folder / name, n, *size) for n, (name, size) in enumerate(sizes.items())}
    return folder, [made[f"field {n}.png"] for n in (2, 10, 30)]


def test_a_folder_of_photographs_opens_as_one_picture_in_counting_order(three: tuple[Path, list[np.ndarray]]) -> None:
    folder, pixels = three
    with open_slide(folder) as slide:
        assert slide.reader == "fields"
        assert slide.mpp is None
        assert slide.is_photograph
        assert [field.name for field in slide.fields] == ["field 2.png", "field 10.png", "field 30.png"]
        assert [field.number for field in slide.fields] == [1, 2, 3]
        for field, own in zip(slide.fields, pixels, strict=True):
            assert (field.height, field.width) == own.shape[:2]
            assert (slide.read_region(field.x, field.y, 0, field.width, field.height) == own).all()
        right = slide.fields[0]
        gap = slide.read_region(right.x + right.width, right.y, 0, 4, 4)
        assert (gap == slide.background_rgb).all()


@given(
    sizes=st.lists(st.one_of(st.none(), st.tuples(st.integers(1, 900), st.integers(1, 900))), min_size=1, max_size=40)
)
@settings(max_examples=60, deadline=None)
def test_no_two_fields_touch_and_every_box_finds_its_field(sizes: list[tuple[int, int] | None]) -> None:
    fields = lay_out([Found(Path(f"{n}.png"), size) for n, size in enumerate(sizes)])
    assert [field.number for field in fields] == list(range(1, len(sizes) + 1))
    for one in fields:
        assert one.x >= 0
        assert one.y >= 0
        assert field_at(fields, one.box) == one
        assert one.own(one.box) == Box(0, 0, one.width, one.height)
        margin = Box(one.x - 8, one.y - 8, one.x + one.width + 8, one.y + one.height + 8)
        assert not any(margin.intersection(other.box) for other in fields if other is not one)


@pytest.mark.parametrize("tile_px", [64, 250, 500, 900])
def test_no_tile_shows_two_fields_and_every_pixel_of_each_is_in_one(
    three: tuple[Path, list[np.ndarray]], tile_px: int
) -> None:
    folder, pixels = three
    with open_slide(folder, mpp=0.5) as slide:
        plan = plan_tiles(slide, None, tile_px=tile_px, mpp=0.5, overlap=0.25)
        assert len({tile.index for tile in plan.tiles}) == plan.grid == len(plan.tiles)
        rows, columns = plan.grid_shape
        assert max(tile.index for tile in plan.tiles) < rows * columns
        seen = [np.zeros(own.shape[:2], bool) for own in pixels]
        with TileStream(slide, plan) as stream:
            for patch in stream:
                tile = patch.tile
                (at,) = (
                    n for n, f in enumerate(slide.fields) if f.box.clipped(Box(tile.x, tile.y, tile.x + 1, tile.y + 1))
                )
                x, y = tile.x - slide.fields[at].x, tile.y - slide.fields[at].y
                own = pixels[at][y : y + tile_px, x : x + tile_px]
                assert patch.pixels is not None
                assert (patch.pixels[: own.shape[0], : own.shape[1]] == own).all()
                rest = np.ones(patch.pixels.shape[:2], bool)
                rest[: own.shape[0], : own.shape[1]] = False
                assert (patch.pixels[rest] == slide.background_rgb).all()
                seen[at][y : y + tile_px, x : x + tile_px] = True
        assert all(field.all() for field in seen)


def test_a_field_that_cannot_be_read_is_missing_and_takes_no_other_with_it(
    three: tuple[Path, list[np.ndarray]],
) -> None:
    folder, pixels = three
    whole = (folder / "field 10.png").read_bytes()
    (folder / "field 10.png").write_bytes(whole[: len(whole) // 2])  # a header, and half of the pixels
    (folder / "field 11.jpg").write_bytes(b"")
    with open_slide(folder, mpp=0.5) as slide:
        assert [(field.name, bool(field.error)) for field in slide.fields] == [
            ("field 2.png", False), ("field 10.png", False), ("field 11.jpg", True), ("field 30.png", False),
        ]  # fmt: skip
        assert any("field 11.jpg" in str(note) and "empty" in str(note) for note in slide.notes)
        plan = plan_tiles(slide, None, tile_px=400, mpp=0.5)
        with TileStream(slide, plan) as stream:
            assert [patch.status for patch in stream] == ["ok", "unreadable", "unreadable", "ok"]
        shown = slide.overview(4096)
        for field, own in zip(slide.fields, (pixels[0], None, None, pixels[2]), strict=True):
            part = shown[field.y : field.y + field.height, field.x : field.x + field.width]
            assert (part == (UNREADABLE_RGB if own is None else own)).all(), field.name


def test_the_reason_for_a_damaged_field_names_it_once_and_ends_with_one_stop(tmp_path: Path) -> None:
    """It gave the name twice, the cure inside of the reason and two full stops, and fields.csv repeats it."""
    picture(tmp_path / "1.png", 1)
    picture(tmp_path / "2.jpg", 2)
    (tmp_path / "2.jpg").write_bytes((tmp_path / "2.jpg").read_bytes()[:9000])
    with open_slide(tmp_path) as slide:
        field = slide.fields[1]
        with pytest.raises(SlideUnreadable, match=r"field 2 \(2\.jpg\): the image cannot be decoded") as caught:
            slide.read_region(field.x, field.y, 0, 64, 64)
    assert caught.value.message.count("2.jpg") == 1
    assert not caught.value.message.endswith("..")
    assert "Copy" not in caught.value.message
    assert "Copy the file again" in (caught.value.hint or "")


def test_a_folder_with_nothing_that_can_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.jpg").write_text("junk")
    with pytest.raises(
        SlideUnreadable, match=r"None of the 2 photographs can be read; the first, a\.png: the file is empty"
    ):
        open_slide(tmp_path)


def test_a_folder_without_photographs_is_no_slide(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(SlideNotFound, match="no photographs of fields lie in it"):
        open_slide(tmp_path)


def test_the_pictures_of_a_run_folder_are_no_photographs(tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "journal.sqlite").write_bytes(b"")
    picture(tmp_path / "overview.png", 1)
    picture(tmp_path / "gallery" / "f0001.png", 1)
    assert photographs_in(tmp_path) == photographs_in(tmp_path / "gallery") == ()


def test_a_listing_names_photographs_of_several_folders(tmp_path: Path) -> None:
    paths = []
    for n, place in enumerate(("one", "two")):
        (tmp_path / place).mkdir()
        picture(tmp_path / place / "field.png", n)
        paths.append(tmp_path / place / "field.png")
    listing = tmp_path / "case.fields"
    listing.write_text(listing_text(paths), encoding="utf-8")
    with open_slide(listing) as slide:
        assert [field.name for field in slide.fields] == ["one/field.png", "two/field.png"]


def test_the_fingerprint_follows_content_and_names_and_not_the_place(tmp_path: Path) -> None:
    marks = {}
    for place, seed, name in (("a", 1, "f.png"), ("b", 1, "f.png"), ("c", 2, "f.png"), ("d", 1, "g.png")):
        (tmp_path / place).mkdir()
        picture(tmp_path / place / name, seed)
        with open_slide(tmp_path / place) as slide:
            marks[place] = slide.fingerprint
    assert marks["a"] == marks["b"]
    assert len(set(marks.values())) == 3


@pytest.mark.parametrize(("dpi", "mpp"), [((25400, 25400), 1.0), ((72, 72), None), ((50800, 5200), None)])
def test_the_scale_is_known_where_all_photographs_agree_on_a_plausible_one(
    tmp_path: Path, dpi: tuple[int, int], mpp: float | None
) -> None:
    for n, value in enumerate(dpi):
        picture(tmp_path / f"{n}.jpg", n, dpi=(value, value))
    with open_slide(tmp_path) as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        assert any("different resolutions" in str(note) for note in slide.notes) == (dpi == (50800, 5200))


@pytest.fixture
def two_scales(tmp_path: Path) -> Path:
    """The same cells at 0.5 and at 1 µm/px: a square of 100 µm at 30, 40 µm from the corner."""
    folder = tmp_path / "case 8"
    folder.mkdir()
    for name, mpp in (("fine.png", 0.5), ("coarse.png", 1.0)):
        pixels = np.full((round(200 / mpp), round(300 / mpp), 3), 235, np.uint8)
        pixels[round(40 / mpp) : round(140 / mpp), round(30 / mpp) : round(130 / mpp)] = (90, 40, 120)
        Image.fromarray(pixels).save(folder / name, dpi=(25400 / mpp, 25400 / mpp))
    return folder


def test_photographs_of_unlike_scales_are_each_read_at_their_own(two_scales: Path) -> None:
    with open_slide(two_scales) as slide:
        coarse, fine = slide.fields
        assert (coarse.name, fine.name) == ("coarse.png", "fine.png")
        assert slide.mpp == pytest.approx(0.5, rel=1e-3)
        assert (fine.scale, coarse.scale) == (1, pytest.approx(2, rel=1e-3))
        assert (coarse.own_size, fine.own_size) == ((300, 200), (600, 400))
        assert (coarse.width, coarse.height) == (fine.width, fine.height) == (600, 400)
        (note,) = slide.notes
        assert note.code == "fields.own_scales"
        for field in slide.fields:  # one size of cell on the canvas, whatever the camera's
            shown = slide.read_region(field.x, field.y, 0, field.width, field.height)
            ys, xs = np.nonzero(shown[..., 1] < 100)
            assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - (60, 80, 260, 280)).max() <= 1
        own = coarse.own(Box(coarse.x + 60, coarse.y + 80, coarse.x + 260, coarse.y + 280))
        assert (own.x0, own.y0, own.x1, own.y1) == pytest.approx((30, 40, 130, 140), rel=1e-3)
        plan = plan_tiles(slide, None, tile_px=128, mpp=0.5, overlap=0)
        assert [str(remark.code) for remark in plan.notes] == ["plan.enlarged_fields"]
        assert plan_tiles(slide, None, tile_px=128, mpp=1.0, overlap=0).notes == ()
    with open_slide(two_scales, mpp=0.25) as slide:  # the user knows better, of all of them
        assert [(field.width, field.height, field.scale) for field in slide.fields] == [(300, 200, 1), (600, 400, 1)]
        assert slide.mpp == 0.25


def test_a_photograph_of_nothing_but_glass_among_others_is_not_asked_about(two_scales: Path) -> None:
    Image.new("RGB", (600, 400), (255, 255, 255)).save(two_scales / "glass.png", dpi=(50800, 50800))
    (two_scales / "lost.png").write_bytes(b"no picture")
    with open_slide(two_scales) as slide:
        names = [field.name for field in slide.fields]
        foreground = find_foreground(slide)
        plan = plan_tiles(slide, foreground, tile_px=128, mpp=0.5, overlap=0, leave_out=False)
        asked = {field_at(slide.fields, tile.box).name for tile in plan.tiles}
        assert plan.glass == ("glass.png",)
        assert asked == set(names) - {"glass.png"}, "what cannot be read is missing, and never glass"
        assert plan.empty == 20, "5 x 4 tiles"
        per_field = sum(field_at(slide.fields, tile.box).name == "fine.png" for tile in plan.tiles)
        assert per_field == 20, "the glass around the cells of a field is asked about as before"
        everything = plan_tiles(slide, find_foreground(slide, mask=False), tile_px=128, mpp=0.5, overlap=0)
        assert everything.glass == ()


def test_a_tiled_or_paged_tiff_is_a_scan_and_a_flat_one_a_photograph(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    tifffile.imwrite(tmp_path / "flat.tif", pixels, photometric="rgb")
    tifffile.imwrite(tmp_path / "tiled.tif", pixels, photometric="rgb", tile=(64, 64))
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([pixels, pixels]), photometric="rgb")
    tifffile.imwrite(tmp_path / "one.ome.tif", pixels, photometric="rgb")
    (tmp_path / "broken.tiff").write_bytes(b"II*\0")
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_photograph(path)] == ["flat.tif"]
    assert is_photograph(tmp_path / "absent.JPG")
    assert not is_photograph(tmp_path / "absent.svs")


def test_a_crop_shows_one_field_alone(three: tuple[Path, list[np.ndarray]]) -> None:
    with open_slide(three[0]) as slide:
        first = slide.fields[0]
        x, y = first.x + first.width - 50, first.y + 60
        box = Box(x, y, x + 90, y + 90)  # reaches into the next field
        crop = slide.crop(box, 90, alone=True)
        assert (crop[:, :50] == slide.read_region(x, y, 0, 50, 90)).all()
        assert (crop[:, 50:] == slide.background_rgb).all()


@pytest.mark.parametrize(
    "given_picture",
    [
        np.full((40, 30, 3), 77, np.uint8), np.full((40, 30), 77, np.uint8), np.full((40, 30, 3), 77 / 255),
        np.full((40, 30, 1), 77 * 256 + 9, np.uint16), Image.new("RGB", (30, 40), (77, 77, 77)),
        Image.new("L", (30, 40), 77), Image.new("RGBA", (30, 40), (77, 77, 77, 255)),
    ],
)  # fmt: skip
def test_a_picture_in_memory_is_a_slide(given_picture: object) -> None:
    with slide_of(given_picture, mpp=0.3) as slide:
        assert slide.size == (30, 40)
        assert slide.mpp == 0.3
        assert (slide.read_region(0, 0, 0, 30, 40) == 77).all()


@pytest.mark.parametrize(
    "wrong", [np.zeros((3, 40, 30), np.uint8), np.zeros(7, np.uint8), np.full((4, 4, 3), np.nan), np.zeros((4, 4), int)]
)
def test_what_is_no_picture_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(SettingError):
        slide_of(wrong)


def test_a_specimen_is_rendered_only_where_every_field_says_so(tmp_path: Path) -> None:
    note = PngInfo()
    note.add_text("Description", RENDERED_NOTE)
    for n in range(2):
        picture(tmp_path / f"field {n}.png", n, pnginfo=note)
    with open_slide(tmp_path) as slide:
        assert slide.properties[ORIGIN] == "rendered"
    picture(tmp_path / "field 2.png", 2)
    with open_slide(tmp_path) as slide:
        assert ORIGIN not in slide.properties
    (tmp_path / "field 2.png").write_bytes(b"no picture")
    with open_slide(tmp_path) as slide:
        assert ORIGIN not in slide.properties, "what a field that cannot be read was, nobody knows"
