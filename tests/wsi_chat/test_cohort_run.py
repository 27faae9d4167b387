"""Cohorts with an engine that follows a script: bad slides, resuming, other settings, slides read ahead."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import wsi_chat
from wsi_chat.analysis.preparation import Prepared
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.cohort import CohortResult, read_manifest
from wsi_chat.cohort.local import Ahead
from wsi_chat.cohort.state import make_job
from wsi_chat.engines import Fault, ScriptedEngine, SupervisedEngine
from wsi_chat.engines.model import Model
from wsi_chat.errors import EngineDied, EngineError, OutputError, SettingError
from wsi_chat.schema import Query
from wsi_chat.settings import Settings

QUICK: dict[str, Any] = {"limit": 3, "coverage_floor": 0.0, "top_k": 1, "pdf": False, "gallery": 0}


def calm(query: Query) -> str | dict[str, float]:
    """Nothing abnormal, nothing found."""
    return {"A": 0.9, "B": 0.1} if query.choices else f"No {query.target} is found."


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of unlike content, two of them with one name: a.tiff, b.tiff, sub/a.tiff; 900 x 700 px."""
    import cv2
    import numpy as np

    from wsi_chat.datasets.mosaic import write_pyramid

    folder = tmp_path_factory.mktemp("cohort")
    (folder / "sub").mkdir()
    for seed, name in enumerate(("a.tiff", "b.tiff", "sub/a.tiff")):
        rng = np.random.default_rng(seed)
        canvas = np.full((700, 900, 3), 236, dtype=np.uint8)
        for x, y in zip(rng.integers(40, 860, 25), rng.integers(40, 660, 25), strict=True):
            cv2.circle(canvas, (int(x), int(y)), 20 + 4 * seed, (80, 60, 120), -1, cv2.LINE_AA)
        write_pyramid(folder / name, canvas, mpp=0.5)
    return folder


@pytest.fixture(autouse=True)
def _plain_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longest to draw; one test draws the real ones."""
    if request.function is not test_every_slide_has_its_row_and_its_documents:
        monkeypatch.setattr("reports.draw_overview", _grey)
        monkeypatch.setattr("reports.draw_heatmap", _grey)


def _grey(overview: object, report: object, tiles: object, path: Path, **options: object) -> None:
    from PIL import Image

    Image.new("RGB", (40, 30), "grey").save(path)


def manifest(slides: Path, folder: Path, *rows: str, header: str = "sample_id,image_path,label,patient,site") -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *(row.replace("@", str(slides)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def three(slides: Path, folder: Path) -> Path:
    return manifest(
        slides, folder, "s1,@/a.tiff,normal,p1,Lyon", "s2,@/b.tiff,abnormal,p2,", "s3,@/sub/a.tiff,,p3,Kyoto"
    )


def summary(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def report(result: CohortResult, number: int) -> dict[str, Any]:
    path = result.out / result.samples[number].slide_id / "report.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name != "timings"}


def test_every_slide_has_its_row_and_its_documents(slides: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(calm)
    result = wsi_chat.analyze_cohort(three(slides, tmp_path), out=tmp_path / "out", engine=engine, **QUICK)
    assert result.counts == {"done": 3}
    assert result.failures == ()
    assert not engine.closed  # it is the caller's
    rows = summary(tmp_path / "out")
    assert [(r["sample_id"], r["label"], r["patient"], r["site"], r["status"]) for r in rows] == [
        ("s1", "normal", "p1", "Lyon", "normal"), ("s2", "abnormal", "p2", "", "normal"),
        ("s3", "", "p3", "Kyoto", "normal"),
    ]  # fmt: skip
    assert [(r["tiles_selected"], r["tiles_screened"], r["tiles_detailed"]) for r in rows] == [("3", "3", "1")] * 3
    names = [r["slide_id"] for r in rows]
    assert len(set(names)) == 3
    assert names[0].startswith("a-")
    assert names[2].startswith("a-")
    documents = ("report.json", "overview.png", "heatmap.png", "thumbnail.jpg", "state.json", "findings.geojson")
    missing = [(n, d) for n in names for d in documents if not (tmp_path / "out" / n / d).is_file()]
    assert missing == []
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3
    assert result.result("s3").report.slide.id == names[2]
    table = result.table
    assert table.column("score").to_pylist() == [pytest.approx(0.1, abs=1e-3)] * 3
    assert table.column("label").to_pylist() == ["normal", "abnormal", None]
    with pytest.raises(SettingError, match="s9"):
        result.result("s9")
    assert "3 done" in result._repr_html_()


def test_a_second_run_does_nothing_and_asks_nothing(slides: Path, tmp_path: Path) -> None:
    path = three(slides, tmp_path)
    first = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK)
    before = (first.out / first.samples[0].slide_id / "report.json").stat().st_mtime_ns
    engine = ScriptedEngine(calm)
    second = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=engine, **QUICK)
    assert engine.asked == []
    assert (first.out / first.samples[0].slide_id / "report.json").stat().st_mtime_ns == before
    assert second.rows == first.rows


@pytest.mark.parametrize("name", ["broken.svs", "unreadable.svs"])
def test_a_bad_slide_in_the_middle_is_one_failed_row(
    slides: Path, tmp_path: Path, shared_data: Path, name: str
) -> None:
    shutil.copy(shared_data / "slides" / name, tmp_path / name)
    path = manifest(
        slides, tmp_path, "s1,@/a.tiff,,,0.5", f"s2,{name},abnormal,,0.5", "s3,absent.svs,,,", "s4,@/b.tiff,,,",
        header="sample_id,image_path,label,patient,mpp",
    )  # fmt: skip
    result = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK)
    assert [s.status for s in result.states] == ["done", "failed", "failed", "done"]
    assert [s.sample_id for s in result.failures] == ["s2", "s3"]
    row = summary(tmp_path / "out")[1]
    assert (row["state"], row["label"], row["score"], row["tiles_screened"]) == ("failed", "abnormal", "", "")
    assert name in row["reason"]
    assert result.table.column("tiles_screened").to_pylist()[1] is None  # missing is not zero
    again = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK)
    assert [s.status for s in again.states] == ["done", "failed", "failed", "done"]


def test_an_exception_that_nobody_foresaw_is_one_failed_slide_with_its_traceback(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tilers

    real = tilers.find_foreground

    def find(slide: Any, **options: Any) -> Any:
        if slide.path.name == "b.tiff":
            raise ZeroDivisionError("a library's own trouble")
        return real(slide, **options)

    monkeypatch.setattr("tilers.find_foreground", find)
    path = three(slides, tmp_path)
    result = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK)
    assert [s.status for s in result.states] == ["done", "failed", "done"]
    name = result.samples[1].slide_id
    assert result.states[1].reason == (
        "an unexpected ZeroDivisionError in wsi_chat.analysis.preparation: a library's own trouble. Please report it, "
        f"with the traceback in {name}/error.log."
    )
    trace = result.out / name / "error.log"
    assert "in find" in trace.read_text()
    monkeypatch.undo()
    engine = ScriptedEngine(calm)
    kept = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=engine, **QUICK)
    assert (kept.states[1].status, engine.asked) == ("failed", [])  # the file is the same, so it would fail again
    mended = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=engine, retry_failed=True, **QUICK)
    assert mended.counts == {"done": 3}
    assert not trace.exists()


def test_a_failed_slide_whose_file_was_copied_again_is_tried_again(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tiff").write_text("half a copy")
    path = manifest(slides, tmp_path, "s1,x.tiff,,,")
    assert wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK).failures
    shutil.copy(slides / "a.tiff", tmp_path / "x.tiff")
    assert not wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK).failures


def test_slides_without_usable_answers_are_indeterminate_by_error_and_can_be_retried(
    slides: Path, tmp_path: Path
) -> None:
    path = manifest(slides, tmp_path, "s1,@/a.tiff,,,")
    failing = ScriptedEngine(calm, faults=[Fault(at=n, kind="fail") for n in range(3)])
    first = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=failing, **QUICK)
    assert (first.states[0].status, first.rows[0]["status"]) == ("indeterminate", "indeterminate")
    assert len(first.failures) == 1
    engine = ScriptedEngine(calm)
    wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=engine, **QUICK)
    assert engine.asked == []
    second = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=engine, retry_failed=True, **QUICK)
    assert second.states[0].status == "done"


def test_other_settings_do_the_slides_again_and_ask_only_what_is_new(slides: Path, tmp_path: Path) -> None:
    path = three(slides, tmp_path)
    wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK)
    engine = ScriptedEngine(calm)
    changed = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=engine, **QUICK, threshold=0.05)
    assert [row["status"] for row in changed.rows] == ["abnormal"] * 3
    assert engine.asked == []  # the same questions
    engine = ScriptedEngine(calm)
    rows = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=engine, **{**QUICK, "limit": 4}).rows
    assert [row["status"] for row in rows] == ["normal"] * 3
    assert sum(q.task == "screen" for q in engine.asked) >= 3


def test_a_row_s_own_mpp_and_specimen_go_before_the_run_s(slides: Path, tmp_path: Path) -> None:
    path = manifest(
        slides, tmp_path, "s1,@/a.tiff,0.12,blood-smear", "s2,@/b.tiff,,", header="sample_id,image_path,mpp,specimen"
    )
    result = wsi_chat.analyze_cohort(
        path, out=tmp_path / "out", engine=ScriptedEngine(calm), specimen="cervix", mpp=0.4, **QUICK
    )
    assert result.counts == {"done": 2}, result.failures
    assert [report(result, n)["slide"]["mpp"] for n in range(2)] == [0.12, 0.4]
    assert [report(result, n)["specimen"]["code"] for n in range(2)] == ["blood-smear", "cervix"]


def test_a_slide_replaced_under_its_name_is_done_again(slides: Path, tmp_path: Path) -> None:
    shutil.copy(slides / "a.tiff", tmp_path / "x.tiff")
    path = manifest(slides, tmp_path, "s1,x.tiff,,,")
    first = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK)
    shutil.copy(slides / "b.tiff", tmp_path / "x.tiff")
    engine = ScriptedEngine(calm)
    second = wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=engine, **QUICK)
    assert len(engine.asked) >= 3
    assert report(first, 0)["slide"]["fingerprint"] == second.states[0].fingerprint
    # touched, but the same scan: nothing to do
    (tmp_path / "x.tiff").touch()
    idle = ScriptedEngine(calm)
    wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=idle, **QUICK)
    assert idle.asked == []
    # gone: its result was of this scan, and stays
    (tmp_path / "x.tiff").unlink()
    assert wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=idle, **QUICK).counts == {"done": 1}


# ------------------------------------------------------------------------------------------ read ahead


def test_slides_read_ahead_are_never_mixed_up(slides: Path, tmp_path: Path) -> None:
    def dark(query: Query) -> str | dict[str, float]:
        import numpy as np

        if not query.choices:
            return f"No {query.target} is found."
        p = 1 - float(np.asarray(query.images[0]).mean()) / 255
        return {"A": 1 - p, "B": p}

    settings = {**QUICK, "limit": None}
    path = three(slides, tmp_path)
    plain = wsi_chat.analyze_cohort(path, out=tmp_path / "plain", engine=ScriptedEngine(dark), ahead=0, **settings)
    ahead = wsi_chat.analyze_cohort(path, out=tmp_path / "ahead", engine=ScriptedEngine(dark), ahead=2, **settings)
    assert [report(ahead, n) for n in range(3)] == [report(plain, n) for n in range(3)]
    assert len({row["score"] for row in ahead.rows}) == 3
    assert [row["tiles_screened"] for row in ahead.rows] == [row["tiles_selected"] for row in ahead.rows]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_no_more_slides_are_open_than_asked_for(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    prepared: list[Prepared] = []
    closed: set[int] = set()
    most = 0
    real = Prepared.close

    def close(self: Prepared) -> None:
        closed.add(id(self))
        real(self)

    monkeypatch.setattr(Prepared, "close", close)
    import wsi_chat.analysis.preparation as preparation

    prepare = preparation.prepare_slide

    def counted(*args: Any, **options: Any) -> Prepared:
        nonlocal most
        ready = prepare(*args, **options)
        prepared.append(ready)
        most = max(most, len(prepared) - len(closed))
        return ready

    monkeypatch.setattr(preparation, "prepare_slide", counted)
    samples = [s for s in read_manifest(three(slides, tmp_path)) for _ in range(2)]
    model = Model(Settings(), given=ScriptedEngine(calm))
    jobs = [make_job(sample, RunFolder(tmp_path / "out"), Settings(limit=3), model, model_id="x") for sample in samples]
    with Ahead(jobs, model, ahead=ahead) as queue:
        for taken, (job, ready) in enumerate(queue):
            slide = ready()
            time.sleep(0.05)  # an engine at work, while the next slides are read
            assert slide.path == job.sample.path
            assert len(queue._waiting) <= ahead
            slide.close()
            if taken == 3:
                break  # the run is stopped
    assert most <= ahead + 1
    assert len(closed) == len(prepared)  # those that were read for nothing too


def test_a_prepared_slide_loses_no_tile(slides: Path, tmp_path: Path) -> None:
    from wsi_chat.analysis.preparation import prepare_slide

    model = Model(Settings(), given=ScriptedEngine(calm))
    ready = prepare_slide(slides / "a.tiff", Settings(), model.dialect, read_ahead=True)
    assert ready.patches is not None
    assert [patch.tile for patch in ready.patches] == list(ready.plan.tiles)
    ready.close()


# ------------------------------------------------------------------------------------------ the run as a whole


def test_a_dead_engine_ends_the_run_with_everything_queued_that_was_not_done(slides: Path, tmp_path: Path) -> None:
    path = three(slides, tmp_path)
    whole = ScriptedEngine(calm)
    wsi_chat.analyze_cohort(path, out=tmp_path / "whole", engine=whole, **QUICK)
    first = len(whole.asked) // 3 + 1  # in the second slide
    engines = [ScriptedEngine(calm, faults=[Fault(at=n, kind="die")]) for n in (first, 1)]
    left = list(engines)
    dying = SupervisedEngine(lambda: left.pop(0))
    with pytest.raises(EngineDied):
        wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=dying, **QUICK)
    states = [row["state"] for row in summary(tmp_path / "out")]
    assert states[0] == "done"
    assert states[1:] == ["queued", "queued"]
    engine = ScriptedEngine(calm)
    assert wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=engine, **QUICK).counts == {"done": 3}
    answered = [q.key for q in engines[0].asked[:first]] + [q.key for q in engines[1].asked[:1]]
    assert sorted(answered + [q.key for q in engine.asked]) == sorted(q.key for q in whole.asked)


def test_an_engine_that_cannot_be_loaded_is_said_once_and_no_slide_is_failed(slides: Path, tmp_path: Path) -> None:
    def start() -> ScriptedEngine:
        raise EngineError("no such device", hint="choose another")

    with pytest.raises(EngineError, match="no such device"):
        wsi_chat.analyze_cohort(three(slides, tmp_path), out=tmp_path / "out", engine=start, **QUICK)
    assert [row["state"] for row in summary(tmp_path / "out")] == ["queued"] * 3


def test_two_cohorts_cannot_write_one_folder(slides: Path, tmp_path: Path) -> None:
    path = three(slides, tmp_path)

    def meanwhile(query: Query) -> str | dict[str, float]:
        with pytest.raises(OutputError, match="another cohort"):
            wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK)
        return calm(query)

    assert wsi_chat.analyze_cohort(path, out=tmp_path / "out", engine=ScriptedEngine(meanwhile), **QUICK).counts == {
        "done": 3
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"executor": "slurm"}, "slurm"),
        ({"topk": 3}, "topk"),
        ({"pool": "mediam"}, "mediam"),
        ({"specimen": "moon-rock"}, "moon-rock"),
        ({"overlap": 2}, "overlap"),
    ],
)
def test_what_is_wrong_with_every_slide_is_said_before_the_first(
    slides: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    engine = ScriptedEngine(calm)
    with pytest.raises(SettingError, match=says):
        wsi_chat.analyze_cohort(three(slides, tmp_path), out=tmp_path / "out", engine=engine, **options)
    assert engine.asked == []
    assert not (tmp_path / "out").exists()


def test_a_list_of_paths_is_a_cohort_too(slides: Path, tmp_path: Path) -> None:
    paths: list[str | Path] = [slides / "a.tiff", str(slides / "b.tiff")]
    engine = ScriptedEngine(calm)
    assert wsi_chat.analyze_cohort(paths, out=tmp_path, engine=engine, **QUICK).counts == {"done": 2}
    with pytest.raises(SettingError, match="twice"):
        wsi_chat.analyze_cohort([paths[0], paths[0]], out=tmp_path, engine=engine, **QUICK)


def test_the_name_of_an_engine_is_a_setting_and_not_an_engine(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="abacus"):
        wsi_chat.analyze_cohort([slides / "a.png"], out=tmp_path / "many", engine="abacus")
    with pytest.raises(SettingError, match="abacus"):
        wsi_chat.analyze(slides / "a.png", out=tmp_path / "one", engine="abacus")


def test_a_name_that_is_not_utf8_has_its_row_its_state_and_its_page(slides: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slides / "a.tiff", os.fsencode(folder) + b"/caf\xe9.tiff")
    result = wsi_chat.analyze_cohort(folder, out=tmp_path / "out", engine=ScriptedEngine(calm), **QUICK)
    assert [state.status for state in result.states] == ["done"]
    (row,) = summary(tmp_path / "out")
    assert row["file"] == r"caf\xe9.tiff"
    assert row["image_path"] == r"caf\xe9.tiff"
    assert r"caf\xe9.tiff" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_the_table_of_a_cohort_that_takes_long_to_write_is_written_at_its_end(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat.cohort import book

    written = []
    write = book.write_summary

    def counting(*args: Any, **options: Any) -> Path:
        written.append(args)
        return write(*args, **options)

    monkeypatch.setattr(book, "write_summary", counting)
    monkeypatch.setattr(book, "SUMMARY_SECONDS", -1.0)  # every writing counts as long
    monkeypatch.setattr(book, "SUMMARY_SHARE", 1e12)
    engine = ScriptedEngine(calm)
    result = wsi_chat.analyze_cohort(three(slides, tmp_path), out=tmp_path / "out", engine=engine, **QUICK)
    assert len(written) == 2  # before the first slide, and after the last
    assert [row["state"] for row in summary(tmp_path / "out")] == ["done"] * 3
    assert result.counts == {"done": 3}
