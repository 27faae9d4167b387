"""The loop, once from end to end: analyze, review, export, train a LoRA on it, analyze with the adapter."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

import wsi_chat
from wsi_chat.app.export import export_review
from wsi_chat.app.review import ReviewStore
from wsi_chat.app.source import find_slides
from wsi_chat.cli import app


def run_command(*arguments: object) -> None:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_corrections_become_an_adapter_that_the_next_analysis_uses(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    slide = tmp_path / "slide.tiff"
    run_command("synth", "slide", slide, "--width", 768, "--height", 768, "--recipe", "abnormal", "--seed", 7)
    asked = {
        "specimen": "cervix", "top_k": 2, "limit": 6, "adequacy_tiles": 0, "pdf": False, "html": False, "gallery": 0,
    }  # fmt: skip
    first = wsi_chat.analyze(slide, out=tmp_path / "first", **asked)
    assert first.findings

    with ReviewStore(first.folder) as store:
        for n, finding in enumerate(first.findings):
            if n % 3 == 2:
                store.decide("Ann", finding.id, "reject")
            else:
                store.decide("Ann", finding.id, "accept")
        for row in first.tiles.to_pylist():
            if row["status"] == "detailed":
                store.decide("Ann", row["tile_id"], "complete")
        done = export_review(find_slides(first.folder).entries[first.folder.name], first, store)
    assert not done.notes
    data = first.folder / "review" / "dataset" / "reviewed_train.jsonl"
    kinds = Counter(row["kind"] for row in csv.DictReader(data.with_suffix(".index.csv").open(encoding="utf-8")))
    assert {"ground", "refer"} <= set(kinds)

    adapter = tmp_path / "adapter"
    run_command(
        "train", "--dataset", data, "-o", adapter, "--method", "lora", "--rank", 4, "--alpha", 8, "--steps", 2,
        "--batch-size", 2, "--accumulate", 1, "--eval-dataset", "none", "--quiet",
    )  # fmt: skip
    folder = next(path.parent for path in sorted(adapter.rglob("adapter_config.json")))

    second = wsi_chat.analyze(slide, out=tmp_path / "second", adapter=str(folder), **asked)
    model = json.loads((second.folder / "report.json").read_text(encoding="utf-8"))["provenance"]["model"]
    before = first.report.provenance.model
    assert model["revision"] != before.revision  # the adapter is part of what answered
    assert second.report.funnel.screened == first.report.funnel.screened
