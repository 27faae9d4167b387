"""What is read out of answers: boxes whatever state the text is in, choices, labels."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_chat import tasks
from wsi_chat.dialects import Dialect, DialectSpec, get_dialect
from wsi_chat.dialects.frame import Frame
from wsi_chat.dialects.grammars import GRAMMARS, settle
from wsi_chat.schema import Answer, Box

SQUARE = Frame((512, 512), (512, 512), (512, 512))


def _read(text: str, *, frame: Frame = SQUARE, label: str = "hsil", status: Any = "ok") -> Any:
    answer = Answer(key="k", task="ground", text=text, status=status)
    return get_dialect("cytochat").read_boxes(answer, frame, label)


def _corners(reading: Any) -> list[tuple[float, float, float, float]]:
    return [(b.box.x0, b.box.y0, b.box.x1, b.box.y1) for b in reading.boxes]


def test_a_published_answer() -> None:
    reading = _read(
        "hsil 1 is located at <region>350.29 244.33 353.71 248.9</region>. "
        "hsil 2 is located at <region>354.77 260.54 358.19 265.11</region>."
    )
    assert _corners(reading) == [(350.29, 244.33, 353.71, 248.9), (354.77, 260.54, 358.19, 265.11)]
    assert [found.label for found in reading.boxes] == ["hsil", "hsil"]
    assert (reading.dropped, reading.truncated) == (0, False)


@pytest.mark.parametrize("text", ["No hsil is found.", "", "There are none.", "\n"])
def test_nothing_found_drops_nothing(text: str) -> None:
    assert (_read(text).boxes, _read(text).dropped, _read(text).truncated) == ((), 0, False)


@pytest.mark.parametrize(
    ("text", "boxes", "dropped", "truncated"),
    [
        # cut off inside the second box: the first is kept
        ("a 1 is located at <region>1 2 3 4</region>. a 2 is located at <region>5 6 7", 1, 1, True),
        ("<region>1 2 3 4</region>. a 2 is located at <region>5 6 7 45", 1, 1, True),
        ("<region>1 2 3 4</region>. a 2 is located at <region>", 1, 1, True),
        ("<region>1 2 3 4</region>. a 2 is located at", 1, 1, True),
        ("<region>1 2 3 4</region>. a 2 is loc", 1, 0, True),
    ],
)
def test_a_cut_off_answer_keeps_its_complete_boxes(text: str, boxes: int, dropped: int, truncated: bool) -> None:
    reading = _read(text, status="truncated")
    assert (len(reading.boxes), reading.dropped, reading.truncated) == (boxes, dropped, truncated)
    assert _corners(reading)[0] == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("text", "corners", "dropped"),
    [
        ("<region>30 40 10 20</region>", [(10, 20, 30, 40)], 0),  # reversed corners
        ("<region>10, 20, 30, 40</region>", [(10, 20, 30, 40)], 0),
        ("<region>10,5 20,25 30,5 40,75</region>", [(10.5, 20.25, 30.5, 40.75)], 0),  # decimal commas
        ("<region>(10,20),(30,40)</region>", [(10, 20, 30, 40)], 0),
        ("<region>[1e1 20. 30.0 .4e2]</region>", [(10, 20, 30, 40)], 0),
        ("<REGION> 10 20 30 40 </Region>", [(10, 20, 30, 40)], 0),
        ("<region>-20 -5 30 600</region>", [(0, 0, 30, 512)], 0),  # clipped
        ("<region>600 600 700 700</region>", [], 1),  # outside
        ("<region>10 20 10 40</region>", [], 1),  # no area
        ("<region>512 0 530 9</region>", [], 1),  # only its edge is inside
        ("<region>1 2 3</region>", [], 1),
        ("<region>1 2 3 4 5</region>", [], 1),
        ("<region>a b c d</region>", [], 1),
        ("<region></region>", [], 1),
        (f"<region>{'9' * 400} 1 2 3</region>", [], 1),  # infinite as a float
        ("<region>1 2 3 4</region><region>1 2 3 4</region><region>3 4 1 2</region>", [(1, 2, 3, 4)], 2),
        # missing closing tags, with more text after
        ("<region>1 2 3 4 a 2 is located at <region>5 6 7 8</region>", [(1, 2, 3, 4), (5, 6, 7, 8)], 0),
        ("a 1 is located at <region>1 2 3 4. Nothing else.", [(1, 2, 3, 4)], 0),
        ("a 1 is located at <region>1 2 3 4", [(1, 2, 3, 4)], 0),
        # missing opening tags
        ("a 1 is located at 1 2 3 4</region>. a 2 is located at <region>5 6 7 8</region>", [(5, 6, 7, 8)], 1),
        ("a 1 is located at 1 2 3 4.", [], 1),
        ("5 6 7 8</region>", [], 1),
    ],
)
def test_repairs_and_drops(text: str, corners: list[Any], dropped: int) -> None:
    reading = _read(text)
    assert _corners(reading) == corners
    assert reading.dropped == dropped
    assert not reading.truncated


def test_the_models_own_class_is_kept_where_it_is_known() -> None:
    text = "LSIL 1 is located at <region>1 2 3 4</region>. The cell is located at <region>5 6 7 8</region>."
    assert [found.label for found in _read(text).boxes] == ["lsil", "hsil"]
    assert _read("herpes 12 is located at <region>1 2 3 4</region>").boxes[0].label == "herps"


def test_the_same_box_under_two_classes_is_two_findings() -> None:
    text = "lsil 1 is located at <region>1 2 3 4</region>. hsil 1 is located at <region>1 2 3 4</region>."
    assert len(_read(text).boxes) == 2


def test_a_failed_answer_has_no_boxes() -> None:
    assert _read("<region>1 2 3 4</region>", status="failed").boxes == ()


# ---------------------------------------------------------------------------------------------- other grammars


@pytest.mark.parametrize(
    ("grammar", "text", "boxes", "dropped", "cut"),
    [
        ("json", '[{"bbox_2d": [1, 2, 3, 4], "label": "hsil"}]', [("hsil", (1, 2, 3, 4))], 0, False),
        (
            "json",
            '```json\n[{"label": "a", "bbox_2d": [1.5,2,3,4]},\n{"bbox_2d": [1, 2',
            [("a", (1.5, 2, 3, 4))],
            1,
            True,
        ),
        ("json", 'Sure: {"bbox_2d": "none"} and {"bbox_2d": [[1,2],[3,4]]}', [("", (1, 2, 3, 4))], 1, False),
        ("json", '[{"bbox_2d":', [], 1, True),
        ("json", "[]", [], 0, False),
        (
            "tokens",
            "<|object_ref_start|>cell<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
            "<|box_start|>(5,6),(7,8)<|box_end|>",
            [("cell", (1, 2, 3, 4)), ("cell", (5, 6, 7, 8))],
            0,
            False,
        ),
        ("tokens", "<|box_start|>(1,2),(3,4)<|box_end|> <|box_start|>(5,6),(7", [("", (1, 2, 3, 4))], 1, True),
        ("tokens", "(1,2),(3,4)<|box_end|>", [], 1, False),
    ],
)
def test_json_and_token_boxes(grammar: str, text: str, boxes: list[Any], dropped: int, cut: bool) -> None:
    found, lost, ended = settle(GRAMMARS[grammar](text), (1000, 1000))
    assert [(label, (b.x0, b.y0, b.x1, b.y1)) for label, b in found] == boxes
    assert (lost, ended) == (dropped, cut)


# ---------------------------------------------------------------------------------------------- properties

PIECES = [
    "<region>", "</region>", "<|box_start|>", "<|box_end|>", '{"bbox_2d": [', "]", "}",
    '"label": "x"', " is located at ",
    "hsil 1", "1 2 3 4", "10.5", "-3", "1e400", "nan", "inf", ",", " ", ".", "(5,6),(7,8)", "0 0 600 600", "٣ ٤", "\n",
    "<image>", "No hsil is found.", "<loc0100>", "<loc1023><loc0000>", "<loc", "<box>", "</box>", "<ref>hsil</ref>",
    "[1, 2, 3, 4]", "[[", "'box_2d': ", "<|object_ref_start|>", "<end_of_turn>", "```json", ' ; ', "{",
]  # fmt: skip
MESS = st.one_of(st.text(max_size=300), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5))).map("".join))
SIDES = st.integers(1, 3000)


@cache
def _dialect(grammar: str, coordinates: str, order: str = "xyxy") -> Dialect:
    changes = {"boxes": grammar, "coordinates": coordinates, "order": order}
    spec = get_dialect("cytochat").spec.model_dump() | changes
    return Dialect(DialectSpec.model_validate(spec))


@settings(max_examples=200, deadline=None)
@given(
    text=MESS,
    grammar=st.sampled_from(sorted(GRAMMARS)),
    coordinates=st.sampled_from(["sent", "norm1000", "norm1", "norm1024"]),
    order=st.sampled_from(["xyxy", "yxyx"]),
    size=st.tuples(SIDES, SIDES).filter(lambda s: max(s) <= 200 * min(s)),
    status=st.sampled_from(["ok", "truncated"]),
)
def test_any_text_gives_boxes_inside_the_image(
    text: str, grammar: str, coordinates: str, order: str, size: tuple[int, int], status: Any
) -> None:
    dialect = _dialect(grammar, coordinates, order)
    reading = dialect.read_boxes(Answer("k", "ground", text, status=status), dialect.frame(size), "hsil")
    for found in reading.boxes:
        assert 0 <= found.box.x0 < found.box.x1 <= size[0]
        assert 0 <= found.box.y0 < found.box.y1 <= size[1]
        assert found.label
    assert reading.dropped >= 0
    assert reading.truncated or status == "ok"
    if grammar == "region":
        # every opening tag is a box or is counted
        assert len(reading.boxes) + reading.dropped >= text.lower().count("<region>")
    if grammar == "tokens":
        assert len(reading.boxes) + reading.dropped >= text.count("<|box_start|>")
    if grammar == "json":
        assert len(reading.boxes) + reading.dropped >= text.count('"bbox_2d":')
    if grammar == "ref_box":
        assert len(reading.boxes) + reading.dropped >= text.lower().count("<box>")
    if grammar == "loc":
        assert 4 * (len(reading.boxes) + reading.dropped) >= len(re.findall("<loc[0-9]+>", text))
    dialect.read_label(Answer("k", "refer", text))
    dialect.read_choice(Answer("k", "mcq", text), tasks.mcq("?", ("normal", "abnormal")))


@given(
    given_size=st.tuples(st.integers(20, 4000), st.integers(20, 4000)),
    corners=st.tuples(*[st.floats(0, 1) for _ in range(4)]),
    coordinates=st.sampled_from(["sent", "norm1000", "norm1"]),
)
def test_a_box_survives_the_way_there_and_back(
    given_size: tuple[int, int], corners: tuple[float, float, float, float], coordinates: str
) -> None:
    frame = _dialect("region", coordinates).frame(given_size)
    x0, x1 = sorted((corners[0] * given_size[0], corners[1] * given_size[0]))
    y0, y1 = sorted((corners[2] * given_size[1], corners[3] * given_size[1]))
    box = Box(x0, y0, x1, y1)
    back = frame.to_given(frame.to_model(box))
    for name in ("x0", "y0", "x1", "y1"):
        assert getattr(back, name) == pytest.approx(getattr(box, name), abs=1e-9)


@given(st.tuples(st.integers(16, 2000), st.integers(16, 2000)))
def test_the_whole_image_maps_to_the_whole_range(size: tuple[int, int]) -> None:
    frame = get_dialect("embedded").frame(size)
    assert frame.to_model(frame.bounds) == Box(0, 0, *frame.sent)
    x, y = frame.sent[0] / 4, frame.sent[1] / 2
    there = frame.to_given(Box(0, 0, x, y))
    assert (there.x1, there.y1) == pytest.approx((size[0] / 4, size[1] / 2))


def test_a_prompted_region_reads_back_within_half_a_unit_of_its_rounding() -> None:
    dialect = get_dialect("embedded")
    frame = dialect.frame((640, 480))
    text = dialect.prompt(tasks.refer(Box(101, 99, 333, 401)), frame)
    box = dialect.read_boxes(Answer("k", "ground", text), frame, "x").boxes[0].box
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((101, 99, 333, 401), abs=0.5 * 640 / 256)


# ---------------------------------------------------------------------------------------------- choices, labels


def _choice(text: str, **rest: Any) -> dict[str, float] | None:
    answer = Answer("k", "mcq", text, **rest)
    return get_dialect("cytochat").read_choice(answer, tasks.mcq("?", ("normal", "abnormal")))


def test_probabilities_follow_the_letters() -> None:
    assert _choice("A", probabilities={"B": 0.75, "A": 0.25}) == {"normal": 0.25, "abnormal": 0.75}
    assert _choice("A", probabilities={"A": 1.0}) is None
    assert _choice("", status="failed", probabilities={"A": 0.5, "B": 0.5}) is None


@pytest.mark.parametrize("text", ["B", "B.abnormal.", " B. abnormal", "**B**", "(B) abnormal", "abnormal", "Abnormal."])
def test_a_text_that_names_an_option(text: str) -> None:
    assert _choice(text) == {"normal": 0.0, "abnormal": 1.0}


@pytest.mark.parametrize(
    "text", ["", "C", "Both are possible", "I cannot help", "An abnormal cell", "Abnormality", "1"]
)
def test_a_text_that_names_none_is_no_answer(text: str) -> None:
    assert _choice(text) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("hsil", "hsil"),
        ("HSIL.", "hsil"),
        (" ASC-US<|im_end|>", "ascus"),
        ("herpes\nand more", "herps"),
        ("a keratin pearl.", "a keratin pearl"),
        ("", ""),
    ],
)
def test_refer_names_a_class(text: str, label: str) -> None:
    assert get_dialect("cytochat").read_label(Answer("k", "refer", text)) == label


def test_text_is_read_without_control_tokens() -> None:
    answer = Answer("k", "describe", " Normal cells.<|im_end|>\n")
    assert get_dialect("cytochat").read_text(answer) == "Normal cells."
