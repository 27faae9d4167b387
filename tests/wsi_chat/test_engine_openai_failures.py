"""The engine for servers where they fail: what is retried, what costs one question, and what ends the run."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from wsi_chat.engines import EngineCrashed, SupervisedEngine, load_engine
from wsi_chat.engines.openai import OpenAIEngine
from wsi_chat.errors import EngineDied
from wsi_chat.schema import Answer, Query

from .model_server import FakeServer, Said, cytologist, echo, question, reply, words_of

# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_cut_off_answer_is_truncated_and_a_null_content_is_a_refusal(serve: Any) -> None:
    _, engine = serve(lambda body, number: reply("hsil 1 is loc", finish="length"))
    (answer,) = engine.answer([question()])
    assert (answer.status, answer.finish_reason) == ("truncated", "length")
    said = reply("")
    said["choices"][0]["message"] = {"content": None, "refusal": "I cannot."}
    _, engine = serve(lambda body, number: said)
    (answer,) = engine.answer([question()])
    assert answer.text == "I cannot."


@pytest.mark.parametrize(
    "fault",
    [
        (500, {"error": "boom"}),
        (503, b"<html>busy</html>"),
        (408, {}),
        (409, {}),
        (429, {"error": {"message": "slow down"}}),
        (200, b"<html>not json</html>"),
        (200, {"object": "error"}),
        (200, {"choices": []}),
        (200, [1, 2]),
        (200, {"choices": [{"message": {"content": 5}}]}),
        "truncate",
        "close",
    ],
    ids=lambda fault: str(fault)[:24],
)
def test_what_passes_is_retried_and_what_stays_marks_its_question_alone(serve: Any, fault: Said) -> None:
    server, engine = serve(lambda body, number: fault if number < 2 else echo(body, number), retries=3)
    (answer,) = engine.answer([question(5)])
    assert (answer.text, len(server.bodies)) == ("question 5", 3)

    server, engine = serve(
        lambda body, number: fault if words_of(body) == "question 1" else echo(body, number), retries=1
    )
    by_key = {answer.key: answer for answer in engine.answer([question(n) for n in range(4)])}
    assert [by_key[f"q{n}"].status for n in range(4)] == ["ok", "failed", "ok", "ok"]
    assert by_key["q1"].error
    assert len(server.bodies) == 5


def test_a_question_that_the_server_refuses_is_not_repeated(serve: Any) -> None:
    server, engine = serve(lambda body, number: (400, {"message": "the prompt is too long: 9000 tokens"}))
    (answer,) = engine.answer([question()])
    assert (answer.status, answer.finish_reason) == ("failed", "error")
    assert "too long" in answer.error
    assert len(server.bodies) == 3  # once in each form


@pytest.mark.parametrize("wish", ["0.3", "date", "nonsense"])
def test_retry_after_is_honoured(serve: Any, wish: str) -> None:
    times: list[float] = []

    def script(body: dict[str, Any], number: int) -> Said:
        times.append(time.monotonic())
        header = formatdate(time.time() + 2, usegmt=True) if wish == "date" else wish
        return (429, {}, {"Retry-After": header}) if number == 0 else echo(body, number)

    _, engine = serve(script)
    (answer,) = engine.answer([question()])
    assert answer.status == "ok"
    waited = times[1] - times[0]
    if wish == "nonsense":
        assert waited < 0.25
    else:
        assert waited >= (0.3 if wish == "0.3" else 0.9)


def test_a_wish_for_an_hour_is_not_granted(serve: Any) -> None:
    _, engine = serve(lambda body, number: (429, {}, {"Retry-After": "3600"}))
    started = time.monotonic()
    (answer,) = engine.answer([question()])
    assert "asks to wait 3600 s" in answer.error
    assert time.monotonic() - started < 5


def test_a_server_that_hangs_costs_its_question_and_no_more(serve: Any) -> None:
    over = threading.Event()

    def script(body: dict[str, Any], number: int) -> Said:
        if words_of(body) == "question 2":
            over.wait(20)
        return echo(body, number)

    server, engine = serve(script, timeout=0.6, retries=9)
    by_key = {answer.key: answer for answer in engine.answer([question(n) for n in range(6)])}
    over.set()
    assert [key for key, answer in by_key.items() if answer.status == "failed"] == ["q2"]
    assert "no answer in time" in by_key["q2"].error
    assert sum(words_of(body) == "question 2" for body in server.bodies) == 2  # a timeout is retried once


def test_a_server_that_drips_is_cut_off_after_the_timeout(serve: Any) -> None:
    """A byte every now and then: no single read takes long, and the whole never ends."""
    over = threading.Event()
    server, engine = serve(lambda body, number: "drip", timeout=0.5, retries=9)
    server.over = over
    begun = time.monotonic()
    (answer,) = engine.answer([question()])
    over.set()
    assert (answer.status, time.monotonic() - begun < 5) == ("failed", True)
    assert "no answer in time" in answer.error


@pytest.mark.parametrize("packed", [False, True])
def test_a_reply_beyond_all_measure_is_not_read(serve: Any, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_chat.engines.server.REPLY_BYTES", 100_000)
    content = json.dumps(reply("A" * 300_000)).encode()
    headers = {"Content-Encoding": "gzip"} if packed else {}
    body = gzip.compress(content) if packed else content
    server, engine = serve(lambda _, number: (200, body, headers), retries=1)
    (answer,) = engine.answer([question()])
    assert answer.status == "failed"
    assert "larger than" in answer.error
    assert server.headers[-1]["Accept-Encoding"] == "identity"


def test_a_packed_reply_is_read_all_the_same(serve: Any) -> None:
    body = gzip.compress(json.dumps(reply("Two cells.")).encode())
    _, engine = serve(lambda _, number: (200, body, {"Content-Encoding": "gzip"}))
    (answer,) = engine.answer([question()])
    assert answer.text == "Two cells."


def test_a_reply_from_another_model_is_no_answer(serve: Any) -> None:
    def script(body: dict[str, Any], number: int) -> Said:
        named = "another" if words_of(body) == "question 1" else "tiny-2026"
        return {**reply("Two cells."), "model": named}

    _, engine = serve(script, concurrency=1, retries=1)
    statuses = [next(iter(engine.answer([question(number)]))) for number in range(3)]
    assert [answer.status for answer in statuses] == ["ok", "failed", "ok"]
    assert "from the model 'another'" in statuses[1].error


def test_another_model_after_a_restart_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine in the place of one that died took any model's word for its own."""
    monkeypatch.setattr("wsi_chat.engines.openai.PAUSE", 0.001)
    server = FakeServer(lambda body, number: {**reply("x"), "model": "tiny" if number < 2 else "another"})
    engine = load_engine(engine="openai", base_url=server.url, concurrency=1, timeout=2)
    answers: list[Answer] = []
    with pytest.raises(EngineDied, match="from the model 'another'"):
        answers.extend(engine.answer([question(number) for number in range(40)]))
    assert {answer.key for answer in answers if answer.status == "ok"} <= {"q0", "q1"}
    engine.close()
    server.stop()


# ------------------------------------------------------------------------------------------------ the server's death


def test_a_server_that_dies_for_good_ends_the_run_with_what_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_chat.engines.openai.PAUSE", 0.02)
    server = FakeServer(echo)
    engine = load_engine(None, base_url=server.url, concurrency=2, timeout=1.0)
    answered: list[Answer] = []

    def source() -> Iterator[Query]:
        for n in range(60):
            if n == 20:
                server.stop()
            yield question(n)

    with pytest.raises(EngineDied, match="could not be restarted: no server answers") as caught:
        answered.extend(engine.answer(source()))
    assert caught.value.exit_code == 3
    assert 10 <= sum(answer.status == "ok" for answer in answered) <= 22
    engine.close()


def test_a_server_that_fails_everything_is_dead_though_it_talks() -> None:
    server = FakeServer(lambda body, number: echo(body, number) if number % 8 == 7 else (500, {"error": "no memory"}))
    engine = OpenAIEngine(server.url, concurrency=1, retries=0, pause=0.001)
    answers = list(engine.answer([question(n) for n in range(40)]))
    assert sum(answer.status == "failed" for answer in answers) == 35  # bad, but alive: it answers some
    server.script = lambda body, number: (500, {"error": "engine core died"})
    with pytest.raises(EngineCrashed, match="HTTP 500: engine core died"):
        list(engine.answer([question(n) for n in range(40)]))
    engine.close()
    server.stop()


def test_a_server_that_comes_back_loses_nothing() -> None:
    server = FakeServer(echo)
    engine = SupervisedEngine(lambda: OpenAIEngine(server.url, concurrency=2, retries=1, pause=0.01, patience=20))
    back: list[FakeServer] = []

    def source() -> Iterator[Query]:
        for n in range(30):
            if n == 10:
                server.stop()
                threading.Timer(0.5, lambda: back.append(FakeServer(echo, port=server.port))).start()
            yield question(n)

    answers = list(engine.answer(source()))
    assert sorted(answer.key for answer in answers) == sorted(f"q{n}" for n in range(30))
    assert all(answer.status == "ok" for answer in answers)
    assert len(back[0].bodies) >= 18
    engine.close()
    back[0].stop()


def test_a_run_whose_server_dies_keeps_its_answers_and_goes_on_later(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat.commands.analyze import run_analyze

    monkeypatch.setattr("wsi_chat.engines.openai.PAUSE", 0.02)

    server = FakeServer(cytologist)
    flags: dict[str, Any] = {
        "base_url": server.url, "dialect": "embedded", "specimen": "cervix", "top_k": 0, "pdf": False,
        "concurrency": 1, "timeout": 1.0, "controls": False,
    }  # fmt: skip

    def dying(body: dict[str, Any], number: int) -> Said:
        if number == 6:
            threading.Thread(target=server.stop).start()
            time.sleep(0.2)
            return "close"
        return cytologist(body, number)

    server.script = dying
    assert run_analyze([small_slide], out=tmp_path, flags=flags, config=None, environ={}, quiet=True) == 3
    again = FakeServer(cytologist, port=server.port)
    assert run_analyze([small_slide], out=tmp_path, flags=flags, config=None, environ={}, quiet=True) == 0
    again.stop()
    (path,) = tmp_path.glob("*/report.json")
    assert json.loads(path.read_text())["timings"]["answers_reused"] >= 2


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ((500, {"error": "boom."}), "HTTP 500: boom. See the server's log, then run the same command again: only what"),
        ((429, {"error": "slow down"}), "HTTP 429: slow down. Lower --concurrency, then"),
        (
            (422, {"error": "no pictures"}),
            "HTTP 422: no pictures. See the server's log, or name another model with --mod",
        ),
        (
            (200, {"choices": []}),
            "its reply is not a chat completion: its list of choices is empty. Check that --base-url",
        ),
        (
            (200, {"object": "x"}),
            "its reply is not a chat completion (KeyError: 'choices'). Check that --base-url names",
        ),
        (
            (200, b"<html>hello</html>"),
            "its reply is not JSON: Expecting value: line 1 column 1 (char 0). Check that --b",
        ),
    ],
)
def test_a_failure_names_the_server_without_its_path_and_one_way_out(fault: Said, says: str) -> None:
    server = FakeServer(lambda body, number: fault)
    try:
        engine = OpenAIEngine(server.url.replace("/v1", "/secret-path/v1"), model="tiny", retries=0, pause=0.001)
        (answer,) = engine.answer([question()])
        engine.close()
    finally:
        server.stop()
    assert answer.error.startswith(f"the server 127.0.0.1:{server.port}: {says}")
    assert "secret-path" not in answer.error
    assert "\n" not in answer.error
