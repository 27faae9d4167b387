"""Attention over tiles: what it finds, that order and seeds do not matter, and its file without pickle."""

from __future__ import annotations

import numpy as np
import pytest

from aggregators.attention import TOP_TILES, from_bytes, to_bytes, top_tiles, train_attention
from aggregators.intervals import auc
from wsi_chat.errors import SettingError

FEATURES = 4


def bags(n: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Slides of 30 to 300 tiles; in abnormal ones, six tiles stand out in column 2 and have a high logit."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    found = []
    for label in y:
        bag = rng.normal(0, 1, (rng.integers(30, 300), FEATURES)).astype(np.float32)
        bag[:6, 0] += 3.0
        bag[: 6 * label, 2] += 4.0
        found.append(bag)
    return found, y.astype(np.intp)


@pytest.fixture(scope="module")
def head():
    x, y = bags(60, 0)
    *_, last = train_attention(x, y, classes=2, weights=np.ones(60), seed=0, epochs=[25])
    return last


def test_rare_tiles_are_found_and_attended_to(head):
    x, y = bags(40, 1)
    logs = head.log_probabilities(x)
    assert np.exp(logs).sum(axis=1) == pytest.approx(np.ones(40))
    assert auc(y, logs[:, 1]) > 0.9
    attention = head.attention(x[1])
    assert attention.sum() == pytest.approx(1.0, abs=1e-5)
    marked = top_tiles(x[1])[:, 2] > 3
    assert attention[marked].mean() > attention[~marked].mean()


def test_the_order_of_tiles_and_the_company_of_other_slides_change_nothing(head):
    x, _ = bags(6, 2)
    alone = np.concatenate([head.log_probabilities([bag]) for bag in x])
    shuffled = [bag[np.random.default_rng(3).permutation(len(bag))] for bag in x]
    np.testing.assert_allclose(head.log_probabilities(shuffled), alone, atol=1e-5)
    assert head.log_probabilities([x[0][:1]]).shape == (1, 2), "a slide of one tile"


def test_the_top_tiles_are_those_with_the_highest_logit():
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    found = top_tiles(x)
    np.testing.assert_array_equal(found[:, 0], np.sort(x[:, 0])[::-1][:TOP_TILES])


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    x, y = bags(20, 4)
    runs = [list(train_attention(x, y, classes=2, weights=np.ones(20), seed=s, epochs=[1, 2])) for s in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0][1].weights["out.weight"], runs[1][1].weights["out.weight"])
    assert not np.array_equal(runs[0][1].weights["out.weight"], runs[2][1].weights["out.weight"])
    assert not np.array_equal(runs[0][0].weights["out.weight"], runs[0][1].weights["out.weight"])


def test_the_file_is_safetensors_and_its_shapes_are_checked(head):
    data = to_bytes(head)
    again = from_bytes(data, classes=2, features=FEATURES)
    x, _ = bags(4, 5)
    np.testing.assert_array_equal(again.log_probabilities(x), head.log_probabilities(x))
    with pytest.raises(SettingError, match="not for 9 features"):
        from_bytes(data, classes=2, features=9)
    with pytest.raises(SettingError, match="cannot be read"):
        from_bytes(data[:100], classes=2, features=FEATURES)


def test_the_whole_fit_with_the_attention_head_saves_and_reads_back(tmp_path, monkeypatch):
    import aggregators.fit as fitting
    from aggregators.features import Evidence
    from aggregators.fitted import load_fitted

    monkeypatch.setattr(fitting, "checkpoints", lambda slides: (8, 16))
    rng = np.random.default_rng(0)

    def slide(label: int) -> Evidence:
        logits = rng.normal(-3, 1, 50)
        logits[: 5 * label] += 5
        unknown = np.full(50, np.nan)
        return Evidence(1 / (1 + np.exp(-logits)), unknown, unknown, np.zeros(50, bool), {}, {}, frozenset())

    y = np.arange(40) % 2
    data = fitting.Cohort(
        tuple(map(str, y)), tuple(slide(label) for label in y), y.astype(np.intp), tuple(f"p{i}" for i in range(40)),
        ("normal", "abnormal"),
    )  # fmt: skip
    fitted = fitting.fit(data, head="attention", folds=2, inner=2).aggregator
    assert fitted.record.cv.auc.value > 0.9
    fitted.save(tmp_path)
    np.testing.assert_array_equal(load_fitted(tmp_path).probabilities([slide(1)]).shape, (1, 2))
    weights = tmp_path / "attention.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(SettingError, match=r"attention\.safetensors is not the file"):
        load_fitted(tmp_path)
    weights.unlink()
    with pytest.raises(SettingError, match="No such file"):
        load_fitted(tmp_path)
