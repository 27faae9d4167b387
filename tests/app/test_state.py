"""How classes are drawn: every mark of a counted class is one that the page, its list and its map know."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import wsi_chat.app
from reports.figures import COUNTED
from wsi_chat.app.parts import GLYPHS, altered, css, rgb_of
from wsi_chat.app.state import COUNTED_SHAPES, PageState
from wsi_chat.app.words import PageWords
from wsi_chat.schema import Box, Finding
from wsi_chat.terminology import load_system

FOUND = (
    "basophil",
    "eosinophil",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
    "rbc",
    "wbc",
    "ig",
    "erythroblast",
)


def test_every_mark_of_a_counted_class_is_drawn_in_the_list_and_on_the_map() -> None:
    drawn = (Path(wsi_chat.app.__file__).parent / "script" / "findings.js").read_text(encoding="utf-8")
    shapes = [COUNTED_SHAPES[mark] for mark, _ in COUNTED]
    assert len(set(shapes)) == len(shapes)
    assert len({GLYPHS[shape] for shape in shapes}) == len(shapes)
    assert all(f"\n  {shape}: " in drawn for shape in shapes)


def test_a_smear_with_ten_classes_has_the_marks_and_colours_of_its_pdf() -> None:
    blood = load_system("blood")
    findings = tuple(
        Finding(
            id=f"f{n:04d}", label=code, name=blood.label(code).name, box=Box(n, n, n + 9, n + 9), abnormal=False,
            tile_ids=("t000000",), votes=1,
        )
        for n, code in enumerate(FOUND)
    )  # fmt: skip
    slide = SimpleNamespace(result=SimpleNamespace(status="counted"), findings=findings, system=blood)
    state = PageState(slide, PageWords("en", blood))  # type: ignore[arg-type]
    by_name = sorted((blood.label(code).name, code) for code in FOUND)
    for (_, code), (mark, colour) in zip(by_name, COUNTED, strict=True):
        assert (state.style(code).shape, state.style(code).color) == (COUNTED_SHAPES[mark], css(rgb_of(colour)))


def test_only_rows_that_differ_are_sent_while_the_list_is_the_same() -> None:
    before = [{"id": "f1", "state": ""}, {"id": "f2", "state": ""}]
    assert altered(before, [dict(row) for row in before]) == []
    assert altered(before, [before[0], {"id": "f2", "state": "accept"}]) == [{"id": "f2", "state": "accept"}]
    assert altered(before, before[:1]) is None
    assert altered(before, before[::-1]) is None, "another order is another list"
