"""Fitting: what it learns, what it must not see, what it refuses, and that a saved aggregator is whole or refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from aggregators.conformal import Band
from aggregators.features import (
    Evidence,
    evidence_from_columns,
    tile_feature_names,
    tile_features,
    verdict_feature_names,
    verdict_features,
)
from aggregators.fit import Cohort, fit
from aggregators.fitted import Applied, FittedAggregator, load_fitted
from aggregators.folds import check_patients, grouped_folds, hold_out
from wsi_chat.errors import SettingError


def slide(rng, abnormal: int, *, tiles: int = 80, strength: float = 4.0) -> Evidence:
    logits = rng.normal(-2.5, 1.0, tiles)
    logits[: 4 * abnormal] += strength
    found = {"hsil": int(rng.poisson(2 * abnormal))}
    return Evidence(
        p=1 / (1 + np.exp(-logits)),
        cellularity=rng.uniform(0.1, 0.9, tiles),
        focus=np.full(tiles, np.nan),
        detailed=np.zeros(tiles, dtype=bool),
        findings=found,
        seen={},
        abnormal=frozenset(["hsil"]),
    )


def cohort(n: int = 60, *, classes: int = 2, strength: float = 4.0, seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    names = ("normal", "abnormal", "worse")[:classes]
    return Cohort(
        ids=tuple(f"s{i}" for i in range(n)),
        evidence=tuple(slide(rng, int(label), strength=strength) for label in y),
        y=y.astype(np.intp),
        patients=tuple(f"p{i}" for i in range(n)),
        classes=names,
        fingerprints=tuple(f"f{i}" for i in range(n)),
    )


@pytest.fixture(scope="module")
def fitted():
    return fit(cohort(), labels=("hsil",), miss_rate=0.2, conditions={"model": "m@1"}, folds=3)


# ------------------------------------------------------------------------------------- features


def test_features_have_their_names_and_do_not_depend_on_the_order_of_tiles():
    rng = np.random.default_rng(3)
    one = replace(slide(rng, 1), seen={"hsil": np.arange(80.0)})
    order = rng.permutation(80)
    two = replace(
        one, p=one.p[order], cellularity=one.cellularity[order], focus=one.focus[order], detailed=one.detailed[order],
        seen={"hsil": one.seen["hsil"][order]},
    )  # fmt: skip
    labels = ("hsil", "lsil")
    assert verdict_features(one, labels).shape == (len(verdict_feature_names(labels)),)
    np.testing.assert_allclose(verdict_features(one, labels), verdict_features(two, labels), atol=1e-12)
    rows = tile_features(one, labels)
    assert rows.shape == (80, len(tile_feature_names(labels)))
    np.testing.assert_array_equal(rows[order], tile_features(two, labels))


def test_features_have_known_values():
    columns = {
        "tile_id": ["t0", "t1", "t2"], "p_screen": [0.5, None, 0.9], "cellularity": [0.2, 0.3, None],
        "focus": [None, 3.0, 7.0], "status": ["screened", "unreadable", "detailed"],
    }  # fmt: skip
    evidence = evidence_from_columns(columns, [])
    assert len(evidence.p) == 2, "a tile without an answer is no row"
    found = dict(zip(verdict_feature_names(()), verdict_features(evidence, ()), strict=True))
    assert found["logit_top1"] == pytest.approx(np.log(9))
    assert found["logit_mean"] == pytest.approx(np.log(9) / 2)
    assert found["log_share_above_0.5"] == pytest.approx(0.0)
    assert found["log_share_above_0.9"] == pytest.approx(np.log10(1.5 / 2.5))
    assert found["log_tiles"] == pytest.approx(np.log10(2))
    tiles = tile_features(evidence, ())
    assert tiles[:, 1].tolist() == pytest.approx([0.2, 0.0])
    assert tiles[:, 2].tolist() == [0.0, 1.0], "what is unknown is marked"
    assert tiles[:, 5].tolist() == [0.0, 1.0]


def test_image_features_that_are_missing_are_refused():
    with pytest.raises(SettingError, match="no image features, and 8 are wanted"):
        tile_features(slide(np.random.default_rng(0), 0), (), image=8)


# ------------------------------------------------------------------------------------- leaks


def test_folds_keep_patients_whole_and_a_leak_is_refused():
    y = np.arange(40) % 2
    patients = [f"p{i // 4}" for i in range(40)]
    for fold in grouped_folds(y, patients, k=4, seed=1):
        assert not {patients[i] for i in fold.train} & {patients[i] for i in fold.test}
        assert sorted([*fold.train, *fold.test]) == list(range(40))
    with pytest.raises(SettingError, match="fold 2: 1 patient is on both sides: p7"):
        check_patients(["p1", "p7"], ["p7", "p9"], where="fold 2")


def test_a_splitter_that_leaks_is_caught(monkeypatch):
    import sklearn.model_selection

    class Leaky(sklearn.model_selection.StratifiedGroupKFold):
        def split(self, x, y=None, groups=None):
            for train, test in super().split(x, y, groups):
                yield train, np.append(test, train[0])

    monkeypatch.setattr(sklearn.model_selection, "StratifiedGroupKFold", Leaky)
    with pytest.raises(SettingError, match="on both sides"):
        fit(cohort(), folds=3)


def test_patients_held_out_are_whole_and_enough():
    y = np.arange(60) % 2
    patients = [f"p{i // 2}" for i in range(60)]
    fold = hold_out(y, patients, positives=7, negatives=3, seed=0)
    held = {patients[i] for i in fold.test}
    assert len(held) == 7
    assert not held & {patients[i] for i in fold.train}


def test_shuffled_labels_have_an_auc_near_one_half():
    values = []
    for seed in range(3):
        data = cohort(80, seed=seed)
        shuffled = np.random.default_rng(seed).permutation(data.y)
        values.append(fit(replace(data, y=shuffled), labels=("hsil",), folds=3).aggregator.record.cv.auc.value)
    # the mean of three AUCs of 80 slides has a standard error of .037; one that saw its test fold would be near .8
    assert abs(np.mean(values) - 0.5) < 0.12


# ------------------------------------------------------------------------------------- what it learns


def test_a_signal_is_found_and_calibrated(fitted):
    record = fitted.aggregator.record
    assert record.cv.auc.value > 0.95
    assert record.cohort.slides == 60
    assert record.cohort.held_out + record.cv.slides == 60
    rng = np.random.default_rng(50)
    p = fitted.aggregator.probabilities([slide(rng, 0), slide(rng, 1)])
    assert p.sum(axis=1) == pytest.approx([1, 1])
    assert p[0, 0] > 0.5 > p[1, 0]


def test_three_classes_are_told_apart():
    record = fit(cohort(90, classes=3, strength=2.5), labels=("hsil",), folds=3).aggregator.record
    assert record.classes == ("normal", "abnormal", "worse")
    assert len(record.logistic.weights) == 3
    assert record.cv.balanced_accuracy > 0.7
    assert sum(map(sum, record.cv.confusion)) == 90


def test_two_fits_are_the_same(fitted):
    again = fit(cohort(), labels=("hsil",), miss_rate=0.2, conditions={"model": "m@1"}, folds=3)
    assert again.aggregator.sha256 == fitted.aggregator.sha256


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (cohort(60, classes=1), {}, r"1 class \(normal\); a head takes 2 to 7"),
        (cohort(18), {}, "10 patients of class 'normal' are needed, and there are 9"),
        (cohort(50), {"miss_rate": 0.05}, r"29 patients of class 'abnormal' are needed \(19 to keep .* there are 25"),
        (cohort(60), {"false_alarm_rate": 0.1}, "without --miss-rate"),
        (cohort(60), {"image": 4}, "attention head only"),
    ],
)
def test_cohorts_that_cannot_do_are_refused_with_the_number_needed(data, options, message):
    with pytest.raises(SettingError, match=message):
        fit(data, **options)


def test_an_empty_cohort_is_refused():
    empty = Cohort((), (), np.zeros(0, dtype=np.intp), (), ())
    with pytest.raises(SettingError, match="0 classes"):
        fit(empty)


# ------------------------------------------------------------------------------------- the folder


def test_a_saved_aggregator_reads_back_and_gives_the_same_scores(fitted, tmp_path):
    fitted.aggregator.save(tmp_path)
    again = load_fitted(tmp_path)
    assert again.record == fitted.aggregator.record
    slides = [slide(np.random.default_rng(1), 1)]
    np.testing.assert_array_equal(again.probabilities(slides), fitted.aggregator.probabilities(slides))
    assert b"p1" not in (tmp_path / "aggregator.json").read_bytes().split(b'"patient_hashes"')[1][:400]


def test_a_truncated_or_edited_aggregator_is_refused(fitted, tmp_path):
    path = fitted.aggregator.save(tmp_path)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(SettingError, match="cut off or damaged: it is not JSON"):
        load_fitted(tmp_path)
    data = json.loads(text)
    data["calibration"]["slope"] *= 2
    path.write_text(json.dumps(data))
    with pytest.raises(SettingError, match="changed after it was written"):
        load_fitted(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(SettingError, match="nested more than"):
        load_fitted(tmp_path)
    data["conditions"]["model"] = "\ud800"  # half a pair, which no SHA-256 can be made of
    path.write_text(json.dumps(data))
    with pytest.raises(SettingError, match="changed after it was written"):
        load_fitted(tmp_path)
    data["conditions"]["model"] = "m@1"
    data["version"] = 2
    path.write_text(json.dumps(data))
    with pytest.raises(SettingError, match="version"):
        load_fitted(tmp_path)
    with pytest.raises(SettingError, match=r"no aggregator\.json"):
        load_fitted(tmp_path / "absent")


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_weights_out_of_all_bounds_are_an_error_and_never_a_score_of_0(fitted):
    record = fitted.aggregator.record
    wild = tuple(tuple(1e308 if n % 2 else -1e308 for n in range(len(row))) for row in record.logistic.weights)
    broken = FittedAggregator(
        record.model_copy(update={"logistic": record.logistic.model_copy(update={"weights": wild})})
    )
    with pytest.raises(SettingError, match=r"aggregator\.json give a slide no probability"):
        broken.probabilities([slide(np.random.default_rng(1), 1)])


def test_other_conditions_name_both_values(fitted):
    assert fitted.aggregator.differences({"model": "m@1"}) == []
    assert fitted.aggregator.differences({"model": "other@2"}) == ["model 'other@2', fitted with 'm@1'"]


def test_thresholds_keep_the_rate_asked_for_or_say_what_is_missing(fitted):
    found, promise = fitted.aggregator.thresholds(miss_rate=None, false_alarm_rate=None)
    assert found.low == found.high
    assert "expected miss rate at most 0.2 (9 abnormal patients held out)" in promise
    with pytest.raises(SettingError, match="needs 99 abnormal patients"):
        fitted.aggregator.thresholds(miss_rate=0.01, false_alarm_rate=None)
    without = fit(cohort(), labels=("hsil",), folds=3).aggregator
    assert without.thresholds(miss_rate=None, false_alarm_rate=None) is None
    with pytest.raises(SettingError, match="without patients held out"):
        without.thresholds(miss_rate=0.1, false_alarm_rate=None)


def test_a_reading_says_how_it_is_calibrated(fitted):
    reading = Applied(fitted.aggregator, Band(0.3, 0.6)).read(slide(np.random.default_rng(2), 1))
    assert (
        reading.kind
        == f"calibrated by Platt scaling on {fitted.aggregator.record.cv.slides} slides, logistic regression"
    )
    assert 0.5 < reading.score <= 1.0
    assert reading.fitted.classes["abnormal"] == pytest.approx(reading.score)
    forced = Applied(fitted.aggregator, Band(0.3, 0.6), "a promise", ("model 'a', fitted with 'b'",))
    reading = forced.read(slide(np.random.default_rng(2), 1))
    assert reading.kind.startswith("uncalibrated here")
    assert reading.fitted.guarantee == ""


def test_a_fitted_aggregator_draws_the_verdict_with_its_band(fitted, make_tile, make_verdict, make_funnel, cervix):
    from aggregators import aggregate
    from aggregators.features import evidence_of
    from wsi_chat.schema import Box

    chances = np.random.default_rng(0).uniform(0.02, 0.2, 80).tolist()
    rows = [make_verdict(make_tile(i, 600 * i), p) for i, p in enumerate(chances)]
    score = Applied(fitted.aggregator, Band(0.5, 0.5)).read(evidence_of(rows, [])).score

    def status(low: float, high: float, coverage: int = 80):
        applied = Applied(fitted.aggregator, Band(low, high), "a promise")
        funnel = make_funnel(rows, foreground=coverage, selected=coverage)
        return aggregate(rows, system=cervix, funnel=funnel, bounds=Box(0, 0, 10**6, 600), applied=applied)

    assert status(score / 2, score).status == "abnormal"
    between = status(score / 2, (1 + score) / 2)
    assert between.status == "indeterminate"
    assert "lies between" in between.reason
    assert between.category is None
    below = status((1 + score) / 2, (1 + score) / 2)
    assert below.status == "normal"
    assert below.score_kind.startswith("calibrated by Platt scaling on")
    assert below.fitted.guarantee == "a promise"
    assert below.fitted.classes["normal"] == pytest.approx(1 - score)
    assert status((1 + score) / 2, (1 + score) / 2, coverage=200).status == "indeterminate", "missing is never normal"
