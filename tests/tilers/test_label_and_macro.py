"""The label and the macro image, which show names and barcodes, are opened by no reader: whatever opens them raises."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import openslide
import pytest
import tifffile
from openslide import lowlevel

from tilers import TileStream, find_foreground, open_slide, plan_tiles

PRIVATE = ("label", "macro")
READERS = ["openslide", "tiffslide", *(["fastslide"] if find_spec("fastslide") else [])]


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every way in raises, and is noted here, since a reader may swallow what it raises."""
    opened: list[str] = []

    def refuse(*given: Any, **named: Any) -> NoReturn:
        opened.append(str(given[1:]))
        raise AssertionError(f"a label or macro was opened: {given[1:]}")

    monkeypatch.setattr(lowlevel, "read_associated_image", refuse)
    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(refuse))
    for name in ("asarray", "segments", "decode"):
        real = getattr(tifffile.TiffPage, name)
        is_property = not callable(real)

        def watched(page: Any, *given: Any, real: Any = real, prop: bool = is_property, **named: Any) -> Any:
            if any(word in str(page.description).casefold() for word in PRIVATE):
                refuse(page, page.index)
            return (real.func if hasattr(real, "func") else real.fget)(page) if prop else real(page, *given, **named)

        monkeypatch.setattr(tifffile.TiffPage, name, property(watched) if is_property else watched)
    return opened


def test_the_slide_of_these_tests_has_a_label_and_a_macro_and_the_guard_holds(
    shared_data: Path, guarded: list[str]
) -> None:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    with tifffile.TiffFile(path) as file:
        private = [page for page in file.pages if any(word in page.description.casefold() for word in PRIVATE)]  # type: ignore[union-attr]
        assert len(private) == 2
        for page in private:
            with pytest.raises(AssertionError, match="was opened"):
                page.asarray()
        assert file.pages[0].asarray().shape[2] == 3
    with openslide.OpenSlide(path) as slide, pytest.raises(AssertionError, match="was opened"):
        slide.associated_images["label"]
    assert len(guarded) == 3


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_opens_them(reader: str, shared_data: Path, guarded: list[str]) -> None:
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs", reader=reader) as slide:
        foreground = find_foreground(slide)
        plan = plan_tiles(slide, foreground, tile_px=256, mpp=0.5, limit=6)
        patches = list(TileStream(slide, plan))
        assert [patch.status for patch in patches] == ["ok"] * len(plan.tiles)
        assert np.asarray(slide.overview(256)).std() > 1
        record = slide.record("x")
        with slide.clone() as twin:
            assert twin.read_region(0, 0, 0, 64, 64).shape == (64, 64, 3)
    assert guarded == []
    assert not [name for name in record.properties if "label" in name or "macro" in name]


def test_a_damaged_svs_whose_label_is_left_as_its_first_picture_is_refused(shared: Any) -> None:
    cases = sorted(path for path in shared("cases/label-of-a-damaged-svs").iterdir() if path.suffix == ".svs")
    assert cases
    for path in cases:
        with pytest.raises(Exception, match=r"cannot be opened|cannot be read") as caught:
            open_slide(path)
        assert type(caught.value).__module__ == "wsi_chat.errors"
