"""The cascade: what is asked, what is counted, what is kept, with an engine that breaks where it is told to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tilers import Patch
from wsi_chat.analysis.cascade import choose, detail, screen
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import Fault, ScriptedEngine, SupervisedEngine
from wsi_chat.engines.asker import Asker
from wsi_chat.errors import EngineDied
from wsi_chat.journal import Journal
from wsi_chat.schema import Answer, Box, Query, Tile, TileVerdict
from wsi_chat.terminology import load_system

CERVIX = load_system("cervix")
ASKED = [label.code for label in CERVIX.labels if label.ask]
BOUNDS = Box(0, 0, 10_000, 10_000)


def tile(index: int) -> Tile:
    return Tile(index, index * 512, 0, 512, 512, 0, (512, 512), 256, 0.5)


def patches(count: int, *, unreadable: Sequence[int] = (), same: bool = False) -> Iterator[Patch]:
    for index in range(count):
        if index in unreadable:
            yield Patch(tile(index), None, "unreadable", error="bogus marker")
        else:
            value = 7 if same else index
            yield Patch(tile(index), np.full((256, 256, 3), value, np.uint8), "ok", focus=float(index))


def says(query: Query) -> str | dict[str, float]:
    """Tile n is abnormal with probability n/10; one hsil box in every grounded tile."""
    shade = query.images[0].getpixel((0, 0))[0]  # type: ignore[index]
    if query.task == "screen":
        return {query.choices[0]: 1 - shade / 10, query.choices[1]: shade / 10}
    if query.task == "ground" and query.target == "hsil":
        return "hsil 1 is located at <region>10 20 30 60</region>."
    return "No abnormality is found." if query.task == "describe" else f"No {query.target} is found."


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def asker(engine: object, journal: Journal) -> Asker:
    return Asker(engine, get_dialect("embedded"), journal, {"greedy": True})  # type: ignore[arg-type]


def test_screening_keeps_the_probability_of_the_positive_option_and_the_focus(journal: Journal) -> None:
    verdicts = screen(patches(4), asker(ScriptedEngine(says), journal), CERVIX, total=4)
    assert [verdicts[i].p_abnormal for i in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert [verdicts[i].focus for i in range(4)] == [0, 1, 2, 3]
    assert {v.status for v in verdicts.values()} == {"screened"}


def test_unreadable_and_failed_and_refused_tiles_have_no_probability(journal: Journal) -> None:
    engine = ScriptedEngine(says, faults=[Fault(at=1, kind="fail"), Fault(at=2, kind="refuse")])
    verdicts = screen(patches(5, unreadable=[0]), asker(engine, journal), CERVIX, total=5)
    assert [verdicts[i].status for i in range(5)] == [
        "unreadable", "screened", "screen_failed", "screen_failed", "screened",
    ]  # fmt: skip
    assert [verdicts[i].p_screen for i in (0, 2, 3)] == [None, None, None]
    assert verdicts[0].error == "bogus marker"
    assert "scripted failure" in verdicts[2].error
    assert "I cannot help" in verdicts[3].error


def test_a_failed_answer_is_asked_again_and_a_good_one_is_not(journal: Journal) -> None:
    screen(patches(3), asker(ScriptedEngine(says, faults=[Fault(at=1, kind="fail")]), journal), CERVIX, total=3)
    engine = ScriptedEngine(says)
    again = asker(engine, journal)
    verdicts = screen(patches(3), again, CERVIX, total=3)
    assert [query.tile_id for query in engine.asked] == ["t000001"]
    assert (again.answers_reused, again.answers_new) == (2, 1)
    assert verdicts[1].p_screen == pytest.approx(0.1)


def test_equal_tiles_are_asked_once_but_each_gets_its_verdict(journal: Journal) -> None:
    engine = ScriptedEngine(says, batch=4)
    verdicts = screen(patches(6, same=True), asker(engine, journal), CERVIX, total=6)
    assert len(engine.asked) == 1
    assert [verdicts[i].p_screen for i in range(6)] == pytest.approx([0.7] * 6)


def test_batches_answered_out_of_order_reach_their_own_tiles(journal: Journal) -> None:
    verdicts = screen(patches(7), asker(ScriptedEngine(says, batch=3), journal), CERVIX, total=7)
    assert [verdicts[i].p_screen for i in range(7)] == pytest.approx([i / 10 for i in range(7)])


def test_the_highest_tiles_are_chosen_in_plan_order_and_never_a_missing_one() -> None:
    chances = {0: 0.2, 1: None, 2: 0.9, 3: 0.9, 4: 0.1}
    verdicts = {
        i: TileVerdict(tile=tile(i), status="screened" if p is not None else "screen_failed", p_screen=p)
        for i, p in chances.items()
    }
    assert [t.index for t in choose(verdicts, top_k=1)] == [2]
    assert [t.index for t in choose(verdicts, top_k=3)] == [0, 2, 3]
    assert [t.index for t in choose(verdicts, top_k=0)] == []
    assert [t.index for t in choose(verdicts, top_k=1, exhaustive=True)] == [0, 2, 3, 4]
    # every tile in which screening found cells, and the rest up to top_k
    assert [t.index for t in choose(verdicts, top_k=1, positive=True)] == [2, 3]
    assert [t.index for t in choose(verdicts, top_k=4, positive=True)] == [0, 2, 3, 4]


def test_boxes_become_level_zero_pixels_and_everything_asked_is_recorded(journal: Journal) -> None:
    ask = asker(ScriptedEngine(says, batch=5), journal)
    screened = screen(patches(2), ask, CERVIX, total=2)
    verdicts = detail(patches(2), ask, CERVIX, screened, total=2, bounds=BOUNDS)
    assert verdicts[1].status == "detailed"
    assert list(verdicts[1].asked) == ASKED
    assert [(b.label, b.box) for b in verdicts[1].boxes] == [("hsil", Box(512 + 20, 40, 512 + 60, 120))]
    assert verdicts[1].description == "No abnormality is found."
    assert verdicts[1].p_screen == pytest.approx(0.1)


def test_a_failed_question_leaves_the_tile_detail_failed_with_the_rest_kept(journal: Journal) -> None:
    ask = asker(ScriptedEngine(says), journal)
    screened = screen(patches(1), ask, CERVIX, total=1)
    broken = asker(ScriptedEngine(says, faults=[Fault(at=0, kind="fail")]), journal)
    verdict = detail(patches(1), broken, CERVIX, screened, total=1, bounds=BOUNDS)[0]
    assert verdict.status == "detail_failed"
    assert list(verdict.asked) == ASKED[1:]
    assert f"ground {ASKED[0]}" in verdict.error
    assert verdict.p_screen is not None


def test_a_box_outside_the_slide_is_counted_as_dropped(journal: Journal) -> None:
    ask = asker(ScriptedEngine(says), journal)
    screened = screen(patches(1), ask, CERVIX, total=1)
    verdict = detail(patches(1), ask, CERVIX, screened, total=1, bounds=Box(0, 0, 15, 15))[0]
    assert (verdict.boxes, verdict.dropped_boxes) == ((), 1)


def test_boxes_broken_off_without_a_limit_are_asked_again_and_those_cut_by_one_are_not(journal: Journal) -> None:
    broken = "hsil 1 is located at <region>20 20 6"

    def breaks_off(query: Query) -> str | dict[str, float]:
        return broken if query.target == "hsil" else says(query)

    ask = asker(ScriptedEngine(breaks_off), journal)
    screened = screen(patches(1), ask, CERVIX, total=1)
    verdict = detail(patches(1), ask, CERVIX, screened, total=1, bounds=BOUNDS)[0]
    assert (verdict.boxes, verdict.truncated) == ((), True)
    cut = ScriptedEngine(says, faults=[Fault(at=0, kind="truncate", keep=len(broken))])
    verdict = detail(patches(1), asker(cut, journal), CERVIX, screened, total=1, bounds=BOUNDS)[0]
    assert [query.target for query in cut.asked] == ["hsil"]
    assert (verdict.boxes, verdict.truncated) == ((), True)
    after = ScriptedEngine(says)
    assert detail(patches(1), asker(after, journal), CERVIX, screened, total=1, bounds=BOUNDS)[0] == verdict
    assert after.asked == []


def test_a_truncated_answer_marks_its_tile(journal: Journal) -> None:
    ask = asker(ScriptedEngine(says), journal)
    screened = screen(patches(1), ask, CERVIX, total=1)
    cut = asker(ScriptedEngine(says, faults=[Fault(at=ASKED.index("hsil"), kind="truncate", keep=30)]), journal)
    verdict = detail(patches(1), cut, CERVIX, screened, total=1, bounds=BOUNDS)[0]
    assert verdict.truncated
    assert verdict.boxes == ()


def test_a_dead_engine_is_restarted_once_and_every_answer_before_is_kept(journal: Journal) -> None:
    engines = [ScriptedEngine(says, faults=[Fault(at=2, kind="die")]) for _ in range(2)]
    left = list(engines)
    with pytest.raises(EngineDied):
        screen(patches(8), asker(SupervisedEngine(lambda: left.pop(0)), journal), CERVIX, total=8)
    asked_before = [query.tile_id for engine in engines for query in engine.asked]
    fresh = ScriptedEngine(says)
    verdicts = screen(patches(8), asker(fresh, journal), CERVIX, total=8)
    assert len(verdicts) == 8
    answered_twice = {q.tile_id for q in fresh.asked} & set(asked_before[:2])
    assert answered_twice == set()


def test_an_engine_that_swallows_a_question_does_not_make_the_tile_vanish(journal: Journal) -> None:
    class Forgetful(ScriptedEngine):
        def answer(self, queries):  # type: ignore[no-untyped-def]
            yield from (answer for number, answer in enumerate(super().answer(queries)) if number != 1)

    verdicts = screen(patches(3), asker(Forgetful(says), journal), CERVIX, total=3)
    assert [verdicts[i].status for i in range(3)] == ["screened", "screen_failed", "screened"]


def test_progress_starts_at_nothing_and_ends_with_every_tile(journal: Journal) -> None:
    told: list[tuple[str, int, int]] = []
    ask = asker(ScriptedEngine(says, batch=2), journal)
    screened = screen(patches(3, unreadable=[1]), ask, CERVIX, total=3, progress=lambda *step: told.append(step))
    detail(patches(1), ask, CERVIX, screened, total=1, bounds=BOUNDS, progress=lambda *step: told.append(step))
    assert told == [*(("screen", n, 3) for n in range(4)), ("detail", 0, 1), ("detail", 1, 1)]


@pytest.mark.parametrize("said", ["I cannot help with medical images.", "Sorry, not something I do.", "A smear.", " "])
def test_a_grounding_answer_that_is_no_answer_is_not_taken_for_none_found(said: str, journal: Journal) -> None:
    ask = asker(ScriptedEngine(says), journal)
    screened = screen(patches(1), ask, CERVIX, total=1)
    evasive = asker(ScriptedEngine(lambda q: said if q.target == "hsil" else says(q)), journal)
    verdict = detail(patches(1), evasive, CERVIX, screened, total=1, bounds=BOUNDS)[0]
    assert verdict.status == "detail_failed"
    assert "hsil" not in verdict.asked
    assert "ground hsil" in verdict.error


# ---------------------------------------------------------------------------------------- answers that say nothing


def test_an_unusable_answer_is_not_reused_by_a_rerun(journal: Journal) -> None:
    """A refusal counts as missing, and the next run asks again; its usable answer then stays."""
    first = screen(patches(2), asker(ScriptedEngine(lambda q: "Sorry, I cannot."), journal), CERVIX, total=2)
    assert {verdict.status for verdict in first.values()} == {"screen_failed"}
    engine = ScriptedEngine(says)
    again = screen(patches(2), asker(engine, journal), CERVIX, total=2)
    assert ({verdict.status for verdict in again.values()}, len(engine.asked)) == ({"screened"}, 2)
    engine = ScriptedEngine(says)
    screen(patches(2), asker(engine, journal), CERVIX, total=2)
    assert engine.asked == []


def test_an_unusable_answer_of_an_older_journal_is_replaced(journal: Journal) -> None:
    keys: list[str] = []

    def refuses(query: Query) -> str:
        keys.append(query.key)
        return "Sorry."

    screen(patches(1), asker(ScriptedEngine(refuses), journal), CERVIX, total=1)
    journal.put(Answer(keys[0], "screen", "I cannot help with medical images."))
    for expected in (1, 0):
        engine = ScriptedEngine(says)
        verdicts = screen(patches(1), asker(engine, journal), CERVIX, total=1)
        assert (verdicts[0].status, len(engine.asked)) == ("screened", expected)


def test_the_same_unusable_question_is_asked_once_in_a_run(journal: Journal) -> None:
    engine = ScriptedEngine(lambda q: "Sorry.")
    verdicts = screen(patches(5, same=True), asker(engine, journal), CERVIX, total=5)
    assert len(engine.asked) == 1
    assert {verdict.status for verdict in verdicts.values()} == {"screen_failed"}


@pytest.mark.parametrize("late", [False, True])
def test_a_yes_or_no_among_probabilities_is_no_answer_and_is_asked_again(late: bool, journal: Journal) -> None:
    """One tile counted as a hard 0 or 1 among real probabilities: an abnormal slide became normal (.655 -> .414)."""
    bare = 3 if late else 0

    def sometimes(query: Query) -> str | dict[str, float]:
        shade = query.images[0].getpixel((0, 0))[0]  # type: ignore[index]
        return "A" if shade == bare else says(query)

    asked = asker(ScriptedEngine(sometimes), journal)
    verdicts = screen(patches(4), asked, CERVIX, total=4)
    assert [verdicts[n].status for n in range(4)] == [
        "screen_failed" if n == bare else "screened" for n in range(4)
    ]  # fmt: skip
    assert (verdicts[bare].p_screen, asked.choices_in_words) == (None, 0)
    assert "without probabilities" in verdicts[bare].error
    engine = ScriptedEngine(says)
    again = screen(patches(4), asker(engine, journal), CERVIX, total=4)
    assert {verdict.status for verdict in again.values()} == {"screened"}
    assert len(engine.asked) == 1


def test_words_alone_all_count(journal: Journal) -> None:
    asked = asker(ScriptedEngine(lambda q: "B"), journal)
    verdicts = screen(patches(3), asked, CERVIX, total=3)
    assert ([verdicts[n].p_screen for n in range(3)], asked.choices_in_words) == ([1.0] * 3, 3)


def test_answers_in_words_are_asked_again_once_the_server_gives_probabilities(journal: Journal) -> None:
    """A rerun on a sound server gave the coarse score of the server before."""
    screen(patches(4), asker(ScriptedEngine(lambda q: "B"), journal), CERVIX, total=4)
    still = ScriptedEngine(lambda q: "B")
    screen(patches(4), asker(still, journal), CERVIX, total=4)
    assert len(still.asked) == 1, "one question finds out that nothing has changed"
    sound = ScriptedEngine(says)
    verdicts = screen(patches(4), asker(sound, journal), CERVIX, total=4)
    assert [verdicts[n].p_screen for n in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert len(sound.asked) == 4
