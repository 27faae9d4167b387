"""The scripted engine, and the supervisor that restarts any engine once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from wsi_chat.engines import Engine, EngineCrashed, Fault, ScriptedEngine, SupervisedEngine, embedded_checkpoint
from wsi_chat.engines.protocol import failed
from wsi_chat.errors import EngineDied, EngineError
from wsi_chat.schema import Answer, Query, Turn


def _query(number: int, *, choices: tuple[str, ...] = ()) -> Query:
    task = "screen" if choices else "describe"
    return Query(key=f"q{number}", task=task, turns=(Turn("user", f"question {number}"),), choices=choices)


QUERIES = [_query(number) for number in range(6)]


def _echo(query: Query) -> str:
    return query.turns[-1].text


def test_it_answers_from_a_table_or_a_function_and_keeps_what_it_was_asked() -> None:
    table = ScriptedEngine({"describe": "Normal cells.", "screen": {"A": 3.0, "B": 1.0}})
    answers = list(table.answer([_query(0), _query(1, choices=("A", "B"))]))
    assert answers[0].text == "Normal cells."
    assert (answers[1].text, answers[1].probabilities) == ("A", {"A": 0.75, "B": 0.25})
    assert [query.key for query in table.asked] == ["q0", "q1"]
    assert [a.text for a in ScriptedEngine(_echo).answer(QUERIES[:2])] == ["question 0", "question 1"]
    assert next(iter(ScriptedEngine({}).answer([_query(0)]))).status == "failed"
    assert isinstance(table, Engine)


def test_batches_come_back_in_another_order_under_their_own_keys() -> None:
    answers = list(ScriptedEngine(_echo, batch=4).answer(QUERIES))
    assert [a.key for a in answers] == ["q3", "q2", "q1", "q0", "q5", "q4"]
    assert all(a.text == f"question {a.key[1:]}" for a in answers)


def test_faults_hit_their_query_and_no_other() -> None:
    faults = [
        Fault(0, "fail"),
        Fault(1, "raise"),
        Fault(2, "truncate", keep=4),
        Fault(3, "refuse"),
        Fault(4, "delay", seconds=0.05),
    ]
    started = time.perf_counter()
    answers = list(ScriptedEngine(_echo, faults=faults).answer(QUERIES))
    assert time.perf_counter() - started >= 0.05
    assert [a.status for a in answers] == ["failed", "failed", "truncated", "ok", "ok", "ok"]
    assert answers[1].error == "RuntimeError: scripted exception"
    assert (answers[2].text, answers[2].finish_reason) == ("ques", "length")
    assert "cannot help" in answers[3].text
    assert answers[4].text == "question 4"


def test_a_kill_is_a_real_kill() -> None:
    code = (
        "from wsi_chat.engines import ScriptedEngine, Fault\n"
        "from wsi_chat.schema import Query\n"
        "engine = ScriptedEngine(lambda q: 'x', faults=[Fault(2, 'kill')])\n"
        "for a in engine.answer(Query(str(n), 'vqa', ()) for n in range(5)): print(a.key, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    assert done.stdout.split() == ["0", "1"]


def test_a_crash_is_restarted_once_and_nothing_answered_is_asked_again() -> None:
    started: list[ScriptedEngine] = []

    def start() -> Engine:
        faults = [Fault(5, "die")] if not started else []
        started.append(ScriptedEngine(_echo, faults=faults, batch=3))
        return started[-1]

    engine = SupervisedEngine(start)
    answers = list(engine.answer(iter([*QUERIES, _query(6)])))
    assert sorted(a.key for a in answers) == [f"q{n}" for n in range(7)]
    assert started[0].closed
    assert [query.key for query in started[1].asked] == ["q3", "q4", "q5", "q6"]
    assert (engine.name, engine.model_id, engine.lookahead) == ("scripted", "scripted@0", 3)


def test_a_second_crash_stops_with_what_was_answered() -> None:
    engine = SupervisedEngine(lambda: ScriptedEngine(_echo, faults=[Fault(2, "die")]))
    answered: list[Answer] = []
    with pytest.raises(EngineDied, match="died again after its restart: scripted crash") as caught:
        answered.extend(engine.answer(QUERIES))
    assert [a.key for a in answered] == ["q0", "q1", "q2", "q3"]
    assert caught.value.exit_code == 3
    assert "Run the same command again" in caught.value.hint


def test_the_same_question_twice_in_a_stream_is_answered_twice_across_a_crash() -> None:
    started = 0

    def start() -> Engine:
        nonlocal started
        started += 1
        return ScriptedEngine(_echo, faults=[Fault(1, "die")] if started == 1 else [], batch=1)

    answers = list(SupervisedEngine(start).answer([QUERIES[0], QUERIES[0], QUERIES[1]]))
    assert [a.key for a in answers] == ["q0", "q0", "q1"]


def test_a_restart_that_fails_is_the_end() -> None:
    engines: Iterator[Engine] = iter([ScriptedEngine(_echo, faults=[Fault(0, "die")])])

    def start() -> Engine:
        for engine in engines:
            return engine
        raise EngineError("no memory left")

    with pytest.raises(EngineDied, match="could not be restarted: no memory left"):
        list(SupervisedEngine(start).answer(QUERIES))


def test_a_checkpoint_replaced_during_the_run_is_noticed() -> None:
    revisions = iter("12")

    def start() -> Engine:
        return ScriptedEngine(_echo, faults=[Fault(0, "die")], revision=next(revisions))

    with pytest.raises(EngineDied, match="scripted@1 became scripted@2"):
        list(SupervisedEngine(start).answer(QUERIES))


def test_a_closed_engine_answers_no_more() -> None:
    engine = SupervisedEngine(lambda: ScriptedEngine(_echo))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="engine is closed"):
        list(engine.answer(QUERIES))


def test_a_failed_answer_says_nothing_else() -> None:
    answer = failed(_query(0, choices=("A", "B")), "why")
    assert (answer.status, answer.text, answer.probabilities, answer.error) == ("failed", "", None, "why")
    assert issubclass(EngineCrashed, EngineError)


def test_importing_the_engines_imports_no_model_library() -> None:
    code = (
        "import sys, wsi_chat.engines, wsi_chat.dialects, wsi_chat.journal, wsi_chat.tasks\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_absent_embedded_checkpoint_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    from wsi_chat import engines

    monkeypatch.setattr(engines.resources, "files", lambda name: tmp_path)
    with pytest.raises(EngineError, match="no embedded checkpoint"):
        embedded_checkpoint()
