"""Counting normal cells in sampled tiles: what is asked, what is kept, and that nothing missing becomes a zero."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import wsi_chat
from tilers import Patch
from wsi_chat.analysis.cell_sample import DEFAULT_TILES, CellCounting, tiles_wanted
from wsi_chat.analysis.inquiry import ask_all
from wsi_chat.analysis.supplied import what_was_supplied
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import Fault, ScriptedEngine
from wsi_chat.engines.asker import Asker
from wsi_chat.errors import SettingError
from wsi_chat.journal import Journal
from wsi_chat.schema import Box, Query, Tile
from wsi_chat.settings import Settings
from wsi_chat.terminology import load_system

CERVIX = load_system("cervix")
COUNTED = ["superficial", "intermediate", "parabasal", "metaplastic", "endocervical"]
BOUNDS = Box(0, 0, 10_000, 10_000)


def patches(count: int, *, unreadable: tuple[int, ...] = ()) -> Iterator[Patch]:
    for index in range(count):
        tile = Tile(index, index * 512, 0, 512, 512, 0, (512, 512), 256, 0.5)
        if index in unreadable:
            yield Patch(tile, None, "unreadable", error="bogus marker")
        else:
            yield Patch(tile, np.full((256, 256, 3), index, np.uint8), "ok")


def says(query: Query) -> str | dict[str, float]:
    if query.task in ("screen", "mcq"):
        return {query.choices[0]: 0.9, query.choices[1]: 0.1}
    if query.target == "intermediate":
        return "intermediate 1 is located at <region>10 20 30 60</region>. " * 2
    return "One field." if query.task == "describe" else f"No {query.target} is found."


@pytest.fixture
def count(tmp_path: Path):
    def run(engine: ScriptedEngine, number: int, *, dialect: str = "embedded", unreadable: tuple[int, ...] = ()):
        with Journal(tmp_path / f"{dialect}.sqlite") as journal:
            asker = Asker(engine, get_dialect(dialect), journal, {"greedy": True})
            fields = patches(number, unreadable=unreadable)
            counting = CellCounting(fields, asker, CERVIX, total=number, bounds=BOUNDS)
            ask_all(asker, counting)
            return counting.counted

    return run


def test_every_class_of_the_rule_is_asked_of_every_tile(count) -> None:
    engine = ScriptedEngine(says)
    rows = count(engine, 2)
    assert [query.target for query in engine.asked] == COUNTED * 2
    assert [row.status for row in rows] == ["counted", "counted"]
    assert list(rows[1].asked) == COUNTED
    assert {(item.label, item.box) for item in rows[1].boxes} == {("intermediate", Box(512 + 20, 40, 512 + 60, 120))}
    assert rows[0].p_obscured is None, "a model that lists its classes was not taught to judge this"


def test_a_model_that_takes_any_class_is_also_asked_what_is_obscured(count) -> None:
    engine = ScriptedEngine(says)
    rows = count(engine, 1, dialect="json")
    assert [query.task for query in engine.asked] == ["ground"] * 5 + ["mcq"]
    assert rows[0].p_obscured == pytest.approx(0.1)


def test_tiles_of_which_nothing_can_be_asked_do_not_vanish(count) -> None:
    assert get_dialect("cytochat").labels, "a dialect that lists its classes"
    assert not set(get_dialect("cytochat").labels) & set(COUNTED)
    engine = ScriptedEngine(says)
    rows = count(engine, 2, dialect="cytochat", unreadable=(1,))
    assert not engine.asked
    assert [row.status for row in rows] == ["failed", "unreadable"]
    assert "cytochat lists none" in rows[0].error


def test_unreadable_failed_and_refused_tiles_are_not_empty(count) -> None:
    faults = [Fault(at=0, kind="fail"), Fault(at=6, kind="refuse")]
    rows = count(ScriptedEngine(says, faults=faults), 4, unreadable=(1,))
    assert [row.status for row in rows] == ["failed", "unreadable", "failed", "counted"]
    assert "ground superficial" in rows[0].error
    assert "ground intermediate" in rows[2].error
    assert rows[1].error == "bogus marker"


@pytest.mark.parametrize(
    ("specimen", "dialect", "asked", "size"),
    [
        ("cervix", "embedded", None, DEFAULT_TILES),
        ("cervix", "embedded", 0, 0),
        ("cervix", "embedded", 40, 40),
        ("cervix", "cytochat", None, 0),  # it has no class of a normal cell
        ("cervix", "qwen2-vl", None, 0),
        ("cervix", "qwen2-vl", 8, 8),
        ("thyroid", "embedded", None, 0),
        ("blood", "embedded", 16, 0),
        (None, "embedded", 16, 0),
    ],
)
def test_tiles_are_sampled_where_the_rule_counts_and_the_model_knows_the_cells(specimen, dialect, asked, size) -> None:
    assert tiles_wanted(load_system(specimen), get_dialect(dialect).labels, asked) == size


def test_a_specimen_code_or_a_flag_gives_the_preparation_and_a_wrong_one_is_refused() -> None:
    assert what_was_supplied(Settings(specimen="cervical-lbc"), CERVIX).preparation == "liquid-based"
    given = Settings(specimen="cervical-lbc", preparation="conventional", age=50, reduced_minimum=True)
    supplied = what_was_supplied(given, CERVIX)
    assert (supplied.preparation, supplied.age, supplied.reduced_minimum) == ("conventional", 50, True)
    with pytest.raises(SettingError, match=r"--preparation 'air-dried' is not known\. Use one of: liquid-based, conv"):
        what_was_supplied(Settings(preparation="air-dried"), CERVIX)
    with pytest.raises(SettingError, match="Leave it out"):
        what_was_supplied(Settings(preparation="liquid-based"), load_system("blood"))


def test_the_report_states_the_estimate_its_interval_and_the_sample(small_slide: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(says)
    result = wsi_chat.analyze(
        small_slide, out=tmp_path, engine=engine, specimen="cervical-lbc", top_k=1, adequacy_tiles=6, pdf=False
    )
    adequacy, funnel = result.report.verdict.adequacy, result.report.funnel
    assert (funnel.adequacy_drawn, funnel.adequacy_counted) == (6, 6)
    assert (adequacy.tiles_drawn, adequacy.tiles_counted, adequacy.preparation) == (6, 6, "liquid-based")
    assert adequacy.status == "unsatisfactory"
    assert adequacy.cells_interval.low <= adequacy.cells_estimate <= adequacy.cells_interval.high
    assert 0 < adequacy.sampled_area_fraction < 1
    assert result.report.verdict.category is None, "NILM needs a satisfactory specimen"
    none = wsi_chat.analyze(
        small_slide, out=tmp_path / "no", engine=ScriptedEngine(says), specimen="cervix", top_k=1, adequacy_tiles=0,
        pdf=False,
    )  # fmt: skip
    assert none.report.verdict.adequacy.status == "not_assessed"
    assert none.report.funnel.adequacy_drawn == 0
    assert none.category == "NILM"
