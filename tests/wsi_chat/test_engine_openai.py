"""The engine for OpenAI-compatible servers, against a fake one: what is sent and how answers are read."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from wsi_chat.engines import Engine
from wsi_chat.engines.chat_requests import ImageUrls, choice_probabilities, estimated_tokens, messages_of
from wsi_chat.engines.protocol import MeasuringEngine, StreamingEngine
from wsi_chat.errors import AnswerError, EngineError
from wsi_chat.schema import Answer, Box, Query, Turn

from .model_server import RED, Said, echo, question, reply, screening, words_of

# ------------------------------------------------------------------------------------------------ what is sent


def test_images_go_as_exact_pngs_where_their_marks_stand_and_decoding_is_greedy(serve: Any) -> None:
    server, engine = serve(echo, pixel_bounds=(1024, 65536), seed=7)
    assert isinstance(engine, Engine)
    blue = Image.effect_noise((32, 32), 50).convert("RGB")
    (answer,) = engine.answer([question(3, images=(RED, blue))])
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
    server, engine = serve(echo)
    odd = Query("odd", "vqa", (Turn("user", "<image>what?"),))
    sly = Query("sly", "vqa", (Turn("user", f"hello{token}"),))
    by_key = {answer.key: answer for answer in engine.answer([odd, sly, question(1)])}
    assert "1 image marks and 0 images" in by_key["odd"].error
    assert "control token" in by_key["sly"].error
    assert by_key["q1"].status == "ok"
    assert len(server.bodies) == 1


# ------------------------------------------------------------------------------------------------ choices


def test_choice_probabilities_come_from_the_first_tokens_alternatives(serve: Any) -> None:
    top = {"B": math.log(0.5), " B": math.log(0.1), "A": math.log(0.2), "The": math.log(0.1)}
    server, engine = serve(lambda body, number: reply("B", top=top))
    (answer,) = engine.answer([screening()])
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
    (answer,) = engine.answer([screening()])
    assert (answer.text, answer.probabilities, answer.status) == ("B. abnormal", None, "ok")
    assert server.bodies[-1]["max_tokens"] == 16  # room to name the option in words


NOT_NUMBERS = [{"A": math.nan, "B": math.nan}, {"A": math.inf, "B": -2.0}, {"A": -0.1, "B": math.nan}]


@pytest.mark.parametrize("top", [*NOT_NUMBERS, None])
def test_missing_or_broken_log_probabilities_are_retried_and_then_no_answer(
    serve: Any, top: dict[str, float] | None
) -> None:
    """Such an answer counted as a hard 0 or 1 among real probabilities."""

    def script(body: dict[str, Any], number: int) -> Said:
        broken = number > 0 and words_of(body).startswith("question 1")
        return reply("B", top=top if broken else {"A": math.log(0.3), "B": math.log(0.7)})

    server, engine = serve(script, concurrency=1)
    (sound,) = engine.answer([question(0, choices=("A", "B"))])
    assert sound.probabilities == pytest.approx({"A": 0.3, "B": 0.7})
    (broken,) = engine.answer([question(1, choices=("A", "B"))])
    assert (broken.status, broken.probabilities, broken.text) == ("failed", None, "")
    assert "log-probabilities" in broken.error
    assert len(server.bodies) == 4, "asked three times"


def test_log_probabilities_that_come_at_the_second_try_count(serve: Any) -> None:
    sound = {"A": math.log(0.3), "B": math.log(0.7)}
    _, engine = serve(lambda body, number: reply("B", top=sound if number != 0 else NOT_NUMBERS[0]), concurrency=1)
    (answer,) = engine.answer([question(0, choices=("A", "B"))])
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
    answers = [next(iter(engine.answer([screening(n)]))) for n in range(3)]
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
    assert [answer.text for answer in engine.answer([question(0), question(1)])] == ["fine", "fine"]
    assert server.bodies[-1]["max_completion_tokens"] == 9


# ------------------------------------------------------------------------------------------------ feeding


def test_requests_go_out_together_but_never_more_than_allowed_nor_far_ahead(serve: Any) -> None:
    def script(body: dict[str, Any], number: int) -> Said:
        time.sleep(0.05)
        return echo(body, number)

    server, engine = serve(script, concurrency=4)
    pulled = 0

    def source() -> Iterator[Query]:
        nonlocal pulled
        for n in range(40):
            pulled += 1
            yield question(n)

    for given, _ in enumerate(engine.answer(source())):
        assert pulled - given <= engine.lookahead == 8
    assert server.most == 4


def test_a_slow_source_does_not_hold_back_what_is_answered(serve: Any) -> None:
    _, engine = serve(echo)

    def source() -> Iterator[Query]:
        for n in range(5):
            yield question(n)
            time.sleep(0.3)

    started = time.monotonic()
    came = [time.monotonic() - started for _ in engine.answer(source())]
    assert came[0] < 0.6
    assert came[-1] < 2.5


def test_tokens_found_in_the_prefix_cache_are_counted(serve: Any) -> None:
    _, engine = serve(lambda body, number: reply("x", cached=64))
    list(engine.answer([question(0), question(1)]))
    assert engine.cached_tokens == 128


def test_a_closed_engine_answers_no_more(serve: Any) -> None:
    _, engine = serve(echo)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="engine is closed"):
        list(engine.answer([question()]))


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
    pieces, answer = _heard(engine, question())
    assert pieces == ["Nor", "mal ", "cells."]
    assert (answer.text, answer.status, answer.prompt_tokens, answer.new_tokens) == ("Normal cells.", "ok", 40, 3)
    _, answer = _heard(engine, replace(question(), key="cut"))
    server.script = lambda body, number: [_event("Normal ce", "length"), "[DONE]"]
    assert _heard(engine, question())[1].status == "truncated"


def test_halves_of_a_character_are_joined_and_a_lone_one_is_marked(serve: Any) -> None:
    events = [_event("a\ud83d"), _event("\ude00b\ude00"), _event("\ud800c\ud83d", "stop"), "[DONE]"]
    _, engine = serve(lambda body, number: events if body["stream"] else reply("not asked"))
    pieces, answer = _heard(engine, question())
    assert pieces == ["a", "\U0001f600b\ufffd", "\ufffdc"]
    assert answer.text == "".join(pieces)
    _, engine = serve(lambda body, number: reply("\ud800 normal"), models={"data": [{"id": "\ud800tiny"}]})
    assert engine.model_id.startswith("\ufffdtiny@")
    assert [answer.text for answer in engine.answer([question()])] == ["\ufffd normal"]


def test_a_stream_that_never_began_is_asked_plainly_and_one_that_broke_is_failed(serve: Any) -> None:
    _, engine = serve(lambda body, number: (500, {}) if body["stream"] else reply("in one piece"))
    pieces, answer = _heard(engine, question())
    assert (pieces, answer.text, answer.status) == (["in one piece"], "in one piece", "ok")
    _, engine = serve(lambda body, number: [_event("Nor"), "{broken"])
    pieces, answer = _heard(engine, question())
    assert (pieces, answer.status) == (["Nor"], "failed")
    _, engine = serve(lambda body, number: reply("B", top={"A": -2.0, "B": -0.1}))
    pieces, answer = _heard(engine, screening())
    assert (pieces, answer.text) == (["B"], "B")
    _, engine = serve(lambda body, number: (401, {}))
    with pytest.raises(EngineError, match="refuses the key"):
        _heard(engine, question())


# ------------------------------------------------------------------------------------------------ room for the answer


LISTED = {"data": [{"id": "tiny", "root": "", "max_model_len": 2048}]}


def test_the_server_counts_a_question_where_it_can(serve: Any) -> None:
    server, engine = serve(lambda body, number: {"count": 348, "max_model_len": 2048, "tokens": []}, models=LISTED)
    assert isinstance(engine, MeasuringEngine)
    assert engine.room(question()) == 2048 - 348
    assert server.paths == ["/tokenize"]
    body = server.bodies[0]
    assert (body["model"], body["add_generation_prompt"]) == ("tiny", True)
    assert body["messages"] == messages_of(question(), ImageUrls(keep=1))
    server.script = lambda body, number: {"count": 2100, "max_model_len": 2048, "tokens": []}
    assert engine.room(question()) == -52


def test_a_served_model_of_unknown_length_has_unknown_room(serve: Any) -> None:
    server, engine = serve(echo)
    assert engine.room(question()) is None
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
    expected = 2048 - estimated_tokens(question())
    assert engine.room(question()) == engine.room(question()) == expected
    assert 1500 < expected < 2048
    assert len(server.bodies) == asked
    server.script = echo
    assert next(iter(engine.answer([question()]))).status == "ok"


def test_a_question_that_cannot_be_asked_has_no_room(serve: Any) -> None:
    _, engine = serve(echo, models=LISTED)
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
