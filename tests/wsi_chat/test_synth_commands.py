"""`wsi-chat synth`: cohorts that are the same by seed, go on after a stop, and come with a usable manifest."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wsi_chat import cli
from wsi_chat.datasets.cohort import POSITIVE, plan_cohort, render_cohort
from wsi_chat.errors import OutputError, SettingError

SMALL = {"width_px": 512, "height_px": 512, "density": 400.0}


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_small_cohort_is_the_beginning_of_a_large_one() -> None:
    assert plan_cohort(40, seed=3)[:7] == plan_cohort(7, seed=3)
    assert plan_cohort(7, seed=3) != plan_cohort(7, seed=4)
    assert len({sample.seed for s in range(3) for sample in plan_cohort(50, seed=s)}) == 150


def test_a_plan_is_balanced_and_keeps_patients_together() -> None:
    plan = plan_cohort(200, seed=1)
    assert sum(sample.recipe in POSITIVE for sample in plan) == 100
    assert {"sparse", "normal"} <= {sample.recipe for sample in plan_cohort(2, seed=9)}
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in plan:
        splits[sample.patient].add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
    assert set(Counter(sample.patient for sample in plan).values()) == {1, 2}
    shares = Counter(sample.split for sample in plan)
    assert 100 < shares["train"] < 140
    assert min(shares.values()) > 25


def test_a_cohort_goes_on_and_its_truth_is_its_label(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []
    render_cohort(tmp_path, slides=2, seed=5, progress=lambda name, new: told.append((name, new)), **SMALL)  # type: ignore[arg-type]
    first = (tmp_path / "slides" / "s0000.tiff").stat()
    (tmp_path / "slides" / "s0001.truth.json").write_text('{"cut')  # stopped while it was written
    manifest = render_cohort(
        tmp_path, slides=3, seed=5, progress=lambda name, new: told.append((name, new)), **SMALL  # type: ignore[arg-type]
    )  # fmt: skip
    assert told[2:] == [("s0000", False), ("s0001", True), ("s0002", True)]
    assert (tmp_path / "slides" / "s0000.tiff").stat().st_mtime_ns == first.st_mtime_ns
    found = rows(manifest)
    assert list(found[0])[:6] == ["sample_id", "image_path", "mpp", "label", "patient", "specimen"]
    for row in found:
        truth = json.loads((tmp_path / "slides" / f"{row['sample_id']}.truth.json").read_text())
        assert (tmp_path / row["image_path"]).is_file()
        assert (row["label"] == "abnormal") is truth["abnormal"]
        assert (int(row["abnormal_cells"]) > 0) is truth["abnormal"]
        assert (row["mpp"], row["specimen"]) == ("0.5", "cervix")
    assert [int(row["abnormal_cells"]) for row in found if row["recipe"] == "sparse"] == [1]
    with pytest.raises(OutputError, match="another cohort"):
        render_cohort(tmp_path, slides=1, seed=6, **SMALL)  # type: ignore[arg-type]


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--slides is 0"):
        plan_cohort(0)
    with pytest.raises(SettingError, match="--format"):
        render_cohort(tmp_path, slides=1, suffix=".png")


def test_fields_and_a_data_set_from_them(tmp_path: Path) -> None:
    run = CliRunner()
    done = run.invoke(cli.app, ["synth", "fields", str(tmp_path / "f"), "-n", "6", "--size", "128", "--seed", "2"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "f" / "truth.json")
    assert [r["seed"] for r in json.loads((tmp_path / "f" / "truth.json").read_text())] == list(range(2, 8))
    options = ["--rendered", str(tmp_path / "f" / "truth.json"), "--specimen", "cervix", "--json", "--split", "train=1"]
    built = run.invoke(cli.app, ["dataset", "build", str(tmp_path / "d"), *options])
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["pictures"] == {"train": 6}
    checked = run.invoke(cli.app, ["dataset", "check", str(tmp_path / "d" / "cytology_train.jsonl")])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(
    "command", [["fields", "f", "--recipe", "x"], ["slide", "s.tiff", "--recipe", "x"], ["slide", "s.png"]]
)
def test_usage_errors_are_no_tracebacks(tmp_path: Path, command: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["synth", command[0], str(tmp_path / command[1]), *command[2:]])
    assert isinstance(done.exception, SettingError)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import contextlib, io, sys\nfrom wsi_chat import cli\n"
        "heavy = {'torch', 'transformers', 'vllm', 'pandas', 'matplotlib'}\n"
        "for c in ([], ['synth'], ['dataset', 'build']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        cli.app([*c, '--help'])\n"
        "    print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]", "[]"]
