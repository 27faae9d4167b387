"""Generic TIFF as programs write it: sample formats, pyramids, OME and ImageJ metadata, labels, damage, lies."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from tilers import TileStream, open_slide, plan_tiles
from tilers.samples import cielab_to_rgb
from wsi_chat.errors import SlideUnreadable, SlideUnsupported
from wsi_chat.schema import Remark

from .conftest import halved, textured

FIELD = textured(300, 220)
GREY = FIELD[..., 0]
LABEL = np.full((200, 260, 3), (250, 250, 90), np.uint8)


def write(path: Path, data: np.ndarray, *, tiled: bool, **how: Any) -> Path:
    shape = {"tile": (64, 64)} if tiled else {"rowsperstrip": 50}
    tifffile.imwrite(path, data, **({"metadata": None, "compression": "deflate"} | shape | how))
    return path


def shown(path: Path) -> np.ndarray:
    """The slide as TileStream and read_region show it: both must agree."""
    with open_slide(path, mpp=0.5) as slide:
        whole = slide.read_region(0, 0, 0, *slide.size)
        for patch in TileStream(slide, plan_tiles(slide, None, tile_px=64, mpp=0.5, overlap=0)):
            t = patch.tile
            assert patch.status == "ok"
            assert np.array_equal(patch.pixels, whole[t.y : t.y + 64, t.x : t.x + 64])
    return whole


def to_lab(rgb: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    stored = np.empty(rgb.shape, np.uint8)
    stored[..., 0] = np.round(lab[..., 0] * 255 / 100)
    stored[..., 1:] = np.round(lab[..., 1:]).astype(np.int8).view(np.uint8)
    return stored


def to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]


def extra(count: int, kind: str) -> dict[str, Any]:
    return {"photometric": "rgb", "extrasamples": [kind] * count}


PADDED = extra(1, "unspecified") | {"photometric": "minisblack"}


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(
    ("name", "data", "how", "wanted", "tolerance"),
    [
        ("rgb", FIELD, {"photometric": "rgb"}, FIELD, 0),
        ("planes", FIELD.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, FIELD, 0),
        ("predictor", FIELD, {"photometric": "rgb", "predictor": True}, FIELD, 0),
        ("lzw", FIELD, {"photometric": "rgb", "compression": "lzw", "predictor": True}, FIELD, 0),
        ("packbits", FIELD, {"photometric": "rgb", "compression": "packbits"}, FIELD, 0),
        ("zstd", FIELD, {"photometric": "rgb", "compression": "zstd"}, FIELD, 0),
        ("big-endian", FIELD, {"photometric": "rgb", "byteorder": ">"}, FIELD, 0),
        ("grey", FIELD[..., 1], {"photometric": "minisblack"}, FIELD[..., [1, 1, 1]], 0),
        ("white is zero", 255 - FIELD[..., 1], {"photometric": "miniswhite"}, FIELD[..., [1, 1, 1]], 0),
        ("cmyk", np.dstack([255 - FIELD, 0 * FIELD[..., :1]]), {"photometric": "separated"}, FIELD, 0),
        ("cielab", to_lab(FIELD), {"photometric": "cielab"}, FIELD, 14),
        ("ycbcr", to_ycbcr(FIELD), {"photometric": "ycbcr"}, FIELD, 2),
        ("rgb and unspecified 0", np.dstack([FIELD, 0 * FIELD[..., :1]]), extra(1, "unspecified"), FIELD, 0),
        ("grey and a constant", np.dstack([GREY, 0 * GREY]), PADDED, FIELD[..., [0, 0, 0]], 0),
        ("five channels", np.dstack([FIELD, 0 * FIELD[..., :2] + 7]), extra(2, "unspecified"), FIELD, 0),
        ("16 bit", FIELD.astype(np.uint16) << 8, {"photometric": "rgb"}, FIELD, 0),
        ("12 in 16 bit", FIELD.astype(np.uint16) << 4, {"photometric": "rgb"}, FIELD, 0),
        ("8 in 16 bit", FIELD.astype(np.uint16), {"photometric": "rgb"}, FIELD, 0),
        ("12 in 16 bit grey", GREY.astype(np.uint16) << 4, {"photometric": "minisblack"}, FIELD[..., [0, 0, 0]], 0),
        ("signed 16 bit", FIELD.astype(np.int16) << 4, {"photometric": "rgb"}, FIELD, 0),
        ("32 bit", FIELD.astype(np.uint32), {"photometric": "rgb", "byteorder": ">", "bigtiff": True}, FIELD, 0),
        ("planes in JPEG", FIELD.transpose(2, 0, 1),
         {"photometric": "rgb", "planarconfig": "separate", "compression": "jpeg"}, None, 0),
        ("float and its predictor", FIELD.astype(np.float32) / 255, {"photometric": "rgb", "predictor": 3}, FIELD, 0),
        ("float 0..1", FIELD.astype(np.float32) / 255, {"photometric": "rgb"}, FIELD, 0),
        ("float 0..255", FIELD.astype(np.float32), {"photometric": "rgb"}, FIELD, 0),
        ("jpeg", FIELD, {"photometric": "ycbcr", "compression": "jpeg"}, None, 0),
        ("jpeg of rgb", FIELD, {"photometric": "rgb", "compression": "jpeg"}, None, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_every_sample_format_shows_the_field(
    tmp_path: Path, tiled: bool, name: str, data: np.ndarray, how: dict, wanted: np.ndarray | None, tolerance: int
) -> None:
    path = tmp_path / "a.tif"
    write(path, data, tiled=tiled, **how)
    if wanted is None:  # what JPEG made of it, decoded by another program
        wanted = tifffile.imread(path)
        wanted = wanted.transpose(1, 2, 0) if len(wanted) == 3 else wanted
    got = shown(path)
    assert np.abs(got.astype(int) - wanted).max() <= tolerance


@pytest.mark.parametrize("tiled", [True, False])
def test_alpha_shows_background_where_nothing_was_scanned(tmp_path: Path, tiled: bool) -> None:
    alpha = np.full(FIELD.shape[:2], 255, np.uint8)
    alpha[:100] = 0
    for colours, count in ((FIELD, 3), (FIELD[..., :1], 1)):
        how = {"photometric": "rgb" if count == 3 else "minisblack", "extrasamples": ["unassalpha"]}
        got = shown(write(tmp_path / f"{count}.tif", np.dstack([colours, alpha]), tiled=tiled, **how))
        assert (got[:100] == 255).all()
        assert np.array_equal(got[100:], np.broadcast_to(colours[100:], got[100:].shape))


@pytest.mark.parametrize("tiled", [True, False])
def test_what_is_no_number_is_not_scanned_rather_than_black(tmp_path: Path, tiled: bool) -> None:
    data = FIELD.astype(np.float32) / 255
    data[:100] = np.nan
    got = shown(write(tmp_path / "a.tif", data, tiled=tiled, photometric="rgb"))
    assert (got[:100] == 255).all()
    assert np.array_equal(got[100:], FIELD[100:])


NO_NUMBERS = Remark("slide.no_numbers")


@pytest.mark.parametrize("orientation", [1, 3])
@pytest.mark.parametrize("kind", ["rgb", "rgba", "grey"])
def test_a_note_says_that_pixels_are_no_numbers(tmp_path: Path, kind: str, orientation: int) -> None:
    """At opening where the sample meets them, else once a tile did; never twice, and not where all are numbers."""
    samples = {"rgb": 3, "rgba": 4, "grey": 1}[kind]
    sound = np.dstack([FIELD, np.full(FIELD.shape[:2], 255, np.uint8)])[..., :samples].astype(np.float32) / 255
    half, spot = sound.copy(), sound.copy()
    half[: len(sound) // 2] = np.nan
    spot[0, 0, 0] = np.nan  # of the finest level alone, which is not sampled
    how = {"photometric": "minisblack" if kind == "grey" else "rgb", "tile": (64, 64), "metadata": None}
    how |= {"extrasamples": ["unassalpha"]} if kind == "rgba" else {}
    how |= {"extratags": [(274, "H", 1, orientation, True)]} if orientation > 1 else {}
    for name, data, opening, reading in (
        ("sound", sound, False, False), ("half", half, True, False), ("spot", spot, False, True),
    ):  # fmt: skip
        path = tmp_path / f"{name}.tif"
        with tifffile.TiffWriter(path) as writer:
            writer.write(data.squeeze(), **how)
            writer.write((half if data is half else sound)[::2, ::2].squeeze(), subfiletype=1, **how)
        with open_slide(path, mpp=0.5) as slide:
            assert slide.notes.count(NO_NUMBERS) == opening
            assert slide.reading_notes == ()
            _, scanned = slide.read_with_mask(0, 0, 0, *slide.size)
            missing = np.isnan(data).any(axis=2)
            missing = missing[::-1, ::-1] if orientation == 3 else missing
            assert scanned is None if not missing.any() else np.array_equal(scanned, ~missing)
            assert slide.reading_notes == ((NO_NUMBERS,) if reading else ())
            assert slide.notes.count(NO_NUMBERS) == opening


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("count", [2, 5])
def test_channels_on_a_bright_background_without_colours_are_refused(tmp_path: Path, tiled: bool, count: int) -> None:
    data = 255 - np.dstack([FIELD, FIELD])[..., :count] // 4
    path = write(tmp_path / "a.tif", data, tiled=tiled, photometric="minisblack", planarconfig="contig")
    with pytest.raises(SlideUnsupported, match=f"{count} channels on a bright background"):
        open_slide(path)


@pytest.mark.parametrize("tiled", [True, False])
def test_palettes_show_their_colours(tmp_path: Path, tiled: bool) -> None:
    rng = np.random.default_rng(5)
    colours = rng.integers(0, 256, (3, 256)).astype(np.uint16)
    indices = rng.integers(0, 256, (220, 300)).astype(np.uint8)
    got = shown(write(tmp_path / "a.tif", indices, tiled=tiled, photometric="palette", colormap=colours * 257))
    assert np.array_equal(got, colours.T[indices].astype(np.uint8))


@pytest.mark.parametrize(
    ("photometric", "name"), [(9, "ICCLAB"), (32844, "LogL"), (32803, "colour filter array"), (777, "number 777")]
)
def test_an_interpretation_that_cannot_be_shown_is_named(tmp_path: Path, photometric: int, name: str) -> None:
    path = write(tmp_path / "a.tif", FIELD, tiled=True, photometric="rgb")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags["PhotometricInterpretation"].valueoffset
    data[at : at + 2] = struct.pack("<H", photometric)
    path.write_bytes(data)
    with pytest.raises(SlideUnsupported, match=rf"photometric interpretation is {name}|{photometric}"):
        open_slide(path)


def test_values_that_are_no_brightness_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", FIELD.astype(np.float32) - 100, tiled=True, photometric="rgb")
    with pytest.raises(SlideUnsupported, match=r"float32 with values from -100 to"):
        open_slide(path)


def test_the_range_in_use_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", FIELD.astype(np.uint16) << 4, tiled=True, photometric="rgb")
    with open_slide(path) as slide:
        assert slide.notes == (
            f"16-bit pixels use values up to {int(FIELD.max()) * 16}: they are shown as 12-bit values",
        )


def test_cielab_of_known_colours() -> None:
    # D65 white, black and sRGB red (L 53.2, a 80.1, b 67.2), as CIE 15 and IEC 61966-2-1 give them
    stored = np.array([[[255, 0, 0], [0, 0, 0], [136, 80, 67]]], np.uint8)
    assert np.abs(cielab_to_rgb(stored).astype(int) - [[[255, 255, 255], [0, 0, 0], [255, 0, 0]]]).max() <= 3


# ------------------------------------------------------------------------------------------ pyramids


@pytest.mark.parametrize("flag", [0, 1])
def test_a_pyramid_is_found_with_and_without_its_flag(tmp_path: Path, flag: int) -> None:
    image = textured(640, 401)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        level = image
        for n in range(3):
            writer.write(level, photometric="rgb", tile=(64, 64), subfiletype=flag * (n > 0), metadata=None)
            level = halved(level)
    with open_slide(tmp_path / "a.tif", mpp=0.5) as slide:
        assert slide.level_sizes == ((640, 401), (320, 200), (160, 100))
        assert np.array_equal(slide.read_region(0, 0, 1, 320, 200), halved(image))
        assert slide.notes == ()


@pytest.mark.parametrize(("unit", "factor"), [("µm", 1), ("nm", 1e3), ("mm", 1e-3), ("cm", 1e-4), ("inch", 1 / 25400)])
def test_ome_pyramids_lie_in_subifds_and_state_their_scale(tmp_path: Path, unit: str, factor: float) -> None:
    image = textured(640, 400)
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5 * factor, "PhysicalSizeXUnit": unit,
                "PhysicalSizeY": 0.5 * factor, "PhysicalSizeYUnit": unit}  # fmt: skip
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(image, photometric="rgb", tile=(64, 64), subifds=2, metadata=metadata)
        for level in (halved(image), halved(halved(image))):
            writer.write(level, photometric="rgb", tile=(64, 64), subfiletype=1)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert slide.level_sizes == ((640, 400), (320, 200), (160, 100))
        assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.5), "ome-xml PhysicalSize")
        assert np.array_equal(slide.read_region(0, 0, 2, 160, 100), halved(halved(image)))


@pytest.mark.parametrize(
    ("unit", "pixels"), [("um", 2.0), ("\\u00B5m", 2.0), ("micron", 2.0), ("mm", 2000.0), ("nm", 0.002)]
)
def test_imagej_states_its_unit_apart_from_the_tags(tmp_path: Path, unit: str, pixels: float) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", FIELD, imagej=True, resolution=(pixels, pixels), metadata={"unit": unit, "axes": "YXS"}
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.5), "imagej unit")
        assert np.array_equal(slide.read_region(0, 0, 0, *slide.size), FIELD)


# ------------------------------------------------------------------------------------------ planes


@pytest.mark.parametrize("tiled", [True, False])
def test_rgb_as_three_ome_channels(tmp_path: Path, tiled: bool) -> None:
    path = tmp_path / "a.ome.tif"
    write(path, FIELD.transpose(2, 0, 1), tiled=tiled, photometric="minisblack", metadata={"axes": "CYX"})
    assert np.array_equal(shown(path), FIELD)


def test_two_ome_channels_are_mixed_with_their_colours(tmp_path: Path) -> None:
    data = np.zeros((2, 128, 128), np.uint8)
    data[0, :64], data[1, :, :64] = 200, 100
    colours = [struct.unpack(">i", bytes.fromhex(c + "FF"))[0] for c in ("FF0000", "0000FF")]
    path = tmp_path / "a.ome.tif"
    write(path, data, tiled=True, photometric="minisblack", metadata={"axes": "CYX", "Channel": {"Color": colours}})
    got = shown(path)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.notes == ()  # the file says which colours they have
    assert got[10, 10].tolist() == [255, 0, 255]
    assert got[10, 100].tolist() == [255, 0, 0]
    assert got[100, 10].tolist() == [0, 0, 255]
    assert got[100, 100].tolist() == [0, 0, 0]


def test_mixed_channels_without_colours_are_said_to_be_in_false_ones(tmp_path: Path) -> None:
    data = np.zeros((2, 128, 128), np.uint8)
    data[0, :64], data[1, :, :64] = 200, 100
    path = write(tmp_path / "a.ome.tif", data, tiled=True, photometric="minisblack", metadata={"axes": "CYX"})
    with open_slide(path, mpp=0.5) as slide:
        assert slide.notes == ("a mixture of 2 channels in false colours: the file gives 2 of them no colour",)


def test_images_of_one_size_without_metadata_say_which_is_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for shade in (1, 2, 4):
            writer.write(FIELD // shade, photometric="rgb", metadata=None)
    with open_slide(tmp_path / "a.tif", mpp=0.5) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, *slide.size), FIELD)
        assert slide.notes == (
            "the file holds 3 images of the same size without metadata: only the first, image 0, is read",
        )


# ------------------------------------------------------------------------------------------ labels


def ome_series(path: Path, images: list[tuple[str, np.ndarray, float | None]]) -> Path:
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, image, mpp in images:
            scale = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            writer.write(image, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", "Name": name, **scale})
    return path


BIG_LABEL = np.full((400, 500, 3), (250, 250, 90), np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        [("label image", LABEL, None), ("Image:0", FIELD, 0.5)],
        [("label image", BIG_LABEL, None), ("macro image", BIG_LABEL, None), ("scan", FIELD, 0.5)],
        [("a", BIG_LABEL, None), ("b", FIELD, 0.5)],  # no names: the one with a resolution
        [("a", LABEL, None), ("b", FIELD, None)],  # nor that: the larger one
        [("label study #1", FIELD, 0.5), ("label study #2 [macro image]", BIG_LABEL, 0.5)],
    ],
)
def test_the_scan_of_an_ome_tiff_is_not_its_first_series_but_the_scan(tmp_path: Path, images: list) -> None:
    path = ome_series(tmp_path / "a.ome.tif", images)
    assert np.array_equal(shown(path), FIELD)
    with open_slide(path) as slide:
        assert "belong" in slide.notes[0]
        overview = slide.overview(100)
    assert np.abs(overview.reshape(-1, 3).mean(axis=0) - FIELD.reshape(-1, 3).mean(axis=0)).max() < 2


@pytest.mark.parametrize("names", [["label image"], ["Label", "Macro"], ["thumbnail"]])
def test_a_file_that_holds_only_asides_is_refused(tmp_path: Path, names: list[str]) -> None:
    path = ome_series(tmp_path / "a.ome.tif", [(name, LABEL, None) for name in names])
    with pytest.raises(SlideUnsupported, match="no image of the scan, only label, macro or overview"):
        open_slide(path)


@pytest.mark.parametrize("description", ["label 260x200", "macro 260x200", "", "Thumbnail"])
def test_a_plain_tiff_that_begins_with_its_label(tmp_path: Path, description: str) -> None:
    image = BIG_LABEL if description else LABEL
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(image, photometric="rgb", description=description, metadata=None)
        writer.write(FIELD, photometric="rgb", tile=(64, 64), metadata=None)
        writer.write(halved(FIELD), photometric="rgb", tile=(64, 64), metadata=None)
    assert np.array_equal(shown(tmp_path / "a.tif"), FIELD)
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.level_sizes == ((300, 220), (150, 110))


def test_the_label_of_a_damaged_scan_is_never_read(tmp_path: Path, shared_data: Path) -> None:
    whole = (shared_data / "slides" / "CMU-1-Small-Region.svs").read_bytes()
    with tifffile.TiffFile(shared_data / "slides" / "CMU-1-Small-Region.svs") as file:
        offsets = [page.offset for page in file.pages]
    for start in (offsets[1], offsets[2], offsets[3]):  # the header points past the scan
        data = bytearray(whole)
        data[4:8] = struct.pack("<I", start)
        (tmp_path / "damaged.svs").write_bytes(data)
        with pytest.raises(SlideUnsupported, match=r"directory of its scan is damaged or missing|not a format"):
            open_slide(tmp_path / "damaged.svs")


# ------------------------------------------------------------------------------------------ damage and lies


def corrupt(path: Path, piece: int, how: str) -> Path:
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        at, count = file.pages[0].dataoffsets[piece], file.pages[0].databytecounts[piece]
    if how == "zeroed":
        data[at + count // 2 : at + count] = bytes(count - count // 2)
    else:
        data[at + count // 2] ^= 0x55
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("compression", "how"), [("jpeg", "zeroed"), ("deflate", "zeroed"), ("deflate", "flipped"), ("zstd", "zeroed"),
                             ("lzw", "zeroed"), ("jpeg2000", "zeroed")],
)  # fmt: skip
def test_a_damaged_tile_is_unreadable_and_the_others_are_not(tmp_path: Path, compression: str, how: str) -> None:
    image = textured(256, 128)
    path = write(tmp_path / "a.tif", image, tiled=True, photometric="rgb", compression=compression)
    sound = tifffile.imread(path)
    corrupt(path, 1, how)
    with open_slide(path, mpp=0.5) as slide:
        patches = list(TileStream(slide, plan_tiles(slide, None, tile_px=64, mpp=0.5, overlap=0)))
    bad = [(p.tile.x, p.tile.y) for p in patches if p.status != "ok"]
    assert bad == [(64, 0)]
    for p in patches:
        if p.pixels is not None:
            assert np.array_equal(p.pixels, sound[p.tile.y : p.tile.y + 64, p.tile.x : p.tile.x + 64])


def test_a_tile_of_absurd_size_is_refused_before_any_library_sees_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", FIELD, tiled=True, photometric="rgb")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        entry = file.pages[0].tags["TileWidth"]
        at, size = entry.valueoffset, {3: 2, 4: 4}[int(entry.dtype)]
    for width in (60_000, 2**30):
        if width < 2 ** (8 * size):
            data[at : at + size] = width.to_bytes(size, "little")
            path.write_bytes(data)
            for reader in (None, "openslide", "tiffslide"):
                with pytest.raises(SlideUnsupported):
                    open_slide(path, reader=reader)


def test_a_tile_that_inflates_without_end_is_unreadable(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    path = write(tmp_path / "a.tif", image, tiled=True, photometric="rgb")
    bomb = imagecodecs.zlib_encode(bytes(200 * 2**20))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        places = tags["TileOffsets"].valueoffset, tags["TileByteCounts"].valueoffset
    data[places[0] : places[0] + 4] = struct.pack("<I", len(data))
    data[places[1] : places[1] + 4] = struct.pack("<I", len(bomb))[:4]
    path.write_bytes(bytes(data) + bomb)
    with open_slide(path, mpp=0.5) as slide, pytest.raises(SlideUnreadable, match="goes on too long"):
        slide.read_region(0, 0, 0, 64, 64)


def test_dimensions_that_the_directory_does_not_back_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", FIELD, tiled=True, photometric="rgb")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags["ImageWidth"].valueoffset
    data[at : at + 2] = struct.pack("<H", 60_000)
    path.write_bytes(data)
    with pytest.raises(
        SlideUnsupported, match=r"claims 60,000 x 220 px, which need 3,752 tiles, but its directory lists 20"
    ):
        open_slide(path)


def test_a_jpeg_tile_of_another_size_than_stated_is_unreadable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", textured(128, 64), tiled=True, photometric="rgb", compression="jpeg")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        at, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    frame = data.index(b"\xff\xc0", at, at + count)
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    path.write_bytes(data)
    with open_slide(path, mpp=0.5) as slide:
        with pytest.raises(SlideUnreadable, match=r"60000 x 60000 px instead of 64 x 64"):
            slide.read_region(0, 0, 0, 64, 64)
        slide.read_region(64, 0, 0, 64, 64)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_raw_pixels_in_one_strip_are_read_by_their_rows(tmp_path: Path, planar: str) -> None:
    image = textured(700, 1100)
    data = image if planar == "contig" else image.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", planarconfig=planar, rowsperstrip=1100, metadata=None)
    assert np.array_equal(shown(tmp_path / "a.tif"), image)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(whole[:-700])  # the last rows are lost, and only they
    with open_slide(tmp_path / "b.tif", mpp=0.5) as slide:
        if planar == "contig":
            assert np.array_equal(slide.read_region(0, 0, 0, 700, 1000), image[:1000])
        with pytest.raises(SlideUnreadable, match="beyond the end of the file"):
            slide.read_region(0, 1050, 0, 700, 50)
