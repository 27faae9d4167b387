"""Synthetic fields: the same everywhere, annotated where something is drawn, and called abnormal for a reason."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_chat.datasets.render import ABNORMAL, LABELS, ORGANISMS, RECIPES, Field, render_field, render_fields
from wsi_chat.datasets.render.field import ABNORMAL_VISIBLE, MIN_VISIBLE, annotate, paint, plan_field
from wsi_chat.datasets.render.groups import make_group
from wsi_chat.datasets.render.looks import LOOKS


def fingerprint(fields: list[Field]) -> str:
    digest = hashlib.sha256()
    for field in fields:
        digest.update(field.image.tobytes() + repr(field.cells).encode())
    return digest.hexdigest()


def test_a_seed_gives_the_same_bytes_in_another_process() -> None:
    here = fingerprint([render_field(5), render_field(6, recipe="abnormal", size=192, mpp=0.4)])
    code = (
        "from wsi_chat.datasets.render import render_field as r; import hashlib; d = hashlib.sha256()\n"
        "for f in [r(5), r(6, recipe='abnormal', size=192, mpp=0.4)]:\n"
        "    d.update(f.image.tobytes() + repr(f.cells).encode())\n"
        "print(d.hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


def test_rendering_other_fields_in_between_changes_nothing() -> None:
    before = fingerprint([render_field(11)])
    for seed in range(3):
        render_field(seed, size=128)
    assert fingerprint([render_field(11)]) == before
    assert fingerprint([render_field(12)]) != before


@pytest.mark.parametrize("recipe", [*RECIPES, None])
def test_boxes_lie_in_the_field_and_hold_their_nucleus(recipe: str | None) -> None:
    for seed in range(6):
        field = render_field(seed, recipe=recipe)
        assert field.image.shape == (256, 256, 3)
        assert field.image.dtype == np.uint8
        assert recipe in (None, field.recipe)
        for cell in field.cells:
            x0, y0, x1, y1 = cell.box
            assert 0 <= x0 < x1 <= 256
            assert 0 <= y0 < y1 <= 256
            assert MIN_VISIBLE <= cell.visible <= 1
            assert cell.label in LABELS
            if cell.nucleus is not None:
                a0, b0, a1, b1 = cell.nucleus
                assert x0 <= a0 < a1 <= x1
                assert y0 <= b0 < b1 <= y1


@pytest.mark.parametrize("label", LABELS)
def test_boxes_are_tight_around_what_is_drawn(label: str) -> None:
    """Without the thing, the density changes inside its box on all four sides, and hardly outside of it."""
    plan = plan_field(21, recipe="single", classes=[label])
    (cell,) = annotate(plan)
    (index,) = [i for i, (sprite, _, _) in enumerate(plan.sprites) if sprite.marks]
    change = np.abs(paint(plan) - paint(plan, skip=index)).sum(axis=0)
    rows, columns = np.nonzero(change > 0.06)
    x0, y0, x1, y1 = cell.box
    blur = 1.5 + 3 * np.hypot(plan.items[index].defocus, plan.style.blur) / plan.mpp
    assert columns.min() >= x0 - 2 - blur
    assert rows.min() >= y0 - 2 - blur
    assert columns.max() <= x1 + 2 + blur
    assert rows.max() <= y1 + 2 + blur
    slack = 2 + blur + 0.08 * max(x1 - x0, y1 - y0)  # a pale, thin tip may fall below the threshold
    assert columns.min() <= x0 + slack
    assert rows.min() <= y0 + slack
    assert columns.max() >= x1 - slack
    assert rows.max() >= y1 - slack


def test_abnormal_means_that_an_abnormal_cell_is_seen() -> None:
    fields = [render_field(seed) for seed in range(60)]
    for field in fields:
        seen = [c for c in field.cells if c.label in ABNORMAL and c.visible >= ABNORMAL_VISIBLE]
        assert field.abnormal == bool(seen)
    share = np.mean([field.abnormal for field in fields])
    assert 0.3 < share < 0.7


@pytest.mark.parametrize("recipe", ["normal", "hard_normal", "empty"])
def test_benign_recipes_hold_no_abnormal_cell(recipe: str) -> None:
    for seed in range(12):
        field = render_field(seed, recipe=recipe)
        assert not field.abnormal
        assert not {cell.label for cell in field.cells} & {*ABNORMAL, *ORGANISMS}
        if recipe == "empty":
            assert field.cells == ()


@pytest.mark.parametrize("label", LABELS)
def test_every_label_can_be_asked_for_in_any_number(label: str) -> None:
    for count in (1, 2):
        field = render_field(31, classes=[label], count=(count, count))
        assert [cell.label for cell in field.cells] == [label] * count
        assert field.abnormal == (label in ABNORMAL)


def test_single_fields_hold_one_thing_mostly_unclipped() -> None:
    fields = [render_field(seed, recipe="single") for seed in range(40)]
    assert all(len(field.cells) == 1 for field in fields)
    assert len({field.cells[0].label for field in fields}) > 10
    assert np.mean([field.cells[0].visible == 1 for field in fields]) > 0.8


def test_cells_come_in_reading_order() -> None:
    for seed in range(8):
        cells = render_field(seed, recipe="normal").cells
        keys = [((c.box[1] + c.box[3]) / 2 // 32, c.box[0] + c.box[2]) for c in cells]
        assert keys == sorted(keys)


def test_boxes_scale_with_the_resolution() -> None:
    for label in ("intermediate", "hsil"):
        coarse = render_field(41, classes=[label], count=(1, 1), mpp=0.5).cells[0].box
        fine = render_field(41, classes=[label], count=(1, 1), mpp=0.25, size=512).cells[0].box
        ratio = (fine[2] - fine[0]) / (coarse[2] - coarse[0])
        assert ratio == pytest.approx(2, rel=0.02)


def test_nuclear_sizes_follow_bethesda_and_overlap() -> None:
    rng = np.random.default_rng(0)
    areas = {kind: np.array([LOOKS[kind](rng).nuclei[0].area for _ in range(200)]) for kind in LOOKS}
    assert np.median(areas["intermediate"]) == pytest.approx(36, rel=0.15)
    assert np.median(areas["parabasal"]) == pytest.approx(50, rel=0.15)
    assert 2.2 < np.median(areas["ascus"]) / 35 < 3.1
    assert areas["reactive"].max() > np.median(areas["ascus"]), "size alone must not decide"
    ratios = [
        look.nuclei[0].area / (np.pi / 4 * look.width * look.height)
        for look in (LOOKS["hsil"](rng) for _ in range(200))
    ]
    assert np.median(ratios) > 0.5


def test_groups_have_as_many_members_as_asked() -> None:
    rng = np.random.default_rng(1)
    for kind in ("hsil", "atrophic", "metaplastic", "lsil"):
        assert len(make_group(kind, rng, 5)) == 5


def test_an_exported_folder_holds_the_fields_losslessly(tmp_path: Path) -> None:
    truth = json.loads(render_fields(tmp_path / "out", 3, 2, size=96).read_text())
    assert [record["seed"] for record in truth] == [3, 4]
    field = render_field(4, size=96)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / truth[1]["image"])), field.image)
    assert [tuple(cell["box"]) for cell in truth[1]["cells"]] == [cell.box for cell in field.cells]
    assert truth[1]["abnormal"] == field.abnormal


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="recipe 'biopsy' is unknown"):
        render_field(0, recipe="biopsy")
    with pytest.raises(ValueError, match="class 'hsv' is unknown"):
        render_field(0, classes=["hsv"])
