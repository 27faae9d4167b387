"""The command ``wsi-chat validate``: compares verdicts with labels, writes and prints the figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wsi_chat.analysis.run_folder import open_folder
from wsi_chat.analysis.slide_score import SlideScore
from wsi_chat.atomic import write_text
from wsi_chat.commands.console import say, say_json
from wsi_chat.commands.options import with_settings
from wsi_chat.commands.progress import bar
from wsi_chat.errors import SettingError
from wsi_chat.schema import DISCLAIMER
from wsi_chat.scoring.fitting import LabelledSlide, categories_of, classes_of, read_labelled
from wsi_chat.scoring.validation import Judged, judge, measure
from wsi_chat.settings import resolve

PATIENTS_SHOWN = 24


@with_settings(
    "aggregator", "miss_rate", "false_alarm_rate", "threshold", "force",
    words={
        "aggregator": "Judge the slides by this fitted aggregator instead of as their reports do.",
        "threshold": "With an aggregator: slide score at and above which a slide is abnormal.",
    },
    defaults={"aggregator": "none", "threshold": "as fitted"},
    config=False,
)  # fmt: skip
def validate(
    manifest: Annotated[Path, typer.Argument(help="CSV: image_path, label and patient, and sample_id if known.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for validation.json and validation.pdf.")] = Path(
        "validation"
    ),
    runs: Annotated[
        Path, typer.Option(help="Run folder of the analyzed slides (wsi-chat cohort MANIFEST -o RUNS).")
    ] = Path("wsi-chat-out"),
    label_column: Annotated[str, typer.Option(help="Column of the true label.")] = "label",
    category_column: Annotated[
        str | None, typer.Option(help="Column of the true category. Default: category, if there is one.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="The negative class. Default: normal, negative, nilm, 0 and the like.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Use only rows with this value in column split, e.g. test.")] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Number of bootstrap resamples, by patient.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the bootstrap.")] = 0,
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="Write validation.pdf.")] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print validation.json on stdout.")] = False,
    **settings: Any,
) -> None:
    """Compare verdicts with labels: AUC, sensitivity, specificity, calibration, categories, slides without verdict."""
    run_validate(
        manifest, out=out, runs=runs, aggregator=Path(settings["aggregator"]) if "aggregator" in settings else None,
        miss_rate=settings.get("miss_rate"), false_alarm_rate=settings.get("false_alarm_rate"),
        threshold=settings.get("threshold"), label_column=label_column, category_column=category_column,
        negative=negative, split=split, resamples=resamples, seed=seed, pdf=pdf, force=settings.get("force", False),
        as_json=json_,
    )  # fmt: skip


def run_validate(
    manifest: Path,
    *,
    out: Path,
    runs: Path,
    aggregator: Path | None,
    miss_rate: float | None,
    false_alarm_rate: float | None,
    threshold: float | None,
    label_column: str,
    category_column: str | None,
    negative: str | None,
    split: str | None,
    resamples: int,
    seed: int,
    pdf: bool,
    force: bool,
    as_json: bool = False,
) -> None:
    """Compare verdicts with labels; write validation.json and validation.pdf into ``out``, print the figures."""
    given = {"aggregator": str(aggregator or "none"), "miss_rate": miss_rate, "threshold": threshold,
             "false_alarm_rate": false_alarm_rate, "force": force or None}  # fmt: skip
    settings, _ = resolve(given)
    if aggregator is None and threshold is not None:
        raise SettingError("--threshold needs --aggregator.", hint="Reports keep the threshold they were drawn with.")
    score = SlideScore.load(settings)
    fitted = score.aggregator
    open_folder(out)
    with bar() as progress:
        rows = read_labelled(manifest, runs, label_column=label_column, split=split, progress=progress)
        order = _order(rows)
        if fitted is not None:
            unknown = sorted({row.label for row in rows} - set(fitted.record.classes))
            if unknown and len(fitted.record.classes) > 2:
                raise SettingError(
                    f"the aggregator does not know the label {unknown[0]!r}.",
                    hint=f"Its classes are {', '.join(fitted.record.classes)}.",
                )
            negative = negative or fitted.record.classes[0]
        classes = classes_of((row.label for row in rows), negative=negative, order=order)
        judged = judge(
            rows, negative=classes[0], score=score, progress=progress,
            category_column=_category_column(rows, category_column, label_column),
        )  # fmt: skip
        figures = measure(judged, resamples=resamples, seed=seed, order=order)
    payload = {
        "format": "wsi-chat validation",
        "version": 1,
        "disclaimer": DISCLAIMER,
        "manifest": manifest.name,
        "split": split or "all rows",
        "aggregator": fitted.sha256 if fitted else None,
        "negative": classes[0],
        "resamples": resamples,
        "seed": seed,
        **figures,
        "patients_list": sorted({o.patient for o in judged.outcomes}),
        "outcomes": [
            {"sample_id": o.id, "patient": o.patient, "label": o.label, "status": o.status, "score": o.score,
             "coverage": o.coverage, "category": o.category or None}
            for o in judged.outcomes
        ],
    }  # fmt: skip
    write_text(out / "validation.json", json.dumps(payload, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if pdf:
        from wsi_chat.scoring.pdf import write_validation_pdf

        write_validation_pdf(payload, judged, out / "validation.pdf")
    if as_json:
        say_json(payload, indent=1)
        return
    for line in lines(payload, judged):
        say(line)
    for name in ("validation.json", "validation.pdf") if pdf else ("validation.json",):
        say(f"  {out / name}")


def _order(rows: Sequence[LabelledSlide]) -> list[str]:
    """Category codes of the slides' reporting system, the gravest last."""
    first = next((row.report for row in rows if row.report is not None), None)
    return [] if first is None else [category.code for category in categories_of(first)]


def _category_column(rows: Sequence[LabelledSlide], given: str | None, label_column: str) -> str | None:
    columns = {name for row in rows for name in row.sample.extra}
    if given is not None and given not in columns:
        raise SettingError(
            f"--category-column {given}: no such column.", hint=f"Columns: {', '.join(sorted(columns))}."
        )
    return given or ("category" if "category" in columns and label_column != "category" else None)


def shown(figure: Mapping[str, Any] | None, digits: int = 3) -> str:
    """``0.912 (0.870-0.944)``; a dash for what could not be computed."""
    if figure is None or figure["value"] is None:
        return "-"
    text = f"{figure['value']:.{digits}f}"
    if figure["low"] is None:
        return text
    return f"{text} ({figure['low']:.{digits}f}-{figure['high']:.{digits}f})"


def lines(payload: Mapping[str, Any], judged: Judged) -> Iterator[str]:
    """The validation in words, for a terminal."""
    patients = payload["patients_list"]
    yield (
        f"{payload['slides']} slides of {payload['patients']} patients ({payload['split']}),"
        f" {payload['positives']} positive"
    )
    more = f" and {len(patients) - PATIENTS_SHOWN} more (validation.json)" if len(patients) > PATIENTS_SHOWN else ""
    yield f"  patients     {', '.join(patients[:PATIENTS_SHOWN])}{more}"
    yield f"  score        {payload['score_kind']}"
    yield f"  verdicts     {', '.join(f'{name} {n}' for name, n in payload['status'].items())}"
    auc = payload["auc"]
    yield f"  AUC          {shown(auc)}" + (f"  {auc['method']}" if auc else "")
    if judged.high is not None:
        band = "" if judged.low == judged.high else f", indeterminate from {judged.low:.4g}"
        yield f"  threshold    {judged.high:.4g}{band}"
    for way in payload["at_threshold"].values():
        sens, spec = way["sensitivity"], way["specificity"]
        yield (
            f"    sensitivity {shown(sens)} of {sens['slides']}, specificity {shown(spec)} of {spec['slides']}:"
            f" {way['what']}"
        )
    if payload["calibration"]:
        yield f"  ECE          {shown(payload['calibration']['expected_calibration_error'])}"
    kinds = payload["categories"]
    if kinds:
        yield (
            f"  categories   kappa ({kinds['weights']} weights) {shown(kinds['kappa'])},"
            f" {kinds['without_category']} without one"
        )
    for entry in payload["undecided"][:10]:
        yield f"  {entry['status']:<13}{entry['sample_id']} ({entry['label']}): {entry['why']}"
    if len(payload["undecided"]) > 10:
        yield f"  and {len(payload['undecided']) - 10} more without a call (validation.json)"
    for note in payload["notes"]:
        yield f"  note         {note}"
