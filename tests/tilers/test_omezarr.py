"""OME-Zarr: both layouts, RGB and fluorescence, units, chunks that are missing or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilers import find_foreground, open_slide
from wsi_chat.errors import SettingError, SlideUnreadable, SlideUnsupported
from wsi_chat.schema import Remark

from .conftest import halved, textured


def write_zarr(
    path: Path,
    levels: list[np.ndarray],
    *,
    version: str = "0.5",
    axes: str = "cyx",
    unit: str | None = "micrometer",
    scale: float = 0.5,
    omero: dict[str, Any] | None = None,
    inside: str = "",
) -> Path:
    """An OME-Zarr folder; ``levels`` are arrays in the order of ``axes``."""
    import zarr

    root = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
    group = root.create_group(inside) if inside else root
    datasets = []
    for i, array in enumerate(levels):
        chunks = tuple(64 if name in "yx" else 1 for name in axes)
        stored = group.create_array(str(i), shape=array.shape, chunks=chunks, dtype=array.dtype, fill_value=0)
        stored[...] = array
        step = [scale * 2**i if name in "yx" else 1.0 for name in axes]
        datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": step}]})
    kinds = {"c": "channel", "z": "space", "t": "time", "y": "space", "x": "space"}
    described = [{"name": n, "type": kinds[n]} | ({"unit": unit} if unit and n in "yx" else {}) for n in axes]
    meta: dict[str, Any] = {"multiscales": [{"axes": described, "datasets": datasets}], "version": version}
    if omero:
        meta["omero"] = omero
    group.attrs.update({"ome": meta} if version == "0.5" else meta)
    return path


def test_images_that_the_group_ome_lists_are_found_by_their_names(tmp_path: Path) -> None:
    import zarr

    image = textured(300, 200)
    path = tmp_path / "a.zarr"
    label = np.full((3, 400, 500), 90, np.uint8)
    write_zarr(path, [label], inside="label")
    write_zarr(tmp_path / "b.zarr", [image.transpose(2, 0, 1)], inside="x")
    (tmp_path / "b.zarr").rename(path / "scans")
    root = zarr.open_group(str(path), mode="a")
    root.create_group("OME").attrs["ome"] = {"version": "0.5", "series": ["label", "scans/x", "../outside"]}
    with open_slide(path) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, 300, 200), image)


def test_bright_channels_without_colours_are_refused(tmp_path: Path) -> None:
    image = 255 - textured(300, 200) // 4
    five = np.concatenate([image, image[..., :2]], axis=2).transpose(2, 0, 1)
    with pytest.raises(SlideUnsupported, match="5 channels on a bright background"):
        open_slide(write_zarr(tmp_path / "a.zarr", [five]))


RGB = {"channels": [{"color": c} for c in ("FF0000", "00FF00", "0000FF")]}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("omero", [None, RGB])
def test_rgb_in_both_layouts(tmp_path: Path, version: str, omero: dict[str, Any] | None) -> None:
    image = textured(300, 200)
    levels = [image.transpose(2, 0, 1), halved(image).transpose(2, 0, 1)]
    with open_slide(write_zarr(tmp_path / "a.zarr", levels, version=version, omero=omero)) as slide:
        assert (slide.reader, slide.level_sizes) == ("omezarr", ((300, 200), (150, 100)))
        assert (slide.mpp, slide.mpp_source) == (0.5, "ome-zarr coordinateTransformations")
        assert np.array_equal(slide.read_region(70, 30, 0, 200, 150), image[30:180, 70:270])
        assert np.array_equal(slide.read_region(20, 40, 1, 50, 60), halved(image)[20:80, 10:60])
        assert len(slide.fingerprint) == 64
        assert slide.clone().read_region(0, 0, 0, 9, 9).shape == (9, 9, 3)


def test_axes_in_another_order_and_a_stack(tmp_path: Path) -> None:
    image = textured(100, 80)
    stack = np.stack([image, image // 2])[None]  # t z y x c
    path = write_zarr(tmp_path / "a.zarr", [stack], axes="tzyxc")
    with open_slide(path) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, 100, 80), image)  # half the contrast is half as sharp
        assert slide.notes == ("a stack of 2 focal planes: of each tile the sharpest plane is read",)
    for z, plane in (("mid", 1), (0, 0), ("1", 1)):
        with open_slide(path, z=z) as slide:
            assert np.array_equal(slide.read_region(0, 0, 0, 100, 80), image // (1 + plane))
            assert slide.notes == (f"a stack of 2 focal planes: only plane {plane}, from 0, is read",)
    with pytest.raises(SettingError, match=r"z is 2, but a\.zarr has 2 focal planes"):
        open_slide(path, z=2)


@pytest.mark.parametrize(
    ("unit", "scale", "mpp"), [("nanometer", 250.0, 0.25), ("millimeter", 0.0005, 0.5), (None, 0.5, None)]
)
def test_units_of_the_scale(tmp_path: Path, unit: str | None, scale: float, mpp: float | None) -> None:
    levels = [textured(80, 80).transpose(2, 0, 1)]
    with open_slide(write_zarr(tmp_path / "a.zarr", levels, unit=unit, scale=scale)) as slide:
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp))


def test_fluorescence_is_mixed_from_windows_and_colours(tmp_path: Path) -> None:
    data = np.zeros((3, 128, 128), np.uint16)
    data[0, :32] = 3000
    data[1, :, :32] = 500
    data[2] = 60_000
    omero = {
        "channels": [
            {"color": "0000FF", "window": {"start": 1000, "end": 5000}},
            {"color": "00FF00", "window": {"start": 0, "end": 500}},
            {"color": "FF0000", "window": {"start": 0, "end": 500}, "active": False},
        ]
    }
    with open_slide(write_zarr(tmp_path / "a.zarr", [data], omero=omero)) as slide:
        got = slide.read_region(0, 0, 0, 128, 128)
        assert got[10, 10].tolist() == [0, 255, 128]
        assert got[100, 100].tolist() == [0, 0, 0]
        assert slide.background_rgb == (0, 0, 0)
        assert slide.read_region(-10, 0, 0, 5, 5).max() == 0  # outside is dark here, not white
        foreground = find_foreground(slide)
    assert foreground.kind == "dark"
    assert foreground.area_fraction == pytest.approx(7 / 12, abs=0.02)  # the quarter that no channel wrote is outside


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_chunk_never_written_is_outside_the_scan(tmp_path: Path, version: str) -> None:
    image = textured(192, 128)
    path = write_zarr(tmp_path / "a.zarr", [image.transpose(2, 0, 1)], version=version)
    for chunk in path.rglob("*"):
        if chunk.relative_to(path).as_posix() in {f"0/c/{c}/1/2" for c in range(3)} | {f"0/{c}.1.2" for c in range(3)}:
            chunk.unlink()
    with open_slide(path) as slide:
        got, scanned = slide.read_with_mask(100, 40, 0, 92, 88)
    assert scanned is not None
    assert scanned.sum() == 92 * 88 - 64 * 64
    assert (got[24:, 28:] == 255).all()
    assert np.array_equal(got[scanned], image[40:, 100:][scanned])


def test_where_no_chunk_was_written_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask of a sparse scan, or of a kilobyte that claims 60,000 px, decoded and mixed zeros for minutes."""
    import zarr

    image = np.zeros((300, 400, 3), np.uint8)
    image[:64, :64] = textured(64, 64)
    with open_slide(write_zarr(tmp_path / "a.zarr", [image.transpose(2, 0, 1)], omero=RGB)) as slide:
        whole = slide.read_region(0, 0, 0, 400, 300)
        pieces = []
        real = zarr.Array.__getitem__
        monkeypatch.setattr(
            zarr.Array, "__getitem__", lambda array, place: (pieces.append(place), real(array, place))[1]
        )
        pixels, scanned = slide.read_with_mask(64, 64, 0, 200, 200)
        assert pieces == []
        assert scanned is not None
        assert not scanned.any()
        assert np.array_equal(pixels, np.full((200, 200, 3), slide.background_rgb, np.uint8))
        assert np.array_equal(pixels, whole[64:264, 64:264])
        assert np.array_equal(slide.read_region(0, 0, 0, 64, 64), image[:64, :64])
        assert len(pieces) == 1


def test_a_damaged_chunk_makes_its_region_unreadable(tmp_path: Path) -> None:
    image = textured(192, 128)
    path = write_zarr(tmp_path / "a.zarr", [image.transpose(2, 0, 1)])
    (path / "0" / "c" / "0" / "0" / "0").write_bytes(b"no zstd frame")
    with open_slide(path) as slide:
        with pytest.raises(SlideUnreadable, match=r"a\.zarr"):
            slide.read_region(0, 0, 0, 60, 60)
        assert np.array_equal(slide.read_region(64, 64, 0, 64, 64), image[64:, 64:128])


def test_the_first_image_of_a_converters_folder(tmp_path: Path) -> None:
    image = textured(90, 70)
    with open_slide(write_zarr(tmp_path / "a.zarr", [image.transpose(2, 0, 1)], inside="0")) as slide:
        assert slide.size == (90, 70)
        assert np.array_equal(slide.read_region(0, 0, 0, 90, 70), image)


def test_zarr_without_multiscales_is_no_slide(tmp_path: Path) -> None:
    import zarr

    zarr.open_group(str(tmp_path / "a.zarr"), mode="w").create_array("x", shape=(4, 4), dtype="u1")
    with pytest.raises(SlideUnsupported, match=r"a\.zarr.*without multiscales"):
        open_slide(tmp_path / "a.zarr")


# ------------------------------------------------------------------------------------------ colours

WHITE = {"channels": [{"color": "FFFFFF"}] * 3}


@pytest.mark.parametrize("omero", [None, RGB, WHITE, {"channels": [{"color": "808080"}] * 3}])
@pytest.mark.parametrize("depth", [8, 12, 16])
def test_bright_colours_of_any_depth_and_colour_statement(tmp_path: Path, omero: dict | None, depth: int) -> None:
    image = 255 - textured(300, 200) // 3
    image[0, 0] = 255
    wide = image if depth == 8 else image.astype(np.uint16) << (depth - 8)
    with open_slide(write_zarr(tmp_path / "a.zarr", [wide.transpose(2, 0, 1)], omero=omero)) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, 300, 200), image)
        assert slide.background_rgb == (255, 255, 255)
        assert [f"{depth}-bit values" in note for note in slide.notes] == ([True] if depth == 12 else [])


@pytest.mark.parametrize("omero", [None, {"channels": [*RGB["channels"], {"color": "FFFFFF"}]}])
def test_rgba_shows_background_where_it_is_transparent(tmp_path: Path, omero: dict | None) -> None:
    image = textured(200, 150)
    alpha = np.full((150, 200), 255, np.uint8)
    alpha[:70] = 0
    with open_slide(write_zarr(tmp_path / "a.zarr", [np.dstack([image, alpha]).transpose(2, 0, 1)], omero=omero)) as s:
        got, scanned = s.read_with_mask(0, 0, 0, 200, 150)
    assert (got[:70] == 255).all()
    assert np.array_equal(got[70:], image[70:])
    assert scanned is not None
    assert scanned.sum() == 200 * 80


def test_four_fluorescent_channels_are_no_rgba(tmp_path: Path) -> None:
    data = np.zeros((4, 128, 128), np.uint8)
    data[3] = np.arange(128, dtype=np.uint8)
    with open_slide(write_zarr(tmp_path / "a.zarr", [data])) as slide:
        got = slide.read_region(0, 0, 0, 128, 128)
        assert got[5, 127].tolist() == [255, 255, 255]  # the fourth colour is white
        assert got[5, 0].tolist() == [0, 0, 0]


def test_dark_sixteen_bit_channels_are_fluorescence(tmp_path: Path) -> None:
    data = np.full((3, 128, 128), 100, np.uint16)
    data[0, :16] = 4000
    with open_slide(write_zarr(tmp_path / "a.zarr", [data], omero=RGB)) as slide:
        got = slide.read_region(0, 0, 0, 128, 128)
        assert got[0, 0].tolist() == [255, 0, 0]
        assert got[100, 100].tolist() == [0, 0, 0]
        assert slide.background_rgb == (0, 0, 0)


@pytest.mark.parametrize("bright", [True, False])
def test_one_wide_channel_without_a_colour_is_grey(tmp_path: Path, bright: bool) -> None:
    grey = 255 - textured(200, 150)[..., 0] // 3 if bright else textured(200, 150)[..., 0] // 8
    grey[0, 0] = 255
    with open_slide(write_zarr(tmp_path / "a.zarr", [(grey.astype(np.uint16) << 4)[None]])) as slide:
        got = slide.read_region(0, 0, 0, 200, 150)
    assert (got[..., 0] == got[..., 1]).all()
    assert (got[..., 0] == got[..., 2]).all()
    if bright:
        assert np.array_equal(got[..., 0], grey)
    else:
        assert got.std() > 20  # stretched to what is in use


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_no_number_is_not_scanned_rather_than_black(tmp_path: Path, channels: int) -> None:
    image = 255 - textured(200, 150) // 3
    data = (image.astype(np.float32) / 255).transpose(2, 0, 1)[:channels]
    data[:, :70] = np.nan
    data[0, 100, 100] = np.nan  # no number in one channel is no colour
    with open_slide(write_zarr(tmp_path / "a.zarr", [data])) as slide:
        got, scanned = slide.read_with_mask(0, 0, 0, 200, 150)
        assert [*slide.notes, *slide.reading_notes].count(Remark("slide.no_numbers")) == 1
    assert scanned is not None
    assert not scanned[:70].any()
    assert scanned[70:].sum() == 80 * 200 - 1
    assert (got[:70] == 255).all()
    assert np.array_equal(got[70:100], (image[70:100] if channels == 3 else image[70:100, :, [0, 0, 0]]))


def test_fluorescence_with_gaps_is_mixed_beside_them(tmp_path: Path) -> None:
    data = np.zeros((2, 128, 128), np.float32)
    data[0, :64], data[1, :, :64] = 3000, 100
    data[:, 120:] = np.nan
    with open_slide(write_zarr(tmp_path / "a.zarr", [data])) as slide:
        got, scanned = slide.read_with_mask(0, 0, 0, 128, 128)
    assert scanned is not None
    assert scanned[:120].all()
    assert not scanned[120:].any()
    assert got[10, 100].tolist() == [0, 0, 255]


# ------------------------------------------------------------------------------------------ several images


def write_series(path: Path, images: list[tuple[str, np.ndarray, str | None]], *, named_in: str) -> Path:
    """A folder as bioformats2raw lays it out; names stand in OME-XML, in the multiscales or in omero."""
    import json

    import zarr

    zarr.open_group(str(path), mode="w", zarr_format=3).attrs.update({"ome": {"bioformats2raw.layout": 3}})
    for i, (name, image, unit) in enumerate(images):
        place = path / str(i)
        write_zarr(place, [image.transpose(2, 0, 1)], unit=unit)
        meta = json.loads((place / "zarr.json").read_text())
        if named_in == "multiscales":
            meta["attributes"]["ome"]["multiscales"][0]["name"] = name
        elif named_in == "omero":
            meta["attributes"]["ome"]["omero"] = {"name": name, **RGB}
        (place / "zarr.json").write_text(json.dumps(meta))
    if named_in == "xml":
        (path / "OME").mkdir()
        body = "".join(f'<Image ID="Image:{i}" Name="{n}"><Pixels/></Image>' for i, (n, *_) in enumerate(images))
        xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{body}</OME>'
        (path / "OME" / "METADATA.ome.xml").write_text(xml)
    return path


LABEL = np.full((400, 500, 3), (250, 250, 90), np.uint8)
SCAN = textured(300, 220)


@pytest.mark.parametrize("named_in", ["xml", "multiscales", "omero"])
@pytest.mark.parametrize("order", [("label", "scan", "macro"), ("macro", "label", "scan"), ("scan", "label", "macro")])
def test_the_scan_of_a_converters_folder_is_found(tmp_path: Path, named_in: str, order: tuple[str, ...]) -> None:
    kinds = {"label": ("label image", LABEL, "micrometer"), "macro": ("macro image", LABEL, "micrometer"),
             "scan": ("slide.svs", SCAN, "micrometer")}  # fmt: skip
    path = write_series(tmp_path / "a.zarr", [kinds[kind] for kind in order], named_in=named_in)
    with open_slide(path) as slide:
        assert np.array_equal(slide.read_region(0, 0, 0, *slide.size), SCAN)
        assert "2 other images of the file" in slide.notes[0]
        assert np.array_equal(slide.overview(300), SCAN)


def test_without_names_the_scan_is_what_has_a_scale_and_then_the_largest(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a.zarr", [("", LABEL, None), ("", SCAN, "micrometer")], named_in="")
    with open_slide(path) as slide:
        assert slide.size == (300, 220)
    path = write_series(tmp_path / "b.zarr", [("", LABEL[:100, :100], None), ("", SCAN, None)], named_in="")
    with open_slide(path) as slide:
        assert slide.size == (300, 220)


def test_a_folder_of_labels_alone_is_refused(tmp_path: Path) -> None:
    path = write_series(tmp_path / "a.zarr", [("label image", LABEL, None)], named_in="xml")
    with pytest.raises(SlideUnsupported, match="only label, macro or overview"):
        open_slide(path)


# ------------------------------------------------------------------------------------------ lies


def rewrite(path: Path, **changes: Any) -> Path:
    """Change the metadata of level 0 without writing a pixel."""
    import json

    file = path / "0" / "zarr.json"
    meta = json.loads(file.read_text())
    if "shape" in changes:
        meta["shape"] = changes["shape"]
    if "chunks" in changes:
        meta["chunk_grid"]["configuration"]["chunk_shape"] = changes["chunks"]
    if "dtype" in changes:
        meta["data_type"] = changes["dtype"]
    file.write_text(json.dumps(meta))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunks": [1, 60_000, 60_000], "shape": [3, 60_000, 60_000]}, "one chunk is"),
        ({"chunks": [1, 1, 1], "shape": [3, 9_000, 9_000]}, r"chunks are 1 x 1 px"),
        ({"shape": [3, 10**9, 10**9]}, r"claims 1,000,000,000 x"),
        ({"shape": [3, 3_000_000, 3_000_000]}, r"smallest level has 3,000,000 x"),
        ({"shape": [3, 0, 100]}, "claims 100 x 0"),
        ({"shape": [0, 80, 80]}, "channel"),
    ],
)
def test_metadata_that_would_cost_memory_or_hours_are_refused(tmp_path: Path, changes: dict, words: str) -> None:
    path = rewrite(write_zarr(tmp_path / "a.zarr", [textured(80, 80).transpose(2, 0, 1)]), **changes)
    with pytest.raises(SlideUnsupported, match=words):
        open_slide(path)


def test_a_kilobyte_that_claims_gigabytes_opens_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = write_zarr(tmp_path / "a.zarr", [np.zeros((3, 64, 64), np.uint16)])
    rewrite(path, shape=[3, 48_000, 48_000], chunks=[1, 1024, 1024])  # 13.8 GB as uint16
    tracemalloc.start()
    try:
        with open_slide(path) as slide:
            assert slide.size == (48_000, 48_000)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_zarr_that_is_no_image_says_what_to_give(tmp_path: Path) -> None:
    import zarr

    plate = zarr.open_group(str(tmp_path / "plate.zarr"), mode="w", zarr_format=2)
    plate.attrs["plate"] = {"wells": [{"path": "B/3"}, {"path": "B/4"}]}
    write_zarr(tmp_path / "plate.zarr", [textured(100, 80).transpose(2, 0, 1)], version="0.4", inside="B/3/0")
    plate = zarr.open_group(str(tmp_path / "plate.zarr"), mode="a", zarr_format=2)
    plate.attrs["plate"] = {"wells": [{"path": "B/3"}, {"path": "B/4"}]}
    with pytest.raises(SlideUnsupported, match="a plate of 2 wells") as caught:
        open_slide(tmp_path / "plate.zarr")
    assert caught.value.hint == "Give the folder of one field of one well: plate.zarr/B/3/0."
    with open_slide(tmp_path / "plate.zarr" / "B" / "3" / "0") as slide:
        assert slide.size == (100, 80)
    zarr.create_array(str(tmp_path / "array.zarr"), shape=(8, 8), chunks=(8, 8), dtype="uint8")
    zarr.open_group(str(tmp_path / "empty.zarr"), mode="w")
    for name in ("array.zarr", "empty.zarr"):
        with pytest.raises(SlideUnsupported) as caught:
            open_slide(tmp_path / name)
        assert "multiscales metadata" in caught.value.hint
