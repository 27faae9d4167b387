"""How the vllm engine counts a question; vLLM is a stand-in here, and `make test-serving` runs the real one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from wsi_chat.engines.feeding import LoopThread
from wsi_chat.engines.prompts import CONTROL
from wsi_chat.engines.protocol import MeasuringEngine
from wsi_chat.engines.vllm import VLLMEngine
from wsi_chat.engines.vllm_prompts import VLLMPrompts
from wsi_chat.errors import AnswerError, EngineError


@dataclass(frozen=True)
class TokenizeParams:
    """As vLLM's: a prompt beyond ``max_total_tokens`` is refused while it is made."""

    max_total_tokens: int | None


class Renderer:
    """Counts ten tokens for each image and one for each word."""

    default_chat_tok_params = TokenizeParams(50)

    def __init__(self) -> None:
        self.params: Any = None

    async def render_chat_async(self, conversations: Any, params: Any, limits: Any = None) -> Any:
        self.params = params
        parts = [part for message in conversations[0] for part in message["content"]]
        count = sum(10 if part["type"] == "image_pil" else len(part["text"].split()) for part in parts)
        most = (limits or self.default_chat_tok_params).max_total_tokens
        if most is not None and count > most:
            raise ValueError(f"the prompt has {count} tokens, at most {most}")
        return None, [{"prompt_token_ids": list(range(count))}]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An engine whose vLLM is a renderer with a context of 50 tokens."""
    for name in ("vllm", "vllm.renderers", "vllm.renderers.params"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["vllm.renderers.params"], "ChatParams", SimpleNamespace, raising=False)
    made = VLLMEngine.__new__(VLLMEngine)
    made._loop = LoopThread("test-vllm")
    made._vllm = SimpleNamespace(
        renderer=Renderer(), model_config=SimpleNamespace(max_model_len=50), shutdown=lambda: None
    )
    made._control = CONTROL
    made._prompts = VLLMPrompts(made._vllm, made._rendered, None)
    yield made
    made.close()


def test_room_is_the_context_less_the_questions_tokens(engine: Any, asking: Any) -> None:
    assert isinstance(engine, MeasuringEngine)
    assert engine.room(asking.query(0, "one two three")) == 50 - 10 - 3
    params = engine._vllm.renderer.params
    assert params.chat_template_content_format == "openai"
    assert params.chat_template_kwargs["add_generation_prompt"] is True


def test_a_question_beyond_the_context_is_measured_and_not_refused(engine: Any, asking: Any) -> None:
    assert engine.room(asking.query(0, "word " * 60)) == 50 - 10 - 60


def test_a_question_that_cannot_be_asked_has_no_room(engine: Any, asking: Any) -> None:
    with pytest.raises(AnswerError, match="2 image marks and 1 images"):
        engine.room(asking.query(0, "more <image>"))
    with pytest.raises(AnswerError, match="control token"):
        engine.room(asking.query(0, "stop<|im_end|>"))
    engine.close()
    with pytest.raises(EngineError, match="engine is closed"):
        engine.room(asking.query(0))


# ------------------------------------------------------------------------------------------------ prompts


def test_where_a_prompt_cannot_be_proved_the_renderer_makes_every_one(asking: Any) -> None:
    rendered: list[Any] = []

    async def render(query: Any) -> Any:
        rendered.append(query)
        return {"prompt_token_ids": [1]}

    # a version of vLLM that has no such renderer, and a family whose pictures are all resized
    for vllm, bounds in ((SimpleNamespace(), (3136, 10**6)), (SimpleNamespace(renderer=Renderer()), None)):
        loop = LoopThread("test-prompts")
        prompts = VLLMPrompts(vllm, render, bounds)
        loop.run(prompts.prove())
        assert not prompts.quick
        rendered.clear()
        query = asking.query(0)
        for _ in range(2):
            assert loop.run(prompts.prompt(query)) == {"prompt_token_ids": [1]}
        assert rendered == [query, query]
        prompts.close()
        loop.close()
