"""Fields laid out as a slide: pixels and boxes land where they should, and OpenSlide reads the resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from wsi_chat.datasets.mosaic import mosaic_slide
from wsi_chat.datasets.voc import read_voc
from wsi_chat.errors import SettingError, SlideError
from wsi_chat.schema import Box, LabelledBox

XML = """<annotation><object><name>WBC</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>60</ymax>
</bndbox></object><object><name>RBC</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>5</xmax><ymax>9</ymax></bndbox>
</object></annotation>"""


def fields(folder: Path, shades: list[int], size: tuple[int, int] = (320, 240)) -> list[tuple[Path, Path]]:
    made = []
    for number, shade in enumerate(shades):
        Image.new("RGB", size, (shade, shade, shade)).save(folder / f"{number}.png")
        (folder / f"{number}.xml").write_text(XML)
        made.append((folder / f"{number}.png", folder / f"{number}.xml"))
    return made


def test_boxes_and_pixels_land_in_their_field(tmp_path: Path) -> None:
    pairs = fields(tmp_path, [40, 90, 140, 190, 240])
    truth = mosaic_slide(tmp_path / "m.tiff", pairs, mpp=0.25, columns=2, names={"WBC": "wbc"})
    assert truth[3] == LabelledBox("wbc", Box(320 + 10, 240 + 20, 320 + 40, 240 + 60))
    assert len(truth) == 5  # the box without area is left out
    with openslide.OpenSlide(tmp_path / "m.tiff") as slide:
        assert slide.dimensions == (640, 720)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-4)
        middle = np.asarray(slide.read_region((320 + 160, 240 + 120), 0, (8, 8)).convert("RGB"))
        assert np.abs(middle.astype(int) - 190).max() <= 3
        empty = np.asarray(slide.read_region((320 + 160, 480 + 120), 0, (8, 8)).convert("RGB"))
        assert empty.min() >= 252


def test_no_fields_and_unequal_fields_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no fields"):
        mosaic_slide(tmp_path / "m.tiff", [], mpp=0.25, columns=2)
    pairs = fields(tmp_path, [1, 2])
    Image.new("RGB", (100, 240)).save(pairs[1][0])
    with pytest.raises(SettingError, match=r"1\.png is 100 x 240"):
        mosaic_slide(tmp_path / "m.tiff", pairs, mpp=0.25, columns=2)


@pytest.mark.parametrize("text", ["no xml", "<a><object><bndbox><xmin>1</xmin></bndbox></object></a>"])
def test_a_broken_annotation_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(SlideError, match=r"x\.xml"):
        read_voc(tmp_path / "x.xml")


def test_real_annotations_read(shared_data: Path) -> None:
    found = read_voc(shared_data / "bccd" / "Annotations" / "BloodImage_00000.xml")
    assert found[0] == LabelledBox("WBC", Box(260, 177, 491, 376))
    assert len(found) == 20
