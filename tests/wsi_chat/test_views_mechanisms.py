"""Views, contrast and zoom: formulas, places, what each costs, and that a missing part is never a score."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import wsi_chat
from tilers import Patch
from tilers.field import Field
from tilers.spots import hot_spots
from wsi_chat.analysis.cascade import on_one_scale, screen
from wsi_chat.analysis.inquiry import ask_all
from wsi_chat.analysis.mechanisms import ViewedScreening, second_look
from wsi_chat.dialects import get_dialect
from wsi_chat.dialects.views import (
    BLANK_RGB,
    contrast_score,
    contrasted_choice,
    degraded,
    expit,
    joined,
    logit,
    other_views,
)
from wsi_chat.engines import Fault, ScriptedEngine
from wsi_chat.engines.asker import Asker
from wsi_chat.journal import Journal
from wsi_chat.schema import Box, LabelledBox, Query, Tile, TileVerdict
from wsi_chat.terminology import load_system

CERVIX = load_system("cervix")
chances = st.floats(0.001, 0.999)


def read(box: Box, px: int) -> Image.Image:
    """A slide whose pixel value tells its place: red is x / 16, green y / 16."""
    xs = box.x0 + (np.arange(px) + 0.5) * box.width / px
    ys = box.y0 + (np.arange(px) + 0.5) * box.height / px
    red, green = np.meshgrid(np.clip(xs / 16, 0, 250), np.clip(ys / 16, 0, 250))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 100)], axis=2).astype(np.uint8))


def tile(index: int = 0, *, x: int = 512, y: int = 256) -> Tile:
    return Tile(index, x + 512 * index, y, 512, 512, 0, (512, 512), 256, 0.5)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def asker(engine: ScriptedEngine, journal: Journal, dialect: str = "embedded") -> Asker:
    return Asker(engine, get_dialect(dialect), journal, {"greedy": True})


def screen_with_views(asker: Asker, count: int, **mechanism: str) -> dict[int, TileVerdict]:
    screening = ViewedScreening(patches(count), asker, CERVIX, read, total=count, **mechanism)
    ask_all(asker, screening)
    return on_one_scale(screening.verdicts, asker)


def patches(count: int) -> list[Patch]:
    return [Patch(tile(n), np.asarray(read(tile(n).box, 256)), "ok", focus=1.0) for n in range(count)]


# ---------------------------------------------------------------------------------------------- formulas


def test_the_contrast_score_is_the_difference_of_logits() -> None:
    assert contrast_score(0.9, 0.6) == pytest.approx(math.log(9) - math.log(1.5))
    assert expit(contrast_score(0.9, 0.6)) == pytest.approx(6 / 7)
    assert contrast_score(0.3, 0.3) == 0
    assert contrast_score(1.0, 0.5) == pytest.approx(math.log(999_999), rel=1e-6)


@settings(deadline=None)
@given(chances, chances)
def test_two_options_calibrated_are_expit_of_the_score(p: float, q: float) -> None:
    found = contrasted_choice({"yes": p, "no": 1 - p}, {"yes": q, "no": 1 - q})
    assert found["yes"] == pytest.approx(expit(contrast_score(p, q)), abs=1e-9)
    assert sum(found.values()) == pytest.approx(1)


@settings(deadline=None)
@given(chances, st.lists(chances, min_size=4, max_size=4), chances)
def test_joined_is_symmetric_in_the_quarters_and_never_falls(p: float, others: list[float], more: float) -> None:
    base = joined(p, others, "quadrants")
    assert joined(p, others[::-1], "quadrants") == pytest.approx(base)
    assert joined(max(p, more), others, "quadrants") >= base - 1e-12
    assert base == pytest.approx(expit((logit(p) + max(map(logit, others))) / 2))
    assert joined(p, [], "quadrants") == p


def test_degraded_pictures_hold_nothing_of_what_was_there() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8))
    blank, blurred = degraded(noise, "blank"), degraded(noise, "blur")
    assert blank.getcolors() == [(256 * 256, BLANK_RGB)]
    assert np.asarray(blurred).std() < np.asarray(noise).std() / 10
    assert blurred.size == blank.size == noise.size


# ---------------------------------------------------------------------------------------------- places


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(31, 700))
def test_quarters_tile_the_field_in_whole_pixels_and_map_back(x: int, y: int, side: int) -> None:
    field = Field("t000001", 1, read(Box(x, y, x + side, y + side), 64), Box(x, y, x + side, y + side), 0.5)
    quarters = other_views(field, "quadrants", read)
    assert sum(q.box.area for q in quarters) == field.box.area
    assert all(a.box.intersection(b.box) == 0 for a in quarters for b in quarters if a is not b)
    for view in quarters:
        assert view.box == Box(*map(round, (view.box.x0, view.box.y0, view.box.x1, view.box.y1)))
        w, h = view.image.size
        back = view.to_level0(Box(0, 0, w, h))
        for name in ("x0", "y0", "x1", "y1"):
            assert getattr(back, name) == pytest.approx(getattr(view.box, name))
        place = Box(view.box.x0 + 1, view.box.y0 + 2, view.box.x0 + 7, view.box.y0 + 9)
        again = view.to_level0(view.to_picture(place))
        assert again.iou(place) == pytest.approx(1)


def test_the_surroundings_are_twice_as_wide_around_the_same_middle() -> None:
    field = Field("t000001", 1, read(Box(512, 256, 1024, 768), 256), Box(512, 256, 1024, 768), 0.5)
    (view,) = other_views(field, "context", read)
    assert view.box == Box(256, 0, 1280, 1024)
    assert view.mpp == 1.0
    assert other_views(field, "none", read) == ()


def test_quadrant_boxes_come_back_to_level_zero(tmp_path: Path) -> None:
    """Only a quarter shows the small mark large enough for this model; its box is right on the slide."""
    from wsi_chat.datasets.mosaic import write_pyramid

    canvas = np.full((1024, 1024, 3), 236, np.uint8)
    canvas[700:716, 620:640] = 20
    write_pyramid(tmp_path / "s.tiff", canvas, mpp=0.25)

    def near_sighted(query: Query) -> str:
        dark = np.argwhere(np.asarray(query.images[0].convert("L")) < 128)
        if len(dark) < 200:
            return f"No {query.target} is found."
        (y0, x0), (y1, x1) = dark.min(axis=0), dark.max(axis=0) + 1
        return f"hsil 1 is located at <region>{x0} {y0} {x1} {y1}</region>."

    asked = {"region": (256, 384, 768, 896), "specimen": "cervix", "dialect": "embedded"}
    engine = ScriptedEngine(near_sighted)
    assert wsi_chat.ask(tmp_path / "s.tiff", "Locate all hsil.", engine=engine, **asked).boxes == ()  # type: ignore[arg-type]
    found = wsi_chat.ask(tmp_path / "s.tiff", "Locate all hsil.", engine=engine, views="quadrants", **asked)  # type: ignore[arg-type]
    assert [b.box.iou(Box(620, 700, 640, 716)) > 0.8 for b in found.boxes] == [True]
    assert found.queries == 3, "three of the quarters look alike and are asked once"


# ---------------------------------------------------------------------------------------------- screening


def by_shade(query: Query) -> dict[str, float]:
    """Abnormal the more red the picture is: tiles further right are more abnormal; a blank one is at 0.5."""
    red = float(np.asarray(query.images[0])[..., 0].mean()) / 255
    p = 0.5 if query.images[0].getpixel((0, 0)) == BLANK_RGB else red
    return {query.choices[0]: 1 - p, query.choices[1]: p}


def test_screening_with_quadrants_joins_five_answers(journal: Journal) -> None:
    engine = ScriptedEngine(by_shade, batch=4)
    verdicts = screen_with_views(asker(engine, journal), 3, views="quadrants")
    assert len(engine.asked) == 15
    for n in range(3):
        box = tile(n).box
        parts = [by_shade_of(read(view, 256)) for view in (box, *quarters_of(box))]
        assert verdicts[n].p_screen == pytest.approx(joined(parts[0], parts[1:], "quadrants"), abs=1e-6)


def by_shade_of(image: Image.Image) -> float:
    return float(np.asarray(image)[..., 0].mean()) / 255


def quarters_of(box: Box) -> list[Box]:
    x, y = box.center
    return [
        Box(box.x0, box.y0, x, y), Box(x, box.y0, box.x1, y), Box(box.x0, y, x, box.y1), Box(x, y, box.x1, box.y1)
    ]  # fmt: skip


def test_a_model_of_several_pictures_sees_them_in_one_question(journal: Journal) -> None:
    engine = ScriptedEngine(by_shade)
    screen_with_views(asker(engine, journal, "qwen3-vl"), 2, views="quadrants")
    assert [len(query.images) for query in engine.asked] == [5, 5]
    text = engine.asked[0].turns[-1].text
    assert text.startswith("<image>" * 5 + "Image 1 is the field")
    assert text.count("<image>") == 5
    assert len({query.key for query in engine.asked}) == 2


def test_a_dialect_that_extends_a_family_of_several_pictures_shows_several(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nextends: qwen3-vl\n")
    engine = ScriptedEngine(by_shade)
    screen_with_views(asker(engine, journal, str(path)), 1, views="context")
    assert [len(query.images) for query in engine.asked] == [2]


def test_contrast_with_a_blank_tile_costs_one_question_for_all(journal: Journal) -> None:
    engine = ScriptedEngine(by_shade)
    plain = screen(patches(4), asker(ScriptedEngine(by_shade), journal), CERVIX, total=4)
    asked = asker(engine, journal)
    verdicts = screen_with_views(asked, 4, contrast="blank")
    assert len(engine.asked) == 1, "the tiles themselves are in the journal already"
    for n in range(4):
        assert verdicts[n].p_screen == pytest.approx(plain[n].p_screen), "a blank tile at 0.5 changes nothing"


@pytest.mark.parametrize("at", [0, 2])
def test_a_part_that_fails_fails_the_tile(at: int, journal: Journal) -> None:
    engine = ScriptedEngine(by_shade, faults=[Fault(at, "fail")])
    verdicts = screen_with_views(asker(engine, journal), 1, views="quadrants")
    assert (verdicts[0].status, verdicts[0].p_screen) == ("screen_failed", None)
    assert "scripted failure" in verdicts[0].error


# ---------------------------------------------------------------------------------------------- the second look


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 470), st.floats(0, 470), st.floats(5, 40)), min_size=1, max_size=8))
def test_hot_spots_hold_every_box_and_stay_inside_the_tile(places: list[tuple[float, float, float]]) -> None:
    boxes = [LabelledBox("hsil", Box(512 + x, 256 + y, 512 + x + s, 256 + y + s)) for x, y, s in places]
    spots = hot_spots(tile(), boxes, 2.0)
    for found in boxes:
        x, y = found.box.center
        assert any(s.box.x0 <= x <= s.box.x1 and s.box.y0 <= y <= s.box.y1 for s in spots)
    for spot in spots:
        assert spot.box.clipped(tile().box) == spot.box
        assert (spot.box.width, spot.box.height) == (256, 256)
        assert spot.labels == ("hsil",)


def test_the_second_look_adds_boxes_at_their_place_and_leaves_out_what_it_cuts(journal: Journal) -> None:
    first = LabelledBox("hsil", Box(700, 400, 740, 440))
    verdict = TileVerdict(tile=tile(), status="detailed", p_screen=0.9, boxes=(first,), asked=("hsil",))
    engine = ScriptedEngine(
        lambda q: (
            "hsil 1 is located at <region>100 50 140 90</region>. hsil 2 is located at <region>0 5 30 40</region>."
        )
    )
    found = second_look({0: verdict}, asker(engine, journal), read, factor=2, bounds=Box(0, 0, 9000, 9000))[0]
    spot = hot_spots(tile(), [first], 2.0)[0].box
    assert found.boxes[0] == first
    assert [b.box for b in found.boxes[1:]] == [Box(spot.x0 + 100, spot.y0 + 50, spot.x0 + 140, spot.y0 + 90)]
    assert len(engine.asked) == 1


def test_a_second_look_that_fails_keeps_the_first(journal: Journal) -> None:
    first = LabelledBox("hsil", Box(700, 400, 740, 440))
    verdict = TileVerdict(tile=tile(), status="detailed", boxes=(first,), asked=("hsil",))
    engine = ScriptedEngine(lambda q: "Sorry, I cannot.")
    found = second_look({0: verdict}, asker(engine, journal), read, factor=2, bounds=Box(0, 0, 9000, 9000))[0]
    assert found.boxes == (first,)
    assert "second look for hsil" in found.error
