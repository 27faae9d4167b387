"""A cohort of synthetic slides with a manifest: from plainly normal to a single abnormal cell among all others.

Slide i depends on the seed and on i alone: a cohort of ten is the beginning of a cohort of twenty, and a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_chat.atomic import write_text
from wsi_chat.errors import OutputError, SettingError

log = logging.getLogger(__name__)

COLUMNS = (
    "sample_id", "image_path", "mpp", "label", "patient", "specimen", "split", "recipe", "abnormal_cells", "seed",
)  # fmt: skip
NEGATIVE = ("normal", "hard_normal", "organism")
POSITIVE = ("sparse", "abnormal", "few", "hsil", "lsil", "agc", "ascus", "asch", "scc")
"""Recipes of abnormal slides: ``sparse`` has one abnormal cell, ``few`` three, the others 1.5 % of all events."""
SPLITS = ("train", "train", "train", "val", "test")
SEEDS_APART = 10_000
MOST = SEEDS_APART


@dataclass(frozen=True, slots=True)
class Sample:
    """One slide of a cohort as planned. ``abnormal_cells`` is None where the recipe decides."""

    sample_id: str
    seed: int
    recipe: str
    abnormal_cells: int | None
    patient: str
    split: str

    @property
    def renderer_recipe(self) -> str:
        return "abnormal" if self.recipe == "few" else self.recipe


def plan_cohort(n: int, *, seed: int = 0) -> tuple[Sample, ...]:
    """``n`` slides, every second one abnormal; the recipes of each kind are gone through in an order by ``seed``.

    About one patient in four has two slides. Whole patients go to splits, 3 : 1 : 1 for train, val and test.

    Raises:
        SettingError: ``n`` is not 1 to `MOST`.
    """
    if not 1 <= n <= MOST:
        raise SettingError(f"--slides is {n}.", hint=f"Give 1 to {MOST}.")
    kinds = [np.random.default_rng([seed, 1]).permutation(kind).tolist() for kind in (NEGATIVE, POSITIVE)]
    # the single cell comes first, so that the smallest cohort holds both ends
    kinds[1].sort(key=lambda recipe: recipe != "sparse")
    kinds[0].sort(key=lambda recipe: recipe != "normal")
    first = int(np.random.default_rng([seed, 2]).integers(2))
    samples: list[Sample] = []
    patient = 0
    for i in range(n):
        same = i > 0 and np.random.default_rng([seed, 3, i]).random() < 0.25 and samples[-1].patient != _repeat(samples)
        patient += 0 if same else 1
        cycle = kinds[(i + first) % 2]
        recipe = cycle[(i // 2) % len(cycle)]
        samples.append(
            Sample(
                sample_id=f"s{i:04d}",
                seed=seed * SEEDS_APART + i,
                recipe=recipe,
                abnormal_cells={"sparse": 1, "few": 3}.get(recipe),
                patient=f"p{patient:04d}",
                split=SPLITS[(patient + seed) % len(SPLITS)],
            )
        )
    return tuple(samples)


def _repeat(samples: list[Sample]) -> str:
    """The patient who has two slides already, if the last two are the same patient's; else nobody."""
    return samples[-1].patient if len(samples) > 1 and samples[-1].patient == samples[-2].patient else ""


def render_cohort(
    out: Path,
    *,
    slides: int,
    seed: int = 0,
    width_px: int = 8192,
    height_px: int = 8192,
    mpp: float = 0.5,
    density: float = 250.0,
    suffix: str = ".tiff",
    progress: Callable[[str, bool], None] | None = None,
) -> Path:
    """Render a cohort into ``out`` and return its ``manifest.csv``.

    Each slide has its truth beside it (``<sample>.truth.json`` and ``.truth.geojson``). ``image_path`` is relative
    to the manifest. Slides that an earlier run finished are kept; ``progress`` is told each sample and whether it
    was rendered now.

    Raises:
        SettingError: a number or ``suffix`` is out of range. OutputError: ``out`` cannot be written, or holds a
            slide of another cohort.
    """
    from wsi_chat.datasets.render.slide import render_slide

    if suffix not in (".tiff", ".ome.zarr"):
        raise SettingError(f"--format {suffix!r} is not known.", hint="Choose .tiff or .ome.zarr.")
    if not (0.05 <= mpp <= 5 and density > 0 and min(width_px, height_px) >= 256):
        raise SettingError(f"A slide of {width_px} x {height_px} px at {mpp:g} um/px with density {density:g}.",
                           hint="Give at least 256 px, 0.05 to 5 um/px and a density above 0.")  # fmt: skip
    samples = plan_cohort(slides, seed=seed)
    rows = []
    try:
        (out / "slides").mkdir(parents=True, exist_ok=True)
        for sample in samples:
            path = out / "slides" / f"{sample.sample_id}{suffix}"
            wanted = {
                "seed": sample.seed, "recipe": sample.renderer_recipe, "width_px": width_px, "height_px": height_px,
                "mpp": mpp,
            }  # fmt: skip
            done = _finished(path, wanted)
            if not done:
                render_slide(
                    path, seed=sample.seed, width_px=width_px, height_px=height_px, mpp=mpp,
                    recipe=sample.renderer_recipe, density=density, abnormal_cells=sample.abnormal_cells,
                )  # fmt: skip
            if progress:
                progress(sample.sample_id, not done)
            truth = json.loads(_truth_of(path).read_text(encoding="utf-8"))
            rows.append(_row(sample, path.relative_to(out), truth))
            # after every slide, so that a run that is stopped leaves a manifest of what there is
            _write_manifest(out / "manifest.csv", rows)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}.", hint="Choose a folder with free space.") from error
    return out / "manifest.csv"


def _truth_of(path: Path) -> Path:
    return path.with_name(f"{path.name.split('.')[0]}.truth.json")


def _finished(path: Path, wanted: dict[str, object]) -> bool:
    """Whether the slide is there with its truth, which is written last."""
    truth = _truth_of(path)
    if not (path.exists() and truth.is_file() and truth.with_suffix(".geojson").is_file()):
        return False
    try:
        held = json.loads(truth.read_text(encoding="utf-8"))
    except ValueError:
        return False  # cut off while it was written
    wrong = [f"{key} {held.get(key)!r} and not {value!r}" for key, value in wanted.items() if held.get(key) != value]
    if wrong:
        raise OutputError(f"{path} is a slide of another cohort: {wrong[0]}.", hint="Choose another folder.")
    return True


def _row(sample: Sample, path: Path, truth: dict[str, object]) -> tuple[object, ...]:
    from wsi_chat.datasets.render.field import ABNORMAL

    cells = truth["cells"]
    assert isinstance(cells, list)
    number = sum(cell["label"] in ABNORMAL for cell in cells)
    return (
        sample.sample_id, path.as_posix(), truth["mpp"], "abnormal" if truth["abnormal"] else "normal",
        sample.patient, "cervix", sample.split, sample.recipe, number, sample.seed,
    )  # fmt: skip


def _write_manifest(path: Path, rows: list[tuple[object, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_text(path, text.getvalue())
