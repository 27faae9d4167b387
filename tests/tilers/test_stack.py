"""Focal stacks: of each tile the sharpest plane is shown and recorded; no cell is lost for its depth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from tilers import TileStream, find_foreground, open_slide, plan_tiles
from tilers.focus import fuse_planes, read_focus
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box

from .conftest import draw_cells

PLANES = 5


def write_stack(path: Path, planes: list[np.ndarray], *, mpp: float = 0.5) -> Path:
    """RGB planes as an OME-TIFF with Z."""
    metadata = {"axes": "ZYXS", "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp,
                "PhysicalSizeYUnit": "µm"}  # fmt: skip
    tifffile.imwrite(
        path, np.stack(planes), photometric="rgb", tile=(128, 128), compression="deflate", metadata=metadata
    )
    return path


@pytest.fixture
def depths() -> dict[tuple[int, int], int]:
    """Where a cell lies, and the plane in which it is sharp."""
    return {(100, 100): 0, (400, 100): 4, (100, 400): 2, (400, 400): 3}


@pytest.fixture
def stack(tmp_path: Path, depths: dict[tuple[int, int], int]) -> Path:
    alone = {place: draw_cells(512, 512, [place], radius=12).astype(np.float32) for place in depths}
    glass = draw_cells(512, 512, []).astype(np.float32)
    planes = []
    for plane in range(PLANES):
        shown = glass.copy()
        for place, depth in depths.items():
            blur = 2.0 * abs(plane - depth)
            shown += cv2.GaussianBlur(alone[place] - glass, (0, 0), blur) if blur else alone[place] - glass
        planes.append(np.clip(shown, 0, 255).astype(np.uint8))
    return write_stack(tmp_path / "stack.ome.tif", planes)


def test_each_tile_shows_its_sharpest_plane(stack: Path, depths: dict[tuple[int, int], int]) -> None:
    with open_slide(stack) as slide:
        assert (slide.planes, slide.reader) == (PLANES, "tiff")
        assert slide.notes == ("a stack of 5 focal planes: of each tile the sharpest plane is read",)
        plan = plan_tiles(slide, None, tile_px=128, mpp=0.5, overlap=0)
        patches = {(p.tile.x, p.tile.y): p for p in TileStream(slide, plan)}
        for (x, y), depth in depths.items():
            patch = patches[x // 128 * 128, y // 128 * 128]
            assert patch.z == depth
            direct = slide.read_region(patch.tile.x, patch.tile.y, 0, 128, 128, z=depth)
            assert np.array_equal(patch.pixels, direct)


@pytest.mark.parametrize(("z", "plane"), [("mid", 2), (4, 4), ("0", 0)])
def test_a_plane_that_is_named_is_the_one_that_is_read(stack: Path, z: str | int, plane: int) -> None:
    with open_slide(stack, z=z) as slide, open_slide(stack) as other:
        plan = plan_tiles(slide, None, tile_px=128, mpp=0.5)
        for patch in TileStream(slide, plan):
            assert patch.z == plane
            t = patch.tile
            assert np.array_equal(patch.pixels, other.read_region(t.x, t.y, 0, 128, 128, z=plane))
        assert f"only plane {plane}, from 0," in slide.notes[0]


def test_a_slide_without_a_stack_has_no_plane_to_record(tmp_path: Path) -> None:
    path = tmp_path / "flat.tif"
    tifffile.imwrite(path, draw_cells(256, 256, [(60, 60)]), photometric="rgb")
    with open_slide(path, mpp=0.5) as slide:
        assert {p.z for p in TileStream(slide, plan_tiles(slide, None, tile_px=128, mpp=0.5))} == {None}
        assert slide.notes == ()
    with pytest.raises(SettingError, match=r"z is 3, but flat\.tif has 1 focal plane"):
        open_slide(path, mpp=0.5, z=3)


def test_the_mask_finds_a_cell_at_any_depth(tmp_path: Path) -> None:
    cell = draw_cells(512, 512, [(256, 256)], radius=8)
    glass = draw_cells(512, 512, [])
    path = write_stack(tmp_path / "a.ome.tif", [cell, glass, glass])  # nothing is left of it in the middle plane
    with open_slide(path) as slide:
        assert find_foreground(slide).fraction(Box(240, 240, 272, 272)) > 0
    with open_slide(path, z="mid") as slide:
        assert find_foreground(slide).is_blank


def test_a_plane_that_cannot_be_read_gives_way_to_one_that_can(stack: Path, depths: dict) -> None:
    data = bytearray(stack.read_bytes())
    with tifffile.TiffFile(stack) as file:
        page = file.pages[4]
        start, count = page.dataoffsets[3], page.databytecounts[3]  # the piece of the cell at (400, 100), plane 4
    data[start : start + count] = bytes(count)
    stack.write_bytes(data)
    with open_slide(stack) as slide:
        plan = plan_tiles(slide, None, tile_px=128, mpp=0.5, overlap=0)
        patches = {(p.tile.x, p.tile.y): p for p in TileStream(slide, plan)}
    assert patches[384, 0].status == "ok"
    assert patches[384, 0].z == 3


def test_fused_planes_show_every_cell_as_sharp_as_its_own_plane(tmp_path: Path) -> None:
    places = {(60, 60): 0, (140, 60): 2, (60, 140): 4, (140, 140): 1}  # all in one tile
    sharp, glass = draw_cells(200, 200, list(places), radius=12), draw_cells(200, 200, []).astype(np.float32)
    alone = {place: draw_cells(200, 200, [place], radius=12).astype(np.float32) - glass for place in places}
    planes = []
    for plane in range(PLANES):
        blurred = [
            cv2.GaussianBlur(alone[p], (0, 0), 2.0 * abs(plane - d)) if plane != d else alone[p]
            for p, d in places.items()
        ]
        planes.append(np.clip(glass + sum(blurred), 0, 255).astype(np.uint8))
    path = write_stack(tmp_path / "thick.ome.tif", planes)

    def worst(z: str) -> float:
        with open_slide(path, z=z) as slide:
            (patch,) = TileStream(slide, plan_tiles(slide, None, tile_px=200, mpp=0.5, overlap=0))
            assert patch.pixels is not None
            off = np.abs(patch.pixels.astype(float) - sharp).mean(axis=2)
            return max(float(off[y - 20 : y + 20, x - 20 : x + 20].mean()) for x, y in places)

    assert worst("fused") < worst("best") / 5
    assert worst("fused") < worst("mid") / 5
    with open_slide(path, z="fused") as slide:
        assert slide.notes == ("a stack of 5 focal planes: each place is shown from the plane in which it is sharp",)
        assert {p.z for p in TileStream(slide, plan_tiles(slide, None, tile_px=64, mpp=0.5))} == {None}
        assert np.array_equal(slide.read_region(0, 0, 0, 200, 200, z=3), planes[3])


def test_a_fused_tile_shows_the_same_whichever_are_read_with_it(stack: Path) -> None:
    with open_slide(stack, z="fused") as slide:
        plan = plan_tiles(slide, None, tile_px=128, mpp=0.5, overlap=0)
        for patch in TileStream(slide, plan):
            assert np.array_equal(patch.pixels, slide.read_region(patch.tile.x, patch.tile.y, 0, 128, 128))


def test_fused_planes_pass_over_one_that_cannot_be_read(stack: Path) -> None:
    data = bytearray(stack.read_bytes())
    with tifffile.TiffFile(stack) as file:
        page = file.pages[4]
        for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            data[start : start + count] = bytes(count)
    stack.write_bytes(data)
    with open_slide(stack, z="fused") as slide:
        assert all(p.status == "ok" for p in TileStream(slide, plan_tiles(slide, None, tile_px=128, mpp=0.5)))


def test_a_plane_that_does_not_exist_is_refused_with_all_that_can_be_given(stack: Path) -> None:
    with pytest.raises(SettingError, match=r"z is 7, but stack\.ome\.tif has 5 focal planes") as caught:
        open_slide(stack, z=7)
    assert caught.value.hint == "Planes are counted from 0: give 0 to 4, best, fused or mid."


def test_planes_that_are_alike_are_fused_into_the_same() -> None:
    image = draw_cells(128, 128, [(60, 60)])
    assert np.array_equal(fuse_planes([image] * 3), image)


@pytest.mark.parametrize("value", ["middle", "-1", "1.5", ""])
def test_settings_of_z_that_mean_nothing(value: str) -> None:
    with pytest.raises(SettingError, match="best"):
        read_focus(value)
