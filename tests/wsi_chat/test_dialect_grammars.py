"""How each family's answers survive the state in which models leave them: every repair and every drop, counted."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_chat.dialects import get_dialect
from wsi_chat.dialects.grammars import GRAMMARS, settle
from wsi_chat.schema import Answer, Box

ONE = (1, 2, 3, 4)
TWO = (5, 6, 7, 8)


def _settled(grammar: str, text: str, **rest: Any) -> tuple[list[Any], int, bool]:
    found, dropped, cut = settle(GRAMMARS[grammar](text), (1000, 1000), **rest)
    return [(label, (b.x0, b.y0, b.x1, b.y1)) for label, b in found], dropped, cut


@pytest.mark.parametrize(
    ("text", "boxes", "dropped", "cut"),
    [
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a"}', [("a", ONE)], 0, False),  # a single object
        ('{"objects": [{"label": "a", "bbox_2d": [1, 2, 3, 4]}], "n": 1}', [("a", ONE)], 0, False),  # nested
        ('{"a": {"cells": {"x": {"box": [1,2,3,4]}}}}', [("", ONE)], 0, False),
        ('[{"bbox_2d": ["1", "2", "3", "4"], "label": "a"}]', [("a", ONE)], 0, False),  # strings as numbers
        ('[{"bbox_2d": "1, 2, 3, 4"}]', [], 1, False),
        ('[{"bbox_2d": "[1, 2, 3, 4]"}]', [("", ONE)], 0, False),
        ("[{'bbox_2d': [1, 2, 3, 4], 'label': 'a b'}]", [("a b", ONE)], 0, False),  # Python's quotes
        ('[{bbox_2d: [1, 2, 3, 4], "class": "a"}]', [("a", ONE)], 0, False),
        ('Here:\n```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```\nTwo [cells].', [("", ONE)], 0, False),
        ('{"label": "a", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}', [("a", ONE), ("a", TWO)], 0, False),
        ('{"bbox_2d": [[1, 2], [3, 4]]}', [("", ONE)], 0, False),  # two points
        ('{"bbox_2d": [1, 2, 3]}, {"bbox_2d": [1, 2, 3, 4, 5]}', [], 2, False),
        ('{"bbox_2d": {"x": 1}}, {"bbox_2d": null}, {"bbox_2d": []}', [], 3, False),
        ('{"bbox_2d": [1, 2, 3, 4}, {"bbox_2d": [5, 6, 7, 8]}', [("", ONE), ("", TWO)], 0, False),  # no closing
        ('{"bbox_2d": [1, 2, 3}', [], 1, False),
        ('{"bbox_2d": [3, 4, 1, 2]}, {"bbox_2d": [1, 2, 3, 4]}', [("", ONE)], 1, False),  # reversed, then repeated
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a \\"b\\" \\u00e9"}', [('a "b" é', ONE)], 0, False),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [("", ONE), ("", TWO)], 0, False),  # no keys at all
        ("The format is [x1, y1, x2, y2].", [], 1, False),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [[5, 6', [("a", ONE)], 1, True),
        ("None is visible.", [], 0, False),
    ],
)
def test_json(text: str, boxes: list[Any], dropped: int, cut: bool) -> None:
    assert _settled("json", text) == (boxes, dropped, cut)


@pytest.mark.parametrize(
    ("text", "boxes", "dropped", "cut"),
    [
        ("<ref>a</ref><box>[[1, 2, 3, 4]]</box>", [("a", ONE)], 0, False),
        (
            "Sure.\n```\n<ref>a</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>\n```",
            [("a", ONE), ("a", TWO)],
            0,
            False,
        ),
        (
            "<ref>a</ref><box>[[1, 2, 3, 4]]</box><ref>b</ref><box>[[5, 6, 7, 8]]</box>",
            [("a", ONE), ("b", TWO)],
            0,
            False,
        ),
        ("<ref>a</ref><box>[[1, 2, 3, 4]]<ref>b</ref><box>[[5, 6, 7, 8]]", [("a", ONE), ("b", TWO)], 0, False),
        ("a[[1, 2, 3, 4]]", [("", ONE)], 0, False),  # special tokens left out by a server
        ("<ref>a</ref>[[1, 2, 3, 4]]</box> done", [("a", ONE)], 0, False),
        ("<box>1, 2, 3, 4</box><box>(5,6),(7,8)</box>", [("", ONE), ("", TWO)], 0, False),
        ("<box></box><box>none</box>", [], 2, False),
        ("<box>[[1, 2, 3, 4]]</box><box>", [("", ONE)], 1, True),
        ("<box>[[1, 2, 3, 4], [5, 6, 7", [("", ONE)], 1, True),
        ("<ref>a</ref> is not here.", [], 0, False),
    ],
)
def test_ref_box(text: str, boxes: list[Any], dropped: int, cut: bool) -> None:
    assert _settled("ref_box", text) == (boxes, dropped, cut)


@pytest.mark.parametrize(
    ("text", "boxes", "dropped", "cut"),
    [
        ("<loc0002><loc0001><loc0004><loc0003> a", [("a", ONE)], 0, False),
        (
            "<loc0002><loc0001><loc0004><loc0003> a b ; <loc0006><loc0005><loc0008><loc0007> c<eos>",
            [("a b", ONE), ("c", TWO)],
            0,
            False,
        ),
        ("<loc2> <loc1>\n<loc4> <loc3>", [("", ONE)], 0, False),
        (
            "<loc0002><loc0001><loc0004><loc0003><loc0006><loc0005><loc0008><loc0007> c",
            [("", ONE), ("c", TWO)],
            0,
            False,
        ),
        ("<loc0002><loc0001><loc0004><loc0003> a<seg001><seg002> ; <loc0006>", [("a", ONE)], 1, True),
        ("<loc0002><loc0001> a ; <loc0006><loc0005><loc0008><loc0007> c", [("c", TWO)], 1, False),
        ("<loc0002><loc0001><loc0004><loc0003> a ; <lo", [("a", ONE)], 1, True),
        (f"<loc{'9' * 400}><loc0001><loc0004><loc0003> a", [], 1, False),
        ("no hsil", [], 0, False),
    ],
)
def test_loc(text: str, boxes: list[Any], dropped: int, cut: bool) -> None:
    assert _settled("loc", text, order="yxyx") == (boxes, dropped, cut)


@pytest.mark.parametrize(
    ("text", "boxes", "dropped", "cut"),
    [
        ("The tool is at [1, 2, 3, 4].", [("", ONE)], 0, False),
        ("[1, 2, 3, 4], [5, 6, 7, 8] and [5,6,7,8]", [("", ONE), ("", TWO)], 1, False),
        ("[1, 2, 3, 4], [5, 6, 7", [("", ONE)], 1, True),
        ("[1, 2, 3, 4], [", [("", ONE)], 1, True),
        ("[-1, -2, -3, -4] [2000, 2000, 3000, 3000]", [], 2, False),
        ("[see the note] [] [x1, y1]", [], 1, False),
        ("[" + "1, " * 100 + "2]", [], 1, False),
    ],
)
def test_lists(text: str, boxes: list[Any], dropped: int, cut: bool) -> None:
    assert _settled("list", text) == (boxes, dropped, cut)


@pytest.mark.parametrize(
    ("text", "boxes", "dropped", "cut"),
    [
        ("a(1,2),(3,4)b(5,6),(7,8)", [("", ONE), ("", TWO)], 0, False),  # special tokens left out by a server
        ("(1,2),(3,4) (5,6),(7", [("", ONE)], 1, True),
        ("a cell (left) and (right)", [], 0, False),
        ("<|box_start|>(1,2),(3,4)<|box_start|>(5,6),(7,8)", [("", ONE), ("", TWO)], 0, False),
    ],
)
def test_tokens(text: str, boxes: list[Any], dropped: int, cut: bool) -> None:
    assert _settled("tokens", text) == (boxes, dropped, cut)


# What each dialect writes for a box, with a place for four numbers in its own order.
SHAPES = {
    "qwen2-vl": "<|object_ref_start|>hsil<|object_ref_end|><|box_start|>({},{}),({},{})<|box_end|> ",
    "qwen2.5-vl": '{{"bbox_2d": [{}, {}, {}, {}], "label": "hsil"}},',
    "qwen3-vl": '{{"label": "hsil", "bbox_2d": ["{}", "{}", "{}", "{}"]}},',
    "internvl": "<ref>hsil</ref><box>[[{}, {}, {}, {}]]</box>\n",
    "medgemma": '{{"box_2d": [{}, {}, {}, {}], "label": "hsil"}},',
    "paligemma": "<loc{}><loc{}><loc{}><loc{}> hsil ; ",
    "endochat": "[{}, {}, {}, {}], ",
    "json": '{{"bbox_2d": [{}, {}, {}, {}]}}, and ',
}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_nothing_is_dropped_uncounted(name: str) -> None:
    dialect = get_dialect(name)
    frame = dialect.frame((896, 896))
    side = frame.space[0]
    scale = side / 100
    outside = st.tuples(*[st.integers(int(side) + 1, int(side) + 5000)] * 4)
    flat = st.integers(0, 99).map(lambda n: (0, round(n * scale, 3), 0, round(n * scale, 3)))
    inside = st.tuples(*[st.integers(0, 49)] * 2, *[st.integers(50, 100)] * 2)

    def number(value: float) -> str:
        return str(int(value)) if float(value).is_integer() or name == "paligemma" else f"{value:.2f}"

    @settings(deadline=None)
    @given(
        st.lists(
            st.one_of(inside.map(lambda four: tuple(round(n * scale, 3) for n in four)), outside, flat), max_size=8
        )
    )
    def check(fours: list[tuple[float, ...]]) -> None:
        texts = [tuple(number(value) for value in four) for four in fours]
        good = {text for text, four in zip(texts, fours, strict=True) if max(four) <= side and four[0] != four[2]}
        answer = Answer("k", "ground", "".join(SHAPES[name].format(*text) for text in texts))
        reading = dialect.read_boxes(answer, frame, "hsil")
        assert len(reading.boxes) == len(good)
        assert reading.dropped == len(texts) - len(good)
        assert not reading.truncated
        assert {found.label for found in reading.boxes} <= {"hsil"}

    check()


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_corners_in_any_order_and_numbers_out_of_the_frame_are_put_right(name: str) -> None:
    dialect = get_dialect(name)
    frame = dialect.frame((896, 896))
    side = int(frame.space[0])
    far = side * 4
    # the lower right quarter and beyond, written from its far corner
    quarter = side / 2 if name == "endochat" else side // 2
    text = SHAPES[name].format(far, far, quarter, quarter)
    (found,) = dialect.read_boxes(Answer("k", "ground", text), frame, "hsil").boxes
    assert found.box == Box(448, 448, 896, 896)


@pytest.mark.parametrize("grammar", sorted(GRAMMARS))
@pytest.mark.parametrize(
    "piece",
    ["[", "[[1,2],", "(1,", '{"bbox_2d": [', '"bbox_2d": \'', "<loc1>", "<ref>", "<box>", "<region>", "< ", "1", " "],
)
def test_a_runaway_answer_is_read_in_no_time(grammar: str, piece: str) -> None:
    """Repetition up to the token cap is how small models fail; a pattern that backtracks would hang the run."""
    text = piece * (20_000 // len(piece)) + " " * 2000
    started = time.process_time()
    settle(GRAMMARS[grammar](text), (1000, 1000))
    assert time.process_time() - started < 2


def test_the_label_of_the_next_object_is_not_taken() -> None:
    text = '[{"bbox_2d": [1, 2, 3, 4], {"label": "b", "bbox_2d": [5, 6, 7, 8]}]'
    assert _settled("json", text) == ([("", ONE), ("b", TWO)], 0, False)
