"""Killed anywhere, a run is finished by the next one: a slice of benchmarks/kill_points.py, which does 200 points."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_points.py"
ROW = re.compile(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+), (\d+) \|$", re.MULTILINE)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no forks")
def test_killed_at_points_over_all_stages_the_next_run_makes_the_same_report(tmp_path: Path) -> None:
    # a process of its own: one that has threads already, as a test run has, cannot be forked safely
    command = [sys.executable, str(SCRIPT), "--points", "5", "--format", "html", "--folder", str(tmp_path)]
    environ = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {stage: tuple(map(int, found)) for stage, *found in ROW.findall(done.stdout)}
    assert sum(kills for kills, *_ in rows.values()) == 5
    assert rows["screen"][0] + rows["detail"][0] >= 1
    assert rows["documents"][0] >= 2
    for _, other_report, left, _, most_twice in rows.values():
        assert (other_report, left) == (0, 0)
        assert most_twice <= 1  # the question that was being answered
