"""What is done at the same time gives what it gives one after the other: the same questions, reports and states."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import wsi_chat
from wsi_chat.analysis.inquiry import ask_all
from wsi_chat.analysis.run_folder import RunFolder
from wsi_chat.analysis.sample import Sample
from wsi_chat.cohort.attempt import Outcome
from wsi_chat.cohort.book import Silent
from wsi_chat.cohort.run import analyze_slides
from wsi_chat.cohort.state import Job
from wsi_chat.commands.analyze import _Teller
from wsi_chat.commands.progress import SlideBar
from wsi_chat.commands.terminal import Console
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import Fault, ScriptedEngine
from wsi_chat.engines.asker import Asked, Asker
from wsi_chat.engines.protocol import EngineCrashed
from wsi_chat.errors import SlideNotFound
from wsi_chat.journal import Journal
from wsi_chat.names import Names
from wsi_chat.schema import Query
from wsi_chat.settings import Settings
from wsi_chat.tasks import describe

QUICK: dict[str, Any] = {"format": "json", "gallery": 0}


@pytest.fixture(autouse=True)
def _plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longest to draw."""

    def grey(overview: object, report: object, tiles: object, path: Path, **options: object) -> None:
        Image.new("RGB", (40, 30), "grey").save(path)

    monkeypatch.setattr("reports.draw_overview", grey)
    monkeypatch.setattr("reports.draw_heatmap", grey)


def says(query: Query) -> str | dict[str, float]:
    """Darker fields are more abnormal; a box in each detailed field whose place depends on the field."""
    mean = float(np.asarray(query.images[0]).mean())
    if query.choices:
        p = min(1.0, max(0.0, (238 - mean) / 8))
        return {query.choices[0]: 1 - p, query.choices[1]: p}
    if query.task == "ground":
        at = 20 + int(mean * 1000) % 100
        return f"{query.target} 1 is located at <region>{at} 100 {at + 40} 140</region>."
    return f"A field of {mean:.3f}."


def of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return {name: value for name, value in report.items() if name != "timings"}


def one_after_the_other(asker: Asker, *inquiries: Any) -> list[float]:
    """As before: the screening first, then each of the others by itself."""
    detail, screen, *others = inquiries
    moments = [ask_all(asker, inquiry)[0] for inquiry in (screen, detail, *others)]
    return [moments[1], moments[0], *moments[2:]]


def test_an_answer_that_may_be_withdrawn_gives_no_close_look_and_no_score(small_slide: Path, tmp_path: Path) -> None:
    """An answer without probabilities among others is no answer, also where tiles are looked at as they come."""
    bare: set[int] = set()

    def says_once_without(query: Query) -> str | dict[str, float]:
        if query.task == "screen" and not bare:
            bare.add(hash(query.images[0].tobytes()))
        if query.task == "screen" and hash(query.images[0].tobytes()) in bare:
            return query.choices[0]
        return says(query)

    engine = ScriptedEngine(says_once_without, batch=4)
    result = wsi_chat.analyze(
        small_slide, out=tmp_path, engine=engine, specimen="cervix", exhaustive=True, controls=False, **QUICK
    )
    failed = [row for row in result.tiles.to_pylist() if row["status"] == "screen_failed"]
    assert len(failed) == 1
    assert failed[0]["p_screen"] is None
    assert "probabilit" in failed[0]["error"]
    assert result.report.funnel.screen_failed == 1


@pytest.mark.parametrize(
    ("specimen", "more"),
    [("cervix", {"top_k": 3}), ("cervix", {"exhaustive": True}), ("blood-smear", {"top_k": 2, "tile_mpp": 0.5})],
)
def test_one_stream_of_questions_gives_the_report_of_one_stage_after_the_other(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, specimen: str, more: dict[str, Any]
) -> None:
    together = ScriptedEngine(says, batch=4)
    first = wsi_chat.analyze(small_slide, out=tmp_path / "1", engine=together, specimen=specimen, **more, **QUICK)
    monkeypatch.setattr("wsi_chat.analysis.questions.ask_all", one_after_the_other)
    apart = ScriptedEngine(says, batch=4)
    second = wsi_chat.analyze(small_slide, out=tmp_path / "2", engine=apart, specimen=specimen, **more, **QUICK)
    assert of(first.folder) == of(second.folder)
    assert {query.key for query in together.asked} == {query.key for query in apart.asked}
    assert max(Counter(query.key for query in together.asked).values()) == 1
    order = [query.task for query in together.asked]
    last_screen = len(order) - 1 - order[::-1].index("screen")
    # the top three of the whole slide are known at its end; every tile, or every positive one, as it is screened
    assert ("describe" in order[:last_screen]) is (more != {"top_k": 3})
    tasks = [query.task for query in apart.asked]
    assert "describe" not in tasks[: tasks.index("screen") + first.report.funnel.screened]


@given(shades=st.lists(st.integers(0, 9), min_size=1, max_size=12), batch=st.integers(1, 7), dies=st.integers(0, 60))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_inquiries_that_answers_lead_to_lose_nothing_and_ask_nothing_twice(
    tmp_path_factory: pytest.TempPathFactory, shades: list[int], batch: int, dies: int
) -> None:
    """A first inquiry whose every answer leads to a question of the second; the engine dies once, and it is resumed."""
    asked: Counter[str] = Counter()

    def counts(query: Query) -> str:
        asked[query.key] += 1
        return "A field."

    def image(shade: int) -> Any:
        return Image.new("RGB", (64, 64), (shade, shade, shade))

    class First:
        def __init__(self, second: Second) -> None:
            self.second, self.left = second, iter(shades)

        def questions(self) -> Iterator[Asked[int]]:
            for shade in self.left:
                yield Asked(describe(), image(shade), shade)

        def take(self, given: Any) -> None:
            self.second.ready.append(given.context + 100)

    class Second:
        def __init__(self) -> None:
            self.ready: list[int] = []
            self.taken: list[int] = []

        def questions(self) -> Iterator[Asked[int]]:
            while self.ready:
                shade = self.ready.pop(0)
                yield Asked(describe(), image(shade), shade)

        def take(self, given: Any) -> None:
            self.taken.append(given.context)

    with Journal(tmp_path_factory.mktemp("journal") / "journal.sqlite") as journal:
        for faults in ([Fault(at=dies, kind="die")], []):
            engine = ScriptedEngine(counts, batch=batch, faults=faults)
            second = Second()
            asker = Asker(engine, get_dialect("embedded"), journal, {})
            with contextlib.suppress(EngineCrashed):
                ask_all(asker, second, First(second))
    assert sorted(second.taken) == sorted(shade + 100 for shade in shades)
    assert len(asked) == 2 * len(set(shades))
    # what was asked with the one that the engine died at, and not answered, is asked again
    assert sum(asked.values()) <= len(asked) + batch


def test_known_answers_do_not_pile_up_while_nothing_is_asked(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        asker = Asker(ScriptedEngine({"describe": "A field."}), get_dialect("embedded"), journal, {})
        drawn = 0

        def questions() -> Iterator[Asked[int]]:
            nonlocal drawn
            for n in range(200):
                drawn += 1
                yield Asked(describe(), Image.new("RGB", (64, 64), (n, n, n)), n)

        assert [given.context for given in asker.ask(questions())] == list(range(200))
        assert asker.answers_new == 200
        drawn, most = 0, 0
        for taken, _ in enumerate(asker.ask(questions()), start=1):
            most = max(most, drawn - taken)
        assert (taken, asker.answers_reused) == (200, 200)
        assert most <= 32


# ---------------------------------------------------------------------------------------------- documents


@pytest.fixture
def pair(small_slide: Path, tmp_path: Path) -> list[Path]:
    for name in ("a.tiff", "b.tiff"):
        (tmp_path / name).write_bytes(small_slide.read_bytes())
    return [tmp_path / "a.tiff", tmp_path / "b.tiff"]


def test_documents_of_a_slide_are_written_while_the_next_is_asked_about(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat.analysis import pipeline

    second_is_asked, waited = threading.Event(), []
    write = pipeline.write_documents

    def patient(judged: Any) -> Any:
        if judged.run.prepared.path.name == "a.tiff":
            waited.append(second_is_asked.wait(60))
        return write(judged)

    asked = 0

    def counting(query: Query) -> Any:
        nonlocal asked
        asked += 1
        if asked > 12:  # six screening questions a slide, and five about the one tile that is detailed
            second_is_asked.set()
        return says(query)

    class Order(Silent):
        def __init__(self) -> None:
            self.told: list[str] = []

        def begun(self, sample: Any) -> Any:
            self.told.append(f"begun {sample.path.name}")
            return super().begun(sample)

        def ended(self, outcome: Any) -> None:
            self.told.append(f"{outcome.state.status} {outcome.state.file}")

    monkeypatch.setattr(pipeline, "write_documents", patient)
    order = Order()
    more = {"controls": False, "top_k": 0, "adequacy_tiles": 0, "overlap": 0.0}
    result = analyze_slides(
        pair, out=tmp_path / "out", engine=ScriptedEngine(counting), specimen="cervix", watcher=order, **more, **QUICK
    )
    assert asked > 12
    assert waited == [True]
    assert order.told == ["begun a.tiff", "begun b.tiff", "done a.tiff", "done b.tiff"]
    assert result.counts == {"done": 2}


def test_documents_that_fail_are_their_own_slides_failure(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat.analysis import pipeline

    write = pipeline.write_documents

    def breaks(judged: Any) -> Any:
        if judged.run.prepared.path.name == "a.tiff":
            raise ZeroDivisionError("a library's own trouble")
        return write(judged)

    monkeypatch.setattr(pipeline, "write_documents", breaks)
    engine = ScriptedEngine(says)
    more = {"controls": False, "top_k": 0, **QUICK}
    result = analyze_slides(pair, out=tmp_path / "out", engine=engine, specimen="cervix", **more)
    assert [(s.file, s.status) for s in result.states] == [("a.tiff", "failed"), ("b.tiff", "done")]
    assert "a library's own trouble" in result.states[0].reason
    monkeypatch.setattr(pipeline, "write_documents", write)
    again = ScriptedEngine(says)  # the journal was released, and nothing in it is asked again
    assert analyze_slides(pair, out=tmp_path / "out", engine=again, specimen="cervix", **more).counts == {"done": 2}
    assert again.asked == []


# ---------------------------------------------------------------------------------------------- resume


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedEngine]:
    """The engines that were loaded, in place of the embedded checkpoint."""
    made: list[ScriptedEngine] = []

    def load(*args: object, **options: object) -> ScriptedEngine:
        made.append(ScriptedEngine(says))
        made[-1].name = "transformers"
        return made[-1]

    monkeypatch.setattr("wsi_chat.engines.load_engine", load)
    return made


def test_a_finished_slide_is_not_done_again_until_something_changes(
    small_slide: Path, tmp_path: Path, loaded: list[ScriptedEngine]
) -> None:
    slide = tmp_path / "a.tiff"
    slide.write_bytes(small_slide.read_bytes())
    out = tmp_path / "out"
    common: dict[str, Any] = {"specimen": "cervix", "top_k": 1, **QUICK}

    def again(**more: Any) -> tuple[int, Any]:
        before = len(loaded)
        return before, wsi_chat.analyze(slide, out=out, **{**common, **more})

    _, first = again()
    assert len(loaded) == 1
    stamp = (first.folder / "report.json").stat().st_mtime_ns
    before, same = again()
    assert len(loaded) == before  # neither a model nor a pixel was needed
    assert same.report == first.report
    assert same.slide_path == slide
    assert (first.folder / "report.json").stat().st_mtime_ns == stamp
    # a document that is gone, another setting, another file, a wish to start over: it is done again
    (first.folder / "findings.csv").unlink()
    before, _ = again()
    assert len(loaded) == before + 1
    assert (first.folder / "findings.csv").exists()
    before, other = again(threshold=0.9)
    assert len(loaded) == before + 1
    assert other.report.verdict.threshold == 0.9
    before, _ = again(threshold=0.9, overwrite=True)
    assert len(loaded) == before + 1
    again()
    slide.touch()
    (first.folder / "journal.sqlite").unlink()
    before, _ = again()
    assert len(loaded) == before + 1


def test_a_slide_with_a_question_unanswered_is_done_again(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ScriptedEngine] = []

    def load(*args: object, **options: object) -> ScriptedEngine:
        made.append(ScriptedEngine(says, faults=[] if made else [Fault(at=1, kind="fail")]))
        made[-1].name = "transformers"
        return made[-1]

    monkeypatch.setattr("wsi_chat.engines.load_engine", load)
    more: dict[str, Any] = {"specimen": "cervix", "top_k": 0, "controls": False, **QUICK}
    assert wsi_chat.analyze(small_slide, out=tmp_path, **more).report.funnel.screen_failed == 1
    assert wsi_chat.analyze(small_slide, out=tmp_path, **more).report.funnel.screen_failed == 0
    assert len(made[1].asked) == 1
    wsi_chat.analyze(small_slide, out=tmp_path, **more)
    assert len(made) == 2


def test_what_is_said_of_a_slide_leaves_the_bar_of_the_next_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=80)
    first, second = (Sample("", tmp_path / name) for name in ("a.tiff", "b.tiff"))
    with _Teller(RunFolder(tmp_path), terminal, bars=True, verdicts=True) as teller:
        before = teller.begun(first)
        before("screen", 1, 4)
        bar = teller.begun(second)
        bar("screen", 1, 4)
        before("documents", 1, 4)  # of the slide whose bar is gone
        gone = SlideNotFound("a.tiff is gone", hint="Put it back.")
        teller.ended(Outcome(Job(first, Settings(), "", Names("a.tiff")).state(status="failed"), error=gone))
        assert isinstance(bar, SlideBar)
        assert bar.shown
        bar("screen", 2, 4)
        teller.ended(Outcome(Job(second, Settings(), "", Names("b.tiff")).state(status="failed"), error=gone))
        assert not bar.shown
    told = capsys.readouterr()
    assert (told.out, told.err.count("a.tiff is gone")) == ("", 2)
