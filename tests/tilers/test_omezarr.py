"""OME-Zarr: both layouts, RGB and fluorescence, units, chunks that are missing or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilers import find_foreground, open_slide
from wsi_chat.errors import SettingError, SlideUnreadable, SlideUnsupported

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
