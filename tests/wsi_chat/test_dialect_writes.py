"""The answer that a model family would give: the inverse of reading one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_chat.dialects import Dialect, DialectSpec, dialects, get_dialect
from wsi_chat.errors import SettingError
from wsi_chat.schema import Answer, Box, LabelledBox


def _with(**changes: Any) -> Dialect:
    return Dialect(DialectSpec.model_validate(get_dialect("cytochat").spec.model_dump() | changes))


TWO = [LabelledBox("hsil", Box(10, 20, 30.5, 40.25)), LabelledBox("hsil", Box(100, 200, 300, 512))]


@pytest.mark.parametrize(
    ("changes", "text", "none"),
    [
        (
            {},
            "hsil 1 is located at <region>10.0 20.0 30.5 40.25</region>. "
            "hsil 2 is located at <region>100.0 200.0 300.0 512.0</region>.",
            "No hsil is found.",
        ),
        (
            {"boxes": "json", "decimals": 0, "coordinates": "norm1000"},
            '[{"bbox_2d": [20, 39, 60, 79], "label": "hsil"}, {"bbox_2d": [195, 391, 586, 1000], "label": "hsil"}]',
            "[]",
        ),
        (
            {"boxes": "tokens", "decimals": 0},
            "<|object_ref_start|>hsil<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>"
            "<|object_ref_start|>hsil<|object_ref_end|><|box_start|>(100,200),(300,512)<|box_end|>",
            "No hsil is found.",
        ),
    ],
)
def test_an_answer_in_each_grammar(changes: dict[str, Any], text: str, none: str) -> None:
    dialect = _with(**changes)
    frame = dialect.frame((512, 512))
    assert dialect.write_boxes(TWO, frame, "hsil") == text
    assert dialect.write_boxes([], frame, "hsil") == none
    empty = dialect.read_boxes(Answer("k", "ground", none), frame, "hsil")
    assert (empty.boxes, empty.dropped, empty.truncated) == ((), 0, False)


def test_objects_are_numbered_by_class() -> None:
    boxes = [LabelledBox(label, Box(i, 0, i + 1, 1)) for i, label in enumerate(["hsil", "lsil", "hsil"])]
    text = get_dialect("embedded").write_boxes(boxes, get_dialect("embedded").frame((256, 256)), "abnormal")
    assert [sentence.split(" is")[0] for sentence in text.split(". ")] == ["hsil 1", "lsil 1", "hsil 2"]


def test_a_box_outside_is_refused_one_across_the_edge_is_cut_and_a_tiny_one_keeps_an_area() -> None:
    dialect = get_dialect("embedded")
    frame = dialect.frame((256, 256))
    with pytest.raises(SettingError, match="no area inside the image of 256x256 px"):
        dialect.write_boxes([LabelledBox("hsil", Box(300, 0, 310, 10))], frame, "hsil")
    text = dialect.write_boxes([LabelledBox("hsil", Box(-5, 250.2, 3, 999))], frame, "hsil")
    assert text == "hsil 1 is located at <region>0 250 3 256</region>."
    tiny = [LabelledBox("hsil", Box(255.9, 7.1, 256, 7.2)), LabelledBox("hsil", Box(255.8, 7.1, 256, 7.2))]
    assert dialect.write_boxes(tiny, frame, "hsil") == "hsil 1 is located at <region>255 7 256 8</region>."


# lefts on a coarse grid, all different, so that no two boxes round to the same
CORNERS = st.tuples(st.integers(0, 48).map(lambda n: n / 50), *[st.floats(0.02, 0.97) for _ in range(3)])


@settings(deadline=None)
@given(
    grammar=st.sampled_from(["region", "tokens", "json"]),
    coordinates=st.sampled_from(["sent", "norm1000"]),
    decimals=st.integers(0, 2),
    # no side so short that a box would be thinner than one unit and have to be widened
    size=st.tuples(st.integers(400, 4000), st.integers(400, 4000)),
    corners=st.lists(CORNERS, max_size=5, unique_by=lambda corners: corners[0]),
)
def test_what_is_written_reads_back(
    grammar: str, coordinates: str, decimals: int, size: tuple[int, int], corners: list[tuple[float, ...]]
) -> None:
    dialect = _with(boxes=grammar, coordinates=coordinates, decimals=decimals)
    frame = dialect.frame(size)
    boxes = [
        LabelledBox("lsil", Box(x * size[0], y * size[1], min(1, x + w) * size[0], min(1, y + h) * size[1]))
        for x, y, w, h in corners
    ]
    text = dialect.write_boxes(boxes, frame, "lsil")
    reading = dialect.read_boxes(Answer("k", "ground", text), frame, "hsil")
    assert (reading.dropped, reading.truncated) == (0, False)
    # half a unit of rounding, in pixels of the image as given
    sx, sy = (0.51 * 10**-decimals * size[i] / frame.space[i] for i in (0, 1))
    for box, back in zip(boxes, reading.boxes, strict=True):
        assert back.label == "lsil"
        assert (back.box.x0, back.box.x1) == pytest.approx((box.box.x0, box.box.x1), abs=sx)
        assert (back.box.y0, back.box.y1) == pytest.approx((box.box.y0, box.box.y1), abs=sy)


@pytest.mark.parametrize("name", dialects())
def test_every_familys_words_for_none_are_understood_and_a_refusal_is_not(name: str) -> None:
    dialect = get_dialect(name)
    frame = dialect.frame((512, 512))
    none = dialect.read_boxes(Answer("k", "ground", dialect.write_boxes([], frame, "hsil")), frame, "hsil")
    assert (none.boxes, none.dropped, none.understood) == ((), 0, True)
    for evasive in ("I cannot help with that.", "No, sorry, I am unable to look.", "The smear is cellular.", ""):
        assert not dialect.read_boxes(Answer("k", "ground", evasive), frame, "hsil").understood
    assert not dialect.read_boxes(Answer("k", "ground", "", status="failed"), frame, "hsil").understood
