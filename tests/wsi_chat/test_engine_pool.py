"""Several engine processes on one queue: everything answered once, deaths survived once, nothing left running."""

from __future__ import annotations

import functools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wsi_chat.engines import Engine
from wsi_chat.engines.engine_pool import EnginePool
from wsi_chat.errors import EngineDied, EngineError, SettingError
from wsi_chat.schema import Answer, Query, Turn

WORKERS = """
    import os, time
    from pathlib import Path
    from wsi_chat.engines import Fault, ScriptedEngine
    from wsi_chat.errors import EngineError

    def start(seconds=0.0, kind="", at=0, once="", revision="0", batch=3):
        "An engine that says which process answered; its fault strikes only while the file `once` is absent."
        def say(query):
            time.sleep(seconds)
            return f"{os.getpid()} {os.environ.get('WSI_TEST_GPU', '-')} {query.turns[-1].text}"
        faults = [Fault(at, kind)] if kind and not (once and Path(once).exists()) else []
        if once:
            Path(once).touch()
        return ScriptedEngine(say, faults=faults, revision=revision, batch=batch)

    def broken(message="no such checkpoint"):
        raise EngineError(message, hint="Copy it again.")

    def breaks_later(once):
        if Path(once).exists():
            raise EngineError("the checkpoint is gone")
        return start(kind="die", at=2, once=once)

    def leaves():
        os._exit(7)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], Engine]]:
    """Makes start functions that a new process can import: ``start(seconds=.1)``, ``start('broken')``."""
    (tmp_path / "pool_test_workers.py").write_text(textwrap.dedent(WORKERS), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import pool_test_workers  # type: ignore[import-not-found]

    def make(function: str = "start", **settings: Any) -> Callable[[], Engine]:
        return functools.partial(getattr(pool_test_workers, function), **settings)

    return make


def _queries(count: int) -> list[Query]:
    return [Query(f"q{n}", "describe", (Turn("user", f"question {n}"),)) for n in range(count)]


def _pids(answers: list[Answer]) -> Counter[str]:
    return Counter(answer.text.split()[0] for answer in answers)


def test_two_processes_share_the_questions_and_each_sees_its_own_gpu(start: Any) -> None:
    pool = EnginePool([start(seconds=0.01)] * 2, environments=[{"WSI_TEST_GPU": "0"}, {"WSI_TEST_GPU": "1"}])
    try:
        assert isinstance(pool, Engine)
        assert (pool.name, pool.model_id, pool.lookahead) == ("scripted", "scripted@0", 12)
        for _ in range(2):  # as screening and detailing do: two streams through one pool
            answers = list(pool.answer(_queries(60)))
            assert sorted(answer.key for answer in answers) == sorted(f"q{n}" for n in range(60))
            assert all(answer.text.endswith(f"question {answer.key[1:]}") for answer in answers)
            assert min(_pids(answers).values()) >= 15
            assert {answer.text.split()[1] for answer in answers} == {"0", "1"}
    finally:
        pool.close()


def test_a_slow_process_gets_fewer_questions(start: Any) -> None:
    pool = EnginePool([start(seconds=0.2, batch=1), start(batch=1)])
    try:
        share = sorted(_pids(list(pool.answer(_queries(60)))).values())
        assert share[0] <= 20
    finally:
        pool.close()


def test_no_more_is_pulled_than_can_be_held(start: Any) -> None:
    pulled = 0

    def source() -> Iterator[Query]:
        nonlocal pulled
        for query in _queries(40):
            pulled += 1
            yield query

    pool = EnginePool([start(), start()])
    try:
        for given, _ in enumerate(pool.answer(source())):
            assert pulled - given <= pool.lookahead
        assert pulled == 40
    finally:
        pool.close()


def test_an_empty_stream_and_the_same_question_twice(start: Any) -> None:
    pool = EnginePool([start()])
    try:
        assert list(pool.answer([])) == []
        question = _queries(1)[0]
        assert [answer.key for answer in pool.answer([question, question, question])] == ["q0"] * 3
    finally:
        pool.close()


@pytest.mark.parametrize("kind", ["die", "kill"])
def test_a_process_that_dies_is_started_once_more_and_loses_nothing(start: Any, kind: str, tmp_path: Path) -> None:
    pool = EnginePool([start(seconds=0.01), start(seconds=0.01, kind=kind, at=4, once=str(tmp_path / "died"))])
    try:
        answers = list(pool.answer(_queries(80)))
        assert Counter(answer.key for answer in answers) == Counter({f"q{n}": 1 for n in range(80)})
        assert all(answer.status == "ok" for answer in answers)
    finally:
        pool.close()


def test_the_only_process_dies_and_comes_back(start: Any, tmp_path: Path) -> None:
    pool = EnginePool([start(kind="kill", at=5, once=str(tmp_path / "died"))])
    try:
        answers = list(pool.answer(_queries(20)))
        assert len({answer.key for answer in answers}) == 20
        assert len(_pids(answers)) == 2
    finally:
        pool.close()


def test_a_second_death_ends_the_run_with_what_was_answered(start: Any) -> None:
    pool = EnginePool([start(kind="kill", at=6)])
    answered: list[Answer] = []
    with pytest.raises(EngineDied, match=r"died again after its restart: .*killed by signal 9") as caught:
        answered.extend(pool.answer(_queries(20)))
    assert caught.value.exit_code == 3
    assert 6 <= len(answered) <= 12
    pool.close()


def test_a_restart_that_fails_is_the_end(start: Any, tmp_path: Path) -> None:
    pool = EnginePool([start("breaks_later", once=str(tmp_path / "gone"))])
    with pytest.raises(EngineDied, match="could not be restarted: the checkpoint is gone"):
        list(pool.answer(_queries(9)))
    pool.close()


def test_a_worker_that_cannot_load_is_explained_and_the_others_end(start: Any) -> None:
    with pytest.raises(EngineError, match="no such checkpoint") as caught:
        EnginePool([start(), start("broken")])
    assert caught.value.hint == "Copy it again."
    with pytest.raises(EngineError, match="ended with code 7"):
        EnginePool([start("leaves")])
    with pytest.raises(SettingError):
        EnginePool([])


def test_workers_with_different_models_are_refused(start: Any) -> None:
    with pytest.raises(EngineError, match="scripted@1 and scripted@2"):
        EnginePool([start(revision="1"), start(revision="2")])


def test_leaving_in_the_middle_ends_every_process(start: Any) -> None:
    pool = EnginePool([start(), start()])
    processes = [worker.process for worker in pool._workers]
    for answer in pool.answer(_queries(50)):
        assert answer.status == "ok"
        break
    import gc

    gc.collect()
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(EngineError, match="engine is closed"):
        list(pool.answer(_queries(1)))
    pool.close()
