"""Annotations as QuPath, COCO and VOC tools really write them: each marked cell is used, or refused aloud."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tilers import open_slide, plan_tiles
from wsi_chat.datasets.annotated import Annotated, Renaming
from wsi_chat.datasets.collect import Sources, collect
from wsi_chat.datasets.mosaic import write_pyramid
from wsi_chat.datasets.questions import Interviewer
from wsi_chat.datasets.qupath import class_names, read_geojson
from wsi_chat.datasets.wordings import Names
from wsi_chat.dialects import get_dialect
from wsi_chat.errors import SlideError
from wsi_chat.schema import Box, LabelledBox
from wsi_chat.terminology import load_system

CYTO = get_dialect("cytochat")
SIDE, TILE = 2048, 256
CELLS = [
    Box(x, y, x + 60, y + 50) for x, y in ((70, 80), (600, 90), (900, 700), (1480, 310), (230, 1500), (1790, 1780))
]


def ring(box: Box) -> list[list[float]]:
    return [[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1], [box.x0, box.y0]]


def polygon(box: Box) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [ring(box)]}


def point(box: Box) -> dict[str, Any]:
    return {"type": "Point", "coordinates": list(box.center)}


def feature(geometry: Any, classification: Any = "lsil", **more: Any) -> dict[str, Any]:
    if classification == "lsil":
        classification = {"name": "lsil", "color": [200, 30, 30]}
    properties = {"objectType": "annotation", "classification": classification, **more}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.full((SIDE, SIDE, 3), 235, np.uint8)
    pixels[20:-20, 20:-20] = (210, 160, 190)
    pixels[::7, ::5] = (120, 60, 120)
    for box in CELLS:
        pixels[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = (90, 40, 110)
    path = tmp_path_factory.mktemp("slide") / "s.tiff"
    write_pyramid(path, pixels, mpp=0.5)
    return path


def tiles_of(slide: Path, features: list[Any], folder: Path, **more: Any) -> list[Annotated]:
    file = folder / "s.geojson"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    sources = Sources(geojson=(file,), slides=(slide,))
    return collect(sources, dialect=CYTO, tile_px=TILE, tile_mpp=0.5, negatives=60, **more)


def check_truth(slide: Path, tiles: list[Annotated]) -> None:
    """No tile that shows a part of a marked cell is ever told that there is none, whatever is drawn."""
    with open_slide(slide) as opened:
        places = {
            f"s_{tile.id}": tile.box for tile in plan_tiles(opened, None, tile_px=TILE, mpp=0.5, overlap=0.0).tiles
        }
    names = Names(load_system("cervix"))
    checked = 0
    for tile in tiles:
        shows = sum(cell.intersection(places[tile.name]) > 0 for cell in CELLS)
        said = []
        for seed in range(20):
            talks = Interviewer(tile, CYTO, names, np.random.default_rng(seed)).some()
            said += [exchange.answer.lower() for talk in talks for exchange in talk]
        if shows:
            checked += 1
            assert not [text for text in said if "no lsil" in text or "no abnormal" in text or "negative" in text]
            assert not [text for text in said if "no low-grade" in text]
    assert checked


WRITTEN: dict[str, list[dict[str, Any]]] = {
    "plain": [feature(polygon(box)) for box in CELLS],
    "names": [feature(polygon(box), {"names": ["lsil", "Positive"]}) for box in CELLS],
    "names_half": [
        feature(polygon(box), {"names": ["lsil", "Negative"]} if n % 2 else "lsil") for n, box in enumerate(CELLS)
    ],
    "derived": [feature(polygon(box), {"name": "lsil: Positive"}) for box in CELLS],
    "text": [feature(polygon(box), "LSIL ") for box in CELLS],
    "old_types": [
        {**feature(polygon(box)), "properties": {"object_type": "PathCellObject", "classification": {"name": "lsil"}}}
        for box in CELLS
    ],
    "multipolygon": [feature({"type": "MultiPolygon", "coordinates": [[ring(box)] for box in CELLS]})],
    "collection": [
        feature({"type": "GeometryCollection", "geometries": [polygon(box), point(box)]}) for box in CELLS
    ],
    "hole_and_height": [
        feature({"type": "Polygon", "coordinates": [[[*xy, 0] for xy in ring(b)], ring(Box(*b.center, *b.center))]})
        for b in CELLS
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", WRITTEN)
def test_every_outlined_cell_gives_its_box(slide: Path, tmp_path: Path, form: str) -> None:
    tiles = tiles_of(slide, WRITTEN[form], tmp_path)
    plain = tiles_of(slide, WRITTEN["plain"], tmp_path)
    assert [(tile.name, tile.boxes, tile.unsure) for tile in tiles] == [(t.name, t.boxes, t.unsure) for t in plain]
    assert sum(len(tile.boxes) for tile in tiles) == len(CELLS)
    assert {found.label for tile in tiles for found in tile.boxes} == {"lsil"}
    check_truth(slide, tiles)


MARKS: dict[str, tuple[Any, str]] = {
    "point": (point(CELLS[0]), "1 object of lsil marked by a point gives no box"),
    "multipoint": (
        {"type": "MultiPoint", "coordinates": [list(CELLS[0].center), list(CELLS[1].center)]},
        "2 objects of lsil marked by points give no box",
    ),
    "line": (
        {"type": "LineString", "coordinates": ring(CELLS[0])[:2]},
        "1 object of lsil marked by a line gives no box",
    ),
    "flat": (polygon(Box(*CELLS[0].center, *CELLS[0].center)), "1 object of lsil with an outline that has no area"),
    "null": (None, "1 object of lsil without a geometry"),
    "empty": ({"type": "Polygon", "coordinates": []}, "1 object of lsil without a geometry"),
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_cell_without_an_outline_is_named_and_its_tile_never_told_there_is_none(
    slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, mark: str
) -> None:
    geometry, message = MARKS[mark]
    missing = 2 if mark == "multipoint" else 1
    features = [feature(geometry), *(feature(polygon(box)) for box in CELLS[missing:])]
    with caplog.at_level(logging.WARNING):
        tiles = tiles_of(slide, features, tmp_path)
    assert message in caplog.text
    assert sum(len(tile.boxes) for tile in tiles) == len(CELLS) - missing
    check_truth(slide, tiles)


@pytest.mark.parametrize("geometry", [point(CELLS[0]), None])
def test_cells_of_which_none_is_outlined_are_refused_with_their_number(
    slide: Path, tmp_path: Path, geometry: Any
) -> None:
    with pytest.raises(SlideError, match=r"s\.geojson: 3 objects of lsil .* none has an outline"):
        tiles_of(slide, [feature(geometry)] * 3, tmp_path)


def test_a_derived_class_keeps_the_name_that_the_user_gives_it(tmp_path: Path) -> None:
    file = tmp_path / "q.geojson"
    rename = Renaming({"lsil: Positive": "lsil_p16"}, CYTO.known_label)
    classes = [{"names": ["lsil", "Positive"]}, {"name": "lsil"}, {"name": "Organism: Candida"}, {"name": "Tumor: x"}]
    file.write_text(json.dumps([feature(polygon(CELLS[0]), one) for one in classes]))
    marked = read_geojson(file, rename=rename)
    assert [found.label for found in marked.boxes] == ["lsil_p16", "lsil", "candida", "tumor"]


def test_what_is_no_cell_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "q.geojson"
    features = [
        feature(polygon(CELLS[0])),
        feature(polygon(CELLS[1]), None),
        feature(polygon(CELLS[2]), {"name": "Ignore*"}),
        feature(polygon(CELLS[3]), objectType="tile"),
    ]
    file.write_text(json.dumps(features))
    with caplog.at_level(logging.WARNING):
        marked = read_geojson(file, rename=Renaming({}, CYTO.known_label), bounds=Box(100, 10, 900, 900))
    assert marked.boxes == (LabelledBox("lsil", CELLS[0].shifted(100, 10)),)
    assert "left out: 1 object without a class" in caplog.text


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "Polygon", "coordinates": [[[1, 2], [float("nan"), 3], [4, 5]]]},
        {"type": "Polygon", "coordinates": "x"},
        {"type": "Polygon", "coordinates": [[[1], [2]]]},
        {"type": "Circle", "coordinates": [1, 2]},
        {"coordinates": [1, 2]},
        7,
    ],
)
def test_a_broken_geometry_is_named_by_its_number(tmp_path: Path, broken: Any) -> None:
    file = tmp_path / "q.geojson"
    file.write_text(json.dumps([feature(polygon(CELLS[0])), feature(broken)]))
    with pytest.raises(SlideError, match=r"q\.geojson: feature 2 cannot be read"):
        read_geojson(file, rename=Renaming({}, CYTO.known_label))


def test_classes_in_every_form() -> None:
    assert class_names({"name": "a: b"}) == class_names({"names": ["a", "b"]}) == class_names("a: b") == ("a", "b")
    assert class_names(None) == class_names({}) == class_names("") == ()
    with pytest.raises(ValueError, match="its class is 7"):
        class_names(7)


def test_cells_that_no_tile_shows_are_counted_aloud(
    slide: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corner = Box(256 - 30, 256 - 30, 256 + 30, 256 + 30)  # a quarter in each of four tiles
    with caplog.at_level(logging.WARNING):
        tiles = tiles_of(slide, [feature(polygon(CELLS[0])), feature(polygon(corner))], tmp_path)
    assert sum(len(tile.boxes) for tile in tiles) == 1
    assert "1 of 2 marked cells lie by less than 35 % in any tile" in caplog.text


# -------------------------------------------------------------------------------------------- COCO and VOC


def coco(folder: Path, categories: list[Any], notes: list[Any], **image: Any) -> list[Annotated]:
    Image.new("RGB", (100, 80)).save(folder / "a.png")
    content = {
        "categories": categories,
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80, **image}],
        "annotations": [{"id": n, "image_id": 1, **note} for n, note in enumerate(notes)],
    }
    (folder / "c.json").write_text(json.dumps(content))
    return collect(Sources(coco=(folder / "c.json",)), dialect=CYTO)


CATEGORIES = [
    {"id": 0, "name": "cells", "supercategory": "none"},
    {"id": 1, "name": "wbc", "supercategory": "cells"},
    {"id": 2, "name": "neutrophil", "supercategory": "wbc"},
    {"id": 3, "name": "lymphocyte", "supercategory": "wbc"},
    {"id": 4, "name": "rbc", "supercategory": "rbc"},
]
BOX = {"bbox": [10, 10, 20, 20]}


def absent(picture: Annotated) -> set[str]:
    """Classes of which it may be said that there are none."""
    return set(picture.known - picture.unsure - {found.label for found in picture.boxes})


def test_a_category_that_only_groups_others_is_no_class(tmp_path: Path) -> None:
    (picture,) = coco(tmp_path, CATEGORIES, [{"category_id": 2, **BOX}])
    assert picture.known == {"neutrophil", "lymphocyte", "rbc"}
    assert absent(picture) == {"lymphocyte", "rbc"}


def test_a_cell_says_nothing_of_the_categories_above_and_below_it(tmp_path: Path) -> None:
    (picture,) = coco(tmp_path, CATEGORIES, [{"category_id": 1, **BOX}])
    assert absent(picture) == {"rbc"}
    notes = [{"category_id": 2, **BOX}, {"category_id": 1, "bbox": [50, 50, 9, 9]}]
    (picture,) = coco(tmp_path, CATEGORIES, notes)
    assert Counter(found.label for found in picture.boxes) == {"neutrophil": 1, "wbc": 1}
    assert absent(picture) == {"rbc"}


@pytest.mark.parametrize(
    "note",
    [
        {"bbox": [10, 10, 20, 20], "iscrowd": 1},
        {"bbox": [10, 10, 0, 20]},
        {"bbox": [], "segmentation": []},
        {"bbox": [200, 200, 20, 20]},
    ],
)
def test_a_cell_without_a_usable_box_is_not_denied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, note: dict[str, Any]
) -> None:
    with caplog.at_level(logging.WARNING):
        (picture,) = coco(tmp_path, CATEGORIES, [{"category_id": 4, **note}])
    assert picture.boxes == ()
    assert "rbc" not in absent(picture)
    assert "nothing is asked about rbc" in caplog.text


def test_a_box_may_be_left_to_the_segmentation(tmp_path: Path) -> None:
    (picture,) = coco(tmp_path, CATEGORIES, [{"category_id": 4, "segmentation": [[10, 12, 40, 12, 40, 30]]}])
    assert picture.boxes == (LabelledBox("rbc", Box(10, 12, 40, 30)),)


def test_a_stated_size_that_is_not_the_pictures_is_an_error_naming_both(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"a\.png has 100 x 80 px.*states 200 x 160 px"):
        coco(tmp_path, CATEGORIES, [], width=200, height=160)
    with pytest.raises(SlideError, match="stored turned"):
        coco(tmp_path, CATEGORIES, [], width=80, height=100)
    assert coco(tmp_path, CATEGORIES, [], width=0, height=0)
    (tmp_path / "voc").mkdir()
    Image.new("RGB", (100, 80)).save(tmp_path / "voc" / "a.png")
    size = "<size><width>{}</width><height>{}</height></size>"
    thing = (
        "<object><name>rbc</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>{}</ymax></bndbox></object>"
    )
    note = tmp_path / "voc" / "a.xml"
    note.write_text(f"<annotation>{size.format(640, 480)}{thing.format(9)}</annotation>")
    with pytest.raises(SlideError, match=r"a\.png has 100 x 80 px, its annotation in a\.xml states 640 x 480 px"):
        collect(Sources(voc=(tmp_path / "voc",)), dialect=CYTO)
    note.write_text(f"<annotation>{size.format(0, 0)}{thing.format(1)}{thing.format(9)}</annotation>")
    (picture,) = collect(Sources(voc=(tmp_path / "voc",)), dialect=CYTO)
    assert len(picture.boxes) == 1
    assert picture.unsure == {"rbc"}  # one of them has no area


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd"])
def test_pictures_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SlideError, match="outside the data set's folder"):
        coco(tmp_path, CATEGORIES, [], file_name=name)
    (tmp_path / "captions.csv").write_text(f"image,caption\n{name},A cell.\n")
    with pytest.raises(SlideError, match="outside the data set's folder"):
        collect(Sources(captions=(tmp_path / "captions.csv",)), dialect=CYTO)


@pytest.mark.parametrize("content", ["{}", "[]", "7", '{"images": [], "annotations": 3, "categories": []}', "[" * 9999])
def test_other_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(SlideError, match=r"c\.json is n"):
        collect(Sources(coco=(tmp_path / "c.json",)), dialect=CYTO)


@pytest.mark.parametrize(
    "text",
    [
        "image;caption\na.png;A cell, large.\n",
        "sep=;\r\nimage;caption\r\na.png;A cell, large.\r\n",
        'image,caption\na.png,"A cell, large."\n',
        "IMAGE\tcaption\na.png\tA cell, large.\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_of_spreadsheets(tmp_path: Path, text: str, encoding: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "c.csv").write_bytes(text.encode(encoding))
    (tmp_path / "p.csv").write_bytes(b"sep=;\nimage;patient\na.png;p7\n")
    (picture,) = collect(Sources(captions=(tmp_path / "c.csv",), patients=tmp_path / "p.csv"), dialect=CYTO)
    assert (picture.caption, picture.group) == ("A cell, large.", "patient p7")
