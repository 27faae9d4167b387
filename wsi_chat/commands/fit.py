"""The command ``wsi-chat fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fit(
    manifest: Annotated[Path, typer.Argument(help="CSV: image_path, label and patient, and if known sample_id.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the aggregator.")] = Path("aggregator"),
    runs: Annotated[
        Path, typer.Option(help="Run folder with the analyzed slides (wsi-chat cohort MANIFEST -o RUNS).")
    ] = Path("wsi-chat-out"),
    head: Annotated[
        str, typer.Option(help="logistic (on the slide's features) or attention (on its tiles).")
    ] = "logistic",
    image_features: Annotated[
        bool,
        typer.Option("--image-features", help="Attention: also read the image features of analyze --features."),
    ] = False,
    label_column: Annotated[str, typer.Option(help="Column with the truth.")] = "label",
    negative: Annotated[
        str | None, typer.Option(help="The negative class. Default: normal, negative, nilm, 0 ...")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Use only rows whose split column is this, e.g. train.")] = None,
    class_weight: Annotated[str, typer.Option(help="balanced or none.")] = "balanced",
    miss_rate: Annotated[
        float | None, typer.Option(help="Abnormal slides called normal, at most, e.g. 0.05: holds patients out.")
    ] = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="The same of normal slides; slides between are indeterminate.")
    ] = None,
    about: Annotated[
        str, typer.Option(help="What slides these are, in a word or two; every report says it, e.g. rendered.")
    ] = "",
    folds: Annotated[int, typer.Option(min=2, max=20, help="Outer folds of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of folds, held-out patients and training.")] = 0,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out slides that are not analyzed or have too few tiles.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Mix slides that were analyzed under other conditions.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Fit an aggregator on labelled, analyzed slides: cross-validated by patient, calibrated, with thresholds."""
    from wsi_chat.commands.fit_run import run_fit

    run_fit(
        manifest, out=out, runs=runs, head=head, image_features=image_features, label_column=label_column,
        negative=negative, split=split,
        class_weight=class_weight, miss_rate=miss_rate, false_alarm_rate=false_alarm_rate,
        about=about, folds=folds, seed=seed, skip_missing=skip_missing, force=force, as_json=json_,
    )  # fmt: skip
