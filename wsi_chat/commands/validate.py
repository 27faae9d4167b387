"""The command ``wsi-chat validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def validate(
    manifest: Annotated[Path, typer.Argument(help="CSV: image_path, label and patient, and if known sample_id.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for validation.json and validation.pdf.")] = Path(
        "validation"
    ),
    runs: Annotated[
        Path, typer.Option(help="Run folder with the analyzed slides (wsi-chat cohort MANIFEST -o RUNS).")
    ] = Path("wsi-chat-out"),
    aggregator: Annotated[
        Path | None, typer.Option(help="Judge the slides by this fitted aggregator, not as their reports do.")
    ] = None,
    miss_rate: Annotated[float | None, typer.Option(help="With --aggregator: thresholds for this miss rate.")] = None,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="With --aggregator: and this false-alarm rate.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="With --aggregator: this threshold instead.")] = None,
    label_column: Annotated[str, typer.Option(help="Column with the truth.")] = "label",
    category_column: Annotated[
        str | None, typer.Option(help="Column with the true category. Default: category, where there is one.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="The negative class. Default: normal, negative, nilm, 0 ...")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Use only rows whose split column is this, e.g. test.")] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples, by patient.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="Write validation.pdf.")] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Apply an aggregator that was fitted under other conditions.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print validation.json on stdout.")] = False,
) -> None:
    """Compare verdicts with labels: AUC, sensitivity, specificity, calibration, categories, and what has no verdict."""
    from wsi_chat.commands.validate_run import run_validate

    run_validate(
        manifest, out=out, runs=runs, aggregator=aggregator, miss_rate=miss_rate, false_alarm_rate=false_alarm_rate,
        threshold=threshold, label_column=label_column, category_column=category_column, negative=negative,
        split=split, resamples=resamples, seed=seed, pdf=pdf, force=force, as_json=json_,
    )  # fmt: skip
