"""The white-cell differential: each cell once and under one type, shares with their intervals, flags as seen."""

from __future__ import annotations

import pytest

from aggregators import aggregate
from aggregators.differential import differential
from aggregators.intervals import proportion
from aggregators.merge import merge_boxes
from wsi_chat.schema import Box
from wsi_chat.terminology import load_system

SLIDE = Box(0, 0, 4000, 4000)
BLOOD = load_system("blood-smear")
ASKED = tuple(label.code for label in BLOOD.labels)


def cell(x: float, y: float, side: float = 60) -> Box:
    return Box(x, y, x + side, y + side)


@pytest.fixture
def film(make_tile, make_verdict):
    """Fields side by side, each with the named cells in a row, as a model marks them: by type, and as white cells."""

    def make(*fields: tuple[str, ...], asked: tuple[str, ...] = ASKED, again: bool = True):
        verdicts = []
        for index, labels in enumerate(fields):
            x0 = 1000 * index
            boxes = [(label, cell(x0 + 20 + 70 * n, 40 + 70 * (n % 5))) for n, label in enumerate(labels)]
            white = BLOOD.kinds_of("wbc") - {"wbc"}
            boxes += [("wbc", box.shifted(2, 1)) for label, box in boxes if again and label in white]
            verdicts.append(make_verdict(make_tile(index, x0), 0.9, boxes, asked=asked, about_abnormality=False))
        return verdicts

    return make


def of(verdicts):
    found = differential(merge_boxes(verdicts, BLOOD, bounds=SLIDE), verdicts, BLOOD)
    assert found is not None
    return found


def test_a_typed_cell_is_one_cell_and_counts_as_a_white_cell(film, make_funnel):
    verdicts = film(("neutrophil", "neutrophil", "eosinophil", "wbc", "rbc", "platelet", "erythroblast"))
    verdict = aggregate(verdicts, system=BLOOD, funnel=make_funnel(verdicts), bounds=SLIDE)
    assert len(verdict.findings) == 7, "marked by type and as WBC, each is one cell"
    seen = {row.label: row.seen for row in verdict.counts}
    assert (seen["wbc"], seen["neutrophil"], seen["eosinophil"], seen["monocyte"]) == (4, 2, 1, 0)
    assert (seen["rbc"], seen["platelet"], seen["erythroblast"]) == (1, 1, 1), "a nucleated red cell is no white cell"
    assert "4 white blood cells (2 neutrophils, 1 eosinophil), 1 red blood cell, 1 platelet" in verdict.reason
    found = verdict.differential
    assert found is not None
    assert (found.typed, found.untyped) == (3, 1)
    assert [(row.label, row.n) for row in found.rows if row.n] == [("neutrophil", 2), ("eosinophil", 1)]


def test_one_cell_that_two_tiles_give_two_types_is_one_cell(make_tile, make_verdict):
    left, right = make_tile(0, 0), make_tile(1, 384)
    box = cell(420, 100)
    rows = [
        make_verdict(left, 0.9, [("neutrophil", box), ("wbc", box)], asked=ASKED, about_abnormality=False),
        make_verdict(
            right, 0.9, [("eosinophil", box.shifted(3, 2)), ("wbc", box)], asked=ASKED, about_abnormality=False
        ),
    ]
    (finding,) = merge_boxes(rows, BLOOD, bounds=SLIDE)
    assert finding.label == "neutrophil", "a tie goes to the type that is listed first, never to the WBC of two votes"
    assert finding.other_labels == ("eosinophil",), "a white cell is what it is called anyway"
    assert of(rows).typed == 1


def test_shares_have_wilson_intervals_and_the_zeros_are_there(film):
    found = of(film(("neutrophil",) * 5 + ("lymphocyte",) * 2, ("neutrophil",) * 2 + ("monocyte",)))
    assert found.typed == 10
    by_label = {row.label: row for row in found.rows}
    assert by_label["neutrophil"].fraction == pytest.approx(0.7)
    wilson = proportion(7, 10)
    assert (by_label["neutrophil"].interval.low, by_label["neutrophil"].interval.high) == (wilson.low, wilson.high)
    assert by_label["basophil"].n == 0
    assert by_label["basophil"].interval.high > 0.2, "none of ten is not none at all"
    assert sum(row.fraction for row in found.rows) == pytest.approx(1)


def test_red_cells_and_platelets_are_counted_in_each_field(film):
    found = of(film(("rbc",) * 6 + ("platelet",), ("rbc",) * 2, ("neutrophil",)))
    red, platelets = found.per_field
    assert (red.mean, red.fewest, red.most) == (pytest.approx(8 / 3), 0, 6)
    assert (platelets.mean, platelets.most) == (pytest.approx(1 / 3), 1)
    assert (found.fields, found.field_um) == (3, pytest.approx(256))


@pytest.mark.parametrize(
    ("typed", "code"), [(0, "blood.none_typed"), (5, "blood.few"), (99, "blood.few"), (100, "blood.below_reference"),
                        (199, "blood.below_reference"), (200, None)],
)  # fmt: skip
def test_a_note_says_how_many_cells_a_manual_count_takes(make_tile, make_verdict, typed, code):
    boxes = [("neutrophil", cell(20 + 70 * (n % 50), 20 + 70 * (n // 50))) for n in range(typed)]
    rows = [make_verdict(make_tile(0, side=4000), 0.9, boxes, asked=ASKED, about_abnormality=False)]
    found = of(rows)
    assert found.typed == typed
    assert [note.code for note in found.notes] == ([code] if code else [])


def test_immature_granulocytes_and_nucleated_red_cells_are_seen_and_not_diagnosed(film):
    found = of(film(("ig", "neutrophil", "erythroblast", "erythroblast")))
    assert [flag.code for flag in found.seen] == ["blood.immature_seen", "blood.nucleated_red_seen"]
    assert found.seen[1].fields["n"] == 2
    assert all(flag.startswith("Seen, for review:") for flag in found.seen)
    assert found.typed == 2
    assert of(film(("neutrophil",))).seen == ()


def test_without_types_asked_there_is_no_differential_but_fields_are_counted(film):
    found = of(film(("wbc", "rbc"), asked=("wbc", "rbc", "platelet"), again=False))
    assert (found.typed, found.untyped, found.rows) == (0, 1, ())
    assert [note.code for note in found.notes] == ["blood.not_asked"]
    assert found.per_field[0].mean == 1


def test_fields_that_were_chosen_do_not_speak_for_the_film(film, make_tile, make_verdict):
    rows = [*film(("neutrophil",)), make_verdict(make_tile(9, 3000), 0.1, about_abnormality=False)]
    assert "blood.chosen_fields" in [note.code for note in of(rows).notes]


def test_types_are_asked_for_only_where_the_model_knows_them_all():
    plain = ("wbc", "rbc", "platelet")
    assert tuple(label.code for label in BLOOD.labels_to_ask(("neutrophil", *plain))) == plain
    assert {label.code for label in BLOOD.labels_to_ask(ASKED)} == set(ASKED)


def test_no_other_system_has_a_differential(film):
    assert differential([], film(("rbc",)), load_system("cervix")) is None
    assert differential([], [], BLOOD) is None
