"""Half precision on the CPU: the embedded checkpoint decides as in full precision, and every family runs in it."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from wsi_chat import tasks
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import embedded_checkpoint
from wsi_chat.engines.transformers import TransformersEngine
from wsi_chat.terminology import load_system

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bfloat16_on_the_cpu_screens_as_float32_does(asking: Any) -> None:
    from wsi_chat.training.embedded.fields import held_out

    dialect, ask = get_dialect("embedded"), tasks.screen(load_system("cervix"))
    images = [Image.fromarray(sample.image) for sample in held_out(8)]
    found: dict[str, list[float]] = {}
    for dtype in ("float32", "bfloat16"):
        engine = TransformersEngine(embedded_checkpoint(), dtype=dtype, device="cpu", batch_size=4)
        assert engine.model_id.endswith(f":{dtype}"), "answers of both must not be mixed in one journal"
        queries = [dialect.build(ask, image, model_id=engine.model_id, decoding={})[0] for image in images]
        answers = asking.answers(engine, queries)
        chances = [dialect.read_choice(answers[query.key], ask) for query in queries]
        found[dtype] = [each["abnormal"] for each in chances if each is not None]
    full, half = found["float32"], found["bfloat16"]
    assert len(full) == len(half) == 8
    assert {p >= 0.5 for p in full} == {True, False}
    assert [p >= 0.5 for p in half] == [p >= 0.5 for p in full]
    # .013 at most over 24 such fields, as measured
    assert max(abs(one - other) for one, other in zip(full, half, strict=True)) < 0.03
    assert full != half


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "internvl", "paligemma", "paligemma2"])
def test_every_family_runs_in_bfloat16(tiny_checkpoint: Any, asking: Any, family: str) -> None:
    import torch

    engine = TransformersEngine(tiny_checkpoint(family), dtype="bfloat16", batch_size=2)
    assert {weights.dtype for weights in engine._model.parameters()} == {torch.bfloat16}
    for shared in (engine._shares_vision, False):
        engine._shares_vision = shared
        answers = asking.answers(engine, [asking.query(1, choices=("A", "B")), asking.query(2, tokens=3)])
        choice, text = answers.values()
        assert {choice.status, text.status} <= {"ok", "truncated"}, choice.error or text.error
        assert sum((choice.probabilities or text.probabilities or {}).values()) == pytest.approx(1.0)
