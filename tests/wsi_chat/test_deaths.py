"""A slide with which the process dies ends neither every rerun nor the other slides: last, alone, then refused."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.cohort.deaths import TRIES, Deaths, Mark
from wsi_chat.cohort.jobs import jobs_of, sample_of
from wsi_chat.cohort.state import Job, read_state
from wsi_chat.engines import ScriptedEngine
from wsi_chat.engines.model import Model
from wsi_chat.errors import EngineDied
from wsi_chat.journal import Journal
from wsi_chat.schema import Answer
from wsi_chat.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from pathlib import Path
import wsi_chat
from tests.tilers.bad_readers import open_bad
from tilers.readers import register_reader
from wsi_chat.engines import ScriptedEngine
register_reader("bad", open_bad, suffixes=(".bad",))
source, out, how, trial = sys.argv[1:5]
options = dict(out=out, engine=ScriptedEngine(lambda query: {"A": 0.9, "B": 0.1}), mpp=0.5, tile_mpp=1.0, tile_px=64,
               mask="off", limit=4, top_k=0, coverage_floor=0.0, controls=False, format="json", trial=trial == "trial")
if how == "cohort":
    run = wsi_chat.analyze_cohort(sorted(Path(source).glob("*.bad")), **options, retry_failed="again" in sys.argv)
else:
    from wsi_chat.cohort.run import analyze_slides
    run = analyze_slides(sorted(Path(source).glob("*.bad")), **options)
print(*(f"{state.file}:{state.status}:{state.error}" for state in run.states))
"""


def run(source: Path, out: Path, how: str = "cohort", trial: str = "no trial", *more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(source), str(out), how, trial, *more], cwd=ROOT, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.strip()


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name, what in (("a", "read nothing"), ("b", "read abort"), ("c", "read nothing"), ("d", "read nothing")):
        (folder / f"{name}.bad").write_text(f"{what} ")
    return folder


def test_with_a_trial_the_file_is_refused_and_the_others_are_done(slides: Path, tmp_path: Path) -> None:
    code, said = run(slides, tmp_path / "out", "cohort", "trial")
    assert (code, said) == (0, "a.bad:done: b.bad:failed:SlideUnreadable c.bad:done: d.bad:done:")
    with (tmp_path / "out" / "summary.csv").open(encoding="utf-8-sig", newline="") as file:
        reason = next(row["reason"] for row in csv.DictReader(file) if row["file"] == "b.bad")
    assert "ended it by SIGABRT while the reader bad read from its level 1" in reason


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cohort", "named"])
def test_a_slide_that_aborts_in_the_middle_is_done_last_and_refused_after_three_deaths(
    how: str, slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    folder = RunFolder(out)
    assert run(slides, out, how) == (-6, "")
    assert ".b" in [path.name.split("-")[0] for path in folder.marks()]  # and that of a, which was being asked about
    for _ in range(TRIES - 1):
        assert run(slides, out, how) == (-6, "")
        assert [path.name.split("-")[0] for path in folder.marks()] == [".b"]
        done = [
            state.file for job in slides.glob("*.bad") if (state := read_state(folder, _id(job))) and state.finished
        ]
        assert sorted(done) == ["a.bad", "c.bad", "d.bad"]
    code, said = run(slides, out, how)
    assert (code, said) == (0, "a.bad:done: b.bad:failed:SlideUnreadable c.bad:done: d.bad:done:")
    state = read_state(folder, _id(slides / "b.bad"))
    assert state is not None
    assert "3 processes in a row died while it was being read" in state.reason
    assert run(slides, out, how) == (code, said)
    if how == "cohort":
        (slides / "b.bad").write_text("read nothing-anymore")
        assert run(slides, out, how) == (0, "a.bad:done: b.bad:done: c.bad:done: d.bad:done:")
        assert folder.marks() == []


def _id(path: Path) -> str:
    return sample_of(path).slide_id


@pytest.fixture
def job(slides: Path, tmp_path: Path) -> Job:
    return _job(slides, tmp_path)


def _job(slides: Path, tmp_path: Path, **settings: Any) -> Job:
    chosen = Settings(**settings)
    model = Model(chosen, given=ScriptedEngine(lambda query: "no"))
    return jobs_of([sample_of(slides / "b.bad")], RunFolder(tmp_path / "out").open(), chosen, model)[0]


def _die(run: RunFolder, job: Job) -> None:
    """What a process does that dies with the slide open."""
    deaths = Deaths(run)
    deaths.tell_apart([job])
    deaths.begin(job)


def _told(run: RunFolder, job: Job, **how: bool) -> list[int]:
    return [len(group) for group in Deaths(run).tell_apart([job], **how)]


def test_deaths_count_only_in_a_row_and_without_a_new_answer(job: Job, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "out")
    assert _told(run, job) == [1, 0, 0]
    for _ in range(TRIES - 1):
        _die(run, job)
        assert _told(run, job) == [0, 1, 0]
    with Journal(run.slide(job.slide_id).open().journal_path) as journal:
        journal.put(Answer(key="k", task="screen", text="A"))
    _die(run, job)  # by a kill, say, of a run that went on
    assert _told(run, job) == [0, 1, 0]
    for _ in range(TRIES - 1):
        _die(run, job)
    assert _told(run, job) == [0, 0, 1]
    assert _told(run, job, forgive=True) == [1, 0, 0]
    assert _told(run, job) == [1, 0, 0]


def test_another_file_and_overwrite_begin_anew(job: Job, slides: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "out")
    for _ in range(TRIES):
        _die(run, job)
    assert _told(run, job) == [0, 0, 1]
    assert _told(run, _job(slides, tmp_path, overwrite=True)) == [1, 0, 0]
    for _ in range(TRIES):
        _die(run, job)
    (slides / "b.bad").write_text("read another")
    assert _told(run, job) == [1, 0, 0]


def test_a_slide_that_another_run_is_reading_is_no_death(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two runs in one folder at once the second is refused by the journal's lock; nobody died."""
    run = RunFolder(tmp_path / "out")
    mark = run.mark_path(job.slide_id)
    with Deaths(run) as first:
        first.begin(job)
        written = mark.read_bytes()
        with Deaths(run) as second:
            assert [len(group) for group in second.tell_apart([job])] == [1, 0, 0]
            assert "died" not in caplog.text
            second.begin(job)
            second.end(job)
            assert mark.read_bytes() == written, "the first run's mark is still its own"
            assert [len(group) for group in second.tell_apart([job], forgive=True)] == [1, 0, 0]
            second.begin(job)
        assert mark.read_bytes() == written
    assert not mark.exists()
    _die(run, job)
    assert _told(run, job) == [0, 1, 0]
    assert "died (1 time in a row)" in caplog.text


def test_a_mark_that_was_never_finished_counts_as_one_death(job: Job, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "out")
    run.mark_path(job.slide_id).write_text("{")
    assert _told(run, job) == [0, 1, 0]
    _die(run, job)
    assert Mark.model_validate_json(run.mark_path(job.slide_id).read_text()).deaths == 1


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), EngineDied("gone")])
def test_whatever_python_survives_leaves_no_mark(raised: BaseException, job: Job, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "out")

    def interrupted() -> None:
        with Deaths(run) as deaths:
            deaths.begin(job)
            assert len(run.marks()) == 1
            raise raised

    with pytest.raises(type(raised)):
        interrupted()
    assert run.marks() == []
