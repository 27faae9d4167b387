"""What goes wrong while the transformers engine runs: bad questions, full memory, a lost device, a listener gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from wsi_chat.engines import EngineCrashed, load_engine
from wsi_chat.engines.loading import describe_error
from wsi_chat.engines.transformers import TransformersEngine
from wsi_chat.errors import AnswerError, EngineDied, EngineError
from wsi_chat.schema import Query

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Any) -> TransformersEngine:
    return TransformersEngine(tiny_checkpoint("qwen3_vl"), batch_size=4)


def test_one_bad_query_leaves_its_batch_alone(
    asking: Any, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [asking.query(seed, tokens=3) for seed in range(4)]
    good = asking.answers(engine, queries)
    inner = engine._generate

    def breaking(batch: Any) -> Any:
        if any(prompt.query is queries[2] for prompt in batch):
            raise ValueError("this one is poison")
        return inner(batch)

    monkeypatch.setattr(engine, "_generate", breaking)
    answers = asking.answers(engine, queries)
    bad = answers.pop(queries[2].key)
    assert (bad.status, bad.finish_reason, bad.error, bad.text) == ("failed", "error", "this one is poison", "")
    assert {key: answer.text for key, answer in answers.items()} == {
        key: answer.text for key, answer in good.items() if key != bad.key
    }


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (lambda q: replace(q(0), images=()), "1 image marks and 0 images"),
        (lambda q: q(0, "more <image>"), "2 image marks and 1 images"),
        (lambda q: q(0, "stop<|im_end|>"), "control token <|im_end|>"),
        (lambda q: q(0, "<|image_pad|>"), "control token <|image_pad|>"),
        (lambda q: q(0, choices=("yes", "no")), "'yes' is not one token"),
        (lambda q: q(0, "x" * 5000), "the model takes 4096"),
        (lambda q: replace(q(0), images=(Image.new("RGB", (2000, 5)),)), "aspect ratio"),
    ],
)
def test_unusable_queries_fail_alone(asking: Any, engine: TransformersEngine, query: Any, why: str) -> None:
    query = query(asking.query)
    good = asking.query(7, "fine", tokens=2)
    answers = asking.answers(engine, [query, good])
    assert answers[query.key].status == "failed"
    assert why in answers[query.key].error
    assert answers[good.key].new_tokens > 0


def test_out_of_memory_halves_the_batch(asking: Any, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    engine = TransformersEngine(tiny_checkpoint("qwen2_vl"), batch_size=8)
    inner, sizes = engine._generate, []

    def small(batch: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return inner(batch)

    monkeypatch.setattr(engine, "_generate", small)
    answers = asking.answers(engine, [asking.query(seed, tokens=2) for seed in range(16)])
    assert {answer.status for answer in answers.values()} <= {"ok", "truncated"}
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[7:]) <= 2, "the next batch is already small"


def test_out_of_memory_in_a_choice_ends_with_one_row(
    asking: Any, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(tiny_checkpoint("qwen2_vl"), batch_size=4)
    inner = engine._last_logits

    def small(rows: Any) -> Any:
        if len(rows) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return inner(rows)

    monkeypatch.setattr(engine, "_last_logits", small)
    answers = asking.answers(engine, [asking.query(seed, choices=("A", "B")) for seed in range(3)])
    assert all(answer.status == "ok" for answer in answers.values())


def test_a_device_error_restarts_once_then_stops(
    asking: Any, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_engine(tiny_checkpoint("qwen2_vl"), batch_size=2)
    calls = []
    inner = TransformersEngine._generate

    def dying(self: Any, batch: Any) -> Any:
        calls.append(len(batch))
        if len(calls) in (2, 5):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return inner(self, batch)

    monkeypatch.setattr(TransformersEngine, "_generate", dying)
    queries = [asking.query(seed, tokens=2) for seed in range(12)]
    answered: list[str] = []
    with pytest.raises(EngineDied, match="illegal memory access"):
        answered.extend(answer.key for answer in loaded.answer(queries))
    assert len(answered) == len(set(answered)) == 6
    assert issubclass(EngineCrashed, EngineError)


def test_pulls_no_further_than_its_lookahead(asking: Any, engine: TransformersEngine) -> None:
    pulled = 0

    def source() -> Iterator[Query]:
        nonlocal pulled
        for seed in range(100):
            pulled += 1
            yield asking.query(seed, choices=("A", "B"))

    next(engine.answer(source()))
    assert pulled <= engine.lookahead


def test_whoever_stops_listening_stops_the_model(asking: Any, engine: TransformersEngine) -> None:
    steps = []
    counting = engine._model.register_forward_pre_hook(lambda *_: steps.append(1))
    try:
        pieces = engine.stream(asking.query(4, tokens=400))
        next(pieces)
        pieces.close()
    finally:
        counting.remove()
    assert len(steps) < 200
    assert asking.answers(engine, [asking.query(5, tokens=2)])


def test_a_stream_survives_one_crash_without_repeating_itself(
    asking: Any, tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat.engines.protocol import stream

    query = asking.query(1, tokens=8)
    whole = asking.answers(TransformersEngine(tiny_checkpoint("qwen2_vl")), [query])[query.key]
    loaded = load_engine(tiny_checkpoint("qwen2_vl"), engine="transformers")
    inner, crashes = TransformersEngine.stream, []

    def crashing(self: Any, query: Query) -> Any:
        for piece in inner(self, query):
            yield piece
            if not crashes:
                crashes.append(1)
                raise EngineCrashed("gone")
        return whole

    monkeypatch.setattr(TransformersEngine, "stream", crashing)
    heard, _ = asking.heard(stream(loaded, query))
    assert "".join(heard) == whole.text
    assert crashes


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("pixel values"), "KeyError: 'pixel values'"),
        (ValueError("x"), "ValueError: x"),
        (AssertionError(), "AssertionError, which says no more"),
        (ValueError("this one\n  is poison"), "this one is poison"),
        (AnswerError("poison"), "poison"),
    ],
)
def test_what_failed_is_named_by_its_type_where_its_message_is_no_sentence(error: Exception, said: str) -> None:
    assert describe_error(error) == said
