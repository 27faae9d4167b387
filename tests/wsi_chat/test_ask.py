"""One question about a picture, a region or a slide: the task taken, boxes back on the slide, probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import wsi_chat
from wsi_chat.asking.answer import option_orders
from wsi_chat.asking.intent import find_label, guess
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import Fault, ScriptedEngine
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, Query
from wsi_chat.terminology import load_system

CERVIX, EMBEDDED = load_system("cervix"), get_dialect("embedded")
SPOT = (1120, 640, 1160, 700)  # level-0 px of the dark mark on the slide below


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,048 x 1,536 px, three levels, one dark rectangle at `SPOT`; 0.25 um/px."""
    from wsi_chat.datasets.mosaic import write_pyramid

    canvas = np.full((1536, 2048, 3), 236, np.uint8)
    x0, y0, x1, y1 = SPOT
    canvas[y0:y1, x0:x1] = 20
    path = tmp_path_factory.mktemp("ask") / "marked.tiff"
    write_pyramid(path, canvas, mpp=0.25)
    return path


def finds_the_mark(query: Query) -> str | dict[str, float]:
    """A model with perfect sight: the box of the dark pixels in the picture that it was shown."""
    if query.choices:
        return dict.fromkeys(query.choices, 1.0)
    dark = np.argwhere(np.asarray(query.images[0].convert("L")) < 128)
    if query.task != "ground":
        return "Seen." if query.task != "refer" else "HSIL"
    if not len(dark):
        return f"No {query.target} is found."
    (y0, x0), (y1, x1) = dark.min(axis=0), dark.max(axis=0) + 1
    return f"{query.target} 1 is located at <region>{x0} {y0} {x1} {y1}</region>."


def put(path: Path, question: str = "", engine: ScriptedEngine | None = None, **rest: Any) -> wsi_chat.AskResult:
    rest = {"specimen": "cervix", "dialect": "embedded", **rest}
    return wsi_chat.ask(path, question, engine=engine or ScriptedEngine(finds_the_mark), **rest)


def test_a_question_from_a_terminal_that_is_not_utf_8_is_asked(marked: Path) -> None:
    engine = ScriptedEngine(finds_the_mark)
    result = put(marked, "Is this caf\udce9?", engine, region=(1000, 500, 1300, 800), choices=("a\udce9", "b"))
    assert result.question == "Is this caf\ufffd?"
    assert result.probabilities is not None
    assert [*result.probabilities] == ["a\ufffd", "b"]
    assert "caf\ufffd" in engine.asked[0].turns[-1].text
    assert json.loads(result.model_dump_json())["choice"] in ("a\ufffd", "b")


# ---------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("region", [(1000, 500, 1300, 800), (1111, 633, 1171, 707)])
def test_a_box_comes_back_to_its_level_zero_pixels_from_every_reading_level(
    marked: Path, mpp: float, region: tuple[int, ...]
) -> None:
    result = put(marked, "Locate all hsil.", region=region, tile_mpp=mpp)
    (box,) = (found.box for found in result.boxes)
    assert result.fields[0].mpp == pytest.approx(max(mpp, 0.25), rel=0.02)
    pixel = mpp / 0.25
    for seen, true in zip((box.x0, box.y0, box.x1, box.y1), SPOT, strict=True):
        assert abs(seen - true) <= (0.01 if pixel == 1 else pixel)


def test_a_picture_of_one_field_is_read_as_it_is(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (256, 256), "white").save(tmp_path / "field.png")
    (field,) = put(tmp_path / "field.png", "locate all hsil", mpp=0.5).fields
    assert (field.box, field.mpp) == (Box(0, 0, 256, 256), 0.5)


def test_a_region_larger_than_a_field_is_read_as_several_and_its_cells_are_counted_once(marked: Path) -> None:
    result = put(marked, "Locate all hsil.", region=(600, 200, 1900, 1200), max_fields=40)
    assert len(result.fields) > 1
    assert [found.label for found in result.boxes] == ["hsil"]
    assert result.boxes[0].box.iou(Box(*SPOT)) > 0.9
    assert all(given.id.startswith("t") for given in result.fields)


def test_boxes_beside_the_region_are_left_out_and_said(marked: Path) -> None:
    result = put(marked, "Locate all hsil.", region=(1000, 500, 1100, 600))
    assert result.boxes == ()
    assert any("1 box lies beside the region" in note for note in result.notes)


def test_a_pointed_region_is_written_in_pixels_of_the_picture_that_is_sent(marked: Path) -> None:
    engine = ScriptedEngine(finds_the_mark)
    result = put(marked, "", engine, region=SPOT, tile_mpp=0.5)
    assert (result.task, result.answer) == ("refer", "hsil")
    text = engine.asked[0].turns[-1].text
    field = result.fields[0].box
    half = [(v - o) / 2 for v, o in zip(SPOT, (field.x0, field.y0) * 2, strict=True)]
    assert f"<region>{' '.join(str(round(v)) for v in half)}</region>" in text


def test_too_many_fields_are_thinned_evenly_and_said(marked: Path) -> None:
    result = put(marked, "Locate all hsil.", region=(0, 0, 2048, 1536), max_fields=3)
    assert len(result.fields) == 3
    assert any(note.startswith("3 of ") for note in result.notes)


def test_a_picture_without_a_resolution_is_shown_whole(tmp_path: Path) -> None:
    from PIL import Image

    canvas = np.full((300, 400, 3), 230, np.uint8)
    canvas[100:150, 200:260] = 10
    Image.fromarray(canvas).save(tmp_path / "field.png")
    result = put(tmp_path / "field.png", "locate all hsil")
    (box,) = (found.box for found in result.boxes)
    assert box.iou(Box(200, 100, 260, 150)) > 0.9
    assert any("resolution is unknown" in note for note in result.notes)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"region": (5000, 5000, 5100, 5100)}, "lies outside"),
        ({"region": (1, 2, 3)}, "--region 1 2 3: a region is four numbers"),
        ({"region": (1, 2, 1, 9)}, "no area"),
        ({"task": "refer"}, "needs a region"),
        ({"task": "narrative"}, "cannot be asked"),
        ({"choices": ("a", "A ")}, "listed twice"),
        ({"choices": ("a", "b"), "task": "vqa"}, "takes no --choices"),
        ({"choices": ("a",)}, "2 to 26 options"),
        ({"orders": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_asked_is_said_before_any_model_is_asked(marked: Path, asked: dict[str, Any], says: str) -> None:
    engine = ScriptedEngine(finds_the_mark)
    with pytest.raises(SettingError, match=says):
        put(marked, "question", engine, **asked)
    assert engine.asked == []


# ---------------------------------------------------------------------------------------------- choices


def loves_the_first(query: Query) -> dict[str, float]:
    """A model with a position bias: most for A, and a little for the option that says hsil."""
    options = query.turns[-1].text.split("[")[2].split("]")[0].split(", ")
    return {o[0]: 1.0 + 2.0 * (o[0] == "A") + 0.5 * (o[2:] == "hsil") for o in options}


@pytest.mark.parametrize("orders", [2, 3, 4, 24])
def test_shuffled_orders_do_not_depend_on_the_order_given(marked: Path, orders: int) -> None:
    seen = set()
    for choices in list(permutations(["hsil", "lsil", "normal", "scc"]))[::7]:
        result = put(
            marked, "Which?", ScriptedEngine(loves_the_first), choices=choices, orders=orders, region=(0, 0, 200, 200)
        )
        assert result.probabilities is not None
        assert list(result.probabilities) == list(choices)
        assert sum(result.probabilities.values()) == pytest.approx(1)
        seen.add(tuple(round(result.probabilities[o], 12) for o in ("hsil", "lsil", "normal", "scc")))
    assert len(seen) == 1


def test_one_order_is_the_one_given_and_all_orders_take_the_bias_away(marked: Path) -> None:
    def asked(orders: int) -> wsi_chat.AskResult:
        engine = ScriptedEngine(loves_the_first)
        return put(marked, "Which?", engine, choices=("lsil", "hsil"), orders=orders, region=(0, 0, 200, 200))

    assert (asked(1).choice, asked(1).queries) == ("lsil", 1)
    assert (asked(2).choice, asked(2).queries) == ("hsil", 2)


@settings(deadline=None, max_examples=40)
@given(st.sets(st.text(min_size=1, max_size=4), min_size=2, max_size=7), st.integers(2, 12))
def test_orders_are_distinct_and_give_every_option_every_place(options: set[str], orders: int) -> None:
    found = option_orders(tuple(options), orders)
    assert len(set(found)) == len(found) <= orders
    assert all(sorted(order) == sorted(options) for order in found)
    if len(found) == len(options):
        assert {order[0] for order in found} == options or orders != len(options)


def test_fields_that_fail_are_left_out_of_the_mean_and_said(marked: Path) -> None:
    engine = ScriptedEngine(lambda q: {"A": 0.2, "B": 0.8}, faults=[Fault(0, "fail")])
    result = put(marked, CERVIX.screen.topic, engine, region=(0, 0, 1400, 400))
    assert (result.task, result.choice, result.status) == ("screen", "abnormal", "ok")
    assert result.probabilities == pytest.approx({"normal": 0.2, "abnormal": 0.8})
    assert any(note.startswith("1 of ") for note in result.notes)


def test_no_usable_answer_is_a_failure_and_never_normal(marked: Path) -> None:
    result = put(marked, "Is any abnormal cell present?", ScriptedEngine(lambda q: "Sorry."), region=(0, 0, 200, 200))
    assert (result.status, result.choice, result.probabilities, result.answer) == ("failed", None, None, "")


# ---------------------------------------------------------------------------------------------- guessing


@pytest.mark.parametrize(
    ("question", "pointed", "task", "target"),
    [
        ("", False, "describe", ""),
        ("", True, "refer", ""),
        ("Locate all hsil.", False, "ground", "hsil"),
        ("Where are the HSIL cells?", False, "ground", "hsil"),
        ("how many white blood cells are there", False, "ground", "wbc"),
        ("Is there any candida?", False, "ground", "candida"),
        ("Is any abnormal cell present?", False, "screen", ""),
        ("is this normal or abnormal?", False, "screen", ""),
        ("Describe the Cytology diagnosis results.", False, "describe", ""),
        ("Were any abnormal cells found during the examination?", False, "vqa", ""),
        ("What is this?", True, "refer", ""),
        ("What kind of cell is it?", True, "refer", ""),
        ("Is its membrane smooth?", True, "region", ""),
        ("What stain is it? Answer the question with a single phrase.", False, "phrase", ""),
        ("Locate all koilocytes.", False, "ground", "koilocytes"),
        ("Which colour has the background?", False, "vqa", ""),
    ],
)
def test_the_task_is_guessed_from_the_question(question: str, pointed: bool, task: str, target: str) -> None:
    guessed = guess(question, dialect=EMBEDDED, system=CERVIX, pointed=pointed)
    assert (guessed.task, guessed.target) == (task, target)
    assert guessed.reason


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60), st.booleans())
def test_any_text_is_guessed_to_something_that_can_be_asked(text: str, pointed: bool) -> None:
    guessed = guess(text, dialect=EMBEDDED, system=CERVIX, pointed=pointed)
    assert guessed.task in ("screen", "ground", "refer", "describe", "vqa", "region", "phrase")
    assert (guessed.task == "ground") == bool(guessed.target)


def test_the_longest_spelling_of_a_class_wins() -> None:
    assert find_label("any asc-us here?", EMBEDDED, CERVIX) == "ascus"
    assert find_label("Squamous cell carcinoma?", EMBEDDED, CERVIX) == "scc"
    assert find_label("nothing of the kind", EMBEDDED, CERVIX) == ""


def test_the_closed_questions_are_those_of_the_recipe() -> None:
    from wsi_chat.training.embedded import wording

    assert EMBEDDED.known_questions == (wording.VQA_ABNORMAL, wording.VQA_BACKGROUND)


def test_a_question_beyond_the_model_is_answered_with_a_warning(marked: Path) -> None:
    result = put(marked, "What did the patient have for lunch?", region=(0, 0, 200, 200))
    assert result.task == "region"
    assert any("fixed set of questions" in note for note in result.notes)
    known = put(marked, EMBEDDED.known_questions[0], region=(0, 0, 200, 200))
    assert known.task == "vqa"
    assert not any("fixed set" in note for note in known.notes)


def test_an_engine_may_be_named(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_chat.engines.load_engine", lambda *a, **k: ScriptedEngine(finds_the_mark))
    asked: dict[str, Any] = {"specimen": "cervix", "dialect": "embedded", "region": (1000, 500, 1300, 800)}
    assert wsi_chat.ask(marked, "Locate all hsil.", engine="transformers", **asked).answer == "1 hsil located."


# ---------------------------------------------------------------------------------------------- the command


@pytest.fixture
def run() -> Callable[..., Any]:
    from wsi_chat.cli import app

    return lambda *given: CliRunner().invoke(app, ["ask", *map(str, given)])


def test_the_command_prints_answer_boxes_and_probabilities_and_draws(
    marked: Path, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsi_chat.engines.load_engine", lambda *a, **k: ScriptedEngine(finds_the_mark))
    drawn = tmp_path / "out.png"
    place = ["--region", 1000, 500, 1300, 800]
    said = run(marked, "Locate all hsil.", "--specimen", "cervix", "--tile-mpp", "0.25", *place, "--draw", drawn)
    assert said.exit_code == 0, said.output
    assert said.stdout.splitlines()[1:] == ["  hsil  1120 640 1160 700", str(drawn)]
    assert said.stdout.startswith("1 hsil located")
    assert "task: ground" in said.stderr
    from PIL import Image

    with Image.open(drawn) as picture:
        assert min(picture.size) >= 700
    data = json.loads(run(marked, "Which?", "--choices", "a, b", *place, "--json").stdout)
    assert data["task"] == "mcq"
    assert data["probabilities"] == {"a": 0.5, "b": 0.5}
    assert run(marked, "Which?", "--choices", "a,a").exit_code != 0


def test_the_embedded_checkpoint_names_locates_and_chooses(tmp_path: Path) -> None:
    """Values are the checkpoint's own; what holds is that every task gives an answer of its kind."""
    from PIL import Image

    from wsi_chat.datasets.render import render_field
    from wsi_chat.engines import load_engine

    field = render_field(970_000_001)
    Image.fromarray(field.image).save(tmp_path / "field.png")
    engine = load_engine(None, batch_size=1)
    cell = field.cells[0]
    for question, region, task in (
        ("Is any abnormal cell present?", None, "screen"),
        (f"Locate all {cell.label}.", None, "ground"),
        ("", tuple(map(float, cell.box)), "refer"),
        ("", None, "describe"),
    ):
        result = wsi_chat.ask(
            tmp_path / "field.png", question, region=region, engine=engine, specimen="cervix", mpp=0.5
        )
        assert (result.task, result.status) == (task, "ok")
        assert result.answer
        assert all(0 <= b.box.x0 < b.box.x1 <= 256 for b in result.boxes)
    engine.close()


# ---------------------------------------------------------------------------------------------- many fields


def dark_is_abnormal(query: Query) -> dict[str, float]:
    """Abnormal only where the dark mark shows."""
    p = 0.97 if (np.asarray(query.images[0].convert("L")) < 128).any() else 0.02
    return {query.choices[0]: 1 - p, query.choices[1]: p}


def test_one_positive_field_among_many_is_the_answer_and_not_their_mean(marked: Path) -> None:
    """The mean of 16 fields called an abnormal slide normal (.805)."""
    result = put(
        marked, CERVIX.screen.topic, ScriptedEngine(dark_is_abnormal), region=(0, 0, 2048, 1536), max_fields=99
    )
    highest = next(given for given in result.fields if given.id == result.highest)
    assert (result.choice, result.probabilities) == ("abnormal", pytest.approx({"normal": 0.03, "abnormal": 0.97}))
    assert highest.box.intersection(Box(*SPOT)) > 0
    assert result.positive_fields == sum(f.answer == "abnormal" for f in result.fields) >= 1
    assert (result.fields_total, result.unread) == (len(result.fields), ())
    assert result.answer.startswith(f"abnormal in {result.positive_fields} of {len(result.fields)} fields; the highest")


def test_nothing_found_in_a_part_of_the_fields_is_not_called_normal(marked: Path) -> None:
    engine = ScriptedEngine(lambda q: {"A": 0.9, "B": 0.1})
    part = put(marked, CERVIX.screen.topic, engine, region=(0, 0, 2048, 1536), max_fields=3)
    assert (part.choice, part.positive_fields, len(part.fields)) == (None, 0, 3)
    assert part.fields_total == 3 + len(part.unread)
    assert f"none of 3 fields read, of {part.fields_total}" in part.answer
    named = next(note for note in part.notes if note.startswith("3 of "))
    assert f"{part.unread[0].id} at {part.unread[0].box.x0:g} {part.unread[0].box.y0:g}" in named
    whole = put(marked, CERVIX.screen.topic, engine, region=(0, 0, 2048, 1536), max_fields=99)
    assert (whole.choice, whole.unread) == ("normal", ())


def test_a_field_that_gave_no_answer_leaves_the_rest_unknown(marked: Path) -> None:
    engine = ScriptedEngine(lambda q: {"A": 0.9, "B": 0.1}, faults=[Fault(0, "fail")])
    result = put(marked, CERVIX.screen.topic, engine, region=(0, 0, 1400, 400))
    assert result.choice is None
    assert "unknown" in result.answer
