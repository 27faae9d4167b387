"""AUC of every aggregator on analyzed cohorts, over prevalence; conformal miss rate; cascade against exhaustive.

    PYTHONPATH=. python benchmarks/cohort_auc.py --train TRAIN.csv TRAIN_OUT --test TEST.csv TEST_OUT [--attention]
        [--exhaustive TEST_OUT_EXHAUSTIVE [--exhaustive-train TRAIN_OUT_EXHAUSTIVE]] [--png FIGURE.png] [--json F]

The cohorts are rendered with seeds apart (wsi-chat synth cohort --seed) and analyzed with wsi-chat cohort MANIFEST -o
OUT, the exhaustive ones with --exhaustive. Prevalence is the manifest's abnormal_cells over the foreground tiles.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aggregators.features import Evidence
from aggregators.fit import fit
from aggregators.pooling import POOLS
from benchmarks.aggregation import ALPHA, pool_scores, row
from wsi_chat.scoring.fitting import LabelledSlide, Ready, read_labelled, ready_to_fit

#: Tiles to one abnormal cell: groups of abnormal slides, from ... to below.
GROUPS = ((0.0, 100.0), (100.0, 350.0), (350.0, 1000.0), (1000.0, float("inf")))
INK, TONES = "#1d2a30", ("#17687e", "#b5410e", "#7d6200", "#4a6fa5", "#8a8f98", "#6b4f8f", "#2f8f5b", "#c0397b")


class Analyzed(NamedTuple):
    """A cohort and, slide by slide, tiles per abnormal cell (infinite on normal ones) and generated tokens."""

    ready: Ready
    per_cell: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return self.ready.cohort.evidence

    @property
    def positive(self) -> NDArray[np.bool_]:
        return self.ready.cohort.y > 0


def load(manifest: Path, runs: Path, negative: str | None) -> Analyzed:
    rows = read_labelled(manifest, runs)
    ready = ready_to_fit(rows, negative=negative, skip_missing=True, runs=runs)
    for line in ready.cohort.left_out:
        print(f"left out: {line}")
    used = {row.id: row for row in rows}
    kept = [used[name] for name in ready.cohort.ids]
    return Analyzed(ready, np.array([tiles_per_cell(row) for row in kept]), np.array([tokens_of(row) for row in kept]))


def tiles_per_cell(row: LabelledSlide) -> float:
    cells = int(row.sample.extra.get("abnormal_cells") or 0)
    assert row.report is not None
    return row.report.funnel.foreground / cells if cells else float("inf")


def tokens_of(row: LabelledSlide) -> float:
    """Generated tokens by the report, or by the journal of a run that recorded none; NaN where neither knows."""
    assert row.report is not None
    assert row.folder is not None
    if row.report.provenance.generated_tokens is not None:
        return float(row.report.provenance.generated_tokens)
    if not row.folder.journal_path.is_file():
        return float("nan")
    with sqlite3.connect(f"file:{row.folder.journal_path}?mode=ro", uri=True) as journal:
        return float(journal.execute("SELECT coalesce(sum(new_tokens), 0) FROM answers").fetchone()[0])


def all_scores(train: Analyzed | None, test: Analyzed, *, attention: bool) -> dict[str, NDArray[np.float64]]:
    """Aggregator -> score of every test slide; heads only where there is a training cohort."""
    rate = 0.01
    if train is not None:
        normal = [e.p.mean() for e, p in zip(train.evidence, train.positive, strict=True) if not p]
        rate = float(np.mean(normal))
    scores = {name: pool_scores(test.ready.cohort, name, false_alarm=rate) for name in POOLS}
    for head in ("logistic", "attention") if attention else ("logistic",):
        if train is None:
            break
        fitted = fit(train.ready.cohort, head=head, labels=train.ready.labels).aggregator  # type: ignore[arg-type]
        cv = fitted.record.cv
        scores[f"fitted: {head}"] = 1.0 - fitted.probabilities(test.evidence)[:, 0]
        print(
            f"{head}: cross-validated AUC {cv.auc.value:.3f} ({cv.auc.low:.3f}-{cv.auc.high:.3f}), ECE"
            f" {cv.calibration_error_before:.3f} -> {cv.calibration_error_after:.3f}"
        )
    return scores


def name_of(low: float, high: float) -> str:
    """A group of prevalence in words."""
    if low == 0:
        return f"above 1 in {high:g}"
    return f"1 in {low:g}-{high:g}" if np.isfinite(high) else f"below 1 in {low:g}"


def table(scores: dict[str, NDArray[np.float64]], test: Analyzed, resamples: int) -> list[dict[str, Any]]:
    """Figures of each aggregator on all slides and on each group of prevalence (with all normal slides)."""
    found = []
    groups = [("all", 0.0, float("inf")), *((name_of(low, high), low, high) for low, high in GROUPS)]
    print("abnormal cells      slides  aggregator         AUC (95 %)             ECE     miss rate at alpha .05")
    for name, low, high in groups:
        chosen = ~test.positive | ((test.per_cell >= low) & (test.per_cell < high)) | (test.positive & (name == "all"))
        positives = int((test.positive & chosen).sum())
        if positives < 2 or positives == int(chosen.sum()):
            continue
        for aggregator, score in scores.items():
            # half of the abnormal slides set the threshold, and that takes 19 of them
            enough = positives >= 2 * 19
            figures = row(aggregator, score[chosen], test.positive[chosen], resamples if enough else 0)
            figures |= {"group": name, "positives": positives, "per_cell": [low, None if high == np.inf else high]}
            found.append(figures)
            miss = f"{figures['miss_rate']:.4f} +- {figures['miss_rate_se']:.4f}" if enough else "too few slides"
            print(
                f"{name:<18} {positives:>7}  {aggregator:<18} {figures['auc']:.3f} ({figures['low']:.3f}-"
                f"{figures['high']:.3f})   {figures['ece']:.3f}   {miss}"
            )
    return found


def compare(cascade: Analyzed, exhaustive: Analyzed, given: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """AUC and tokens of the cascade against detailing every tile, on the slides that both have."""
    from aggregators.intervals import auc

    both = sorted(set(cascade.ready.cohort.ids) & set(exhaustive.ready.cohort.ids))
    places = [[run.ready.cohort.ids.index(name) for name in both] for run in (cascade, exhaustive)]
    share = float(cascade.tokens[places[0]].sum() / np.maximum(1.0, exhaustive.tokens[places[1]].sum()))
    print(f"cascade against exhaustive on {len(both)} slides: {share:.1%} of the generated tokens")
    found: dict[str, Any] = {"slides": len(both), "token_share": share, "auc": {}}
    for name in given[0]:
        values = [
            auc(run.positive[place], scores[name][place])
            for run, place, scores in zip((cascade, exhaustive), places, given, strict=True)
        ]
        found["auc"][name] = values
        within = "within .01" if abs(values[0] - values[1]) <= 0.01 else "NOT within .01"
        print(f"  {name:<18} {values[0]:.3f} against {values[1]:.3f}: {within}")
    if np.isnan(share):
        print("  tokens: not recorded")
    else:
        print("  tokens: " + ("at most 25 %" if share <= 0.25 else "MORE than 25 %"))
    return found


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """AUC over prevalence and, where there are slides enough, the conformal miss rate of every aggregator."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys(entry["group"] for entry in found))
    names = list(dict.fromkeys(entry["aggregator"] for entry in found))
    missed = [e for e in found if e["group"] == "all" and e["miss_rate"] == e["miss_rate"]]
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK}
    with mpl.rc_context(style):
        widths = (3, 2) if missed else (1,)
        figure, axes = plt.subplots(
            1, len(widths), figsize=(9.6, 4.0), layout="constrained", width_ratios=widths, squeeze=False
        )
        left = axes[0, 0]
        for i, name in enumerate(names):
            rows = [entry for entry in found if entry["aggregator"] == name]
            x = np.array([groups.index(entry["group"]) for entry in rows]) + (i - (len(names) - 1) / 2) * 0.09
            y = np.array([entry["auc"] for entry in rows])
            errors = [y - [entry["low"] for entry in rows], np.array([entry["high"] for entry in rows]) - y]
            left.errorbar(x, y, yerr=errors, fmt="os^Dv<>P"[i % 8], color=TONES[i % 8], markersize=4.5, elinewidth=0.9,
                          label=name)  # fmt: skip
        left.axhline(0.5, color="#c4cdd1", linewidth=0.8, zorder=0)
        counted = {entry["group"]: entry["positives"] for entry in found}
        left.set_xticks(range(len(groups)), [f"{group}\n{counted[group]} abnormal" for group in groups])
        left.set(ylabel="AUC (95 % interval)", xlabel="abnormal cells among the tiles", ylim=(0, 1.02))
        figure.legend(frameon=False, fontsize=8, ncols=len(names), loc="outside upper center", columnspacing=1.2)
        if missed:
            _draw_misses(axes[0, 1], missed)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _draw_misses(axes: Any, rows: list[dict[str, Any]]) -> None:
    y, rates = np.arange(len(rows)), [e["miss_rate"] for e in rows]
    axes.barh(y, rates, xerr=[e["miss_rate_se"] for e in rows], color=TONES[0], height=0.6)
    axes.axvline(ALPHA, color=TONES[1], linestyle="--", linewidth=1)
    axes.set_yticks(y, [e["aggregator"] for e in rows])
    axes.invert_yaxis()
    axes.set(xlabel=f"abnormal slides missed at a promise of {ALPHA:g},\nmean of the resamples", xlim=(0, 2 * ALPHA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs=2, type=Path, metavar=("MANIFEST", "OUT"))
    parser.add_argument("--test", nargs=2, type=Path, metavar=("MANIFEST", "OUT"), required=True)
    parser.add_argument("--exhaustive", type=Path, metavar="OUT")
    parser.add_argument("--exhaustive-train", type=Path, metavar="OUT")
    parser.add_argument("--negative")
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    train = load(*given.train, given.negative) if given.train else None
    test = load(*given.test, given.negative)
    if train is not None:
        shared = set(train.ready.cohort.fingerprints) & set(test.ready.cohort.fingerprints)
        if shared:
            parser.error(f"{len(shared)} slides are in both cohorts: render them with seeds apart")
    print(f"{len(test.evidence)} test slides, {int(test.positive.sum())} abnormal; "
          f"{len(train.evidence) if train else 0} to fit on")  # fmt: skip
    scores = all_scores(train, test, attention=given.attention)
    found: dict[str, Any] = {"table": table(scores, test, given.resamples)}
    if given.exhaustive:
        full = load(given.test[0], given.exhaustive, given.negative)
        full_train = None
        if train is not None and given.exhaustive_train:
            full_train = load(given.train[0], given.exhaustive_train, given.negative)
        other = all_scores(full_train, full, attention=given.attention)
        kept = {name: score for name, score in scores.items() if name in other}
        found["cascade"] = compare(test, full, (kept, other))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    if given.png:
        draw(found["table"], given.png)


if __name__ == "__main__":
    main()
