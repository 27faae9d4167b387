"""What views, contrast, zoom and shuffled orders gain and cost with the embedded checkpoint, on fields of known truth.

    python benchmarks/mechanisms.py [--fields 60] [--bccd ../shared/data/bccd] [--photographs 36] [--grounded 20]

Rendered fields (1,024 px at 0.25 um/px, seeds that training never sees; the field asked about is the middle 512 px,
so that its quarters have real detail and its surroundings are there) and the BCCD test photographs (two squares
each). Every way goes through the code of `wsi-chat ask`. Printed per way: AUC of the screening score, and F1,
precision and recall of grounding at IoU 0.5 over all boxes of the classes that are present and 15 % of the absent;
queries and seconds per field. An interval is 95 % over 1,000 resamplings of the fields, paired with the first row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tilers import open_slide
from tilers.field import FieldReader
from wsi_chat.asking.answer import Asking
from wsi_chat.asking.intent import Guess
from wsi_chat.asking.result import AskResult
from wsi_chat.datasets.mosaic import BCCD_MPP, BCCD_NAMES, bccd_fields
from wsi_chat.datasets.render import render_field
from wsi_chat.datasets.voc import read_voc
from wsi_chat.engines import Engine, load_engine
from wsi_chat.engines.model import Model
from wsi_chat.schema import Box, LabelledBox
from wsi_chat.settings import Settings
from wsi_chat.terminology import System, load_system
from wsi_chat.training.embedded.scores import auc, f1, matches

FIRST_SEED = 980_000_000
SIDE, MIDDLE = 1024, Box(256, 256, 768, 768)
VISIBLE = 0.35
"""Share of a cell that must lie in the field for it to count, as in the checkpoint's own evaluation."""
ABSENT = 0.15

SCREENING: dict[str, dict[str, Any]] = {
    "plain": {},
    "2 orders": {"orders": 2},
    "quadrants": {"views": "quadrants"},
    "context": {"views": "context"},
    "contrast blank": {"contrast": "blank"},
    "contrast blur": {"contrast": "blur"},
    "quadrants + blur": {"views": "quadrants", "contrast": "blur"},
}
GROUNDING: dict[str, dict[str, Any]] = {
    "plain": {},
    "quadrants": {"views": "quadrants"},
    "context": {"views": "context"},
    "zoom 2": {"zoom": 2},
}


@dataclass(frozen=True, slots=True)
class Case:
    """A picture on disk, the field in it, what is there (picture pixels), and whether the screen answer is yes."""

    path: Path
    mpp: float
    field: Box
    truth: tuple[LabelledBox, ...]
    positive: bool


def inside(cells: list[tuple[LabelledBox, bool]], area: Box) -> list[tuple[LabelledBox, bool]]:
    found = []
    for cell, abnormal in cells:
        part = cell.box.clipped(area)
        if part is not None and part.area >= VISIBLE * cell.box.area:
            found.append((LabelledBox(cell.label, part), abnormal))
    return found


def rendered(folder: Path, count: int, first_seed: int) -> Iterator[Case]:
    from wsi_chat.training.embedded.wording import EPITHELIAL

    for seed in range(first_seed, first_seed + count):
        field = render_field(seed, size=SIDE, mpp=0.25)
        path = folder / f"{seed}.png"
        Image.fromarray(field.image).save(path)
        cells = [(LabelledBox(c.label, Box(*map(float, c.box))), c.label in EPITHELIAL) for c in field.cells]
        there = inside(cells, MIDDLE)
        yield Case(path, 0.25, MIDDLE, tuple(cell for cell, _ in there), any(bad for _, bad in there))


def photographs(folder: Path, count: int) -> Iterator[Case]:
    for picture, annotation in bccd_fields(folder, "test")[:count]:
        cells = [(LabelledBox(BCCD_NAMES[b.label], b.box), b.label == "WBC") for b in read_voc(annotation)]
        for area in (Box(0, 0, 480, 480), Box(160, 0, 640, 480)):
            there = inside(cells, area)
            yield Case(picture, BCCD_MPP, area, tuple(cell for cell, _ in there), any(bad for _, bad in there))


def asked(case: Case, engine: Engine, system: System, guess: Guess, way: dict[str, Any]) -> AskResult:
    settings = {key: value for key, value in way.items() if key != "orders"}
    model = Model(Settings(specimen=system.specimens[0], mpp=case.mpp, **settings), given=engine)
    with open_slide(case.path, mpp=case.mpp) as slide:
        reader = FieldReader(slide, px=model.dialect.tile_px, mpp=model.dialect.mpp_for(system))
        asking = Asking(model, system, reader, guess, "", (), None, orders=way.get("orders", 1))
        return asking.answer([reader.read(case.field, "field")])


def screening(cases: list[Case], engine: Engine, system: System) -> None:
    positive, truth = system.screen.positive, [case.positive for case in cases]
    print(f"screening: {len(cases)} fields, {sum(truth)} positive")
    if len(set(truth)) < 2:
        print("  all of one kind: nothing to tell apart")
        return
    first: list[float] = []
    for name, way in SCREENING.items():
        began, queries, scores = time.perf_counter(), 0, []
        for case in cases:
            result = asked(case, engine, system, Guess("screen"), way)
            queries += result.queries
            scores.append((result.probabilities or {})[positive])
        seconds = time.perf_counter() - began
        first = first or scores
        right = np.mean(
            [
                np.mean([(s >= 0.5) is t for s, t in zip(scores, truth, strict=True) if t is side])
                for side in (True, False)
            ]
        )
        print(
            f"  {name:18} AUC {auc(scores, truth):.3f} {difference(scores, first, truth)}  balanced at .5 {right:.3f}"
            f"  {queries / len(cases):5.1f} queries  {seconds / len(cases):6.2f} s"
        )


def difference(scores: list[float], first: list[float], truth: list[bool]) -> str:
    if scores is first:
        return " " * 24
    gains = resampled(
        len(truth),
        lambda pick: (
            auc([scores[i] for i in pick], [truth[i] for i in pick])
            - auc([first[i] for i in pick], [truth[i] for i in pick])
        ),
    )
    return f"(gain {gains[0]:+.3f} to {gains[1]:+.3f})"


def resampled(count: int, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(0, count, count)) for _ in range(1000)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def grounding(cases: list[Case], engine: Engine, system: System, labels: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    wanted = [
        (case, label)
        for case in cases
        for label in labels
        if any(cell.label == label for cell in case.truth) or rng.random() < ABSENT
    ]
    print(f"grounding: {len(wanted)} questions about {len(cases)} fields")
    index = {id(case): n for n, case in enumerate(cases)}
    first: np.ndarray | None = None
    for name, way in GROUNDING.items():
        began, queries = time.perf_counter(), 0
        table = np.zeros((len(cases), 3))
        for case, label in wanted:
            result = asked(case, engine, system, Guess("ground", label), way)
            queries += result.queries
            found = [(b.label, corners(b.box)) for b in result.boxes]
            real = [(label, corners(cell.box)) for cell in case.truth if cell.label == label]
            table[index[id(case)]] += (matches(found, real), len(found), len(real))
        seconds = time.perf_counter() - began
        hit, said, real_ = table.sum(axis=0)
        gain = ""
        if first is not None:
            low, high = resampled(len(cases), lambda p, t=table, f=first: score(t[p]) - score(f[p]))  # type: ignore[misc]
            gain = f"(gain {low:+.3f} to {high:+.3f})"
        first = table if first is None else first
        print(
            f"  {name:18} F1 {score(table):.3f} {gain:24} P {hit / max(said, 1):.3f} R {hit / max(real_, 1):.3f}"
            f"  {queries / len(wanted):5.1f} queries  {seconds / len(wanted):6.2f} s"
        )


def score(table: np.ndarray) -> float:
    hit, said, real = table.sum(axis=0)
    return f1(int(hit), int(said), int(real))


def corners(box: Box) -> list[float]:
    return [box.x0, box.y0, box.x1, box.y1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--photographs", type=int, default=36)
    parser.add_argument("--grounded", type=int, default=20, help="fields and views to ground, of those")
    parser.add_argument("--bccd", type=Path)
    parser.add_argument("--seed-from", type=int, default=FIRST_SEED)
    given = parser.parse_args()
    from wsi_chat.training.embedded.wording import BLOOD, CERVIX

    engine = load_engine(None)
    with tempfile.TemporaryDirectory() as scratch:
        fields = list(rendered(Path(scratch), given.fields, given.seed_from))
        print("Rendered cervical fields")
        screening(fields, engine, load_system("cervix"))
        grounding(fields[: given.grounded], engine, load_system("cervix"), CERVIX)
    if given.bccd is not None:
        views = list(photographs(given.bccd, given.photographs))
        print("BCCD test photographs")
        screening(views, engine, load_system("blood-smear"))
        grounding(views[: given.grounded], engine, load_system("blood-smear"), BLOOD)
    engine.close()


if __name__ == "__main__":
    main()
