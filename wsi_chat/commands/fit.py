"""The command ``wsi-chat fit``: fits an aggregator, writes it, and says how well it does."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from wsi_chat.analysis.provenance import versions
from wsi_chat.analysis.run_folder import open_folder
from wsi_chat.atomic import write_text
from wsi_chat.commands.console import say, say_json
from wsi_chat.commands.progress import bar
from wsi_chat.errors import SettingError
from wsi_chat.scoring.fitting import read_labelled, ready_to_fit

if TYPE_CHECKING:
    from aggregators.fit import Fit
    from aggregators.fitted import Figure


def fit(
    manifest: Annotated[Path, typer.Argument(help="CSV: image_path, label and patient, and sample_id if known.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the aggregator.")] = Path("aggregator"),
    runs: Annotated[
        Path, typer.Option(help="Run folder of the analyzed slides (wsi-chat cohort MANIFEST -o RUNS).")
    ] = Path("wsi-chat-out"),
    head: Annotated[
        str, typer.Option(help="logistic (on the slide's features) or attention (on its tiles).")
    ] = "logistic",
    image_features: Annotated[
        bool,
        typer.Option(
            "--image-features", help="With --head attention: also use the image features of analyze --features."
        ),
    ] = False,
    label_column: Annotated[str, typer.Option(help="Column of the true label.")] = "label",
    negative: Annotated[
        str | None, typer.Option(help="The negative class. Default: normal, negative, nilm, 0 and the like.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Use only rows with this value in column split, e.g. train.")
    ] = None,
    class_weight: Annotated[str, typer.Option(help="Weight of the classes: balanced or none.")] = "balanced",
    miss_rate: Annotated[
        float | None,
        typer.Option(
            help="Expected fraction of abnormal slides called normal, at most, e.g. 0.05; "
            "the threshold is set on patients held out."
        ),
    ] = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            help="Expected fraction of normal slides called abnormal, at most; slides between the "
            "two thresholds are indeterminate."
        ),
    ] = None,
    about: Annotated[
        str, typer.Option(help="What slides these are, in a word or two, e.g. rendered; every report repeats it.")
    ] = "",
    folds: Annotated[int, typer.Option(min=2, max=20, help="Number of outer folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of folds, held-out patients and training.")] = 0,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out slides that were not analyzed or have too few tiles.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Mix slides that were analyzed under different conditions.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Fit an aggregator on labelled, analyzed slides: cross-validated by patient, calibrated, with thresholds."""
    run_fit(
        manifest, out=out, runs=runs, head=head, image_features=image_features, label_column=label_column,
        negative=negative, split=split,
        class_weight=class_weight, miss_rate=miss_rate, false_alarm_rate=false_alarm_rate,
        about=about, folds=folds, seed=seed, skip_missing=skip_missing, force=force, as_json=json_,
    )  # fmt: skip


def run_fit(
    manifest: Path,
    *,
    out: Path,
    runs: Path,
    head: str,
    label_column: str,
    negative: str | None,
    split: str | None,
    image_features: bool = False,
    class_weight: str,
    miss_rate: float | None,
    false_alarm_rate: float | None,
    folds: int,
    seed: int,
    skip_missing: bool,
    force: bool,
    about: str = "",
    as_json: bool = False,
) -> None:
    """Fit, write the aggregator into ``out`` and say how well it does."""
    from aggregators.fit import fit
    from aggregators.fitted import HEADS

    if len(about) > 60:
        raise SettingError(f"--about has {len(about)} characters.", hint="Say it in 60: a word or two.")
    if head not in HEADS:
        raise SettingError(f"--head {head!r} is not known.", hint=f"Choose one of: {', '.join(HEADS)}.")
    if class_weight not in ("balanced", "none"):
        raise SettingError(
            f"--class-weight {class_weight!r} is not known.", hint="Choose Weight of the classes: balanced or none."
        )
    if image_features and head != "attention":
        raise SettingError(
            f"--image-features: the {head} head reads none.", hint="Add --head attention, or leave it out."
        )
    open_folder(out)
    with bar() as progress:
        rows = read_labelled(manifest, runs, label_column=label_column, split=split, progress=progress)
        ready = ready_to_fit(
            rows, negative=negative, skip_missing=skip_missing, force=force, image=image_features, runs=runs,
            progress=progress,
        )  # fmt: skip
        fitted = fit(
            ready.cohort,
            head=head,
            labels=ready.labels,
            image=image_features,
            class_weight=cast(Literal["balanced", "none"], class_weight),
            miss_rate=miss_rate,
            false_alarm_rate=false_alarm_rate,
            conditions=ready.conditions,
            versions=versions(),
            about=about,
            folds=folds,
            seed=seed,
            progress=progress,
        )
    for line in ready.mixed:
        say(f"warning: mixed (--force): {line}", err=True)
    if not ready.cohort.patients_given:
        say(
            "warning: not every slide names its patient; each such slide counts as a patient of its own, and slides of"
            " one patient may then be in two folds",
            err=True,
        )
    path = fitted.aggregator.save(out)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("sample_id", "label", "fold", "p_positive"))
    writer.writerows((row.sample_id, row.label, row.fold, f"{row.p:.6f}") for row in fitted.predictions)
    write_text(out / "cv.csv", text.getvalue())
    if as_json:
        say_json(_summary(fitted, path))
    else:
        for line in _lines(fitted, path):
            say(line)


def _summary(fitted: Fit, path: Path) -> dict[str, object]:
    record = fitted.aggregator.record
    chosen = fitted.aggregator.thresholds(miss_rate=None, false_alarm_rate=None)
    return {
        "aggregator": str(path.parent),
        "sha256": fitted.aggregator.sha256,
        "head": record.head,
        "image_features": record.image_features,
        "classes": list(record.classes),
        "calibration": record.calibration.method,
        "cohort": record.cohort.model_dump(exclude={"patient_hashes", "slide_fingerprints"}),
        "cv": record.cv.model_dump(),
        "thresholds": None if chosen is None else {"normal_below": chosen[0].low, "abnormal_from": chosen[0].high},
        "guarantee": "" if chosen is None else chosen[1],
    }


def _lines(fitted: Fit, path: Path) -> Iterator[str]:
    record = fitted.aggregator.record
    cohort, cv = record.cohort, record.cv
    classes = ", ".join(f"{name} {cohort.per_class[name]}" for name in record.classes)
    yield f"{record.head} head, {len(record.feature_names)} features ({record.features})"
    if record.image_features:
        yield f"  image        {record.image_features} features of a tile, {record.image_kind} of {record.image_model}"
    about = f"{cohort.about} " if cohort.about else ""
    yield f"  cohort       {cohort.slides} {about}slides of {cohort.patients} patients: {classes}"
    if cohort.left_out:
        yield f"  left out     {len(cohort.left_out)}: {'; '.join(cohort.left_out[:5])}"
    yield f"  split        {cv.slides} slides fitted on, {cohort.held_out} held out for thresholds"
    yield f"  cross-validated ({cv.folds} folds by patient, {cv.inner_folds} inner)"
    yield f"    AUC        {figure(cv.auc)}"
    yield f"    ECE        {cv.calibration_error_after:.3f} ({cv.calibration_error_before:.3f} before calibration)"
    yield f"    balanced accuracy {cv.balanced_accuracy:.3f}"
    yield f"  score        calibrated by {record.calibration.method} on {record.calibration.slides} slides"
    chosen = fitted.aggregator.thresholds(miss_rate=None, false_alarm_rate=None)
    if chosen is None:
        yield "  threshold    none guaranteed: fit with --miss-rate for one that is"
    else:
        band, promise = chosen
        between = f", indeterminate between {band.low:.4g} and {band.high:.4g}" if band.high > band.low else ""
        yield f"  threshold    {band.low:.4g}{between}: {promise}"
        if record.conformal is not None and record.conformal.auc is not None:
            yield f"  held-out AUC {figure(record.conformal.auc)}"
    yield f"  {path}"


def figure(value: Figure) -> str:
    """``0.912 (0.870-0.944, DeLong)``."""
    if value.low is None or value.high is None:
        return f"{value.value:.3f}"
    return f"{value.value:.3f} ({value.low:.3f}-{value.high:.3f}, {value.method})"
