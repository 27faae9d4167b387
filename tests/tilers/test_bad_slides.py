"""Every bad slide of tests/cases/bad_slides.yaml ends with its error and words; truncation never invents pixels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tilers import TileStream, find_foreground, open_slide, plan_tiles
from wsi_chat import errors

from .conftest import draw_cells, textured, write_tiff
from .test_readers import damage

CASES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "bad_slides.yaml").read_text(encoding="utf-8")
)


def make(case: dict[str, Any], folder: Path, shared: Path) -> Path:
    """The case's file in ``folder``."""
    path = folder / case["file"]
    verb, _, rest = case["make"].partition(" ")
    if verb == "folder":
        path.mkdir()
    elif verb == "copy":
        shutil.copy(shared / "slides" / rest, path)
    elif verb == "write":
        path.write_text(rest)
    elif verb == "zeros":
        path.write_bytes(bytes(int(rest)))
    elif verb == "cut":
        name, size = rest.split()
        path.write_bytes((shared / "slides" / name).read_bytes()[: int(size)])
    elif verb == "image":
        _image(rest, path)
    return path


def _image(kind: str, path: Path) -> None:
    if kind == "jpeg-72-dpi":
        Image.fromarray(textured(200, 150)).save(path, dpi=(72, 72))
    elif kind in ("white", "black"):
        write_tiff(path, np.full((600, 800, 3), 255 if kind == "white" else 0, np.uint8), compression="jpeg")
    elif kind == "small":
        write_tiff(path, draw_cells(120, 90, [(60, 40)]))
    else:
        write_tiff(path, draw_cells(300, 300, [(60, 40)]), mpp=None)


@pytest.mark.parametrize("case", [c for c in CASES if "error" in c], ids=lambda c: c["name"])
def test_bad_slides_end_with_their_error(case: dict[str, Any], tmp_path: Path, shared_data: Path) -> None:
    path = make(case, tmp_path, shared_data)
    reached = "open"
    kind = getattr(errors, case["error"])

    def attempt() -> None:
        nonlocal reached
        with open_slide(path) as slide:
            reached = "mpp"
            slide.require_mpp()
            reached = "foreground"
            find_foreground(slide)

    with pytest.raises(errors.SlideError) as caught:
        attempt()
    assert type(caught.value) is kind
    assert reached == case["fails"]
    assert caught.value.exit_code == case["exit"]
    assert caught.value.hint
    for fragment in case["says"]:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("case", [c for c in CASES if "error" not in c], ids=lambda c: c["name"])
def test_odd_slides_have_a_defined_outcome(case: dict[str, Any], tmp_path: Path, shared_data: Path) -> None:
    with open_slide(make(case, tmp_path, shared_data)) as slide:
        foreground = find_foreground(slide)
        plan = plan_tiles(slide, foreground, tile_px=256, mpp=0.5)
        assert foreground.is_blank == case["blank"]
        assert len(plan.tiles) == case["tiles"]
        assert all(p.status == "ok" for p in TileStream(slide, plan))
    assert case["file"] in slide.record("x").file_name


def cut(path: Path, image: np.ndarray, share: float, reader: str) -> Path:
    """A slide that has lost the last part of its pixels, in the way that lets the reader open it.

    The others open a file that ends early. OpenSlide refuses a small one, since it hashes the smallest level; it
    opens one whose tiles of level 0 point beyond the end.
    """
    if reader != "openslide":
        write_tiff(path, image)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path
    write_tiff(path, image, levels=2)
    count = 4 * 4
    for index in range(int(count * share), count):
        path = damage(path, "next.tiff", "TileOffsets", index, path.stat().st_size + 1000).rename(path)
    return path


@pytest.mark.parametrize("share", [0.99, 0.8, 0.6, 0.1])
@pytest.mark.parametrize("reader", ["openslide", "tiff", "tiffslide"])
def test_a_truncated_slide_gives_true_pixels_or_unreadable(tmp_path: Path, share: float, reader: str) -> None:
    image = textured(1000, 800)
    path = cut(tmp_path / "cut.tiff", image, share, reader)
    with open_slide(path, reader=reader) as slide:
        assert slide.size == (1000, 800)
        plan = plan_tiles(slide, None, tile_px=128, mpp=0.5)
        lost = set()
        for patch in TileStream(slide, plan):
            t = patch.tile
            if patch.status == "ok":
                assert np.array_equal(patch.pixels, image[t.y : t.y + 128, t.x : t.x + 128])
            else:
                lost.add(t.index)
        masked = plan_tiles(slide, find_foreground(slide), tile_px=128, mpp=0.5)
    assert 0 < len(lost) < plan.grid
    assert len(lost) / plan.grid == pytest.approx(1 - share, abs=0.25)
    if reader != "openslide":  # one level: the overview met the damage too, and kept it in the denominator
        assert lost <= {t.index for t in masked.tiles}


@pytest.mark.parametrize("size", [1_280_000, 1_454_216, 1_745_059, 1_933_955, 1_938_945])
def test_a_truncated_svs_opens_with_true_pixels_or_not_at_all(shared_data: Path, tmp_path: Path, size: int) -> None:
    whole = shared_data / "slides" / "CMU-1-Small-Region.svs"
    path = tmp_path / "cut.svs"
    path.write_bytes(whole.read_bytes()[:size])
    try:
        slide = open_slide(path)
    except errors.SlideUnsupported:
        return
    with slide, open_slide(whole) as sound:
        plan = plan_tiles(slide, None, tile_px=256, mpp=0.5, limit=12)
        for patch in TileStream(slide, plan):
            t = patch.tile
            if patch.status == "ok":
                true = sound.read_region(t.x, t.y, 0, 256, 256).astype(int)
                assert np.abs(patch.pixels - true).max() <= 3  # two decoders
