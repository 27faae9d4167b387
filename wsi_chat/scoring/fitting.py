"""Labelled, analyzed slides: rows of a manifest joined to their run folders, as evidence for fitting and validation.

A row without a finished run folder is named, never dropped in silence and never counted as normal.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_chat.analysis.feature_store import read_features
from wsi_chat.analysis.manifest import read_manifest
from wsi_chat.analysis.run_folder import DEFAULT_OUT, RunFolder, SlideFolder
from wsi_chat.analysis.sample import Sample
from wsi_chat.analysis.slide_score import conditions_of
from wsi_chat.errors import OutputError, SettingError, WsiChatError
from wsi_chat.progress import Progress, no_progress
from wsi_chat.schema import Report
from wsi_chat.terminology import load_system

if TYPE_CHECKING:
    from aggregators.features import Evidence
    from aggregators.fit import Cohort

log = logging.getLogger(__name__)

NEGATIVE = ("normal", "negative", "nilm", "benign", "0", "false", "no", "nfm", "nhguc", "non-neoplastic")
COLUMNS = ["tile_id", "index", "p_screen", "cellularity", "focus", "status"]


@dataclass(frozen=True, slots=True)
class LabelledSlide:
    """One row of the manifest. ``report`` is None where there is no finished run folder, ``problem`` then says why."""

    sample: Sample
    label: str
    patient: str
    report: Report | None = None
    folder: SlideFolder | None = None
    problem: str = ""

    @property
    def id(self) -> str:
        return self.sample.sample_id


def read_labelled(
    manifest: Path,
    runs: Path,
    *,
    label_column: str = "label",
    split: str | None = None,
    progress: Progress = no_progress,
) -> list[LabelledSlide]:
    """The manifest's rows with their reports.

    A row's run folder is that of the file's place now (`slide_ids.slide_id`), of a run under pseudonyms that of the
    sample's id, else the one whose report names the same file where only one does; a slide of the same name that is
    another row's, or that lies elsewhere with other bytes, is not it. Rows without a patient are a patient each.

    Raises:
        SettingError: the manifest or a column cannot be used, or a row has no label.
    """
    samples = read_manifest(manifest)
    taken = {sample.slide_id for sample in samples}
    if split is not None:
        splits = sorted({sample.extra.get("split", "") for sample in samples})
        samples = tuple(sample for sample in samples if sample.extra.get("split") == split)
        if not samples:
            raise SettingError(
                f"--split {split}: no row of {manifest.name} has it.", hint=f"Its splits: {', '.join(splits)}."
            )
    run = RunFolder(runs)
    by_name = _by_file_name(run, taken=taken)
    rows = []
    for done, sample in enumerate(samples):
        progress("reading", done, len(samples))
        label = (sample.label if label_column == "label" else sample.extra.get(label_column, "")).strip()
        if not label:
            raise SettingError(
                f"{manifest.name}, line {sample.line}: no value in column {label_column!r}.",
                hint="Give every slide a label, or name the column with --label-column.",
            )
        patient = sample.patient or f"slide {sample.sample_id}"
        rows.append(_joined(LabelledSlide(sample, label, patient), run, by_name))
    progress("reading", len(samples), len(samples))
    return rows


def _by_file_name(run: RunFolder, *, taken: Set[str]) -> Mapping[str, list[tuple[SlideFolder, Path]]]:
    """File name -> (slide folder, file as it was then), for slides that were analyzed under another path."""
    folders: dict[str, list[tuple[SlideFolder, Path]]] = {}
    for slide_id, path in run.slide_files.items():
        if slide_id not in taken:
            folders.setdefault(path.name, []).append((run.slide(slide_id), path))
    return folders


def _moved(then: Path, now: Path) -> bool:
    """Whether the file may have been moved from one place to the other: two that are both there must be alike."""
    if not then.exists() or not now.exists() or then.samefile(now):
        return True
    return then.is_file() and now.is_file() and then.stat().st_size == now.stat().st_size


def _joined(row: LabelledSlide, run: RunFolder, by_name: Mapping[str, list[tuple[SlideFolder, Path]]]) -> LabelledSlide:
    folder = run.slide(row.sample.slide_id)
    if not folder.finished and run.pseudonymous and Path(row.id).name == row.id and run.slide(row.id).finished:
        folder = run.slide(row.id)
    if not folder.finished:
        path = row.sample.path
        others = [other for other, then in by_name.get(path.name, []) if _moved(then, path)]
        if len(others) > 1:
            return replace(row, problem=f"{len(others)} run folders hold a slide of this name")
        folder = others[0] if others else folder
    if not folder.finished:
        return replace(row, problem="its analysis did not finish" if folder.path.is_dir() else "not analyzed")
    try:
        return replace(row, report=folder.read_report(), folder=folder)
    except OutputError as error:
        return replace(row, problem=error.message)


def evidence_of_folder(folder: SlideFolder, report: Report, *, image: bool = False) -> Evidence:
    """A slide's evidence from its run folder, with ``image`` also the image features that were kept.

    Raises:
        OutputError: tiles.parquet is missing or damaged, or features.zarr is damaged.
        SettingError: with ``image``, the folder holds no image features, or not those of its report.
    """
    from aggregators.features import evidence_from_columns

    columns = folder.tiles_table(COLUMNS).to_pydict()
    features = read_features(folder, report) if image else None
    return evidence_from_columns(columns, report.verdict.findings, image=features)


def classes_of(labels: Iterable[str], *, negative: str | None, order: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes, the negative one first, then by ``order`` (a reporting system's categories), then by name.

    Raises:
        SettingError: the negative class is not among them, or none can be told.
    """
    found = sorted(set(labels))
    if negative is None:
        known = [name for name in found if name.casefold() in NEGATIVE]
        if len(known) != 1:
            raise SettingError(
                f"the labels are {', '.join(found)}: {'more than one looks' if known else 'none looks'} negative.",
                hint="Name the negative class with --negative.",
            )
        negative = known[0]
    elif negative not in found:
        raise SettingError(f"--negative {negative}: no such label.", hint=f"The labels are {', '.join(found)}.")
    rank = {name.casefold(): i for i, name in enumerate(order)}
    rest = sorted((name for name in found if name != negative), key=lambda n: (rank.get(n.casefold(), len(rank)), n))
    return (negative, *rest)


@dataclass(frozen=True, slots=True)
class Ready:
    """A cohort to fit on, the labels that are its features, and the conditions under which it was analyzed."""

    cohort: Cohort
    labels: tuple[str, ...]
    conditions: dict[str, Any]
    mixed: tuple[str, ...]


def ready_to_fit(
    rows: Sequence[LabelledSlide],
    *,
    negative: str | None = None,
    skip_missing: bool = False,
    force: bool = False,
    image: bool = False,
    runs: Path = Path(DEFAULT_OUT),
    progress: Progress = no_progress,
) -> Ready:
    """The rows as a cohort.

    A slide is usable with a finished report, tiles, and a coverage at its floor or above. Others stop the fit, or
    with ``skip_missing`` are left out and named in the aggregator. With ``image`` a slide also needs image features.

    Raises:
        SettingError: slides are not usable, or were analyzed under different conditions and ``force`` is off.
    """
    import numpy as np

    from aggregators.features import tile_features
    from aggregators.fit import Cohort

    usable: list[tuple[LabelledSlide, Report, Evidence]] = []
    lost: list[str] = []
    for done, row in enumerate(rows):
        progress("tiles", done, len(rows))
        problem = row.problem or (_unusable(row.report) if row.report else "not analyzed")
        if not problem and row.report is not None and row.folder is not None:
            try:
                evidence = evidence_of_folder(row.folder, row.report, image=image)
                if evidence.image is not None:
                    # read once here, so that what is missing is said with the slide's name
                    tile_features(evidence, (), image=evidence.image.width)
                usable.append((row, row.report, evidence))
            except (OutputError, SettingError) as error:
                problem = error.message
        if problem:
            lost.append(f"{row.id}: {problem}")
    progress("tiles", len(rows), len(rows))
    if lost and not skip_missing:
        more = f"; and {len(lost) - 8} more" if len(lost) > 8 else ""
        raise SettingError(
            f"{len(lost)} of {len(rows)} slides cannot be used: {'; '.join(lost[:8])}{more}.",
            hint=f"Analyze them with wsi-chat cohort MANIFEST -o {runs}{' --features' if image else ''}, or leave them"
            " out with --skip-missing.",
        )
    if not usable:
        raise SettingError("no slide can be used.", hint=f"Analyze them with wsi-chat cohort MANIFEST -o {runs}.")
    conditions, mixed = _conditions([report for _, report, _ in usable])
    if mixed and not force:
        raise SettingError(f"the slides were analyzed under different conditions: {'; '.join(mixed)}.",
                           hint="Analyze them alike, or mix them with --force.")  # fmt: skip
    order = [category.code for category in categories_of(usable[0][1])]
    classes = classes_of((row.label for row, _, _ in usable), negative=negative, order=order)
    cohort = Cohort(
        ids=tuple(row.id for row, _, _ in usable),
        evidence=tuple(evidence for _, _, evidence in usable),
        y=np.array([classes.index(row.label) for row, _, _ in usable], dtype=np.intp),
        patients=tuple(row.patient for row, _, _ in usable),
        classes=classes,
        fingerprints=tuple(report.slide.fingerprint for _, report, _ in usable),
        patients_given=all(row.sample.patient for row, _, _ in usable),
        left_out=tuple(lost),
    )
    labels = sorted({count.label for _, report, _ in usable for count in report.verdict.counts if count.abnormal})
    return Ready(cohort, tuple(labels), conditions, mixed)


def _unusable(report: Report) -> str:
    if report.funnel.screened == 0:
        return "no tile was screened"
    if report.verdict.coverage < report.verdict.coverage_floor:
        return f"{report.verdict.coverage:.0%} of its tiles screened, below the floor"
    return ""


def _conditions(reports: Sequence[Report]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The conditions of most slides, and what differs in others as phrases.

    One checkpoint in several number formats is no difference: all of them become the condition, so that a fit on runs
    of both holds on a GPU as well as on the CPU.
    """
    each = [conditions_of_report(report) for report in reports]
    models = sorted({str(conditions["model"]) for conditions in each})
    if len(models) > 1 and len({model.rpartition(":")[0] for model in models}) == 1:
        each = [conditions | {"model": models} for conditions in each]
    texts = [json.dumps(conditions, sort_keys=True, default=str) for conditions in each]
    common = max(sorted(set(texts)), key=texts.count)
    mine = each[texts.index(common)]
    mixed = []
    for key in mine:
        values = {json.dumps(conditions.get(key), default=str) for conditions in each}
        if len(values) > 1:
            mixed.append(f"{key}: {', '.join(sorted(values))}")
    return mine, tuple(mixed)


def conditions_of_report(report: Report) -> dict[str, Any]:
    """The conditions under which a slide was analyzed; see `slide_score.conditions_of`."""
    return conditions_of(
        report.provenance, system=report.specimen.system, system_version=report.specimen.system_version
    )


def categories_of(report: Report) -> Sequence[Any]:
    """The reporting system's categories, in their order; none where the system is not to be found here."""

    try:
        categories: Sequence[Any] = load_system(report.specimen.code if report.specimen.given else None).categories
    except WsiChatError:
        return ()
    return sorted(categories, key=lambda category: category.order)
