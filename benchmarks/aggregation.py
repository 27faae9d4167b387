"""AUC of every aggregator, calibration error and conformal miss rate, on cohorts of simulated tile probabilities.

    PYTHONPATH=. python benchmarks/aggregation.py [--train 300] [--test 300] [--resamples 200] [--no-attention]

A simulated model screens 1,000 to 4,000 tiles a slide: a normal tile rings at a false-alarm rate of its slide's own
(2 % on average, hard normals more), an abnormal tile is hit at a rate of 85 %. One tile in 200, 500, 1,000 or 2,000
of an abnormal slide is abnormal, at least one. Cells are located in the top 24 tiles, with a false box in one of ten
ringing tiles. Train and test cohorts are drawn from different seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregators.calibration import calibration_error
from aggregators.conformal import miss_threshold
from aggregators.features import Evidence
from aggregators.fit import Cohort, fit
from aggregators.intervals import auc_delong
from aggregators.pooling import POOLS

PREVALENCES = (200, 500, 1000, 2000)
HIT, ALARM, TOP_K = 0.85, 0.02, 24
ALPHA = 0.05


def simulate(seed: int, *, abnormal: bool, one_in: int) -> Evidence:
    """One slide as the simulated model answers it."""
    rng = np.random.default_rng([seed, one_in, int(abnormal)])
    n = int(rng.integers(1000, 4001))
    cells = max(1, int(rng.binomial(n, 1 / one_in))) if abnormal else 0
    alarm = float(np.clip(ALARM * rng.lognormal(0, 0.5), 0.002, 0.15))
    ringing = rng.random(n) < alarm
    ringing[:cells] = False
    logits = rng.normal(-3.5, 1.2, n)
    logits[ringing] = rng.normal(1.0, 1.2, int(ringing.sum()))
    hit = np.flatnonzero(rng.random(cells) < HIT)
    logits[hit] = rng.normal(2.5, 1.2, len(hit))
    detailed = np.zeros(n, dtype=bool)
    detailed[np.argsort(-logits, kind="stable")[:TOP_K]] = True
    boxed = np.zeros(n)
    boxed[hit] = rng.random(len(hit)) < 0.6
    boxed[ringing] = rng.random(int(ringing.sum())) < 0.1
    boxed *= detailed
    return Evidence(
        p=1 / (1 + np.exp(-logits)),
        cellularity=rng.uniform(0.1, 0.9, n),
        focus=np.exp(rng.normal(5, 0.5, n)),
        detailed=detailed,
        findings={"hsil": int(boxed.sum())},
        seen={"hsil": boxed},
        abnormal=frozenset(["hsil"]),
    )


def cohort(n: int, *, seed: int, one_in: int) -> Cohort:
    """n slides of n patients, every second one abnormal."""
    y = np.arange(n) % 2
    return Cohort(
        ids=tuple(f"s{i}" for i in range(n)),
        evidence=tuple(simulate(seed * 100_000 + i, abnormal=bool(y[i]), one_in=one_in) for i in range(n)),
        y=y.astype(np.intp),
        patients=tuple(f"p{i}" for i in range(n)),
        classes=("normal", "abnormal"),
    )


def pool_scores(data: Cohort, name: str, *, false_alarm: float = 0.01) -> NDArray[np.float64]:
    """The score of an unfitted pool for every slide."""
    scores = [
        POOLS[name](e.p.tolist(), k=10, false_alarm=false_alarm, cutoff=0.5, findings=e.abnormal_findings)[0]
        for e in data.evidence
    ]
    return np.array([0.0 if s is None else s for s in scores])


def miss_rates(score: NDArray[np.float64], positive: NDArray[np.bool_], resamples: int) -> NDArray[np.float64]:
    """Miss rates on one half of the abnormal slides with the threshold set on the other, over random halves."""
    rng = np.random.default_rng(11)
    abnormal = score[positive]
    half = len(abnormal) // 2
    rates = []
    for _ in range(resamples):
        order = rng.permutation(len(abnormal))
        threshold = miss_threshold(abnormal[order[:half]], ALPHA)
        rates.append(float((abnormal[order[half:]] < threshold).mean()))
    return np.array(rates)


def row(name: str, score: NDArray[np.float64], positive: NDArray[np.bool_], resamples: int) -> dict[str, Any]:
    """The figures of one aggregator on a test cohort."""
    found = auc_delong(positive, score)
    rates = miss_rates(score, positive, resamples) if resamples else np.full(2, np.nan)
    return {
        "aggregator": name,
        "auc": found.value,
        "low": found.low,
        "high": found.high,
        "ece": calibration_error(score, positive),
        "miss_rate": float(rates.mean()),
        "miss_rate_se": float(rates.std(ddof=1) / np.sqrt(len(rates))),
    }


def measure(one_in: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    train = cohort(given.train, seed=1, one_in=one_in)
    test = cohort(given.test, seed=2, one_in=one_in)
    positive = test.y > 0
    normal = [e.p.mean() for e, label in zip(train.evidence, train.y, strict=True) if label == 0]
    # the correction needs the model's own rate; it is measured on the normal slides of the training cohort
    rate = float(np.mean(normal))
    rows = []
    for name in POOLS:
        found = row(name, pool_scores(test, name, false_alarm=rate), positive, given.resamples)
        rows.append(found)
        print_row(one_in, found, "")
    heads = ("logistic",) if given.no_attention else ("logistic", "attention")
    for head in heads:
        started = time.perf_counter()
        fitted = fit(train, head=head, labels=("hsil",)).aggregator  # type: ignore[arg-type]
        spent = time.perf_counter() - started
        score = 1.0 - fitted.probabilities(test.evidence)[:, 0]
        cv = fitted.record.cv
        found = row(f"fitted: {head}", score, positive, given.resamples)
        found |= {"ece_before": cv.calibration_error_before, "ece_after": cv.calibration_error_after,
                  "cv_auc": cv.auc.value, "fit_seconds": spent}  # fmt: skip
        rows.append(found)
        print_row(
            one_in, found, f"{cv.calibration_error_before:.3f} -> {cv.calibration_error_after:.3f}, {spent:.0f} s"
        )
    return rows


def print_row(one_in: int, found: dict[str, Any], more: str) -> None:
    print(
        f"1 in {one_in:<5} {found['aggregator']:<18} {found['auc']:.3f} ({found['low']:.3f}-{found['high']:.3f})"
        f"   {found['ece']:.3f}   {found['miss_rate']:.4f} +- {found['miss_rate_se']:.4f}   {more}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--no-attention", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(
        "abnormal    aggregator         AUC (95 %, DeLong)      ECE     miss rate at alpha .05   CV ECE before -> after"
    )
    found = {one_in: measure(one_in, given) for one_in in PREVALENCES}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
