"""Boxes of tiles become findings: each cell once, whole where any tile saw it whole, under one label.

The result depends on the boxes alone, not on the order of tiles or boxes, and merging what is already merged
changes nothing. Candidates come from a shapely STRtree, so the cost follows the number of overlapping pairs.

**When two boxes are one cell.** Both must be cells, or the same organism (an organism lies on cells and never
competes with one).

1. IoU of at least ``iou``: across tiles, and for duplicates within a tile.
2. A box that ends at the border of its tile, inside the slide, is *cut*: the tile did not show the rest. It is
   compared with a box of another tile in the window that both tiles show, where both saw the same pixels: IoU
   there of at least ``iou``. Tiles that only touch share no window; there two boxes cut by the common border
   are one where their extents along it have that IoU.
3. For equal labels it is also enough that `CONTAINED` of a cut box lies in the other one, since a model draws
   a sliver of a cell less well than a cell.
4. A white cell is asked for as such and by type, in two answers, which may draw it differently. Of what is left, a cell
   under a name and one under a kind of it (WBC, monocyte) are one where `KIND_INSIDE` of the smaller box lies in the
   other; of several kinds the one that shares most. A box of the kind over several cells of the general name says
   nothing of which is which: all of them stay.

**Which box stays.** Whole boxes before cut ones; among whole ones the one that most others agree with, then
the largest. Each takes all that are one cell with it. Pieces that no tile showed whole join into their union.

**Which label stays.** The one that most tiles gave; on a tie the graver one by the reporting system, then the
one listed first. A label of the ``generic`` axis ("abnormal") yields to any specific abnormal one, and one of which
another is a kind (WBC) to that kind (neutrophil). The others are kept in ``other_labels``, but for the label that it
is a kind of.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import shapely

from wsi_chat.errors import SettingError
from wsi_chat.schema import Box, Finding, Tile, TileVerdict
from wsi_chat.terminology import System

log = logging.getLogger(__name__)

#: Fraction of a cut box that must lie inside a box of the same label to be part of it.
CONTAINED = 0.7
#: Fraction of the smaller of two boxes that must lie in the other where the label of one is a kind of the other's.
KIND_INSIDE = 0.7
#: A box ends at its tile's border when it comes within this many pixels of it, as the model saw the tile.
BORDER_PX = 2.0


class Seen(NamedTuple):
    """One box as one tile saw it. ``cut`` says that it ends at a border of the tile inside the slide.

    ``p`` is the tile's screening probability, ``confidence`` what the model gave the box itself, if anything.
    """

    box: Box
    label: str
    tile: Tile
    p: float | None
    confidence: float | None
    cut: bool
    margin: float
    group: str


class _Cell(NamedTuple):
    box: Box
    cut: bool
    members: tuple[Seen, ...]


def merge_boxes(
    tile_verdicts: Iterable[TileVerdict], system: System, *, bounds: Box, iou: float = 0.4
) -> tuple[Finding, ...]:
    """The findings of a slide.

    Args:
        tile_verdicts: whose ``boxes`` are level-0 pixels. Labels that the system does not have are left out
            (`unknown_labels` counts them), as are boxes without area inside ``bounds``.
        bounds: the slide in level-0 pixels; boxes are clipped to it, and its edge cuts nothing off.
        iou: intersection over union from which two boxes are one cell, above 0 and at most 1.

    Returns:
        Findings in reading order (top to bottom by upper edge, then left to right), named ``f0001`` onwards.

    Raises:
        SettingError: ``iou`` is out of range.
    """
    if not 0.0 < iou <= 1.0:
        raise SettingError(f"iou is {iou}.", hint="Set it above 0 and at most 1.")
    seen = _collect(tile_verdicts, system, bounds)
    neighbours: list[list[int]] = [[] for _ in seen]
    for a, b in candidate_pairs(seen):
        if same_cell(seen[a], seen[b], iou=iou):
            neighbours[a].append(b)
            neighbours[b].append(a)
    cells = _settle(_group(seen, neighbours), iou=iou)
    while len(fewer := _under_one_name(cells, system)) < len(cells):
        cells = _settle(fewer, iou=iou)
    cells.sort(key=lambda cell: (_corner(cell.box), sorted(_order(member) for member in cell.members)))
    return tuple(_finding(number, cell, system) for number, cell in enumerate(cells, start=1))


def unknown_labels(tile_verdicts: Iterable[TileVerdict], system: System) -> dict[str, int]:
    """Labels of boxes that the system does not have, with how many boxes carry each, by name."""
    names = Counter(item.label for verdict in tile_verdicts for item in verdict.boxes)
    found = {name: n for name, n in names.items() if system.read_label(name) is None}
    return dict(sorted(found.items()))


def candidate_pairs(seen: Sequence[Seen]) -> Iterable[tuple[int, int]]:
    """Index pairs ``a < b``, sorted, whose boxes overlap or come within the margin of the larger pixel size."""
    if len(seen) < 2:
        return []

    boxes = np.array([[s.box.x0, s.box.y0, s.box.x1, s.box.y1] for s in seen])
    margin = max(s.margin for s in seen)
    wide = boxes + np.array([-margin, -margin, margin, margin])
    tree = shapely.STRtree(shapely.box(*boxes.T))
    a, b = tree.query(shapely.box(*wide.T))
    pairs = np.stack([a[a < b], b[a < b]], axis=1)
    return [(int(i), int(j)) for i, j in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]]


def same_cell(a: Seen, b: Seen, *, iou: float) -> bool:
    """Whether two boxes show one cell, by the rules of this module."""
    if a.group != b.group:
        return False
    if a.box.iou(b.box) >= iou:
        return True
    if a.tile.index == b.tile.index or not (a.cut or b.cut):
        return False
    if a.label == b.label:
        shared = a.box.intersection(b.box)
        if any(s.cut and shared >= CONTAINED * s.box.area for s in (a, b)):
            return True
    window = a.tile.box.clipped(b.tile.box)
    if window is None:
        return a.cut and b.cut and _meet_at_border(a, b, iou=iou)
    in_a, in_b = a.box.clipped(window), b.box.clipped(window)
    return in_a is not None and in_b is not None and in_a.iou(in_b) >= iou


def _meet_at_border(a: Seen, b: Seen, *, iou: float) -> bool:
    """Whether the halves of a cell lie on both sides of the border of two tiles that touch but do not overlap."""
    s, t, m = a.tile.box, b.tile.box, max(a.margin, b.margin)
    if s.x1 == t.x0 or s.x0 == t.x1:
        edge = s.x1 if s.x1 == t.x0 else s.x0
        left, right = (a.box, b.box) if s.x1 == t.x0 else (b.box, a.box)
        reach = left.x1 >= edge - m and right.x0 <= edge + m
        low, high = max(a.box.y0, b.box.y0), min(a.box.y1, b.box.y1)
        total = max(a.box.y1, b.box.y1) - min(a.box.y0, b.box.y0)
    elif s.y1 == t.y0 or s.y0 == t.y1:
        edge = s.y1 if s.y1 == t.y0 else s.y0
        upper, lower = (a.box, b.box) if s.y1 == t.y0 else (b.box, a.box)
        reach = upper.y1 >= edge - m and lower.y0 <= edge + m
        low, high = max(a.box.x0, b.box.x0), min(a.box.x1, b.box.x1)
        total = max(a.box.x1, b.box.x1) - min(a.box.x0, b.box.x0)
    else:
        return False
    return reach and high - low >= iou * total > 0


def _collect(tile_verdicts: Iterable[TileVerdict], system: System, bounds: Box) -> list[Seen]:
    axes = {label.code: label.axis for label in system.labels}
    seen = []
    for verdict in tile_verdicts:
        tile = verdict.tile
        margin = BORDER_PX * max(tile.width, tile.height) / tile.out_px
        for found in verdict.boxes:
            label = system.read_label(found.label)
            if label == "":  # the system's map drops this name
                continue
            if label is None:
                log.warning("tile %s: class %r is not in %s; box left out", tile.id, found.label, system.code)
                continue
            box = found.box.clipped(bounds)
            if box is None:
                continue
            group = label if axes[label] == "organism" else ""
            cut = _is_cut(box, tile.box, bounds, margin)
            confidence = found.score if found.score is not None and 0.0 <= found.score <= 1.0 else None
            seen.append(Seen(box, label, tile, verdict.p_screen, confidence, cut, margin, group))
    return sorted(seen, key=_order)


def _is_cut(box: Box, tile: Box, bounds: Box, margin: float) -> bool:
    return (
        (tile.x0 > bounds.x0 and box.x0 <= tile.x0 + margin)
        or (tile.y0 > bounds.y0 and box.y0 <= tile.y0 + margin)
        or (tile.x1 < bounds.x1 and box.x1 >= tile.x1 - margin)
        or (tile.y1 < bounds.y1 and box.y1 >= tile.y1 - margin)
    )


def _group(seen: Sequence[Seen], neighbours: Sequence[Sequence[int]]) -> list[_Cell]:
    """Cells around whole boxes first, the most agreed-with leading; what is left over is joined piece to piece."""
    taken = [False] * len(seen)
    cells = []
    whole = [i for i, s in enumerate(seen) if not s.cut]
    for i in sorted(whole, key=lambda i: (-len(neighbours[i]), -seen[i].box.area, _order(seen[i]))):
        if taken[i]:
            continue
        members = [i, *(j for j in neighbours[i] if not taken[j])]
        for j in members:
            taken[j] = True
        cells.append(_Cell(seen[i].box, False, tuple(seen[j] for j in members)))
    for i in range(len(seen)):
        if taken[i]:
            continue
        taken[i] = True
        members = [i]
        for j in members:  # grows while it is walked
            for other in neighbours[j]:
                if not taken[other]:
                    taken[other] = True
                    members.append(other)
        box = seen[i].box
        for j in members:
            box = box.union(seen[j].box)
        cells.append(_Cell(box, True, tuple(seen[j] for j in members)))
    return cells


def _settle(cells: list[_Cell], *, iou: float) -> list[_Cell]:
    """Join cells until no two of one group have the IoU of one cell: unions of pieces may have grown together."""
    while True:
        stand_ins = [cell.members[0]._replace(box=cell.box, margin=0.0) for cell in cells]
        joined: list[_Cell] = []
        used: set[int] = set()
        for a, b in candidate_pairs(stand_ins):
            same_group = stand_ins[a].group == stand_ins[b].group
            if same_group and not used & {a, b} and cells[a].box.iou(cells[b].box) >= iou:
                used |= {a, b}
                joined.append(_join(cells[a], cells[b]))
        if not joined:
            return cells
        cells = [cell for n, cell in enumerate(cells) if n not in used] + joined


def _under_one_name(cells: list[_Cell], system: System) -> list[_Cell]:
    """Join each cell of a general name to the one of a kind of it that names it again, where it is the only such."""
    labels = [_winner(_votes(cell), system) for cell in cells]
    general = {label.code: label.kind_of for label in system.labels if label.kind_of is not None}
    if not general:
        return cells
    homes: dict[
        int, tuple[float, int]
    ] = {}  # cell of a general name -> what it shares with a cell of a kind, and which
    for pair in candidate_pairs([cell.members[0]._replace(box=cell.box, margin=0.0) for cell in cells]):
        for whole, kind in (pair, pair[::-1]):
            if general.get(labels[kind]) == labels[whole]:
                shared = cells[whole].box.intersection(cells[kind].box)
                smaller = min(cells[whole].box.area, cells[kind].box.area)
                if shared >= KIND_INSIDE * smaller and shared > homes.get(whole, (0.0, 0))[0]:
                    homes[whole] = shared, kind
    held = Counter(kind for _, kind in homes.values())
    joined = {whole: kind for whole, (_, kind) in homes.items() if held[kind] == 1}
    again = {kind: _named_again(cells[kind], cells[whole]) for whole, kind in joined.items()}
    return [again.get(n, cell) for n, cell in enumerate(cells) if n not in joined]


def _named_again(kind: _Cell, whole: _Cell) -> _Cell:
    """One cell of two names, with the box that a tile saw whole, else that more boxes agree with, else the larger."""
    box = max((kind, whole), key=lambda cell: (not cell.cut, len(cell.members), cell.box.area)).box
    return _Cell(box, kind.cut and whole.cut, kind.members + whole.members)


def _votes(cell: _Cell) -> dict[str, int]:
    """Label -> how many tiles gave it."""
    tiles: dict[str, set[int]] = {}
    for member in cell.members:
        tiles.setdefault(member.label, set()).add(member.tile.index)
    return {code: len(indices) for code, indices in tiles.items()}


def _join(a: _Cell, b: _Cell) -> _Cell:
    """Two cells as one: the box of the whole one where one is whole, else the box around both."""
    whole = [cell.box for cell in (a, b) if not cell.cut]
    box = whole[0] if len(whole) == 1 else a.box.union(b.box)
    return _Cell(box, a.cut and b.cut, a.members + b.members)


def _finding(number: int, cell: _Cell, system: System) -> Finding:
    votes = _votes(cell)
    label = system.label(_winner(votes, system))
    scores = [member.p for member in cell.members if member.p is not None]
    own = [m.confidence for m in cell.members if m.label == label.code and m.confidence is not None]
    listed = [o.code for o in system.labels if o.code in votes and o.code not in (label.code, label.kind_of)]
    return Finding(
        id=f"f{number:04d}",
        label=label.code,
        name=label.name,
        box=cell.box,
        abnormal=label.abnormal,
        score=max(scores, default=None),
        confidence=max(own, default=None),
        tile_ids=tuple(sorted({member.tile.id for member in cell.members})),
        votes=votes[label.code],
        other_labels=tuple(listed),
    )


def _winner(votes: dict[str, int], system: System) -> str:
    """The label of a cell; see "Which label stays" above."""
    labels = [label for label in system.labels if label.code in votes]
    specific = [label for label in labels if label.axis != "generic"]
    if any(label.abnormal for label in specific):
        labels = specific
    wholes = {label.kind_of for label in labels}
    labels = [label for label in labels if label.code not in wholes]
    return max(labels, key=lambda label: (votes[label.code], system.severity(label.code))).code


def _corner(box: Box) -> tuple[float, float, float, float]:
    return box.y0, box.x0, box.y1, box.x1


def _order(seen: Seen) -> tuple[tuple[float, float, float, float], str, int]:
    return _corner(seen.box), seen.label, seen.tile.index
