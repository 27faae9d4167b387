"""Is every white cell of a blood field counted once? Fields of BCCD through the whole line, against their annotation.

    python benchmarks/blood_counts.py ../shared/data/bccd --split test -o runs/counts
    python benchmarks/blood_counts.py ../shared/data/bccd FOLDER --mpp none -o runs/counts   # a folder of them

A white cell is asked for as such and by type. Each count is given twice, from the same answers: with the rule that a
cell under a name and one under a kind of it are one cell where most of the smaller box lies in the other, and without.
Below stand the pairs of boxes of these two kinds that overlap at all, before merging: those on one annotated cell, and
those on two. Run again, it resumes.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aggregators.merge as merging
import aggregators.verdict as verdict
import wsi_chat
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.datasets.mosaic import BCCD_MPP
from wsi_chat.datasets.voc import read_voc
from wsi_chat.schema import Box, Finding, TileVerdict
from wsi_chat.terminology import System, load_system

FIELDS = 24  # of one specimen
ON_CELL = 0.5  # share of the smaller of a box and an annotated cell that lies in the other
NEVER = 2.0  # no share of a box is as large


@dataclass(frozen=True, slots=True)
class Answered:
    """Fields that were asked about: every tile's boxes, and the annotated white cells of each field on their canvas."""

    verdicts: Sequence[TileVerdict]
    bounds: Box
    cells: Sequence[Sequence[Box]]
    canvases: Sequence[Box]


def fields_of(bccd: Path, split: str, out: Path, most: int | None) -> Iterator[Path]:
    """The fields of a list in folders of `FIELDS`."""
    names = (bccd / "ImageSets" / "Main" / f"{split}.txt").read_text().split()[:most]
    for start in range(0, len(names), FIELDS):
        folder = out / "fields" / f"{split}-{start:03}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names[start : start + FIELDS]:
            shutil.copy(bccd / "JPEGImages" / f"{name}.jpg", folder)
        yield folder


def answered(folder: Path, bccd: Path, out: Path, mpp: float | None) -> Answered:
    """Ask about the fields of a folder as one specimen."""
    RunFolder(out).slide(folder).report_path.unlink(missing_ok=True)  # a finished one would be given at once
    seen: list[tuple[list[TileVerdict], Box]] = []
    merge = verdict.merge_boxes

    def noted(verdicts: Iterable[TileVerdict], system: System, *, bounds: Box, **more: Any) -> tuple[Finding, ...]:
        seen.append(([*verdicts], bounds))
        return merge(seen[-1][0], system, bounds=bounds, **more)

    verdict.merge_boxes = noted
    try:
        result = wsi_chat.analyze(
            folder, specimen="blood-smear", mpp=mpp, out=out, gallery=0, format="json", trial=False
        )
    finally:
        verdict.merge_boxes = merge
    cells, canvases = [], []
    for field in result.report.slide.fields:
        found = read_voc(bccd / "Annotations" / f"{Path(field.name).stem}.xml")
        scale = field.box.width / 640  # BCCD's fields are 640 px wide
        place = [t.box.scaled(scale).shifted(field.box.x0, field.box.y0) for t in found if t.label == "WBC"]
        cells.append(place)
        canvases.append(field.box)
    return Answered(*seen[-1], cells, canvases)


def merged(parts: Sequence[Answered], system: System, *, inside: float) -> list[tuple[Answered, list[Finding]]]:
    """White cells of each part, merged with a share of the smaller box from which two names are one cell."""
    usual, merging.KIND_INSIDE = merging.KIND_INSIDE, inside
    try:
        white = system.kinds_of("wbc")
        return [
            (part, [f for f in merging.merge_boxes(part.verdicts, system, bounds=part.bounds) if f.label in white])
            for part in parts
        ]
    finally:
        merging.KIND_INSIDE = usual


def counted(parts: Sequence[tuple[Answered, list[Finding]]]) -> str:
    """Fields, annotated and counted white cells, fields with the right count, and cells counted more than once."""
    fields = annotated = found = right = again = 0
    for part, findings in parts:
        for cells, canvas in zip(part.cells, part.canvases, strict=True):
            here = [f.box for f in findings if canvas.intersection(f.box) >= ON_CELL * f.box.area]
            owners = [cell_of(box, cells) for box in here]
            on_one = [owner for owner in owners if owner is not None]
            fields, annotated, found = fields + 1, annotated + len(cells), found + len(here)
            right += len(here) == len(cells)
            again += len(on_one) - len(set(on_one))
    return f"| {fields} | {annotated} | {found} | {right} | {again} |"


def cell_of(box: Box, cells: Sequence[Box]) -> int | None:
    """The annotated cell that a box lies on, by the largest share of the smaller of both."""
    shares = [box.intersection(cell) / min(box.area, cell.area) for cell in cells]
    best = max(range(len(cells)), key=shares.__getitem__, default=None)
    return best if best is not None and shares[best] >= ON_CELL else None


def pairs(parts: Sequence[Answered], system: System) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(share of the smaller inside, IoU) of overlapping boxes of a white cell and of a type: of one cell, of two."""
    one, two = [], []
    for part in parts:
        cells = [cell for field in part.cells for cell in field]
        boxes = [(system.read_label(b.label), b.box) for row in part.verdicts for b in row.boxes if b.box.area > 0]
        kinds = system.kinds_of("wbc") - {"wbc"}
        for whole in (box for label, box in boxes if label == "wbc"):
            for kind in (box for label, box in boxes if label in kinds and whole.intersection(box) > 0):
                found = whole.intersection(kind) / min(whole.area, kind.area), whole.iou(kind)
                owners = cell_of(whole, cells), cell_of(kind, cells)
                (one if owners[0] is not None and owners[0] == owners[1] else two).append(found)
    return one, two


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("folders", type=Path, nargs="*", help="folders of fields; default: those of --split")
    parser.add_argument("--split", default="test")
    parser.add_argument("--most", type=int, default=None, help="fields of the list")
    parser.add_argument("--mpp", default=str(BCCD_MPP), help="um/px; none: pixel for pixel, at the wrong scale")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/counts"))
    given = parser.parse_args()
    mpp = None if given.mpp == "none" else float(given.mpp)
    folders = given.folders or list(fields_of(given.bccd, given.split, given.out, given.most))
    parts = [answered(folder, given.bccd, given.out / "run", mpp) for folder in folders]
    system = load_system("blood-smear")
    print("| rule | fields | annotated | counted | fields counted right | counted again |")
    for name, inside in (("without", NEVER), ("with", merging.KIND_INSIDE)):
        print(f"| {name} {counted(merged(parts, system, inside=inside))}")
    one, two = pairs(parts, system)
    apart = sorted(share for share, iou in one if iou < 0.4)
    print(
        f"{len(one)} pairs on one cell, {len(apart)} of them of an IoU below .4: {[round(s, 2) for s in apart]} inside"
    )
    print(f"{len(two)} pairs on two cells, at most {max((share for share, _ in two), default=0.0):.2f} inside")


if __name__ == "__main__":
    main()
