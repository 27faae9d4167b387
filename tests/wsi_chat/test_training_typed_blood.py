"""Typed blood smears in the embedded recipe: what is drawn, what is asked, what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from wsi_chat.errors import SettingError  # noqa: E402
from wsi_chat.training.embedded import wording  # noqa: E402
from wsi_chat.training.embedded.fields import Sample, classes_of  # noqa: E402
from wsi_chat.training.embedded.pbc import Canvas, CutOut, Pbc, lay, look_at, put  # noqa: E402
from wsi_chat.training.embedded.questions import ask, differential, members, screen, white_type  # noqa: E402

GROUND = (230, 220, 200)


def disc(size: int, colour: tuple[int, int, int], ground: tuple[int, int, int] = GROUND) -> np.ndarray:
    image = np.empty((size, size, 3), dtype=np.uint8)
    image[:] = ground
    cv2.circle(image, (size // 2, size // 2), size // 2 - 12, colour, -1)
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One field of each kind and one cut-out of each type, in the layout of the data set."""
    (tmp_path / "fields").mkdir()
    (tmp_path / "cells").mkdir()
    fields, cells = [], []
    for number, (kind, split) in enumerate([("neutrophil", "train"), ("monocyte", "train"), ("basophil", "test")]):
        image = np.empty((360, 360, 3), dtype=np.uint8)
        image[:] = GROUND
        image[100:200, 120:220] = (90, 40, 120)
        image[20:80, 20:80] = (200, 120, 110)
        cv2.imwrite(str(tmp_path / "fields" / f"{number}.jpg"), image[..., ::-1])
        boxes = [[kind, 120.0, 100.0, 220.0, 200.0], ["rbc", 20.0, 20.0, 80.0, 80.0]]
        fields.append({"image": f"{number}.jpg", "split": split, "type": kind, "cells": boxes})
    for kind in (*wording.NUCLEATED, "platelet"):
        cv2.imwrite(str(tmp_path / "cells" / f"{kind}.jpg"), disc(150, (80, 40, 130))[..., ::-1])
        cells.append({"image": f"{kind}.jpg", "type": kind, "split": "train", "box": [12.0, 12.0, 138.0, 138.0]})
    (tmp_path / "fields.json").write_text(json.dumps(fields))
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    return tmp_path


def typed(*labels: str, domain: str = "blood-typed") -> Sample:
    boxes = np.array([[20 * i, 10, 20 * i + 18, 40] for i in range(len(labels))], dtype=np.float32).reshape(-1, 4)
    return Sample(np.zeros((256, 256, 3), dtype=np.uint8), labels, boxes, True, domain)


def test_only_pictures_of_the_split_are_read(folder: Path) -> None:
    train, test = Pbc(folder), Pbc(folder, "test")
    assert [labels[0] for _, labels, _ in train.fields] == ["neutrophil", "monocyte"]
    assert [labels[0] for _, labels, _ in test.fields] == ["basophil"]
    assert not test.cells
    assert set(train.types) == {*wording.NUCLEATED, "platelet"}


def test_a_folder_without_the_lists_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"fields\.json cannot be read"):
        Pbc(tmp_path)


def test_views_keep_boxes_on_dark_cells(folder: Path) -> None:
    source, rng = Pbc(folder), np.random.default_rng(0)
    seen: set[str] = set()
    for _ in range(60):
        sample = source.draw(rng)
        assert sample.image.shape == (256, 256, 3)
        assert sample.boxes.shape == (len(sample.labels), 4)
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= 256).all()
        assert sample.domain == "blood-typed"
        assert sample.abnormal == any(label in wording.WHITE for label in sample.labels)
        seen |= set(sample.labels)
        for label, (x0, y0, x1, y1) in zip(sample.labels, sample.boxes.astype(int), strict=True):
            if label in wording.NUCLEATED and min(x1 - x0, y1 - y0) > 60:
                middle = sample.image[(y0 + y1) // 2, (x0 + x1) // 2].mean()
                assert middle < np.percentile(sample.image.mean(axis=2), 80)
    assert {"ig", "erythroblast", "platelet", "rbc", "neutrophil"} <= seen


def test_a_cell_of_unknown_type_makes_the_field_untyped() -> None:
    boxes = np.array([[100, 100, 150, 150], [10, 10, 60, 60], [200, 200, 240, 240]], dtype=np.float32)
    canvas = Canvas(np.zeros((256, 256, 3), dtype=np.uint8), ["neutrophil", "wbc", "erythroblast"], boxes)
    sample = look_at(canvas, 1.0, (128, 128))
    assert sample.domain == "blood"
    assert sample.labels == ("wbc", "wbc")  # an erythroblast is no white cell and has no name there
    assert sample.boxes.tolist() == boxes[:2].tolist()


def test_a_pasted_cell_takes_the_grounds_colour_and_hides_what_it_covers() -> None:
    ground = np.full((300, 300, 3), (180, 160, 220), dtype=np.uint8)
    canvas = Canvas(ground, ["rbc", "rbc"], np.array([[60, 60, 100, 100], [250, 250, 290, 290]], dtype=np.float32))
    put(canvas, CutOut(disc(120, (60, 20, 90)), "ig", (12.0, 12.0, 108.0, 108.0)), (30, 30))
    assert canvas.labels == ["rbc", "ig"]
    assert canvas.boxes[-1].tolist() == [42, 42, 138, 138]
    assert canvas.image[33, 90].tolist() == [180, 160, 220]  # outside the ellipse nothing changes
    assert canvas.image[90, 90].mean() < 100
    rim = canvas.image[90, 36:41].reshape(-1, 3).mean(axis=0)
    assert np.abs(rim - (180, 160, 220)).max() < 25  # no halo


def test_a_white_cell_is_never_laid_on_another() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 0, 300, 300]], dtype=np.float32)
    canvas = Canvas(np.full((300, 300, 3), 200, dtype=np.uint8), ["neutrophil"], boxes)
    lay(canvas, CutOut(disc(100, (60, 20, 90)), "ig", (12.0, 12.0, 88.0, 88.0)), rng)
    assert canvas.labels == ["neutrophil"]


def test_wbc_means_any_white_cell_but_not_an_erythroblast() -> None:
    assert set(members("wbc")) == {"wbc", "neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte", "ig"}
    rng = np.random.default_rng(0)
    assert screen(typed("ig"), rng).answer.endswith(".yes.")
    assert screen(typed("erythroblast", "rbc"), rng).answer.endswith(".no.")


def test_the_type_is_asked_only_where_there_is_one() -> None:
    rng = np.random.default_rng(0)
    question = white_type(typed("monocyte", "monocyte", "rbc"), rng)
    assert question is not None
    assert question.answer.endswith(".monocyte.")
    assert wording.TYPE_TOPIC in question.prompt
    assert white_type(typed("monocyte", "ig"), rng) is None
    assert white_type(typed("rbc"), rng) is None
    assert white_type(typed("wbc", domain="blood"), rng) is None


def test_the_differential_counts_every_type() -> None:
    text = differential(typed("neutrophil", "neutrophil", "ig", *["rbc"] * 7))
    assert text == (
        "Blood smear field with 2 neutrophils and 1 immature granulocyte, about 7 red blood cells and no platelets."
    )
    assert differential(typed("rbc")).startswith("Blood smear field with no white blood cells, 1 red blood cell")


def test_questions_about_a_field_use_only_its_domains_names() -> None:
    rng = np.random.default_rng(2)
    untyped = " ".join(q.prompt for _ in range(20) for q in ask(typed("wbc", "rbc", domain="blood"), rng))
    assert not any(name in untyped for name in wording.NUCLEATED)
    names = {q.prompt for _ in range(40) for q in ask(typed("eosinophil", "rbc"), rng) if q.task == "ground"}
    assert {"Locate all eosinophil.", "Locate all wbc."} <= names
    assert classes_of("blood-typed") == wording.BLOOD


def test_single_cut_outs_lie_in_the_middle_of_an_even_ground(folder: Path) -> None:
    (sample,) = Pbc(folder).singles("ig", 5)
    assert sample.labels == ("ig",)
    x0, y0, x1, y1 = sample.boxes[0]
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((128, 128), abs=2)
    assert np.abs(sample.image[:20, :20].astype(int) - GROUND).max() < 12
