"""A cohort on a local Ray cluster of two workers, one of which is killed: nothing is lost, nothing asked twice."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.sample import Sample
from wsi_chat.cohort.attempt import Outcome
from wsi_chat.cohort.deaths import TRIES, Deaths
from wsi_chat.cohort.on_ray import _work, run_on_ray
from wsi_chat.cohort.state import Job, read_state
from wsi_chat.engines.model import Model
from wsi_chat.errors import SettingError
from wsi_chat.names import Names
from wsi_chat.progress import no_progress
from wsi_chat.settings import Settings

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")

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


@needs_ray
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


DRIVER = """
import os, signal, sys, threading, time
from pathlib import Path
import wsi_chat
from wsi_chat.cohort.book import Silent

folder = Path(sys.argv[1])

def start():
    from wsi_chat.engines import ScriptedEngine

    def says(query):
        time.sleep(0.1)
        return {"A": 0.9, "B": 0.1} if query.choices else f"No {query.target} is found."

    return ScriptedEngine(says)

def die_with_b():
    while not list((folder / "out").glob(".b-*.reading")):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)

class Order(Silent):
    def begun(self, sample):
        print(sample.path.stem, flush=True)
        return super().begun(sample)

if sys.argv[2] == "dies":
    threading.Thread(target=die_with_b, daemon=True).start()
result = wsi_chat.analyze_cohort(
    folder / "manifest.csv", out=folder / "out", engine=start, executor="ray", actors=1, watcher=Order(),
    limit=8, coverage_floor=0.0, controls=False, top_k=1, format="json", gallery=0,
)
print(result.counts)
"""


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slide_with_which_the_driver_died_comes_last_in_the_next_run(small_slide: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.tiff").write_bytes(small_slide.read_bytes())
    (tmp_path / "manifest.csv").write_text("image_path\na.tiff\nb.tiff\nc.tiff\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}

    def run(how: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(tmp_path), how],
            capture_output=True, text=True, timeout=280, env=environment,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines()

    assert run("dies") == (-9, ["a", "b"])
    folder = RunFolder(tmp_path / "out")
    assert [path.name.split("-")[0] for path in folder.marks()] == [".b"]
    assert run("lives") == (0, ["c", "b", "{'done': 3}"])
    assert folder.marks() == []


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


class RayActorError(Exception):
    """As Ray's, of an actor that died."""


class Lent:
    """A stand-in for Ray with actors in this process: the first dies in its first slide, with its machine."""

    exceptions = SimpleNamespace(RayActorError=RayActorError, RayTaskError=KeyError, RayError=RayActorError)

    def __init__(self, *, dies: int = 1) -> None:
        self.dies = dies
        self.done: list[tuple[int, str]] = []
        self.actors: list[Any] = []
        self.killed: list[Any] = []
        self.looked: Callable[[], object] = lambda: None  # called whenever the driver waits for slides

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._actor))

    def _actor(self, *given: Any) -> Any:
        number, gone = len(self.actors), []

        def attempt(job: Job) -> Any:
            if number < self.dies:
                gone.append(job)
                return RayActorError("The actor died with its machine.")
            self.done.append((number, job.slide_id))
            return job.state(status="done")

        def ready() -> Any:
            return None if gone else "up"  # where there is no room, it is never started again

        actor = SimpleNamespace(
            attempt=SimpleNamespace(remote=lambda job: Reference(attempt(job))),
            ready=SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda: Reference(ready()))),
        )
        self.actors.append(actor)
        return actor

    def wait(self, references: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        there = [reference for reference in references if reference.value is not None]
        if not there:
            raise AssertionError("the run waits for an actor that never comes")
        if not any(reference.value == "up" for reference in there):
            self.looked()
        return sorted(there, key=lambda reference: reference.value != "up")[:num_returns], []

    def get(self, reference: Any) -> Any:
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


class Reference:
    def __init__(self, value: Any) -> None:
        self.value = value


class Restarting(Lent):
    """Every actor comes up again, and dies of one slide."""

    deaths = 0

    def _actor(self, *given: Any) -> Any:
        actor = super()._actor(*given)
        whole = actor.attempt.remote

        def attempt(job: Job) -> Reference:
            if job.sample.sample_id != "s1":
                return whole(job)
            self.deaths += 1
            return Reference(RayActorError("killed"))

        actor.attempt = SimpleNamespace(remote=attempt)
        return actor


def jobs(folder: Path, count: int) -> list[Job]:
    made = []
    for n in range(count):
        sample = Sample(f"s{n}", folder / f"s{n}.tiff")
        made.append(Job(sample, Settings(), "", Names(f"s{n}.tiff")))
    return made


def work(ray: Any, given: list[Job], run: RunFolder, *, begun: Any = lambda job: no_progress) -> list[Outcome]:
    with Deaths(run) as deaths:
        return list(_work(ray, given, run, Model(Settings()), deaths, actors=2, begun=begun))


def test_the_slide_of_a_machine_that_is_gone_goes_to_a_worker_that_lives(tmp_path: Path) -> None:
    ray, begun = Lent(), []
    run = RunFolder(tmp_path).open()
    given = jobs(tmp_path, 4)
    outcomes = work(ray, given, run, begun=lambda job: begun.append(job.slide_id) or no_progress)
    assert sorted(outcome.state.slide_id for outcome in outcomes) == sorted(job.slide_id for job in given)
    assert {outcome.state.status for outcome in outcomes} == {"done"}
    assert {number for number, _ in ray.done} == {1}  # the dead one's slide too
    assert len(begun) == len(given) + 1
    assert ray.killed == ray.actors


def test_a_slide_whose_workers_die_each_time_is_failed_and_the_others_go_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).open()
    ray = Restarting(dies=0)
    outcomes = work(ray, jobs(tmp_path, 3), run)
    states = {outcome.state.sample_id: outcome.state for outcome in outcomes}
    assert {name: state.status for name, state in states.items()} == {"s0": "done", "s1": "failed", "s2": "done"}
    assert states["s1"].error == "WorkerDied"
    assert f"died {TRIES} times:" in states["s1"].reason
    assert run.marks() == []


def driver_dies(run: RunFolder, *at_work: Job) -> None:
    """What is left of a driver that dies while workers do these slides."""
    deaths = Deaths(run)
    deaths.tell_apart(at_work)
    for job in at_work:
        deaths.begin(job)


def begin_again(run: RunFolder, given: list[Job], ray: Lent, **how: Any) -> tuple[dict[str, int], dict[str, str]]:
    """Each slide, in the order in which they are given out, with how many are at work then; and how each ended."""
    at_work: dict[str, int] = {}
    ended: dict[str, str] = {}

    def begun(job: Job) -> Any:
        at_work[job.sample.sample_id] = 1 + len(at_work) - len(ended)
        return no_progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsi_chat.cohort.on_ray._cluster", lambda address, most: nullcontext(ray))
        for outcome in run_on_ray(given, run, Model(Settings()), actors=2, address=None, begun=begun, **how):
            ended[outcome.state.sample_id] = f"{outcome.state.status}:{outcome.state.error}"
    return at_work, ended


def test_slides_at_work_when_the_driver_died_come_last(tmp_path: Path) -> None:
    run, given = RunFolder(tmp_path).open(), jobs(tmp_path, 4)
    driver_dies(run, given[0], given[1])
    at_work, ended = begin_again(run, given, Lent(dies=0))
    assert [*at_work] == ["s2", "s3", "s0", "s1"]
    assert at_work["s1"] == 2  # each has a process of its own
    assert set(ended.values()) == {"done:"}
    assert run.marks() == []


def test_a_slide_with_which_one_death_more_is_the_last_is_done_alone(tmp_path: Path) -> None:
    run, given = RunFolder(tmp_path).open(), jobs(tmp_path, 4)
    for _ in range(TRIES - 1):
        driver_dies(run, given[0], given[1])
    at_work, ended = begin_again(run, given, Lent(dies=0))
    assert at_work == {"s2": 1, "s3": 2, "s0": 1, "s1": 1}
    assert set(ended.values()) == {"done:"}


def test_a_slide_with_which_the_driver_died_three_times_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    run, given = RunFolder(tmp_path).open(), jobs(tmp_path, 3)
    for _ in range(TRIES):
        driver_dies(run, given[1])
    ray = Lent(dies=0)
    assert begin_again(run, given, ray)[1] == {"s0": "done:", "s1": "failed:SlideUnreadable", "s2": "done:"}
    assert given[1].slide_id not in {slide for _, slide in ray.done}
    assert begin_again(run, given[1:2], Lent(dies=0))[1] == {"s1": "failed:SlideUnreadable"}
    assert begin_again(run, given[1:2], Lent(dies=0), forgive=True)[1] == {"s1": "done:"}


def test_deaths_of_workers_and_of_drivers_add_up(tmp_path: Path) -> None:
    run, given = RunFolder(tmp_path).open(), jobs(tmp_path, 3)
    driver_dies(run, given[1])
    ray = Restarting(dies=0)
    assert begin_again(run, given, ray)[1] == {"s0": "done:", "s1": "failed:WorkerDied", "s2": "done:"}
    assert ray.deaths == TRIES - 1
    state = read_state(run, given[1].slide_id)
    assert state is not None
    assert f"died {TRIES} times, counting earlier runs" in state.reason


def test_what_the_driver_survives_leaves_no_mark(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).open()
    ray = Lent(dies=0)

    def interrupted() -> None:
        assert len(run.marks()) == 2
        raise KeyboardInterrupt

    ray.looked = interrupted
    with pytest.raises(KeyboardInterrupt):
        work(ray, jobs(tmp_path, 3), run)
    assert run.marks() == []
    assert ray.killed == ray.actors
