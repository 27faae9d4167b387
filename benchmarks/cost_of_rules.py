"""What the rules for a normal slide cost: normal slides that are indeterminate now, and abnormal ones that changed.

    PYTHONPATH=. python benchmarks/cost_of_rules.py MANIFEST.csv OUT [--json FILE]

MANIFEST is that of a cohort (wsi-chat synth cohort), OUT the run folder of wsi-chat cohort MANIFEST -o OUT. What a
slide would be called by its score alone is read from its report; its status is what the rules call it. The aim is at
most 5 % of the truly normal slides that the score alone would have called normal.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aggregators.intervals import proportion
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.schema import Report

AIM = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """A slide: its truth, what it is called by its score alone and by the rules, and the rules that it breaks."""

    sample: str
    abnormal: bool
    by_score: str
    by_rules: str
    rules: tuple[str, ...]


def by_score_alone(report: Report) -> str:
    """What the slide would be called if nothing but its score counted."""
    verdict = report.verdict
    if verdict.score is None or verdict.threshold is None:
        return verdict.status
    low = verdict.fitted.low if verdict.fitted is not None else verdict.threshold
    if verdict.score >= verdict.threshold:
        return "abnormal"
    return "normal" if verdict.score < low else "indeterminate"


def read_rows(manifest: Path, out: Path) -> list[Row]:
    """The slides of the manifest that have a report."""
    run = RunFolder(out)
    rows = []
    with manifest.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            folder = run.slide((manifest.parent / line["image_path"]).resolve())
            if not folder.report_path.is_file():
                print(f"left out, no report: {line['sample_id']}")
                continue
            report = folder.read_report()
            rules = tuple(ground.rule for ground in report.verdict.grounds)
            rows.append(
                Row(
                    line["sample_id"], line["label"] == "abnormal", by_score_alone(report), report.verdict.status, rules
                )
            )
    return rows


def summarize(rows: Iterable[Row]) -> dict[str, object]:
    """The figures, with Wilson's 95 % interval of the cost."""
    rows = list(rows)
    normal = [row for row in rows if not row.abnormal and row.by_score == "normal"]
    lost = [row for row in normal if row.by_rules != "normal"]
    missed = [row for row in rows if row.abnormal and row.by_score == "normal"]
    cost = proportion(len(lost), len(normal)) if normal else None
    return {
        "slides": len(rows),
        "normal_called_normal_by_score": len(normal),
        "of_these_without_verdict_by_rules": len(lost),
        "cost": None if cost is None else [round(cost.value, 3), round(cost.low, 3), round(cost.high, 3)],
        "aim": AIM,
        "rules_that_cost": dict(Counter(row.rules[0] for row in lost if row.rules)),
        "abnormal_called_abnormal_by_score": sum(row.abnormal and row.by_score == "abnormal" for row in rows),
        "of_these_changed": [
            row.sample for row in rows if row.abnormal and row.by_score == "abnormal" and row.by_rules != "abnormal"
        ],
        "abnormal_called_normal_by_score": len(missed),
        "of_these_caught_by_rules": sum(row.by_rules != "normal" for row in missed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = read_rows(given.manifest, given.out)
    for row in rows:
        if row.by_score != row.by_rules:
            print(f"{row.sample}: {row.by_score} by its score, {row.by_rules} by {', '.join(row.rules)}")
    figures = summarize(rows)
    print(json.dumps(figures, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
