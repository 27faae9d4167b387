"""A cohort on a Ray cluster of two nodes, one of which is killed: what was lost, and what was asked twice.

    python benchmarks/ray_nodes.py [--slides 8] [--seconds-per-question 0.02] [--folder FOLDER]

Starts a head without cores and two nodes of one core each on this machine (`ray start`), runs `analyze_cohort` with one
actor on each, and kills every process of one node with SIGKILL in the middle of a slide. The engine is a stand-in that
writes down each question before it answers. Prints one JSON document and ends with 1 where a slide was lost or a
question with an answer was asked again. Linux only. Needs `pip install 'wsi-chat[ray]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wsi_chat
from wsi_chat.datasets.cohort import render_cohort
from wsi_chat.engines import Engine, ScriptedEngine
from wsi_chat.schema import Query

RAY = (sys.executable, "-m", "ray.scripts.scripts")


def starter(asked: Path, seconds: float) -> Any:
    """A function that makes the stand-in in a worker's process."""

    def start() -> Engine:
        def says(query: Query) -> str | dict[str, float]:
            with (asked / str(os.getpid())).open("a") as log:  # before the answer is given
                log.write(f"{query.key}\n")
            time.sleep(seconds)
            return {"A": 0.9, "B": 0.1} if query.choices else f"No {query.target} is found."

        return ScriptedEngine(says)

    return start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ray_start(*options: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "180"}
    common = ("--disable-usage-stats", "--block", "--object-store-memory", str(100 * 2**20))
    return subprocess.Popen(
        [*RAY, "start", *common, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def descendants(pid: int) -> list[int]:
    """The processes below one, and it itself."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def kill(node: subprocess.Popen[bytes]) -> list[int]:
    """Every process of a node, at once; gives their ids."""
    ids = descendants(node.pid)
    for pid in ids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    node.wait()
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--side", type=int, default=1536, help="pixels at 0.5 um/px")
    parser.add_argument("--seconds-per-question", type=float, default=0.02)
    parser.add_argument("--kill-after", type=int, default=40, help="questions that the node's worker has asked by then")
    parser.add_argument("--folder", type=Path, help="where the slides are rendered and the run is written; kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(given.folder or Path(scratch), given), indent=1))


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    import ray

    asked = folder / "asked"
    asked.mkdir(parents=True)
    manifest = render_cohort(folder / "slides", slides=given.slides, width_px=given.side, height_px=given.side)
    port = free_port()
    address = f"127.0.0.1:{port}"
    nodes = [ray_start("--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=0",
                       "--include-dashboard=false")]  # fmt: skip
    killed: dict[str, Any] = {}
    try:
        connect(ray, address)
        for number in (1, 2):  # one after the other: two that start at once take each other's sockets
            nodes.append(ray_start("--node-ip-address=127.0.0.1", f"--address={address}", "--num-cpus=1"))
            wait_for(lambda number=number: ray.cluster_resources().get("CPU", 0) >= number, f"node {number}")

        def kill_one() -> None:
            while not killed:
                time.sleep(0.02)
                for log in asked.iterdir():
                    if len(log.read_text().split()) < given.kill_after:
                        continue
                    node = next((n for n in nodes[1:] if int(log.name) in descendants(n.pid)), None)
                    if node is not None:
                        killed["processes"] = len(kill(node))
                        killed["worker"] = log.name
                        return

        threading.Thread(target=kill_one, daemon=True).start()
        began = time.perf_counter()
        result = wsi_chat.analyze_cohort(
            manifest, out=folder / "out", engine=starter(asked, given.seconds_per_question), executor="ray", actors=2,
            specimen="cervix", top_k=2, format="json", gallery=0, controls=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
    finally:
        ray.shutdown()
        for node in nodes:
            if node.poll() is None:
                kill(node)
    workers = {log.name: log.read_text().split() for log in asked.iterdir()}
    questions = Counter(key for keys in workers.values() for key in keys)
    reports = [json.loads(path.read_text()) for path in (folder / "out").glob("*/report.json")]
    answers = sum(r["timings"]["answers_new"] for r in reports)
    after = sum(r["timings"]["answers_reused"] for r in reports)
    lost = given.slides - result.counts.get("done", 0) - result.counts.get("indeterminate", 0)
    twice = sum(questions.values()) - len(questions)
    summary = {
        "slides": given.slides, "finished": given.slides - lost, "counts": result.counts, "seconds": round(seconds, 1),
        "processes_killed": killed.get("processes", 0), "workers": len(workers),
        "questions": len(questions), "asked": sum(questions.values()), "asked_again": twice,
        "answers_new": answers, "answers_from_the_journal": after,
    }  # fmt: skip
    # the one question that the killed worker was at was never answered, so it alone is asked again
    if lost or not killed or twice > 1 or len(reports) != given.slides:
        print(json.dumps(summary, indent=1), file=sys.stderr)
        raise SystemExit("a slide was lost, a question was asked twice, or no node was killed")
    return summary


def connect(ray: Any, address: str) -> None:
    """Join the cluster, which may still be starting."""

    def joined() -> bool:
        try:
            ray.init(
                address=address, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level=40,
                configure_logging=False,
            )  # fmt: skip
        except Exception:
            return False
        return True

    wait_for(joined, "the head")


def wait_for(there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 300
    while not there():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come up within five minutes")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
