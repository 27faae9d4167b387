"""Image features in the attention head: what they add, what is read of them, what is missing, what must not leak."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.attention import TOP_TILES, moments, standardised, top_tiles, train_attention
from aggregators.features import Evidence, ImageFeatures, evidence_from_columns, tile_feature_names, tile_features
from aggregators.fit import Cohort, fit
from aggregators.fitted import load_fitted
from aggregators.intervals import auc
from wsi_chat.errors import OutputError, SettingError

WIDTH = 24


def kept(rows: np.ndarray, *, model: str = "m@1") -> ImageFeatures:
    """Features that lie in memory, of tiles 0, 1, 2 ..."""
    return ImageFeatures(rows.shape[1], "test-1", model, lambda tiles: rows[tiles], range(len(rows)))


def slide(rng: np.random.Generator, abnormal: int, *, tiles: int = 60, width: int = WIDTH) -> Evidence:
    """Probabilities and findings say nothing; in an abnormal slide eight tiles differ in two image features."""
    rows = rng.normal(0, 1, (tiles, width)) * 10.0 ** np.linspace(-2, 2, width) + np.linspace(-50, 50, width)
    rows[: 8 * abnormal, 3] += 4 * 10.0 ** np.linspace(-2, 2, width)[3]
    rows[: 8 * abnormal, 17] -= 4 * 10.0 ** np.linspace(-2, 2, width)[17]
    return Evidence(
        p=rng.uniform(0.01, 0.2, tiles),
        cellularity=rng.uniform(0.1, 0.9, tiles),
        focus=rng.uniform(50, 150, tiles),
        detailed=np.zeros(tiles, dtype=bool),
        findings={},
        seen={},
        abnormal=frozenset(),
        image=kept(rows.astype(np.float32)),
    )


def cohort(n: int, seed: int) -> Cohort:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return Cohort(
        ids=tuple(f"s{i}" for i in range(n)),
        evidence=tuple(slide(rng, int(label)) for label in y),
        y=y.astype(np.intp),
        patients=tuple(f"p{i // 2 * 2 + i % 2}" for i in range(n)),
        classes=("normal", "abnormal"),
    )


FAST = {"head": "attention", "folds": 2, "inner": 2}


@pytest.fixture(scope="module", autouse=True)
def _few_epochs():
    """Enough of them for cohorts this clear, in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aggregators.fit.checkpoints", lambda slides: (8, 20))
        yield


@pytest.fixture(scope="module")
def fitted(_few_epochs):
    return fit(cohort(60, 0), image=True, conditions={"model": "m@1"}, **FAST)


def test_a_label_that_only_the_image_features_carry_is_learned_and_is_not_without_them(fitted) -> None:
    test = cohort(80, 9)
    p = 1 - fitted.aggregator.probabilities(test.evidence)[:, 0]
    assert auc(test.y > 0, p) > 0.9
    assert fitted.aggregator.record.cv.auc.value > 0.9
    without = fit(cohort(60, 0), **FAST)
    blind = 1 - without.aggregator.probabilities(test.evidence)[:, 0]
    # the AUC of chance among 40 and 40 has a standard error of .065
    assert abs(auc(test.y > 0, blind) - 0.5) < 0.2


def test_shuffled_labels_have_an_auc_near_one_half_however_many_features_there_are() -> None:
    values = []
    for seed in range(3):
        data = cohort(60, seed)
        shuffled = np.random.default_rng(seed).permutation(data.y)
        values.append(fit(replace(data, y=shuffled), image=True, **FAST).aggregator.record.cv.auc.value)
    # the mean of three AUCs of 60 slides has a standard error of .043; a head that saw its test fold would be at 1
    assert abs(np.mean(values) - 0.5) < 0.15


def test_the_head_is_standardised_by_the_slides_it_is_trained_on_alone() -> None:
    train, other = cohort(20, 1), cohort(20, 2)
    bags = [tile_features(e, (), image=WIDTH) for e in train.evidence]
    first, *_ = train_attention(bags, train.y, classes=2, weights=np.ones(20), seed=0, epochs=[1])
    together = np.concatenate(bags).astype(np.float64)
    np.testing.assert_allclose(first.mean, together.mean(axis=0), rtol=1e-4, atol=1e-4)
    spread = together.std(axis=0)
    np.testing.assert_allclose(first.scale, np.where(spread > 1e-6, spread, 1), rtol=1e-4)
    # what the head says of one slide does not depend on the slides beside it
    others = [tile_features(e, (), image=WIDTH) for e in other.evidence]
    np.testing.assert_allclose(
        first.log_probabilities(others)[:1], first.log_probabilities([others[0], others[1] * 1e4])[:1], atol=1e-6
    )


# ------------------------------------------------------------------------------------- what is read


@settings(deadline=None, max_examples=30)
@given(
    tiles=st.integers(1, 400),
    levels=st.integers(1, 300),
    seed=st.integers(0, 10**6),
)
def test_no_more_tiles_are_read_than_are_looked_at(tiles: int, levels: int, seed: int) -> None:
    """With any number of tiles and of ties among their probabilities, the head gets what it would get of all rows."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 1, (tiles, 3)).astype(np.float32)
    asked: list[int] = []

    def read(wanted: np.ndarray) -> np.ndarray:
        asked.extend(wanted.tolist())
        return rows[wanted]

    index = rng.permutation(10 * tiles)[:tiles]
    place = {int(tile): n for n, tile in enumerate(index)}
    base = slide(rng, 0, tiles=tiles)
    evidence = replace(
        base,
        p=rng.integers(1, levels + 1, tiles) / (levels + 1),
        image=ImageFeatures(3, "k", "m", lambda t: read(np.array([place[int(i)] for i in t])), index.tolist()),
    )
    found = tile_features(evidence, (), image=3)
    assert len(asked) == len(set(asked)) <= TOP_TILES
    whole = np.concatenate([tile_features(evidence, ()), np.zeros((tiles, 1), np.float32), rows], axis=1)
    np.testing.assert_array_equal(found, top_tiles(whole))
    assert found.shape[1] == len(tile_feature_names((), 3))


def test_order_does_not_decide_which_of_many_equal_tiles_are_looked_at() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (300, 3)).astype(np.float32)
    same = Evidence(
        p=np.full(300, 0.5), cellularity=np.full(300, 0.5), focus=np.full(300, np.nan),
        detailed=np.zeros(300, dtype=bool), findings={}, seen={}, abnormal=frozenset(), image=kept(rows),
    )  # fmt: skip
    other = replace(same, image=kept(rows[rng.permutation(300)]))
    np.testing.assert_array_equal(tile_features(same, (), image=3), tile_features(other, (), image=3))


def test_features_belong_to_their_tiles_and_not_to_their_place_in_the_table() -> None:
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    columns = {
        "tile_id": ["t000007", "t000003", "t000011"], "index": [7, 3, 11], "p_screen": [0.2, None, 0.9],
        "cellularity": [0.5] * 3, "focus": [1.0] * 3, "status": ["screened", "unreadable", "screened"],
    }  # fmt: skip
    evidence = evidence_from_columns(columns, [], image=kept(rows))
    found = tile_features(evidence, (), image=2)
    assert found[:, -2:].tolist() == [[22.0, 23.0], [14.0, 15.0]], "the highest first"


# ------------------------------------------------------------------------------------- what is missing


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 50), st.integers(0, 10**6))
def test_moments_are_those_of_what_is_known(bags: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = [rng.normal(5, 3, (rows, 4)).astype(np.float32) for _ in range(bags)]
    for bag in made:
        bag[rng.random(bag.shape) < 0.3] = np.nan
        bag[:, 0] = 1.0
    mean, scale = moments(made)
    whole = np.concatenate(made).astype(np.float64)
    for column in range(1, 4):
        known = whole[:, column][~np.isnan(whole[:, column])]
        if len(known):
            assert mean[column] == pytest.approx(known.mean(), rel=1e-4, abs=1e-4)
            assert scale[column] == pytest.approx(known.std() if known.std() > 1e-6 else 1.0, rel=1e-3)
    assert (mean[0], scale[0]) == (1.0, 1.0)
    assert np.isfinite(standardised(whole.astype(np.float32), mean, scale)).all()


def test_a_tile_without_features_is_marked_and_never_zero() -> None:
    rng = np.random.default_rng(4)
    evidence = slide(rng, 1, tiles=50)
    rows = np.array(evidence.image.rows(np.arange(50)))
    rows[7] = np.nan
    found = tile_features(replace(evidence, image=kept(rows)), (), image=WIDTH)
    unknown = tile_feature_names((), WIDTH).index("image_unknown")
    lost = np.flatnonzero(found[:, unknown] == 1)
    assert len(lost) == 1
    assert np.isnan(found[lost[0], unknown + 1 :]).all()
    assert np.isfinite(np.delete(found, lost[0], axis=0)).all()


def test_a_slide_that_lacks_the_features_of_many_tiles_is_not_read(fitted) -> None:
    evidence = slide(np.random.default_rng(4), 1, tiles=50)
    rows = np.array(evidence.image.rows(np.arange(50)))
    rows[:6] = np.nan
    with pytest.raises(OutputError, match="6 of the 50 highest tiles of a slide have no image features"):
        fitted.aggregator.probabilities([replace(evidence, image=kept(rows))])


def test_a_slide_without_features_of_another_width_or_of_another_model_is_named() -> None:
    data = cohort(40, 0)

    def with_one(image: ImageFeatures | None) -> Cohort:
        changed = list(data.evidence)
        changed[5] = replace(changed[5], image=image)
        return replace(data, evidence=tuple(changed))

    for image, message in (
        (None, "slide s5 has no image features"),
        (kept(np.zeros((60, 8), np.float32)), r"slide s5 has 8 image features .*, and others have 24"),
        (kept(np.zeros((60, WIDTH), np.float32), model="other@2"), r"slide s5 .*other@2.*others have 24 .*m@1"),
    ):
        with pytest.raises(SettingError, match=message) as raised:
            fit(with_one(image), image=True, **FAST)
        assert "--features" in raised.value.hint


def test_a_head_refuses_another_number_of_features(fitted) -> None:
    with pytest.raises(SettingError, match="8 image features, and 24 are wanted"):
        fitted.aggregator.probabilities([replace(cohort(2, 0).evidence[0], image=kept(np.zeros((60, 8), np.float32)))])


# ------------------------------------------------------------------------------------- the folder


def test_a_saved_aggregator_says_whose_features_it_reads_and_gives_the_same_scores(fitted, tmp_path) -> None:
    fitted.aggregator.save(tmp_path)
    again = load_fitted(tmp_path)
    record = again.record
    assert (record.image_features, record.image_kind, record.image_model) == (WIDTH, "test-1", "m@1")
    slides = cohort(4, 3).evidence
    np.testing.assert_array_equal(again.probabilities(slides), fitted.aggregator.probabilities(slides))
    data = json.loads((tmp_path / "aggregator.json").read_text())
    data["image_model"] = "other@2"
    (tmp_path / "aggregator.json").write_text(json.dumps(data))
    with pytest.raises(SettingError, match="changed after it was written"):
        load_fitted(tmp_path)


def test_an_aggregator_without_image_features_is_written_as_before_there_were_any(tmp_path) -> None:
    fit(cohort(40, 0), **FAST).aggregator.save(tmp_path)
    data = json.loads((tmp_path / "aggregator.json").read_text())
    assert not {"image_kind", "image_model"} & set(data), "its hash would be another"
    assert load_fitted(tmp_path).record.image_features == 0
