"""The figures of the model card: tables from a report, fields without cells, the contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from wsi_chat.training.embedded.measure import Miss, labelled, sheet, tables  # noqa: E402
from wsi_chat.training.embedded.outside import outside  # noqa: E402


def report(**ground: Any) -> dict[str, Any]:
    whole = {
        "f1": {"value": 0.5, "interval": {"low": 0.4, "high": 0.6, "level": 0.95}}, "precision": 0.5, "recall": 0.5,
        "f1_iou30": 0.75,
        "by_size": {"below 40 px": [None, 0], "40-80 px": [0.25, 8]}, "by_class": {"hsil": [0.625, 8]},
        "absent_denied": 0.9, "absent_asked": 10,
    }  # fmt: skip
    cervix = {
        "fields": 4, "auc": 0.75, "balanced_accuracy": 0.7, "calibration_error": 0.04, "ground": whole | ground,
        "regions": {"balanced_accuracy": 0.8, "by_class": {"hsil": 1.0}}, "category_accuracy": 0.3,
    }  # fmt: skip
    return {"cervix": cervix, "strangers": {}}


def test_tables_say_what_is_missing_and_what_is_zero() -> None:
    good = tables(report())
    assert "| grounding F1 at IoU 0.5 over the classes | 0.500 (0.400-0.600) | .90 |" in good
    assert "| recall, cells 40-80 px (8 boxes) | 0.250 | |" in good
    assert "| recall, cells below 40 px (0 boxes) | none | |" in good
    bad = tables(report(f1={"value": None, "interval": None}, precision=None, recall=0.0, f1_iou30=None))
    assert "| grounding F1 at IoU 0.5 over the classes | none | .90 |" in bad
    assert "| precision / recall | none / 0.000 | |" in bad


def test_tables_show_tiles_and_types_where_they_were_measured() -> None:
    full = report()
    full["cervix"]["wide"] = {"fields": 16, "auc": 0.96}
    at = {"sensitivity": 0.75, "low": 0.6, "high": 0.85, "threshold": 0.5}
    full["tiles"] = {
        "hard_normal_tiles": 3000, "abnormal_tiles": 600, "auc": 0.98, "called_abnormal_at_half": 0.01,
        "found_at_half": 0.8, "at_0.99": at, "at_0.999": at | {"sensitivity": 0.5},
    }  # fmt: skip
    by_class = {"neutrophil": [1.0, 25], "monocyte": [0.5, 10], "ig": [None, 0], "rbc": [0.9, 200]}
    full["typed"] = {
        "fields": 35,
        "ground": {"by_class": by_class},
        "regions": {"by_type": {"neutrophil": 0.875}, "balanced_accuracy": 0.875},
        "singles": {"by_type": {"ig": 0.25}, "balanced_accuracy": 0.25},
    }
    text = tables(full)
    assert "| sensitivity at 99.0% specificity | 0.750 (0.600-0.850) | .90 |" in text
    assert "| sensitivity at 99.9% specificity | 0.500 (0.600-0.850) |  |" in text
    assert "| neutrophil (25 boxes) | 1.000 | 0.875 |" in text
    assert "| rbc (200 boxes) | 0.900 | none |" in text
    assert "| ig (0 boxes)" not in text
    assert "| mean of the five types | 0.750 | 0.875 |" in text  # of those that are there
    assert "| ig | 0.250 |" in text


def test_boxes_without_area_are_left_out() -> None:
    kept = labelled([("hsil", [1, 2, 3, 4]), ("hsil", [5, 5, 5, 9])])
    assert [(one.label, one.box.x0, one.box.y1) for one in kept] == [("hsil", 1.0, 4.0)]


def test_fields_outside_the_domain_hold_no_cell_and_differ() -> None:
    rng = np.random.default_rng(3)
    fields = [outside(rng) for _ in range(24)]
    assert all(not f.labels and not f.abnormal and f.boxes.shape == (0, 4) for f in fields)
    assert {f.domain for f in fields} == {"cervix", "blood"}
    assert all(f.image.shape == (256, 256, 3) and f.image.dtype == np.uint8 for f in fields)
    assert len({f.image.tobytes() for f in fields}) == 24
    assert np.array_equal(outside(np.random.default_rng(3)).image, fields[0].image)


def test_the_sheet_shows_the_worst_first(tmp_path: Path) -> None:
    from PIL import Image

    def miss(wrong: int) -> Miss:
        image = np.full((256, 256, 3), 20 * wrong, dtype=np.uint8)
        return Miss(image, "hsil", [("hsil", [50.0, 50.0, 90.0, 90.0])], [], wrong)

    sheet([miss(n) for n in range(1, 8)], tmp_path / "misses.jpg")
    with Image.open(tmp_path / "misses.jpg") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (282, 6 * 260)  # seven misses make one full row of six
    means = [pixels[150:280, 260 * i + 120 : 260 * i + 250].mean() for i in range(6)]
    assert means == sorted(means, reverse=True)
    assert means[0] == pytest.approx(140, abs=3)
