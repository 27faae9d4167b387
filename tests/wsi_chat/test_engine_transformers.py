"""The transformers engine against stock forwards of tiny random checkpoints of every architecture that it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wsi_chat import tasks
from wsi_chat.dialects import get_dialect
from wsi_chat.engines.transformers import TransformersEngine
from wsi_chat.schema import Query, Turn

pytestmark = pytest.mark.usefixtures("one_thread")
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FAMILIES = (*QWEN, "gemma3", "internvl", "paligemma", "paligemma2")
SPELLED = [("A", "ĠA"), ("B",), ("C",)]


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint(str(request.param))


def test_choice_probabilities_are_the_stock_log_softmax(folder: Path, asking: Any, reference: Any) -> None:
    engine, stock = TransformersEngine(folder, batch_size=3), reference(folder)
    choices = ("A", "B", "C")
    queries = [asking.query(seed, f"Pick {'x' * seed}", choices=choices) for seed in range(5)]
    answers = asking.answers(engine, queries)
    vocabulary = stock.tokenizer.get_vocab()
    for query in queries:
        logs = stock.logs(query)
        mass = [sum(math.exp(logs[vocabulary[token]]) for token in tokens) for tokens in SPELLED]
        answer = answers[query.key]
        assert answer.probabilities is not None, answer.error
        expected = [m / sum(mass) for m in mass]
        assert [answer.probabilities[c] for c in choices] == pytest.approx(expected, abs=2e-5)
        assert sum(answer.probabilities.values()) == pytest.approx(1.0, abs=1e-12)
        assert answer.text == choices[expected.index(max(expected))]
        assert answer.logprob == pytest.approx(math.log(max(mass)), abs=2e-4)
    firsts = {round(a.probabilities["A"], 4) for a in answers.values() if a.probabilities}
    assert len(firsts) > 1, "the images make no difference: the test would pass without them"


def test_a_choice_does_not_depend_on_its_company(folder: Path, asking: Any) -> None:
    engine = TransformersEngine(folder, batch_size=5)
    queries = [asking.query(seed, f"Q{'?' * (9 * seed)}", choices=("A", "B")) for seed in range(7)]
    together = asking.answers(engine, queries)
    alone = [asking.answers(TransformersEngine(folder, batch_size=5), [query]) for query in queries[:3]]
    turned = asking.answers(TransformersEngine(folder, batch_size=5), queries[::-1])
    for query, single in zip(queries[:3], alone, strict=True):
        assert single[query.key] == together[query.key] == turned[query.key]


def test_text_is_the_stock_greedy_text_whatever_the_padding(folder: Path, asking: Any, reference: Any) -> None:
    engine, stock = TransformersEngine(folder, batch_size=4), reference(folder)
    alone = TransformersEngine(folder, batch_size=1)
    queries = [asking.query(seed, f"Tell {'very ' * seed}much") for seed in range(4)]
    answers = asking.answers(engine, queries)
    for query in queries:
        text, cut, length = stock.said(query)
        answer = answers[query.key]
        assert answer.text == text
        assert answer.status == ("truncated" if cut else "ok")
        assert answer.finish_reason == ("length" if cut else "stop")
        assert answer.prompt_tokens == length
        assert asking.answers(alone, [query])[query.key].text == text


def test_logprob_of_a_text_is_the_sum_over_its_tokens(folder: Path, asking: Any, reference: Any) -> None:
    query = asking.query(3, tokens=5)
    answer = asking.answers(TransformersEngine(folder), [query])[query.key]
    out = reference(folder).generated(query, return_dict_in_generate=True, output_logits=True)
    assert answer.new_tokens == len(out.logits)
    total = sum(float(logits[0].log_softmax(-1).max()) for logits in out.logits)
    assert answer.logprob == pytest.approx(total, abs=1e-3)


def test_the_vision_tower_sees_an_image_once(folder: Path, asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(folder, batch_size=2)
    seen: list[int] = []
    inner = engine._model.get_image_features

    def counted(*given: Any, **rest: Any) -> Any:
        seen.append(len(given[0]))
        return inner(*given, **rest)

    monkeypatch.setattr(engine._model, "get_image_features", counted)
    queries = [asking.query(1, f"question {n}", tokens=3) for n in range(4)]
    first = asking.answers(engine, queries)
    assert len(seen) == 1
    again = asking.answers(engine, queries)
    assert len(seen) == 1
    assert first == again


def test_without_shared_vision_the_answers_are_the_same(folder: Path, asking: Any) -> None:
    queries = [asking.query(1, "a", tokens=6), asking.query(1, "bb", tokens=6), asking.query(2, choices=("A", "B"))]
    shared = asking.answers(TransformersEngine(folder), queries)
    plain = TransformersEngine(folder)
    plain._shares_vision = False
    for key, answer in asking.answers(plain, queries).items():
        assert answer.text == shared[key].text
        if answer.probabilities:
            assert answer.probabilities == pytest.approx(shared[key].probabilities, abs=1e-5)


def test_streamed_pieces_are_the_answer_given_at_once(folder: Path, asking: Any) -> None:
    from wsi_chat.engines.protocol import StreamingEngine, stream

    engine = TransformersEngine(folder, batch_size=2)
    assert isinstance(engine, StreamingEngine)
    for query in (asking.query(1), asking.query(2, "other", tokens=1), asking.query(3, choices=("A", "B"))):
        heard, streamed = asking.heard(stream(engine, query))
        whole = asking.answers(engine, [query])[query.key]
        assert "".join(heard) == whole.text
        assert streamed == whole
    heard, bad = asking.heard(stream(engine, replace(asking.query(0), images=())))
    assert (heard, bad.status) == ([], "failed")


@pytest.mark.parametrize("family", [*QWEN, "gemma3", "internvl"])
def test_several_turns_and_images_are_the_stock_template_and_text(
    tiny_checkpoint: Any, family: str, asking: Any, reference: Any
) -> None:
    engine, stock = TransformersEngine(tiny_checkpoint(family)), reference(tiny_checkpoint(family))
    turns = (
        Turn("system", "Be brief."),
        Turn("user", "<image>One?"),
        Turn("assistant", "Yes."),
        Turn("user", "And<image>this one, beside<image>?"),
    )
    query = Query("k", "vqa", turns, tuple(asking.image(n) for n in (1, 2, 3)), max_tokens=6)
    prompt = engine._prompts.prompt(query)
    inputs = stock.inputs(query)
    assert list(prompt.ids) == inputs["input_ids"][0].tolist()
    text = stock.tokenizer.decode(prompt.ids)
    if family.startswith("qwen2"):
        seen = f"<|vision_start|>{'<|image_pad|>' * 16}<|vision_end|>"
        assert text == (
            f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{seen}One?<|im_end|>\n"
            f"<|im_start|>assistant\nYes.<|im_end|>\n"
            f"<|im_start|>user\nAnd{seen}this one, beside{seen}?<|im_end|>\n<|im_start|>assistant\n"
        )
    if family == "gemma3":
        seen = f"\n\n<start_of_image>{'<image_soft_token>' * 4}<end_of_image>\n\n"
        assert text == (
            f"<bos><start_of_turn>user\nBe brief.\n\n{seen}One?<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n"
            f"<start_of_turn>user\nAnd{seen}this one, beside{seen}?<end_of_turn>\n<start_of_turn>model\n"
        )
    assert asking.answers(engine, [query])["k"].text == stock.said(query)[0]
    assert engine.room(query) == 4096 - len(prompt.ids)


def test_reads_an_embedded_style_question(tiny_checkpoint: Any, asking: Any) -> None:
    engine = TransformersEngine(tiny_checkpoint("qwen3_vl"), batch_size=4)
    ask = tasks.mcq("Is any abnormal cell present?", ("normal", "abnormal"))
    image = asking.image(5, 256)
    query, _ = get_dialect("embedded").build(ask, image, model_id=engine.model_id, decoding={})
    answer = asking.answers(engine, [query])[query.key]
    chances = get_dialect("embedded").read_choice(answer, ask)
    assert chances is not None
    assert list(chances) == ["normal", "abnormal"]
    assert sum(chances.values()) == pytest.approx(1.0)
