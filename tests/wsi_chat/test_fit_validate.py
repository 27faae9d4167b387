"""wsi-chat fit, validate and analyze --aggregator over run folders that are written here, with known signal."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from aggregators import aggregate
from aggregators.fitted import load_fitted
from reports import write_report_json, write_tiles_parquet
from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.cli import app
from wsi_chat.errors import SettingError
from wsi_chat.schema import (
    Box,
    Funnel,
    LabelledBox,
    ModelRecord,
    Provenance,
    Report,
    SlideRecord,
    Specimen,
    Tile,
    TileVerdict,
    Timings,
)
from wsi_chat.scoring.fitting import classes_of, evidence_of_folder, read_labelled
from wsi_chat.settings import Settings
from wsi_chat.terminology import load_system

TILES = 60
SYSTEM = load_system("cervix")


def tile_verdicts(rng: np.random.Generator, *, abnormal: bool, failed: int = 0) -> list[TileVerdict]:
    """Sixty tiles; an abnormal slide has five that answer high, three of them with a box of one class."""
    logits = rng.normal(-3, 1, TILES)
    if abnormal:
        logits[:5] = rng.normal(1.5, 1.5, 5)
    rows = []
    for i, p in enumerate(1 / (1 + np.exp(-logits))):
        tile = Tile(i, 600 * i, 0, 512, 512, 0, (512, 512), 512, 0.5, round(float(rng.uniform(0.1, 0.9)), 3))
        if i >= TILES - failed:
            rows.append(TileVerdict(tile=tile, status="screen_failed", error="for a test"))
            continue
        hit = abnormal and i < 3
        boxes = (LabelledBox("hsil", Box(600 * i + 10, 10, 600 * i + 60, 60)),) if hit else ()
        rows.append(
            TileVerdict(
                tile=tile, status="detailed" if hit else "screened", p_screen=float(p), p_abnormal=float(p),
                boxes=boxes, asked=("hsil",) if hit else (), focus=100.0 + i,
            )
        )  # fmt: skip
    return rows


def write_run(
    folder: Path, image: Path, rows: list[TileVerdict], *, dialect: str = "embedded", revision: str = "m@1"
) -> Report:
    n = len(rows)
    funnel = Funnel(
        grid=n, foreground=n, selected=n, read=n, unreadable=0, screened=sum(r.p_screen is not None for r in rows),
        screen_failed=sum(r.status == "screen_failed" for r in rows), detailed=3, detail_failed=0,
        truncated_answers=0, dropped_boxes=0,
    )  # fmt: skip
    verdict = aggregate(rows, system=SYSTEM, funnel=funnel, bounds=Box(0, 0, 40_000, 600))
    report = Report(
        slide=SlideRecord(
            id=folder.name, file_name=image.name, fingerprint=f"fp-{image.name}", reader="openslide", width=40_000,
            height=600, levels=1, mpp=0.5, mpp_source="flag",
        ),
        specimen=Specimen(given=True, code="cervix", name="Cervix", system=SYSTEM.code, system_version="1"),
        verdict=verdict,
        funnel=funnel,
        provenance=Provenance(
            model=ModelRecord(
                name="m", revision=revision, engine="scripted", dialect=dialect, prompts_sha256="ab" * 32
            ),
            tile_px=512, tile_mpp=0.5, overlap=0.25, mask="on", seed=0, config=Settings().model_dump(mode="json"),
        ),
        timings=Timings(started="2026-01-01T00:00:00+00:00"),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_tiles_parquet(rows, folder / "tiles.parquet")
    write_report_json(report, folder / "report.json")
    return report


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 120 analyzed slides of 100 patients, half abnormal: 90 train, 30 test."""
    root = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(1)
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "image_path", "label", "patient", "split", "category"])
        for i in range(120):
            abnormal = i % 2 == 1
            image = root / f"s{i:03d}.tiff"
            write_run(root / "runs" / slide_id(image), image, tile_verdicts(rng, abnormal=abnormal))
            # every fifth patient of the fitting part has a second slide of the same kind
            patient = f"p{i - 2 if i % 10 in (2, 3) else i:03d}"
            split = "train" if i < 90 else "test"
            kind = "hsil" if abnormal else "nilm"
            writer.writerow([f"s{i:03d}", image.name, "abnormal" if abnormal else "normal", patient, split, kind])
    return root


@pytest.fixture(scope="module")
def run() -> Callable[..., Any]:
    runner = CliRunner()

    def call(*arguments: str | Path) -> Any:
        return runner.invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture(scope="module")
def aggregator(cohort: Path, run: Callable[..., Any]) -> Path:
    out = cohort / "aggregator"
    result = run("fit", cohort / "manifest.csv", "--runs", cohort / "runs", "-o", out, "--split", "train",
                 "--miss-rate", "0.1", "--false-alarm-rate", "0.1", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    said = json.loads(result.stdout)
    assert said["cohort"]["slides"] == 90
    assert said["cohort"]["patients"] == len({row["patient"] for row in _rows(cohort) if row["split"] == "train"})
    assert said["cv"]["auc"]["value"] > 0.9
    assert said["cohort"]["held_out"] > 0
    return out


def _rows(cohort: Path) -> list[dict[str, str]]:
    with (cohort / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_aggregator_is_json_and_names_no_patient(cohort: Path, aggregator: Path) -> None:
    assert sorted(path.name for path in aggregator.iterdir()) == ["aggregator.json", "cv.csv"]
    text = (aggregator / "aggregator.json").read_text()
    assert not any(row["patient"] in text for row in _rows(cohort))
    record = load_fitted(aggregator).record
    assert record.classes == ("normal", "abnormal")
    assert "log_findings:hsil" in record.feature_names
    assert len((aggregator / "cv.csv").read_text().splitlines()) == 1 + record.cv.slides


def test_no_source_of_the_package_unpickles() -> None:
    root = Path(__file__).resolve().parents[2]
    for path in [*root.glob("aggregators/*.py"), *root.glob("wsi_chat/fitting*.py"), *root.glob("wsi_chat/valid*.py")]:
        text = path.read_text()
        assert "import pickle" not in text, path
        assert "joblib" not in text, path
        assert "torch.load" not in text, path


def test_evidence_of_a_run_folder_is_that_of_its_verdicts(tmp_path: Path) -> None:
    from aggregators.features import evidence_of, verdict_features

    rows = tile_verdicts(np.random.default_rng(5), abnormal=True, failed=4)
    report = write_run(tmp_path / "run", tmp_path / "x.tiff", rows)
    one = evidence_of_folder(SlideFolder(tmp_path / "run"), report)
    two = evidence_of(rows, report.verdict.findings)
    assert one.findings == two.findings == {"hsil": 3}
    np.testing.assert_array_equal(verdict_features(one, ["hsil"]), verdict_features(two, ["hsil"]))
    assert len(one.p) == TILES - 4


def test_validation_of_the_held_out_split(cohort: Path, aggregator: Path, run: Callable[..., Any]) -> None:
    out = cohort / "validation"
    result = run("validate", cohort / "manifest.csv", "--runs", cohort / "runs", "--aggregator", aggregator,
                 "--split", "test", "-o", out, "--resamples", "200")  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "30 slides of" in result.stdout
    assert "p090" in result.stdout, "the patients are printed"
    assert "(test)" in result.stdout
    found = json.loads((out / "validation.json").read_text())
    assert found["auc"]["value"] > 0.9
    assert found["auc"]["low"] < found["auc"]["value"] <= found["auc"]["high"] <= 1.0
    assert found["score_kind"].startswith("calibrated by Platt scaling on")
    assert found["at_threshold"]["decided"]["sensitivity"]["slides"] <= 15
    assert found["at_threshold"]["undecided_wrong"]["sensitivity"]["slides"] == 15
    assert sum(found["status"].values()) == 30
    assert found["categories"]["weights"] == "quadratic"
    assert (out / "validation.pdf").read_bytes().startswith(b"%PDF")
    text = "".join(page.extract_text() for page in __import__("pypdf").PdfReader(out / "validation.pdf").pages)
    assert "Sensitivity" in text or "sensitivity" in text
    assert "p091" in text


def test_patients_of_the_fit_are_refused_in_a_validation(
    cohort: Path, aggregator: Path, run: Callable[..., Any]
) -> None:
    result = run("validate", cohort / "manifest.csv", "--runs", cohort / "runs", "--aggregator", aggregator,
                 "-o", cohort / "no")  # fmt: skip
    assert isinstance(result.exception, SettingError)
    assert "took part in the fit: p000, p001" in str(result.exception)


def test_slides_without_a_report_or_a_call_are_counted_both_ways(cohort: Path, run: Callable[..., Any]) -> None:
    root = cohort / "gaps"
    rng = np.random.default_rng(9)
    lines = ["image_path,label,patient"]
    for i in range(20):
        image = root / f"g{i:02d}.tiff"
        # two abnormal slides have too few answers, one normal slide was never analyzed
        failed = 30 if i in (1, 3) else 0
        if i != 0:
            rows = tile_verdicts(rng, abnormal=i % 2 == 1 and not failed, failed=failed)
            write_run(root / "runs" / slide_id(image), image, rows)
        lines.append(f"{image.name},{'abnormal' if i % 2 else 'normal'},q{i}")
    (root / "manifest.csv").write_text("\n".join(lines))
    result = run("validate", root / "manifest.csv", "--runs", root / "runs", "-o", root / "v", "--no-pdf", "--json",
                 "--resamples", "100")  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    found = json.loads(result.stdout)
    assert found["status"]["failed"] == 1
    assert found["status"]["indeterminate"] == 2
    assert {entry["why"] for entry in found["undecided"] if entry["status"] == "failed"} == {"not analyzed"}
    ways = found["at_threshold"]
    assert (ways["decided"]["sensitivity"]["slides"], ways["decided"]["specificity"]["slides"]) == (8, 9)
    hits = ways["decided"]["sensitivity"]["hits"]
    assert (ways["undecided_wrong"]["sensitivity"]["hits"], ways["undecided_wrong"]["sensitivity"]["slides"]) == (
        hits,
        10,
    )
    assert ways["undecided_referred"]["sensitivity"]["hits"] == hits + 2
    assert ways["undecided_referred"]["specificity"]["hits"] == ways["decided"]["specificity"]["hits"]
    assert found["score_kind"].startswith("uncalibrated")
    assert any("uncalibrated" in note for note in found["notes"])


def test_a_slide_of_the_same_name_is_not_taken_for_one_that_was_not_analyzed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    paths = {place: tmp_path / place / "s.tiff" for place in ("a", "b", "c", "moved")}
    for place, path in paths.items():
        path.parent.mkdir()
        if place != "moved":
            path.write_bytes(place.encode() * (10 if place == "c" else 4))
    runs = tmp_path / "runs"
    write_run(runs / slide_id(paths["a"]), paths["a"], tile_verdicts(rng, abnormal=True))
    (runs / "run.json").write_text(json.dumps({"slides": {slide_id(paths["a"]): str(paths["a"])}}))
    manifest = tmp_path / "manifest.csv"

    def found(*places: str) -> list[str]:
        lines = [f"{place},{paths[place]},normal,{place},{place}" for place in places]
        manifest.write_text("\n".join(["sample_id,image_path,label,patient,split", *lines]))
        return [row.problem for row in read_labelled(manifest, runs)]

    assert found("a", "b") == ["", "not analyzed"]  # b's label must not go to a's run
    assert [row.problem for row in read_labelled(manifest, runs, split="b")] == ["not analyzed"]
    assert found("c") == ["not analyzed"]  # another file: a is still there, and is larger
    assert found("b") == [""]  # a copy elsewhere
    paths["a"].unlink()
    assert found("moved") == [""]  # on a disk that is not connected, or moved


def test_missing_slides_stop_a_fit_and_are_named(cohort: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    text = (cohort / "manifest.csv").read_text().replace("s004.tiff", "other.tiff")
    manifest = cohort / "with_missing.csv"
    manifest.write_text(text)
    arguments = ["fit", manifest, "--runs", cohort / "runs", "-o", tmp_path / "a", "--split", "train"]
    result = run(*arguments)
    assert isinstance(result.exception, SettingError)
    assert "1 of 90 slides cannot be used: s004: not analyzed" in result.exception.message
    assert "wsi-chat cohort" in result.exception.hint
    result = run(*arguments, "--skip-missing", "--folds", "2")
    assert result.exit_code == 0, repr(result.exception)
    assert load_fitted(tmp_path / "a").record.cohort.left_out == ("s004: not analyzed",)


def test_mixed_conditions_and_too_few_patients_are_refused(
    cohort: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    root = tmp_path
    rng = np.random.default_rng(2)
    lines = ["image_path,label,patient"]
    for i in range(8):
        image = root / f"m{i}.tiff"
        rows = tile_verdicts(rng, abnormal=i % 2 == 1)
        write_run(root / "runs" / slide_id(image), image, rows, dialect="cytochat" if i == 5 else "embedded")
        lines.append(f"{image.name},{'abnormal' if i % 2 else 'normal'},q{i}")
    (root / "manifest.csv").write_text("\n".join(lines))
    mixed = run("fit", root / "manifest.csv", "--runs", root / "runs", "-o", root / "a").exception
    assert isinstance(mixed, SettingError)
    assert 'dialect: "cytochat", "embedded"' in mixed.message
    few = run("fit", root / "manifest.csv", "--runs", root / "runs", "-o", root / "a", "--force").exception
    assert isinstance(few, SettingError)
    assert "10 patients of class 'normal' are needed, and there are 4" in few.message


def test_one_checkpoint_in_two_number_formats_is_one_condition(tmp_path: Path, run: Callable[..., Any]) -> None:
    rng = np.random.default_rng(2)
    lines = ["image_path,label,patient"]
    for i in range(40):
        image = tmp_path / f"m{i}.tiff"
        rows = tile_verdicts(rng, abnormal=i % 2 == 1)
        write_run(
            tmp_path / "runs" / slide_id(image), image, rows, revision=f"m@1:{'bfloat16' if i < 30 else 'float32'}"
        )
        lines.append(f"{image.name},{'abnormal' if i % 2 else 'normal'},q{i}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    fitting = ("fit", tmp_path / "manifest.csv", "--runs", tmp_path / "runs", "-o", tmp_path / "a", "--folds", "2")
    assert run(*fitting).exit_code == 0
    fitted = load_fitted(tmp_path / "a")
    assert fitted.record.conditions["model"] == ["m@1:bfloat16", "m@1:float32"]
    here = dict(fitted.record.conditions)
    assert fitted.differences(here | {"model": "m@1:float32"}) == []
    assert fitted.differences(here | {"model": "m@1:bfloat16"}) == []
    (other,) = fitted.differences(here | {"model": "m@1:float16"})
    assert "'m@1:bfloat16' or 'm@1:float32'" in str(other)
    image = tmp_path / "m39.tiff"
    write_run(tmp_path / "runs" / slide_id(image), image, tile_verdicts(rng, abnormal=True), revision="m@2:float32")
    assert isinstance(run(*fitting[:-3], tmp_path / "b", *fitting[-2:]).exception, SettingError)  # other weights


def test_the_negative_class_is_told_or_asked_for() -> None:
    assert classes_of(["abnormal", "normal"], negative=None) == ("normal", "abnormal")
    order = ["nilm", "asc-us", "lsil", "hsil"]
    assert classes_of(["hsil", "NILM", "lsil"], negative=None, order=order) == ("NILM", "lsil", "hsil")
    with pytest.raises(SettingError, match="--negative"):
        classes_of(["a", "b"], negative=None)
    with pytest.raises(SettingError, match="no such label"):
        classes_of(["a", "b"], negative="c")


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image_path,label\na.tiff,normal\nb.tiff,\n")
    with pytest.raises(SettingError, match="line 3: no value in column 'label'"):
        read_labelled(tmp_path / "m.csv", tmp_path)


def test_help_of_the_new_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, wsi_chat.cli, wsi_chat.commands.fit, wsi_chat.commands.validate;"
        "print([m for m in ('torch', 'transformers', 'vllm', 'pandas') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
