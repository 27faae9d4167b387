"""Merging: known cells, cut by known tiles, must come back as exactly those cells."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aggregators.merge as merging
from aggregators import merge_boxes
from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, Finding, LabelledBox, Tile, TileVerdict

Cell = tuple[str, Box]
BOUNDS = Box(0, 0, 2000, 2000)
CELL_LABELS = ["ascus", "lsil", "asch", "hsil", "scc", "agc"]


def tiling(make_tile, width: int, height: int, side: int, stride: int) -> list[Tile]:
    """Tiles of ``side`` every ``stride``, the last row and column moved back inside."""
    xs = sorted({min(x, width - side) for x in range(0, width - side + stride, stride)})
    ys = sorted({min(y, height - side) for y in range(0, height - side + stride, stride)})
    return [make_tile(i, x, y, side) for i, (y, x) in enumerate((y, x) for y in ys for x in xs)]


def look(make_verdict, tiles: Sequence[Tile], cells: Sequence[Cell]) -> list[TileVerdict]:
    """What a perfect model answers: in every tile the visible part of every cell."""
    rows = []
    for tile in tiles:
        parts = [(label, box.clipped(tile.box)) for label, box in cells]
        rows.append(make_verdict(tile, boxes=[(label, part) for label, part in parts if part is not None]))
    return rows


def cells_of(findings: Sequence[Finding]) -> list[Cell]:
    return sorted(((f.label, f.box) for f in findings), key=repr)


@st.composite
def scattered(draw, side: int, largest: float, labels: Sequence[str] = CELL_LABELS) -> tuple[Box, list[Cell]]:
    """A slide of 1.0 to 4 tiles a side with disjoint cells at least five pixels apart."""
    width, height = draw(st.integers(side, 4 * side)), draw(st.integers(side, 4 * side))
    rng = random.Random(draw(st.integers(0, 2**32)))
    pitch = int(side * largest) + 6
    cells = []
    for y in range(0, height - pitch + 1, pitch):
        for x in range(0, width - pitch + 1, pitch):
            if rng.random() < 0.8:
                w, h = rng.uniform(6, pitch - 6), rng.uniform(6, pitch - 6)
                x0, y0 = x + rng.uniform(0, pitch - 5.5 - w), y + rng.uniform(0, pitch - 5.5 - h)
                cells.append((rng.choice(list(labels)), Box(x0, y0, x0 + w, y0 + h)))
    return Box(0, 0, width, height), cells


@settings(deadline=None, max_examples=40)
@given(scattered(64, 0.25))
def test_cells_on_tile_borders_come_back_exactly(cervix, make_tile, make_verdict, slide):
    bounds, cells = slide
    tiles = tiling(make_tile, int(bounds.x1), int(bounds.y1), 64, 48)
    findings = merge_boxes(look(make_verdict, tiles, cells), cervix, bounds=bounds)
    assert cells_of(findings) == sorted(cells, key=repr)


@settings(deadline=None, max_examples=40)
@given(scattered(64, 1.1))
def test_cells_larger_than_the_overlap_are_put_together_from_their_pieces(cervix, make_tile, make_verdict, slide):
    bounds, cells = slide
    tiles = tiling(make_tile, int(bounds.x1), int(bounds.y1), 64, 48)
    findings = merge_boxes(look(make_verdict, tiles, cells), cervix, bounds=bounds)
    assert cells_of(findings) == sorted(cells, key=repr)


@settings(deadline=None, max_examples=40)
@given(scattered(64, 0.4))
def test_tiles_without_overlap_join_halves_across_their_border(cervix, make_tile, make_verdict, slide):
    bounds, cells = slide
    bounds = Box(0, 0, bounds.x1 // 64 * 64, bounds.y1 // 64 * 64)
    cells = [(label, box) for label, box in cells if box.clipped(bounds) == box]
    tiles = tiling(make_tile, int(bounds.x1), int(bounds.y1), 64, 64)
    findings = merge_boxes(look(make_verdict, tiles, cells), cervix, bounds=bounds)
    assert cells_of(findings) == sorted(cells, key=repr)


@settings(deadline=None, max_examples=40)
@given(scattered(64, 0.3, ["wbc", "rbc", "platelet"]), st.randoms(use_true_random=False))
def test_every_tile_that_sees_a_cell_is_named_and_ids_follow_reading_order(blood, make_tile, make_verdict, slide, rng):
    bounds, cells = slide
    tiles = tiling(make_tile, int(bounds.x1), int(bounds.y1), 64, 48)
    rows = look(make_verdict, tiles, cells)
    rng.shuffle(rows)
    findings = merge_boxes(rows, blood, bounds=bounds)
    for finding in findings:
        seeing = [tile.id for tile in tiles if finding.box.clipped(tile.box) is not None]
        assert list(finding.tile_ids) == seeing
        assert finding.votes == len(seeing)
        assert finding.other_labels == ()
    assert [f.id for f in findings] == [f"f{n:04d}" for n in range(1, len(cells) + 1)]
    corners = [(f.box.y0, f.box.x0) for f in findings]
    assert corners == sorted(corners)


@st.composite
def noisy_answers(draw) -> list[tuple[int, str, Box]]:
    """Any boxes of any class in any of nine overlapping tiles: duplicates, jitter, conflicts, slivers."""
    labels = st.sampled_from([*CELL_LABELS, "abnormal", "candida", "flora"])
    size, place = st.integers(1, 60), st.integers(0, 140)
    rows = []
    for _ in range(draw(st.integers(0, 14))):
        x, y, w, h = draw(place), draw(place), draw(size), draw(size)
        for _ in range(draw(st.integers(1, 3))):
            dx, dy = draw(st.integers(-6, 6)), draw(st.integers(-6, 6))
            box = Box(max(0, x + dx), max(0, y + dy), max(0, x + dx) + w, max(0, y + dy) + h)
            rows.append((draw(st.integers(0, 8)), draw(labels), box))
    return rows


def as_verdicts(make_tile, make_verdict, rows) -> list[TileVerdict]:
    tiles = [make_tile(i, 48 * (i % 3), 48 * (i // 3), 64) for i in range(9)]
    parts = [(index, label, box.clipped(tiles[index].box)) for index, label, box in rows]
    return [
        make_verdict(tile, boxes=[(label, part) for index, label, part in parts if index == tile.index and part])
        for tile in tiles
    ]


SMALL = Box(0, 0, 160, 160)


@settings(deadline=None, max_examples=40)
@given(noisy_answers(), st.randoms(use_true_random=False))
def test_the_order_of_tiles_and_boxes_changes_nothing(cervix, make_tile, make_verdict, rows, rng):
    verdicts = as_verdicts(make_tile, make_verdict, rows)
    shuffled = []
    for verdict in verdicts:
        boxes = list(verdict.boxes)
        rng.shuffle(boxes)
        shuffled.append(verdict.model_copy(update={"boxes": tuple(boxes)}))
    rng.shuffle(shuffled)
    assert merge_boxes(shuffled, cervix, bounds=SMALL) == merge_boxes(verdicts, cervix, bounds=SMALL)


@settings(deadline=None, max_examples=40)
@given(noisy_answers())
def test_merging_what_is_merged_changes_nothing(cervix, make_tile, make_verdict, rows):
    findings = merge_boxes(as_verdicts(make_tile, make_verdict, rows), cervix, bounds=SMALL)
    again = make_verdict(make_tile(0, 0, 0, 160), boxes=[(f.label, f.box) for f in findings])
    assert cells_of(merge_boxes([again], cervix, bounds=SMALL)) == cells_of(findings)


@settings(deadline=None, max_examples=40)
@given(noisy_answers())
def test_no_box_is_lost_and_no_class_appears_that_no_tile_gave(cervix, make_tile, make_verdict, rows):
    verdicts = as_verdicts(make_tile, make_verdict, rows)
    findings = merge_boxes(verdicts, cervix, bounds=SMALL)
    organisms = {"candida", "flora"}
    for verdict in verdicts:
        for item in verdict.boxes:
            homes = [
                f
                for f in findings
                if verdict.tile.id in f.tile_ids
                and item.label in (f.label, *f.other_labels)
                and f.box.intersection(item.box) > 0
            ]
            assert homes, (verdict.tile.id, item)
    for finding in findings:
        named = {finding.label, *finding.other_labels}
        given_by = [v for v in verdicts if v.tile.id in finding.tile_ids]
        assert named <= {item.label for v in given_by for item in v.boxes}
        assert len(named) == 1 or not named & organisms, "an organism never competes with a cell"


@settings(deadline=None, max_examples=40)
@given(noisy_answers())
def test_the_tree_finds_what_comparing_every_pair_finds(cervix, make_tile, make_verdict, rows):
    verdicts = as_verdicts(make_tile, make_verdict, rows)
    seen = merging._collect(verdicts, cervix, SMALL)
    every = [(a, b) for b in range(len(seen)) for a in range(b)]
    by_force = [pair for pair in sorted(every) if merging.same_cell(seen[pair[0]], seen[pair[1]], iou=0.4)]
    by_tree = [
        pair for pair in merging.candidate_pairs(seen) if merging.same_cell(seen[pair[0]], seen[pair[1]], iou=0.4)
    ]
    assert by_tree == by_force


# ------------------------------------------------------------------------------- the rules, one by one


def test_the_whole_box_wins_over_the_piece_that_another_tile_saw(cervix, make_tile, make_verdict):
    left, right = make_tile(0, 0, 0, 512), make_tile(1, 384, 0, 512)
    whole, piece = Box(480, 100, 560, 180), Box(482, 103, 512, 178)
    rows = [make_verdict(left, 0.9, [("hsil", piece)]), make_verdict(right, 0.4, [("hsil", whole)])]
    (finding,) = merge_boxes(rows, cervix, bounds=BOUNDS)
    assert finding.box == whole
    assert finding.score == 0.9
    assert (finding.votes, finding.tile_ids) == (2, ("t000000", "t000001"))


def test_the_edge_of_the_slide_cuts_nothing_off(cervix, make_tile, make_verdict):
    edge = make_tile(0, 0, 0, 512)
    at_edge, inner = Box(0, 0, 40, 40), Box(300, 300, 340, 340)
    seen = merging._collect([make_verdict(edge, boxes=[("hsil", at_edge), ("hsil", inner)])], cervix, BOUNDS)
    assert [item.cut for item in seen] == [False, False]
    shifted = make_tile(1, 300, 0, 512)
    (item,) = merging._collect([make_verdict(shifted, boxes=[("hsil", inner)])], cervix, BOUNDS)
    assert item.cut


def test_duplicates_within_a_tile_are_one_cell_with_one_vote(cervix, make_tile, make_verdict):
    boxes = [("lsil", Box(100, 100, 200, 200)), ("lsil", Box(105, 100, 205, 200)), ("lsil", Box(100, 103, 200, 203))]
    (finding,) = merge_boxes([make_verdict(make_tile(), boxes=boxes)], cervix, bounds=BOUNDS)
    assert (finding.votes, finding.tile_ids) == (1, ("t000000",))


def test_neighbours_that_overlap_a_little_stay_two_cells(cervix, make_tile, make_verdict):
    boxes = [("lsil", Box(100, 100, 200, 200)), ("lsil", Box(150, 100, 250, 200))]
    assert len(merge_boxes([make_verdict(make_tile(), boxes=boxes)], cervix, bounds=BOUNDS)) == 2


def test_a_nucleus_inside_a_whole_cell_of_the_same_tile_is_not_swallowed(cervix, make_tile, make_verdict):
    boxes = [("hsil", Box(100, 100, 300, 300)), ("hsil", Box(180, 180, 220, 220))]
    assert len(merge_boxes([make_verdict(make_tile(), boxes=boxes)], cervix, bounds=BOUNDS)) == 2


@pytest.mark.parametrize(
    ("given_labels", "label", "votes", "others"),
    [
        (["lsil", "lsil", "hsil"], "lsil", 2, ("hsil",)),  # votes before severity
        (["lsil", "hsil"], "hsil", 1, ("lsil",)),  # severity on a tie
        (["agc", "ascus"], "ascus", 1, ("agc",)),  # equal severity: the one listed first
        (["abnormal", "abnormal", "lsil"], "lsil", 1, ("abnormal",)),  # the generic class yields
        (["abnormal"], "abnormal", 1, ()),
    ],
)
def test_one_label_per_cell_by_votes_then_severity(cervix, make_tile, make_verdict, given_labels, label, votes, others):
    box = Box(600, 600, 700, 700)
    rows = [
        make_verdict(make_tile(i, 400 + 20 * i, 400, 512), boxes=[(code, box.shifted(i, i))])
        for i, code in enumerate(given_labels)
    ]
    (finding,) = merge_boxes(rows, cervix, bounds=BOUNDS)
    assert (finding.label, finding.votes, finding.other_labels) == (label, votes, others)
    assert finding.name == cervix.label(label).name


def test_an_abnormal_cell_inside_an_area_of_flora_is_kept(cervix, make_tile, make_verdict):
    area, cell = Box(300, 0, 800, 500), Box(470, 100, 512, 150)
    rows = [
        make_verdict(make_tile(0, 0, 0, 512), boxes=[("hsil", cell)]),
        make_verdict(make_tile(1, 300, 0, 512), boxes=[("flora", area), ("hsil", Box(470, 100, 520, 150))]),
    ]
    findings = merge_boxes(rows, cervix, bounds=BOUNDS)
    assert sorted((f.label, f.abnormal) for f in findings) == [("flora", False), ("hsil", True)]


def test_a_cut_platelet_on_a_white_cell_is_not_taken_for_its_piece(blood, make_tile, make_verdict):
    rows = [
        make_verdict(make_tile(0, 0, 0, 512), boxes=[("platelet", Box(495, 140, 512, 160))]),
        make_verdict(make_tile(1, 384, 0, 512), boxes=[("wbc", Box(440, 90, 560, 210))]),
    ]
    assert sorted(f.label for f in merge_boxes(rows, blood, bounds=BOUNDS)) == ["platelet", "wbc"]


def test_a_piece_and_its_whole_cell_are_one_even_under_two_classes(cervix, make_tile, make_verdict):
    rows = [
        make_verdict(make_tile(0, 0, 0, 512), 0.6, [("lsil", Box(460, 100, 512, 200))]),
        make_verdict(make_tile(1, 384, 0, 512), 0.8, [("hsil", Box(462, 98, 640, 202))]),
    ]
    (finding,) = merge_boxes(rows, cervix, bounds=BOUNDS)
    assert (finding.label, finding.other_labels, finding.box) == ("hsil", ("lsil",), Box(462, 98, 640, 202))


def test_a_badly_drawn_sliver_belongs_to_the_whole_cell_that_holds_it(cervix, make_tile, make_verdict):
    sliver, whole = Box(495, 130, 512, 160), Box(470, 90, 570, 210)
    rows = [
        make_verdict(make_tile(0, 0, 0, 512), boxes=[("hsil", sliver)]),
        make_verdict(make_tile(1, 384, 0, 512), boxes=[("hsil", whole)]),
    ]
    (finding,) = merge_boxes(rows, cervix, bounds=BOUNDS)
    assert (finding.box, finding.votes) == (whole, 2)


def test_the_box_that_most_others_agree_with_leads_not_the_largest(cervix, make_tile, make_verdict):
    low, middle, high = Box(100, 100, 200, 204), Box(130, 100, 230, 200), Box(160, 100, 260, 200)
    assert low.iou(high) < 0.4 < min(low.iou(middle), middle.iou(high))
    rows = [make_verdict(make_tile(i, 0, 0, 512), boxes=[("hsil", box)]) for i, box in enumerate((low, middle, high))]
    (finding,) = merge_boxes(rows, cervix, bounds=BOUNDS)
    assert (finding.box, finding.votes) == (middle, 3)


def test_halves_that_stop_a_pixel_short_of_the_border_still_meet(cervix, make_tile, make_verdict):
    rows = [
        make_verdict(make_tile(0, 0, 0, 512), boxes=[("hsil", Box(460, 100, 511, 200))]),
        make_verdict(make_tile(1, 512, 0, 512), boxes=[("hsil", Box(513, 104, 570, 200))]),
    ]
    (finding,) = merge_boxes(rows, cervix, bounds=BOUNDS)
    assert finding.box == Box(460, 100, 570, 200)


def test_pieces_whose_union_has_grown_over_a_whole_cell_join_it(cervix, make_tile, make_verdict):
    whole, low, right = Box(1, 118, 57, 147), Box(20, 137, 64, 160), Box(26, 121, 64, 159)
    assert max(whole.iou(low), whole.iou(right)) < 0.4 < whole.iou(low.union(right))
    tile = make_tile(6, 0, 96, 64)
    (finding,) = merge_boxes(
        [make_verdict(tile, boxes=[("hsil", box) for box in (whole, low, right)])], cervix, bounds=SMALL
    )
    assert finding.box == whole


def test_boxes_are_clipped_to_the_slide_and_dropped_outside_it(cervix, make_tile, make_verdict):
    boxes = [("hsil", Box(-20, 10, 40, 60)), ("hsil", Box(-90, 10, -50, 60)), ("hsil", Box(70, 70, 70, 90))]
    (finding,) = merge_boxes([make_verdict(make_tile(), boxes=boxes)], cervix, bounds=BOUNDS)
    assert finding.box == Box(0, 10, 40, 60)


def test_a_class_that_the_system_does_not_have_is_left_out_counted_and_logged(cervix, make_tile, make_verdict, caplog):
    rows = [make_verdict(make_tile(), boxes=[("wbc", Box(0, 0, 9, 9)), ("hsil", Box(50, 50, 90, 90))])]
    with caplog.at_level("WARNING", logger="aggregators.merge"):
        findings = merge_boxes(rows, cervix, bounds=BOUNDS)
    assert [f.label for f in findings] == ["hsil"]
    assert merging.unknown_labels(rows, cervix) == {"wbc": 1}
    assert "'wbc' is not in cervix-tbs2014" in caplog.text


def test_tiles_without_a_probability_give_a_finding_without_a_score(cervix, make_tile, make_verdict):
    rows = [make_verdict(make_tile(), None, [("hsil", Box(50, 50, 90, 90))])]
    assert merge_boxes(rows, cervix, bounds=BOUNDS)[0].score is None
    assert merge_boxes([], cervix, bounds=BOUNDS) == ()


@pytest.mark.parametrize("iou", [0.0, -1.0, 1.5, float("nan")])
def test_an_impossible_iou_is_refused(cervix, iou):
    with pytest.raises(SettingError, match="iou is"):
        merge_boxes([], cervix, bounds=BOUNDS, iou=iou)


def test_a_cell_has_the_highest_confidence_that_the_model_gave_it_under_its_label(make_tile, cervix):
    tiles = make_tile(0, 0, 0, 512), make_tile(1, 384, 0, 512)
    box = Box(400, 100, 460, 160)
    scored = (("hsil", 0.4), ("hsil", 0.7)), (("lsil", 0.99), ("hsil", None))
    rows = [
        TileVerdict(
            tile=tile, status="detailed", p_screen=0.9,
            boxes=tuple(LabelledBox(label, box, score) for label, score in boxes),
        )
        for tile, boxes in zip(tiles, scored, strict=True)
    ]  # fmt: skip
    (finding,) = merge_boxes(rows, cervix, bounds=BOUNDS)
    assert (finding.label, finding.confidence, finding.score) == ("hsil", 0.7, 0.9), "not the tile's p"
    bare = [row.model_copy(update={"boxes": (LabelledBox("hsil", box, 7.0),)}) for row in rows]
    assert merge_boxes(bare, cervix, bounds=BOUNDS)[0].confidence is None, "no probability, none invented"


# ------------------------------------------------------------------------------- one cell under two names


def boxed(label: str, x0: float, y0: float, x1: float, y1: float) -> tuple[str, Box]:
    return label, Box(x0, y0, x1, y1)


@pytest.mark.parametrize("tiles", [(0, 0), (0, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_white_cell_and_its_type_are_one_cell_though_their_boxes_differ(
    blood, make_tile, make_verdict, tiles: tuple[int, int], turned: bool
):
    """One cell was counted twice, as WBC and as monocyte: IoU .28, 84 % of the smaller box inside the other."""
    large, small = Box(400, 100, 500, 200), Box(449.6, 120, 509.6, 178.7)
    assert large.iou(small) == pytest.approx(0.28, abs=0.001)
    assert large.intersection(small) / small.area == pytest.approx(0.84, abs=0.001)
    boxes = [("wbc", small), ("monocyte", large)] if turned else [("wbc", large), ("monocyte", small)]
    places = [make_tile(0, 0, 0, 600), make_tile(1, 300, 0, 600)]
    rows = [
        make_verdict(tile, boxes=[box for box, n in zip(boxes, tiles, strict=True) if n == number])
        for number, tile in enumerate(places)
    ]
    (finding,) = merge_boxes(rows, blood, bounds=BOUNDS)
    assert (finding.label, finding.votes, finding.other_labels) == ("monocyte", 1, ())
    assert finding.box == large
    assert finding.tile_ids == tuple(sorted({places[n].id for n in tiles}))


def test_of_two_names_the_box_stays_that_most_tiles_drew_and_whole_before_cut(blood, make_tile, make_verdict):
    tiles = [make_tile(n, 100 * n, 0, 600) for n in range(3)]
    small, large = Box(460, 100, 540, 180), Box(450, 90, 600, 240)
    rows = [make_verdict(tiles[n], boxes=[("wbc", small.shifted(n, 0))]) for n in (0, 1)]
    rows.append(make_verdict(tiles[2], boxes=[("lymphocyte", large)]))
    (finding,) = merge_boxes(rows, blood, bounds=BOUNDS)
    assert (finding.label, finding.votes) == ("lymphocyte", 1)
    assert finding.box in (small, small.shifted(1, 0))
    # the large box ends at its tile's border: the small one was seen whole
    cut = make_verdict(make_tile(5, 0, 0, 600), boxes=[("lymphocyte", Box(450, 90, 600, 240))])
    rows = [cut, make_verdict(tiles[1], boxes=[("wbc", small)])]
    (finding,) = merge_boxes(rows, blood, bounds=BOUNDS)
    assert (finding.label, finding.box) == ("lymphocyte", small)


@pytest.mark.parametrize(
    ("boxes", "labels"),
    [
        # two cells that touch, half of the smaller in the other
        ([boxed("wbc", 0, 0, 100, 100), boxed("monocyte", 60, 0, 140, 100)], ["monocyte", "wbc"]),
        # one box over two cells that were typed: the types count
        (
            [boxed("wbc", 0, 0, 200, 100), boxed("lymphocyte", 0, 0, 95, 70), boxed("monocyte", 105, 0, 200, 70)],
            ["lymphocyte", "monocyte"],
        ),
        # a box of a type over two white cells: which of them it is, nobody knows
        (
            [boxed("monocyte", 0, 0, 200, 100), boxed("wbc", 0, 0, 95, 70), boxed("wbc", 105, 0, 200, 70)],
            ["monocyte", "wbc", "wbc"],
        ),
        # no kind of it: an erythroblast, a platelet on a white cell, two types
        ([boxed("wbc", 0, 0, 200, 200), boxed("erythroblast", 10, 10, 100, 100)], ["erythroblast", "wbc"]),
        ([boxed("wbc", 0, 0, 200, 200), boxed("platelet", 10, 10, 60, 60)], ["platelet", "wbc"]),
        ([boxed("monocyte", 0, 0, 200, 200), boxed("lymphocyte", 10, 10, 100, 100)], ["lymphocyte", "monocyte"]),
        # two boxes of one name, one in the other, in one tile: as before
        ([boxed("wbc", 0, 0, 200, 200), boxed("wbc", 10, 10, 100, 100)], ["wbc", "wbc"]),
    ],
)
def test_cells_stay_apart_that_are_not_one_cell_under_two_names(blood, make_tile, make_verdict, boxes, labels):
    found = merge_boxes([make_verdict(make_tile(0, 0, 0, 512), boxes=boxes)], blood, bounds=BOUNDS)
    assert sorted(finding.label for finding in found) == labels


BLOOD_LABELS = ["wbc", "neutrophil", "monocyte", "lymphocyte", "erythroblast", "platelet", "rbc"]


@st.composite
def noisy_blood(draw) -> list[tuple[int, str, Box]]:
    rows = []
    for index, label, box in draw(noisy_answers()):
        del label
        rows.append((index, draw(st.sampled_from(BLOOD_LABELS)), box))
    return rows


@settings(deadline=None, max_examples=60)
@given(noisy_blood(), st.randoms(use_true_random=False))
def test_names_of_two_levels_keep_what_merging_promises(blood, make_tile, make_verdict, rows, rng):
    verdicts = as_verdicts(make_tile, make_verdict, rows)
    findings = merge_boxes(verdicts, blood, bounds=SMALL)
    shuffled = [v.model_copy(update={"boxes": tuple(rng.sample(v.boxes, len(v.boxes)))}) for v in verdicts]
    rng.shuffle(shuffled)
    assert merge_boxes(shuffled, blood, bounds=SMALL) == findings
    again = make_verdict(make_tile(0, 0, 0, 160), boxes=[(f.label, f.box) for f in findings])
    assert cells_of(merge_boxes([again], blood, bounds=SMALL)) == cells_of(findings)
    kinds = {label.code: label.kind_of for label in blood.labels}
    for verdict in verdicts:
        for item in verdict.boxes:
            assert any(
                verdict.tile.id in f.tile_ids and item.label in (f.label, *f.other_labels, kinds[f.label])
                for f in findings
            ), "no box is lost"
