"""fit --image-features, validate, analyze and cohort with an aggregator that reads image features, end to end."""

from __future__ import annotations

import csv
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import wsi_chat
from aggregators.fitted import load_fitted
from wsi_chat.analysis.feature_store import FeatureStore, identity_of, read_features
from wsi_chat.analysis.run_folder import SlideFolder
from wsi_chat.analysis.slide_ids import slide_id
from wsi_chat.cli import app
from wsi_chat.engines import ScriptedEngine
from wsi_chat.errors import SettingError
from wsi_chat.scoring.fitting import evidence_of_folder

HERE = Path(__file__).parent
_written = runpy.run_path(str(HERE / "test_fit_validate.py"))
tile_verdicts, write_run = _written["tile_verdicts"], _written["write_run"]
Seeing = runpy.run_path(str(HERE / "test_features.py"))["Seeing"]
WIDTH = 12


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aggregators.fit.checkpoints", lambda slides: (8, 20))
        patch.setattr("wsi_chat.analysis.outputs.draw_pictures", lambda *_, **__: None)
        yield


def write_slide(root: Path, name: str, rng: np.random.Generator, *, abnormal: bool, width: int = WIDTH) -> Path:
    """An analyzed slide whose probabilities say nothing; ten tiles of an abnormal one have another feature 2."""
    image = root / f"{name}.tiff"
    folder = root / "runs" / slide_id(image)
    rows = tile_verdicts(rng, abnormal=False)
    report = write_run(folder, image, rows)
    store = FeatureStore(
        SlideFolder(folder),
        of=identity_of(report.slide, report.provenance),
        tiles=len(rows),
        width=width,
        overwrite=True,
    )
    values = rng.normal(100, 5, (len(rows), width)).astype(np.float32)
    values[: 10 * abnormal, 2] += 30
    store.put([row.tile.index for row in rows], values)
    store.flush()
    return image


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 48 analyzed slides, half abnormal: 26 train, 22 test."""
    root = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(1)
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "image_path", "label", "patient", "split"])
        for i in range(48):
            image = write_slide(root, f"s{i:03d}", rng, abnormal=i % 2 == 1)
            kind = "abnormal" if i % 2 else "normal"
            writer.writerow([f"s{i:03d}", image.name, kind, f"p{i:03d}", "train" if i < 26 else "test"])
    return root


@pytest.fixture(scope="module")
def run() -> Callable[..., Any]:
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def aggregator(cohort: Path, run: Callable[..., Any]) -> Path:
    out = cohort / "aggregator"
    result = run("fit", cohort / "manifest.csv", "--runs", cohort / "runs", "-o", out, "--split", "train",
                 "--head", "attention", "--image-features", "--folds", "2")  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert f"{WIDTH} features of a tile, patch-mean-1 of m@1" in result.stdout
    return out


def test_the_fit_says_whose_features_it_reads_and_separates(aggregator: Path) -> None:
    record = load_fitted(aggregator).record
    assert (record.image_features, record.image_model) == (WIDTH, "m@1")
    assert record.feature_names[-1] == f"image:{WIDTH - 1}"
    assert record.cv.auc.value > 0.9


def test_a_validation_reads_them_and_separates_and_without_them_nothing_does(
    cohort: Path, aggregator: Path, run: Callable[..., Any]
) -> None:
    out = cohort / "validation"
    result = run("validate", cohort / "manifest.csv", "--runs", cohort / "runs", "--aggregator", aggregator,
                 "--split", "test", "-o", out, "--resamples", "100", "--no-pdf", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert json.loads(result.stdout)["auc"]["value"] > 0.9
    plain = cohort / "plain"
    result = run("fit", cohort / "manifest.csv", "--runs", cohort / "runs", "-o", plain, "--split", "train",
                 "--head", "attention", "--folds", "2", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert json.loads(result.stdout)["image_features"] == 0
    assert abs(json.loads(result.stdout)["cv"]["auc"]["value"] - 0.5) < 0.3


def test_a_slide_without_features_or_with_others_is_named_and_can_be_left_out(
    cohort: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    fit = ["fit", cohort / "manifest.csv", "--runs", cohort / "runs", "-o", tmp_path / "a", "--split", "train",
           "--head", "attention", "--image-features", "--folds", "2"]  # fmt: skip
    folder = cohort / "runs" / slide_id(cohort / "s004.tiff")
    (folder / "features.zarr").rename(tmp_path / "kept")
    try:
        error = run(*fit).exception
        assert isinstance(error, SettingError)
        assert "1 of 26 slides cannot be used: s004: " in error.message
        assert "holds no image features" in error.message
        assert "--features" in error.hint
        result = run(*fit, "--skip-missing")
        assert result.exit_code == 0, repr(result.exception)
        assert load_fitted(tmp_path / "a").record.cohort.left_out[0].startswith("s004: ")
        write_slide(cohort, "s004", np.random.default_rng(3), abnormal=False, width=3)
        error = run(*fit).exception
        assert isinstance(error, SettingError)
        assert "slide s004 has 3 image features" in error.message
        assert "others have 12" in error.message
    finally:
        write_slide(cohort, "s004", np.random.default_rng(3), abnormal=False)


def test_a_slide_that_lacks_many_tiles_features_or_whose_store_is_damaged_is_named(
    cohort: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    fit = ["fit", cohort / "manifest.csv", "--runs", cohort / "runs", "-o", tmp_path / "a", "--split", "train",
           "--head", "attention", "--image-features"]  # fmt: skip
    folder = cohort / "runs" / slide_id(cohort / "s006.tiff")
    report = wsi_chat.load_result(folder).report
    try:
        store = FeatureStore(
            SlideFolder(folder), of=identity_of(report.slide, report.provenance), tiles=60, width=WIDTH, overwrite=True
        )
        store.put(list(range(30)), np.ones((30, WIDTH), dtype=np.float32))
        store.flush()
        error = run(*fit).exception
        assert isinstance(error, SettingError)
        assert "s006: 30 of the 60 highest tiles of a slide have no image features" in error.message
        chunk = next(path for path in (folder / "features.zarr" / "features" / "c").rglob("*") if path.is_file())
        chunk.write_bytes(b"x")
        error = run(*fit).exception
        assert isinstance(error, SettingError)
        assert "s006: " in error.message
        assert "cannot be read" in error.message
    finally:
        write_slide(cohort, "s006", np.random.default_rng(4), abnormal=False)


def test_image_features_need_the_attention_head(cohort: Path, tmp_path: Path, run: Callable[..., Any]) -> None:
    error = run("fit", cohort / "manifest.csv", "--runs", cohort / "runs", "-o", tmp_path, "--image-features").exception
    assert isinstance(error, SettingError)
    assert "--head attention" in error.hint


# ------------------------------------------------------------------------------------- in a run

QUICK: dict[str, Any] = {
    "top_k": 0, "adequacy_tiles": 0, "pdf": False, "html": False, "gallery": 0, "specimen": "cervix", "force": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def of_this_engine(cohort: Path, small_slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An aggregator of five image features, as many as the scripted engine gives."""
    from aggregators.fit import Cohort, fit

    root = tmp_path_factory.mktemp("five")
    rng = np.random.default_rng(0)
    images = [write_slide(root, f"t{i}", rng, abnormal=i % 2 == 1, width=5) for i in range(24)]
    folders = [root / "runs" / slide_id(image) for image in images]
    evidence = [evidence_of_folder(SlideFolder(f), wsi_chat.load_result(f).report, image=True) for f in folders]
    data = Cohort(
        tuple(f.name for f in folders), tuple(evidence), np.arange(24) % 2, tuple(map(str, range(24))),
        ("normal", "abnormal"),
    )  # fmt: skip
    fit(data, head="attention", image=True, folds=2, inner=2, conditions={"model": "m@1"}).aggregator.save(root / "a")
    return root / "a"


def test_analyze_with_such_an_aggregator_keeps_features_by_itself_and_scores_as_the_folder_says(
    small_slide: Path, tmp_path: Path, of_this_engine: Path
) -> None:
    from aggregators.conformal import Band
    from aggregators.fitted import Applied

    result = wsi_chat.analyze(small_slide, out=tmp_path, engine=Seeing(), aggregator=str(of_this_engine), **QUICK)
    assert result.report.provenance.config["features"] is False
    assert (result.folder / "features.zarr").is_dir()
    fitted = load_fitted(of_this_engine)
    evidence = evidence_of_folder(result.files, result.report, image=True)
    reading = Applied(fitted, Band(0.5, 0.5)).read(evidence)
    assert reading is not None
    assert result.report.verdict.score == reading.score
    assert result.report.verdict.fitted is not None
    rows = read_features(result.files, result.report).read(np.array(result.tiles["index"].to_pylist()))
    assert np.isfinite(rows).all()


def test_analyze_and_cohort_refuse_it_where_the_engine_gives_no_features(
    small_slide: Path, tmp_path: Path, of_this_engine: Path
) -> None:
    from wsi_chat.cohort import analyze_cohort

    engine = ScriptedEngine(lambda query: {"A": 1.0})
    chosen = {**QUICK, "aggregator": str(of_this_engine)}
    for call in (
        lambda: wsi_chat.analyze(small_slide, out=tmp_path / "a", engine=engine, **chosen),
        lambda: analyze_cohort([small_slide], out=tmp_path / "b", engine=engine, **chosen),
    ):
        with pytest.raises(SettingError, match="reads image features: the scripted engine gives no image features"):
            call()
    assert engine.asked == []


def test_an_aggregator_of_another_width_is_refused_before_anything_is_asked(
    small_slide: Path, tmp_path: Path, aggregator: Path
) -> None:
    engine = Seeing()
    with pytest.raises(SettingError, match=f"reads {WIDTH} image features of a tile, and this model gives 5"):
        wsi_chat.analyze(small_slide, out=tmp_path, engine=engine, aggregator=str(aggregator), **QUICK)
    assert engine.asked == []


def test_a_cohort_keeps_features_and_a_finished_one_is_looked_at_again_only_for_them(
    small_slide: Path, tmp_path: Path
) -> None:
    from wsi_chat.cohort import analyze_cohort

    plain = {name: value for name, value in QUICK.items() if name != "force"}
    analyze_cohort([small_slide], out=tmp_path, engine=Seeing(), **plain)
    engine = Seeing()
    done = analyze_cohort([small_slide], out=tmp_path, engine=engine, features=True, **plain)
    assert [state.status for state in done.states] == ["done"]
    assert engine.asked == []
    assert len(engine.looked) > 10
    again = Seeing()
    analyze_cohort([small_slide], out=tmp_path, engine=again, features=True, **plain)
    assert again.looked == [], "finished is finished"
