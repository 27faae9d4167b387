"""A cohort on a local Ray cluster of two workers, one of which is killed: nothing is lost, nothing asked twice."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from wsi_chat.errors import SettingError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")

# A process of its own: Ray starts threads and sockets that outlive a test.
PROGRAM = """
import json, os, signal, sys, threading, time
from pathlib import Path

folder, slide = Path(sys.argv[1]), Path(sys.argv[2])
asked = folder / "asked"
asked.mkdir(exist_ok=True)

def start():
    from wsi_chat.engines import ScriptedEngine

    def says(query):
        with open(folder / "asked" / str(os.getpid()), "a") as log:  # before the answer is given
            log.write(query.key + "\\n")
        time.sleep(0.1)
        return {"A": 0.9, "B": 0.1} if query.choices else f"No {query.target} is found."

    return ScriptedEngine(says)

def kill_one():
    while True:
        for log in asked.iterdir():
            if len(log.read_text().split()) >= 4:
                (folder / "killed").write_text(log.name)
                os.kill(int(log.name), signal.SIGKILL)
                return
        time.sleep(0.02)

threading.Thread(target=kill_one, daemon=True).start()
import wsi_chat
result = wsi_chat.analyze_cohort(
    folder / "manifest.csv", out=folder / "out", engine=start, executor="ray", actors=2,
    limit=8, coverage_floor=0.0, controls=False, top_k=1, pdf=False, gallery=0,
)
print(json.dumps({"counts": result.counts, "reasons": [s.reason for s in result.failures]}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute where nothing else runs
def test_a_killed_worker_loses_nothing_and_asks_nothing_twice(small_slide: Path, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    for name in names:
        # the same pixels in three places: their questions have the same keys, so every key is asked once per slide
        (tmp_path / f"{name}.tiff").write_bytes(small_slide.read_bytes())
    (tmp_path / "manifest.csv").write_text("image_path\n" + "".join(f"{name}.tiff\n" for name in names))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(small_slide)],
        capture_output=True, text=True, timeout=560, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"counts": {"done": 3}, "reasons": []}
    workers = {log.name: log.read_text().split() for log in (tmp_path / "asked").iterdir()}
    assert len(workers) >= 3  # two workers, and the one that took the dead one's place
    assert (tmp_path / "killed").read_text() in workers
    asked = Counter(key for keys in workers.values() for key in keys)
    # only the question that the killed worker was at, never answered, is asked once more
    total = sum(asked.values())
    assert total == 3 * len(asked) + 1
    assert sorted(set(asked.values())) == [3, 4]
    reports = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/report.json")]
    assert [r["funnel"]["screened"] for r in reports] == [8, 8, 8]
    assert sum(r["timings"]["answers_new"] + r["timings"]["answers_reused"] for r in reports) == 3 * len(asked)


def test_without_ray_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_slide: Path) -> None:
    import wsi_chat
    from wsi_chat.engines import ScriptedEngine

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError, match=r"wsi-chat\[ray\]"):
        wsi_chat.analyze_cohort([small_slide], out=tmp_path, engine=lambda: ScriptedEngine({}), executor="ray")
    with pytest.raises(SettingError, match="function"):
        wsi_chat.analyze_cohort([small_slide], out=tmp_path, engine=ScriptedEngine({}), executor="ray")
    with pytest.raises(SettingError, match="--actors is 0"):
        wsi_chat.analyze_cohort(
            [small_slide], out=tmp_path, engine=lambda: ScriptedEngine({}), executor="ray", actors=0
        )
