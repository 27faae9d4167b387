"""The engine for OpenAI-compatible servers, against a server on loopback that does everything that servers do wrong."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from wsi_chat.address import check_address, is_this_machine, notice
from wsi_chat.engines import Engine, EngineCrashed, SupervisedEngine, load_engine
from wsi_chat.engines.chat_requests import ImageUrls, choice_probabilities, estimated_tokens, messages_of
from wsi_chat.engines.openai import OpenAIEngine
from wsi_chat.engines.protocol import MeasuringEngine, StreamingEngine
from wsi_chat.errors import AnswerError, EngineDied, EngineError, SettingError
from wsi_chat.schema import Answer, Box, Query, Turn
from wsi_chat.settings import resolve

Said = dict[str, Any] | list[Any] | tuple[int, Any] | tuple[int, Any, dict[str, str]] | str
Script = Callable[[dict[str, Any], int], Said]
RED = Image.new("RGB", (64, 32), (200, 10, 30))


def reply(text: str, *, finish: str = "stop", top: dict[str, float] | None = None, cached: int = 0) -> dict[str, Any]:
    """A chat completion as servers write it; ``top``: token -> log-probability of the first token's alternatives."""
    logs = None
    if top is not None:
        best = max(top, key=top.__getitem__)
        alternatives = [{"token": token, "logprob": log} for token, log in top.items()]
        logs = {"content": [{"token": best, "logprob": top[best], "top_logprobs": alternatives}]}
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": logs}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": cached}},
    }


class FakeServer:
    """Answers POSTs as ``script(body, number)`` says: JSON, a status with a body, or a fault by name."""

    def __init__(self, script: Script, *, models: Any = None, port: int = 0) -> None:
        self.script = script
        self.over = threading.Event()
        self._connections: set[socket.socket] = set()
        self.models = {"data": [{"id": "tiny", "root": ""}]} if models is None else models
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer._connections.add(self.connection)

            def finish(self) -> None:
                outer._connections.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                status, body = outer.models if isinstance(outer.models, tuple) else (200, outer.models)
                self._send(status, body)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.paths.append(self.path)
                    outer.headers.append(dict(self.headers))
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                try:
                    self._act(outer.script(body, number))
                finally:
                    with outer._lock:
                        outer._now -= 1

            def _act(self, said: Said) -> None:
                if said == "close":
                    self.close_connection = True
                elif said == "drip":
                    self.close_connection = True
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    with contextlib.suppress(OSError):
                        while not outer.over.wait(0.1):
                            self.wfile.write(b" ")
                            self.wfile.flush()
                elif said == "truncate":
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.close_connection = True
                elif isinstance(said, list):
                    self._stream(said)
                elif isinstance(said, tuple):
                    self._send(*said)
                else:
                    self._send(200, said)

            def _stream(self, events: list[Any]) -> None:
                self.close_connection = True
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                for event in events:
                    data = event if isinstance(event, str) else json.dumps(event)
                    self.wfile.write(f"data: {data}\n\n".encode())

            def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up is part of the test."""

        self._server = Quiet(("127.0.0.1", port), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Die: the port is closed, and every open connection is cut."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[FakeServer, OpenAIEngine]]]:
    """Starts a fake server and an engine on it; both end with the test."""
    for name in ("WSI_CHAT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    opened: list[Any] = []

    def start(script: Script, *, models: Any = None, **settings: Any) -> tuple[FakeServer, OpenAIEngine]:
        server = FakeServer(script, models=models)
        opened.append(server.stop)
        engine = OpenAIEngine(server.url, **{"pause": 0.005, **settings})
        opened.append(engine.close)
        return server, engine

    yield start
    for close in reversed(opened):
        close()


def _query(number: int = 0, *, choices: tuple[str, ...] = (), images: tuple[Image.Image, ...] = (RED,)) -> Query:
    text = "<image>" * len(images) + f"question {number}"
    turns = (Turn("system", "You are a helpful assistant."), Turn("user", text))
    return Query(f"q{number}", "screen" if choices else "describe", turns, images, choices, max_tokens=9)


def _screen(number: int = 0) -> Query:
    return _query(number, choices=("A", "B"))


def _words(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else str(content[-1]["text"])


def _echo(body: dict[str, Any], number: int) -> Said:
    return reply(_words(body))


# ------------------------------------------------------------------------------------------------ what is sent


def test_images_go_as_exact_pngs_where_their_marks_stand_and_decoding_is_greedy(serve: Any) -> None:
    server, engine = serve(_echo, pixel_bounds=(1024, 65536), seed=7)
    assert isinstance(engine, Engine)
    blue = Image.effect_noise((32, 32), 50).convert("RGB")
    (answer,) = engine.answer([_query(3, images=(RED, blue))])
    body = server.bodies[0]
    first, second, words = body["messages"][1]["content"]
    for part, image in ((first, RED), (second, blue)):
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").tobytes() == image.tobytes()
    assert words == {"type": "text", "text": "question 3"}
    assert body["messages"][0] == {"role": "system", "content": "You are a helpful assistant."}
    assert (body["temperature"], body["seed"], body["max_tokens"], body["model"]) == (0.0, 7, 9, "tiny")
    assert body["mm_processor_kwargs"] == {"size": {"shortest_edge": 1024, "longest_edge": 65536}}
    assert body["repetition_penalty"] == 1.0
    assert body["skip_special_tokens"] is False
    assert (answer.text, answer.status, answer.prompt_tokens, answer.new_tokens) == ("question 3", "ok", 90, 7)
    assert engine.model_id == f"tiny@{server.url}"


@pytest.mark.parametrize("token", ["<|im_end|>", "<end_of_turn>", "<start_of_image>", "<IMG_CONTEXT>", "<|eot_id|>"])
def test_marks_and_images_must_agree_and_control_tokens_stay_out(serve: Any, token: str) -> None:
    server, engine = serve(_echo)
    odd = Query("odd", "vqa", (Turn("user", "<image>what?"),))
    sly = Query("sly", "vqa", (Turn("user", f"hello{token}"),))
    by_key = {answer.key: answer for answer in engine.answer([odd, sly, _query(1)])}
    assert "1 image marks and 0 images" in by_key["odd"].error
    assert "control token" in by_key["sly"].error
    assert by_key["q1"].status == "ok"
    assert len(server.bodies) == 1


def test_the_key_comes_from_the_environment_and_shows_nowhere(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "second-choice")
    monkeypatch.setenv("WSI_CHAT_API_KEY", "secret-of-the-user")
    server, engine = serve(lambda body, number: (500, {"error": {"message": "no"}}), retries=0)
    (answer,) = engine.answer([_query()])
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret-of-the-user"}
    everything = f"{answer} {engine.model_id} {engine.model_name} {caplog.text}"
    assert "secret" not in everything
    monkeypatch.setenv("WSI_CHAT_API_KEY", "")
    server, engine = serve(_echo)
    assert server.headers[0]["Authorization"] == "Bearer second-choice"


# ------------------------------------------------------------------------------------------------ choices


def test_choice_probabilities_come_from_the_first_tokens_alternatives(serve: Any) -> None:
    top = {"B": math.log(0.5), " B": math.log(0.1), "A": math.log(0.2), "The": math.log(0.1)}
    server, engine = serve(lambda body, number: reply("B", top=top))
    (answer,) = engine.answer([_screen()])
    assert answer.probabilities == pytest.approx({"A": 0.25, "B": 0.75})
    assert (answer.text, answer.status, answer.logprob) == ("B", "ok", pytest.approx(math.log(0.5)))
    assert server.bodies[0]["structured_outputs"] == {"choice": ["A", "B"]}
    assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 20)


def test_an_option_below_the_list_gets_the_lists_end_as_its_bound_and_one_ruled_out_gets_nothing() -> None:
    listed = [{"token": "A", "logprob": math.log(0.6)}, {"token": "x", "logprob": math.log(0.2)}]
    chances = choice_probabilities(("A", "B"), {"token": "A", "logprob": math.log(0.6), "top_logprobs": listed})
    assert chances == pytest.approx({"A": 0.75, "B": 0.25})
    hidden = [{"token": "A", "logprob": -0.01}, {"token": "B", "logprob": -9999.0}]
    assert choice_probabilities(("A", "B"), {"token": "A", "top_logprobs": hidden}) == {"A": 1.0, "B": 0.0}
    other = [{"token": "I", "logprob": -0.1}, {"token": "The", "logprob": -2.0}]
    assert choice_probabilities(("A", "B"), {"token": "I", "top_logprobs": other}) is None
    assert choice_probabilities(("A", "B"), {"token": "A", "logprob": 0.0, "top_logprobs": []}) is None


def test_without_log_probabilities_the_choice_is_words_and_its_probability_unknown(serve: Any) -> None:
    server, engine = serve(lambda body, number: reply("B. abnormal", finish="length"))
    (answer,) = engine.answer([_screen()])
    assert (answer.text, answer.probabilities, answer.status) == ("B. abnormal", None, "ok")
    assert server.bodies[-1]["max_tokens"] == 16  # room to name the option in words


NOT_NUMBERS = [{"A": math.nan, "B": math.nan}, {"A": math.inf, "B": -2.0}, {"A": -0.1, "B": math.nan}]


@pytest.mark.parametrize("top", [*NOT_NUMBERS, None])
def test_missing_or_broken_log_probabilities_are_retried_and_then_no_answer(
    serve: Any, top: dict[str, float] | None
) -> None:
    """Such an answer counted as a hard 0 or 1 among real probabilities."""

    def script(body: dict[str, Any], number: int) -> Said:
        broken = number > 0 and _words(body).startswith("question 1")
        return reply("B", top=top if broken else {"A": math.log(0.3), "B": math.log(0.7)})

    server, engine = serve(script, concurrency=1)
    (sound,) = engine.answer([_query(0, choices=("A", "B"))])
    assert sound.probabilities == pytest.approx({"A": 0.3, "B": 0.7})
    (broken,) = engine.answer([_query(1, choices=("A", "B"))])
    assert (broken.status, broken.probabilities, broken.text) == ("failed", None, "")
    assert "log-probabilities" in broken.error
    assert len(server.bodies) == 4, "asked three times"


def test_log_probabilities_that_come_at_the_second_try_count(serve: Any) -> None:
    sound = {"A": math.log(0.3), "B": math.log(0.7)}
    _, engine = serve(lambda body, number: reply("B", top=sound if number != 0 else NOT_NUMBERS[0]), concurrency=1)
    (answer,) = engine.answer([_query(0, choices=("A", "B"))])
    assert answer.probabilities == pytest.approx({"A": 0.3, "B": 0.7})


@pytest.mark.parametrize(
    ("refused", "kept"),
    [
        ({"structured_outputs"}, "guided_choice"),
        ({"structured_outputs", "guided_choice"}, "repetition_penalty"),
        ({"structured_outputs", "guided_choice", "repetition_penalty"}, "top_logprobs"),
        ({"structured_outputs", "guided_choice", "repetition_penalty", "logprobs"}, "max_tokens"),
    ],
)
def test_what_a_server_refuses_is_left_out_and_not_offered_again(serve: Any, refused: set[str], kept: str) -> None:
    def script(body: dict[str, Any], number: int) -> Said:
        bad = sorted(refused & set(body))
        if bad:
            return 400, {"error": {"message": f"Unrecognized request argument: {bad[0]}"}}
        return reply("A", top={"A": -0.1, "B": -2.4} if "logprobs" in body else None)

    server, engine = serve(script)
    answers = [next(iter(engine.answer([_screen(n)]))) for n in range(3)]
    assert [answer.text for answer in answers] == ["A"] * 3
    assert (answers[0].probabilities is None) == ("logprobs" in refused)
    first_good = next(n for n, body in enumerate(server.bodies) if not refused & set(body))
    assert len(server.bodies) == first_good + 3
    assert kept in server.bodies[-1]


def test_a_server_that_wants_the_newer_length_field_gets_it(serve: Any) -> None:
    def script(body: dict[str, Any], number: int) -> Said:
        if "max_tokens" in body:
            return 400, {"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead"}}
        return reply("fine")

    server, engine = serve(script)
    assert [answer.text for answer in engine.answer([_query(0), _query(1)])] == ["fine", "fine"]
    assert server.bodies[-1]["max_completion_tokens"] == 9


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_cut_off_answer_is_truncated_and_a_null_content_is_a_refusal(serve: Any) -> None:
    _, engine = serve(lambda body, number: reply("hsil 1 is loc", finish="length"))
    (answer,) = engine.answer([_query()])
    assert (answer.status, answer.finish_reason) == ("truncated", "length")
    said = reply("")
    said["choices"][0]["message"] = {"content": None, "refusal": "I cannot."}
    _, engine = serve(lambda body, number: said)
    (answer,) = engine.answer([_query()])
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
    server, engine = serve(lambda body, number: fault if number < 2 else _echo(body, number), retries=3)
    (answer,) = engine.answer([_query(5)])
    assert (answer.text, len(server.bodies)) == ("question 5", 3)

    server, engine = serve(
        lambda body, number: fault if _words(body) == "question 1" else _echo(body, number), retries=1
    )
    by_key = {answer.key: answer for answer in engine.answer([_query(n) for n in range(4)])}
    assert [by_key[f"q{n}"].status for n in range(4)] == ["ok", "failed", "ok", "ok"]
    assert by_key["q1"].error
    assert len(server.bodies) == 5


def test_a_question_that_the_server_refuses_is_not_repeated(serve: Any) -> None:
    server, engine = serve(lambda body, number: (400, {"message": "the prompt is too long: 9000 tokens"}))
    (answer,) = engine.answer([_query()])
    assert (answer.status, answer.finish_reason) == ("failed", "error")
    assert "too long" in answer.error
    assert len(server.bodies) == 3  # once in each form


@pytest.mark.parametrize("wish", ["0.3", "date", "nonsense"])
def test_retry_after_is_honoured(serve: Any, wish: str) -> None:
    times: list[float] = []

    def script(body: dict[str, Any], number: int) -> Said:
        times.append(time.monotonic())
        header = formatdate(time.time() + 2, usegmt=True) if wish == "date" else wish
        return (429, {}, {"Retry-After": header}) if number == 0 else _echo(body, number)

    _, engine = serve(script)
    (answer,) = engine.answer([_query()])
    assert answer.status == "ok"
    waited = times[1] - times[0]
    if wish == "nonsense":
        assert waited < 0.25
    else:
        assert waited >= (0.3 if wish == "0.3" else 0.9)


def test_a_wish_for_an_hour_is_not_granted(serve: Any) -> None:
    _, engine = serve(lambda body, number: (429, {}, {"Retry-After": "3600"}))
    started = time.monotonic()
    (answer,) = engine.answer([_query()])
    assert "asks to wait 3600 s" in answer.error
    assert time.monotonic() - started < 5


def test_a_server_that_hangs_costs_its_question_and_no_more(serve: Any) -> None:
    over = threading.Event()

    def script(body: dict[str, Any], number: int) -> Said:
        if _words(body) == "question 2":
            over.wait(20)
        return _echo(body, number)

    server, engine = serve(script, timeout=0.6, retries=9)
    by_key = {answer.key: answer for answer in engine.answer([_query(n) for n in range(6)])}
    over.set()
    assert [key for key, answer in by_key.items() if answer.status == "failed"] == ["q2"]
    assert "no answer in time" in by_key["q2"].error
    assert sum(_words(body) == "question 2" for body in server.bodies) == 2  # a timeout is retried once


def test_a_server_that_drips_is_cut_off_after_the_timeout(serve: Any) -> None:
    """A byte every now and then: no single read takes long, and the whole never ends."""
    over = threading.Event()
    server, engine = serve(lambda body, number: "drip", timeout=0.5, retries=9)
    server.over = over
    begun = time.monotonic()
    (answer,) = engine.answer([_query()])
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
    (answer,) = engine.answer([_query()])
    assert answer.status == "failed"
    assert "larger than" in answer.error
    assert server.headers[-1]["Accept-Encoding"] == "identity"


def test_a_packed_reply_is_read_all_the_same(serve: Any) -> None:
    body = gzip.compress(json.dumps(reply("Two cells.")).encode())
    _, engine = serve(lambda _, number: (200, body, {"Content-Encoding": "gzip"}))
    (answer,) = engine.answer([_query()])
    assert answer.text == "Two cells."


def test_a_reply_from_another_model_is_no_answer(serve: Any) -> None:
    def script(body: dict[str, Any], number: int) -> Said:
        named = "another" if _words(body) == "question 1" else "tiny-2026"
        return {**reply("Two cells."), "model": named}

    _, engine = serve(script, concurrency=1, retries=1)
    statuses = [next(iter(engine.answer([_query(number)]))) for number in range(3)]
    assert [answer.status for answer in statuses] == ["ok", "failed", "ok"]
    assert "from the model 'another'" in statuses[1].error


def test_another_model_after_a_restart_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine in the place of one that died took any model's word for its own."""
    monkeypatch.setattr("wsi_chat.engines.openai.PAUSE", 0.001)
    server = FakeServer(lambda body, number: {**reply("x"), "model": "tiny" if number < 2 else "another"})
    engine = load_engine(engine="openai", base_url=server.url, concurrency=1, timeout=2)
    answers: list[Answer] = []
    with pytest.raises(EngineDied, match="from the model 'another'"):
        answers.extend(engine.answer([_query(number) for number in range(40)]))
    assert {answer.key for answer in answers if answer.status == "ok"} <= {"q0", "q1"}
    engine.close()
    server.stop()


def test_a_key_with_a_line_break_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSI_CHAT_API_KEY", "sk-secret\nX-Other: 1")
    with pytest.raises(SettingError, match="WSI_CHAT_API_KEY holds a line break") as caught:
        OpenAIEngine("http://127.0.0.1:9/v1")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://me:hunter2@h/v1", "http://h/v1?key=hunter2", "http://h/v1#hunter2", "http://x:hunter2@h:99999"]
)
def test_an_address_with_a_key_in_it_is_refused_before_anything_is_written(address: str) -> None:
    with pytest.raises(SettingError, match="--base-url") as caught:
        resolve({"base_url": address})
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(("status", "match"), [(401, "refuses the key"), (403, "refuses the key")])
def test_a_refused_key_ends_the_run_at_once(serve: Any, status: int, match: str) -> None:
    _, engine = serve(lambda body, number: (status, {"error": {"message": "bad key"}}))
    with pytest.raises(EngineError, match=match) as caught:
        list(engine.answer([_query(n) for n in range(5)]))
    assert "WSI_CHAT_API_KEY" in caught.value.hint
    with pytest.raises(EngineError, match=match):
        serve(_echo, models=(status, {"error": "bad key"}))


# ------------------------------------------------------------------------------------------------ feeding


def test_requests_go_out_together_but_never_more_than_allowed_nor_far_ahead(serve: Any) -> None:
    def script(body: dict[str, Any], number: int) -> Said:
        time.sleep(0.05)
        return _echo(body, number)

    server, engine = serve(script, concurrency=4)
    pulled = 0

    def source() -> Iterator[Query]:
        nonlocal pulled
        for n in range(40):
            pulled += 1
            yield _query(n)

    for given, _ in enumerate(engine.answer(source())):
        assert pulled - given <= engine.lookahead == 8
    assert server.most == 4


def test_a_slow_source_does_not_hold_back_what_is_answered(serve: Any) -> None:
    _, engine = serve(_echo)

    def source() -> Iterator[Query]:
        for n in range(5):
            yield _query(n)
            time.sleep(0.3)

    started = time.monotonic()
    came = [time.monotonic() - started for _ in engine.answer(source())]
    assert came[0] < 0.6
    assert came[-1] < 2.5


def test_tokens_found_in_the_prefix_cache_are_counted(serve: Any) -> None:
    _, engine = serve(lambda body, number: reply("x", cached=64))
    list(engine.answer([_query(0), _query(1)]))
    assert engine.cached_tokens == 128


def test_a_closed_engine_answers_no_more(serve: Any) -> None:
    _, engine = serve(_echo)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="engine is closed"):
        list(engine.answer([_query()]))


# ------------------------------------------------------------------------------------------------ the server's death


def test_a_server_that_dies_for_good_ends_the_run_with_what_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi_chat.engines.openai.PAUSE", 0.02)
    server = FakeServer(_echo)
    engine = load_engine(None, base_url=server.url, concurrency=2, timeout=1.0)
    answered: list[Answer] = []

    def source() -> Iterator[Query]:
        for n in range(60):
            if n == 20:
                server.stop()
            yield _query(n)

    with pytest.raises(EngineDied, match="could not be restarted: no server answers") as caught:
        answered.extend(engine.answer(source()))
    assert caught.value.exit_code == 3
    assert 10 <= sum(answer.status == "ok" for answer in answered) <= 22
    engine.close()


def test_a_server_that_fails_everything_is_dead_though_it_talks() -> None:
    server = FakeServer(lambda body, number: _echo(body, number) if number % 8 == 7 else (500, {"error": "no memory"}))
    engine = OpenAIEngine(server.url, concurrency=1, retries=0, pause=0.001)
    answers = list(engine.answer([_query(n) for n in range(40)]))
    assert sum(answer.status == "failed" for answer in answers) == 35  # bad, but alive: it answers some
    server.script = lambda body, number: (500, {"error": "engine core died"})
    with pytest.raises(EngineCrashed, match="HTTP 500: engine core died"):
        list(engine.answer([_query(n) for n in range(40)]))
    engine.close()
    server.stop()


def test_a_server_that_comes_back_loses_nothing() -> None:
    server = FakeServer(_echo)
    engine = SupervisedEngine(lambda: OpenAIEngine(server.url, concurrency=2, retries=1, pause=0.01, patience=20))
    back: list[FakeServer] = []

    def source() -> Iterator[Query]:
        for n in range(30):
            if n == 10:
                server.stop()
                threading.Timer(0.5, lambda: back.append(FakeServer(_echo, port=server.port))).start()
            yield _query(n)

    answers = list(engine.answer(source()))
    assert sorted(answer.key for answer in answers) == sorted(f"q{n}" for n in range(30))
    assert all(answer.status == "ok" for answer in answers)
    assert len(back[0].bodies) >= 18
    engine.close()
    back[0].stop()


# ------------------------------------------------------------------------------------------------ address and model


def test_nobody_there_is_said_at_once() -> None:
    server = FakeServer(_echo)
    server.stop()
    with pytest.raises(EngineError, match=r"no server answers at http://127\.0\.0\.1") as caught:
        OpenAIEngine(server.url, retries=1, pause=0.01)
    assert "serve-command" in caught.value.hint


def test_the_model_is_the_only_one_or_the_one_named(serve: Any) -> None:
    two = {"data": [{"id": "a"}, {"id": "b"}]}
    _, engine = serve(_echo, models=two, model="b")
    assert engine.model_name == "b"
    with pytest.raises(SettingError, match=r"no model was named; .* has: a, b"):
        serve(_echo, models=two)
    with pytest.raises(SettingError, match=r"there is no model 'c'; .* has: a, b"):
        serve(_echo, models=two, model="c")
    _, engine = serve(_echo, models=(404, {}), model="unlisted")
    assert engine.model_name == "unlisted"
    with pytest.raises(SettingError, match="lists no models"):
        serve(_echo, models=(404, {}))


def test_a_checkpoint_of_this_machine_is_known_by_its_hash(serve: Any) -> None:
    from wsi_chat.engines import embedded_checkpoint, read_checkpoint, served_dialect

    folder = embedded_checkpoint()
    models = {"data": [{"id": "embedded", "root": str(folder)}]}
    server, engine = serve(_echo, models=models)
    assert engine.model_id == f"embedded@{read_checkpoint(folder).revision}:served"
    assert served_dialect(server.url, None) == "embedded"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("localhost:8000", "http://localhost:8000/v1"),
        ("https://models.example/api/openai", "https://models.example/api/openai"),
    ],
)
def test_addresses_are_completed(given: str, address: str) -> None:
    assert check_address(given) == address


@pytest.mark.parametrize("given", ["ftp://x/v1", "http://", "http://h:99999/v1", "http://h/v1?key=1", "http://h/v1#x"])
def test_unusable_addresses_are_refused(given: str) -> None:
    with pytest.raises(SettingError, match="--base-url"):
        check_address(given)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("ftp://x/v1", "'ftp://x/v1'"),
        ("ftp://x/hunter2", "'ftp://x/...'"),
        ("http://h:99999/hunter2/v1", "'http://h:99999/...'"),
        ("http:///hunter2", "'http:///...'"),
        ("h:port/hunter2", "'h:port/...'"),
    ],
)
def test_what_is_no_address_is_named_without_its_path_which_may_be_a_key(given: str, shown: str) -> None:
    with pytest.raises(SettingError) as caught:
        check_address(given)
    assert shown in caught.value.message
    assert "hunter2" not in str(caught.value)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingError, match="a password in it") as caught:
        check_address("http://me:hunter2@host:8000/v1")
    assert "hunter2" not in str(caught.value)


def test_images_that_leave_this_machine_are_announced() -> None:
    for here in ("http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]:8000/v1", "http://127.3.2.1/v1"):
        assert is_this_machine(here)
        assert notice(here) == ""
    for away in ("http://10.0.0.7:8000/v1", "https://api.example/v1", "http://localhost.example/v1"):
        assert not is_this_machine(away)
    assert "are sent to api.example, which is not this machine" in notice("https://api.example/v1")
    assert "unencrypted to 10.0.0.7:8000" in notice("http://10.0.0.7:8000/v1")


# ------------------------------------------------------------------------------------------------ streaming


def _heard(engine: Any, query: Query) -> tuple[list[str], Answer]:
    pieces: list[str] = []
    stream = engine.stream(query)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


def _event(words: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": words}, "finish_reason": finish}]}


def test_words_come_as_they_are_written_and_join_to_the_answer(serve: Any) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 3}}
    events = [_event("Nor"), _event("mal "), _event("cells.", "stop"), usage, "[DONE]"]
    server, engine = serve(lambda body, number: events if body["stream"] else reply("not asked"))
    assert isinstance(engine, StreamingEngine)
    pieces, answer = _heard(engine, _query())
    assert pieces == ["Nor", "mal ", "cells."]
    assert (answer.text, answer.status, answer.prompt_tokens, answer.new_tokens) == ("Normal cells.", "ok", 40, 3)
    _, answer = _heard(engine, replace(_query(), key="cut"))
    server.script = lambda body, number: [_event("Normal ce", "length"), "[DONE]"]
    assert _heard(engine, _query())[1].status == "truncated"


def test_a_stream_that_never_began_is_asked_plainly_and_one_that_broke_is_failed(serve: Any) -> None:
    _, engine = serve(lambda body, number: (500, {}) if body["stream"] else reply("in one piece"))
    pieces, answer = _heard(engine, _query())
    assert (pieces, answer.text, answer.status) == (["in one piece"], "in one piece", "ok")
    _, engine = serve(lambda body, number: [_event("Nor"), "{broken"])
    pieces, answer = _heard(engine, _query())
    assert (pieces, answer.status) == (["Nor"], "failed")
    _, engine = serve(lambda body, number: reply("B", top={"A": -2.0, "B": -0.1}))
    pieces, answer = _heard(engine, _screen())
    assert (pieces, answer.text) == (["B"], "B")
    _, engine = serve(lambda body, number: (401, {}))
    with pytest.raises(EngineError, match="refuses the key"):
        _heard(engine, _query())


# ------------------------------------------------------------------------------------------------ room for the answer

LISTED = {"data": [{"id": "tiny", "root": "", "max_model_len": 2048}]}


def test_the_server_counts_a_question_where_it_can(serve: Any) -> None:
    server, engine = serve(lambda body, number: {"count": 348, "max_model_len": 2048, "tokens": []}, models=LISTED)
    assert isinstance(engine, MeasuringEngine)
    assert engine.room(_query()) == 2048 - 348
    assert server.paths == ["/tokenize"]
    body = server.bodies[0]
    assert (body["model"], body["add_generation_prompt"]) == ("tiny", True)
    assert body["messages"] == messages_of(_query(), ImageUrls(keep=1))
    server.script = lambda body, number: {"count": 2100, "max_model_len": 2048, "tokens": []}
    assert engine.room(_query()) == -52


def test_a_served_model_of_unknown_length_has_unknown_room(serve: Any) -> None:
    server, engine = serve(_echo)
    assert engine.room(_query()) is None
    assert server.bodies == []


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ((404, {"detail": "Not Found"}), 1),
        ((403, {"detail": "not this path"}), 1),
        ({"tokens": []}, 1),  # another server's /tokenize
        ((500, {}), 4),  # in trouble now, and asked again with the next question
    ],
)
def test_a_question_that_the_server_does_not_count_is_estimated(serve: Any, said: Said, asked: int) -> None:
    server, engine = serve(lambda body, number: said, models=LISTED, retries=1, pixel_bounds=(1024, 65536))
    expected = 2048 - estimated_tokens(_query())
    assert engine.room(_query()) == engine.room(_query()) == expected
    assert 1500 < expected < 2048
    assert len(server.bodies) == asked
    server.script = _echo
    assert next(iter(engine.answer([_query()]))).status == "ok"


def test_a_question_that_cannot_be_asked_has_no_room(serve: Any) -> None:
    _, engine = serve(_echo, models=LISTED)
    with pytest.raises(AnswerError, match="1 image marks and 0 images"):
        engine.room(Query("odd", "vqa", (Turn("user", "<image>what?"),)))


def test_the_estimate_is_above_what_the_embedded_checkpoint_counts() -> None:
    from wsi_chat import tasks
    from wsi_chat.dialects import get_dialect
    from wsi_chat.engines import embedded_checkpoint
    from wsi_chat.engines.transformers import TransformersEngine

    engine, dialect = TransformersEngine(embedded_checkpoint()), get_dialect("embedded")
    asks = [
        tasks.mcq("Is any abnormal cell present?", ("normal", "abnormal")),
        tasks.ground("hsil"),
        tasks.refer(Box(101, 57, 203, 249)),
        tasks.describe(),
    ]
    for ask in asks:
        for side in (256, 640):
            query, _ = dialect.build(ask, RED.resize((side, side)), model_id="m", decoding={})
            assert len(engine._prompts.prompt(query).ids) < estimated_tokens(query) < 512


# ------------------------------------------------------------------------------------------------ a whole run


def _cytologist(body: dict[str, Any], number: int) -> Said:
    """A server that knows the embedded dialect's questions and gives no log-probabilities."""
    words = _words(body)
    if "multiple-choice" in words:
        return reply("B")
    return reply("There is no such cell in the image." if words.startswith("Locate") else "Normal cells.")


def test_a_run_on_a_server_says_who_answered_and_that_its_scores_are_words(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat import analyze

    monkeypatch.setenv("WSI_CHAT_API_KEY", "secret-of-the-user")
    server = FakeServer(_cytologist, models={"data": [{"id": "embedded-v2"}]})
    settings: dict[str, Any] = {"specimen": "cervix", "limit": 4, "top_k": 1, "pdf": False, "base_url": server.url}
    result = analyze(small_slide, out=tmp_path, **settings)
    server.stop()
    report = result.report
    assert (report.funnel.screened, report.funnel.screen_failed, report.funnel.detailed) == (4, 0, 1)
    model = report.provenance.model
    assert (model.engine, model.name, model.dialect) == ("openai", "embedded-v2", "embedded")
    assert model.engine_reason == "a server is named with --base-url"
    assert model.revision == f"embedded-v2@{server.url}"
    assert any(note.startswith("4 answers came without probabilities") for note in report.notes)
    assert {body["mm_processor_kwargs"]["size"]["longest_edge"] for body in server.bodies if "top_k" in body} == {65536}
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"secret-of-the-user" not in file.read_bytes(), file


def test_a_run_whose_server_dies_keeps_its_answers_and_goes_on_later(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat.commands.analyze import run_analyze

    monkeypatch.setattr("wsi_chat.engines.openai.PAUSE", 0.02)

    server = FakeServer(_cytologist)
    flags: dict[str, Any] = {
        "base_url": server.url, "dialect": "embedded", "specimen": "cervix", "top_k": 0, "pdf": False,
        "concurrency": 1, "timeout": 1.0, "controls": False,
    }  # fmt: skip

    def dying(body: dict[str, Any], number: int) -> Said:
        if number == 6:
            threading.Thread(target=server.stop).start()
            time.sleep(0.2)
            return "close"
        return _cytologist(body, number)

    server.script = dying
    assert run_analyze([small_slide], out=tmp_path, flags=flags, config=None, environ={}, quiet=True) == 3
    again = FakeServer(_cytologist, port=server.port)
    assert run_analyze([small_slide], out=tmp_path, flags=flags, config=None, environ={}, quiet=True) == 0
    again.stop()
    (path,) = tmp_path.glob("*/report.json")
    assert json.loads(path.read_text())["timings"]["answers_reused"] >= 2
