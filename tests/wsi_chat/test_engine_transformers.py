"""The transformers engine against stock forwards of tiny random checkpoints of the three Qwen-VL architectures."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_chat import tasks
from wsi_chat.dialects import get_dialect
from wsi_chat.engines import Engine, EngineCrashed, load_engine, read_checkpoint
from wsi_chat.engines.transformers import TransformersEngine
from wsi_chat.errors import EngineDied, EngineError, SettingError
from wsi_chat.schema import Answer, Query, Turn

TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
GREEDY: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "temperature": 1.0}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices: threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {token: n for n, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    # ' A' is a token of its own beside 'A'; ' B' is not
    letters["ĠA"] = len(letters)
    core = Tokenizer(models.BPE(vocab=letters, merges=[("Ġ", "A")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _build(family: str, folder: Path) -> Path:
    import torch
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = _tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    patch = 16 if family == "qwen3_vl" else 14
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "bos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": patch}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        kind, config = transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig
    elif family == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "window_size": 56}
        vision |= {"fullatt_block_indexes": [1]}
        kind, config = transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLConfig
    else:
        text["head_dim"] = 16
        text["rope_parameters"]["mrope_interleaved"] = True
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        kind, config = transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLConfig
    made = config(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(11)
    model = kind(made)
    for weights in model.parameters():
        # large enough that answers differ from image to image
        torch.nn.init.normal_(weights, std=0.25)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=True,
        temperature=0.9,
        repetition_penalty=1.5,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=patch).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: _build(family, root / family) for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(checkpoints: dict[str, Path], family: str) -> Path:
    return checkpoints[family]


def _image(seed: int, side: int = 112) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def _query(seed: int, text: str = "What?", *, choices: tuple[str, ...] = (), tokens: int = 12) -> Query:
    turns = (Turn("system", "You are a helpful assistant."), Turn("user", f"<image>{text}"))
    return Query(
        key=f"{seed}/{text}/{choices}",
        task="mcq" if choices else "vqa",
        turns=turns,
        images=(_image(seed),),
        choices=choices,
        max_tokens=tokens,
    )


def _answers(engine: Engine, queries: list[Query]) -> dict[str, Answer]:
    answers = list(engine.answer(iter(queries)))
    assert sorted(a.key for a in answers) == sorted(q.key for q in queries)
    return {answer.key: replace(answer, seconds=0.0) for answer in answers}


class Stock:
    """The checkpoint as anyone would run it: transformers' own modules, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        import transformers
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.processor: Any = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def inputs(self, query: Query) -> dict[str, Any]:
        import torch

        seen = self.processor(images=list(query.images), return_tensors="pt")
        count = int(seen["image_grid_thw"][0].prod()) // 4
        text = "".join(f"<|im_start|>{t.role}\n{t.text}<|im_end|>\n" for t in query.turns) + "<|im_start|>assistant\n"
        text = text.replace("<image>", f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>")
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        image_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == image_id).int(),
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
        }


def test_choice_probabilities_are_the_stock_log_softmax(folder: Path) -> None:
    import torch

    engine, stock = TransformersEngine(folder, batch_size=3), Stock(folder)
    choices = ("A", "B", "C")
    queries = [_query(seed, f"Pick {'x' * seed}", choices=choices) for seed in range(5)]
    answers = _answers(engine, queries)
    vocabulary = stock.tokenizer.get_vocab()
    spelled = [("A", "ĠA"), ("B",), ("C",)]
    for query in queries:
        with torch.inference_mode():
            logs = stock.model(**stock.inputs(query)).logits[0, -1].double().log_softmax(-1)
        mass = [sum(math.exp(logs[vocabulary[token]]) for token in tokens) for tokens in spelled]
        answer = answers[query.key]
        assert answer.probabilities is not None
        expected = [m / sum(mass) for m in mass]
        assert [answer.probabilities[c] for c in choices] == pytest.approx(expected, abs=2e-5)
        assert sum(answer.probabilities.values()) == pytest.approx(1.0, abs=1e-12)
        assert answer.text == choices[expected.index(max(expected))]
        assert answer.logprob == pytest.approx(math.log(max(mass)), abs=2e-4)
    firsts = {round(a.probabilities["A"], 4) for a in answers.values() if a.probabilities}
    assert len(firsts) > 1, "the images make no difference: the test would pass without them"


def test_a_choice_does_not_depend_on_its_company(folder: Path) -> None:
    engine = TransformersEngine(folder, batch_size=5)
    queries = [_query(seed, choices=("A", "B")) for seed in range(7)]
    together = _answers(engine, queries)
    alone = [_answers(TransformersEngine(folder, batch_size=5), [query]) for query in queries[:3]]
    turned = _answers(TransformersEngine(folder, batch_size=5), queries[::-1])
    for query, single in zip(queries[:3], alone, strict=True):
        assert single[query.key] == together[query.key] == turned[query.key]


def test_text_is_the_stock_greedy_text_whatever_the_padding(folder: Path) -> None:
    import torch

    engine, stock = TransformersEngine(folder, batch_size=4), Stock(folder)
    alone = TransformersEngine(folder, batch_size=1)
    queries = [_query(seed, f"Tell {'very ' * seed}much") for seed in range(4)]
    answers = _answers(engine, queries)
    for query in queries:
        inputs = stock.inputs(query)
        with torch.inference_mode():
            out = stock.model.generate(**inputs, **GREEDY, max_new_tokens=12)
        said = out[0, inputs["input_ids"].shape[1] :].tolist()
        end = stock.tokenizer.eos_token_id
        cut = end not in said
        text = stock.tokenizer.decode(said if cut else said[: said.index(end)], skip_special_tokens=False)
        answer = answers[query.key]
        assert answer.text == text
        assert answer.status == ("truncated" if cut else "ok")
        assert answer.finish_reason == ("length" if cut else "stop")
        assert answer.prompt_tokens == inputs["input_ids"].shape[1]
        assert _answers(alone, [query])[query.key].text == text


def test_logprob_of_a_text_is_the_sum_over_its_tokens(folder: Path) -> None:
    import torch

    query = _query(3, tokens=5)
    answer = _answers(TransformersEngine(folder), [query])[query.key]
    stock = Stock(folder)
    with torch.inference_mode():
        out = stock.model.generate(
            **stock.inputs(query), **GREEDY, max_new_tokens=5, return_dict_in_generate=True, output_logits=True
        )
    assert answer.new_tokens == len(out.logits)
    total = sum(float(logits[0].log_softmax(-1).max()) for logits in out.logits)
    assert answer.logprob == pytest.approx(total, abs=1e-3)


def test_the_vision_tower_sees_an_image_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(folder, batch_size=2)
    seen: list[int] = []
    inner = engine._model.get_image_features

    def counted(values: Any, grids: Any, **rest: Any) -> Any:
        seen.append(len(grids))
        return inner(values, grids, **rest)

    monkeypatch.setattr(engine._model, "get_image_features", counted)
    queries = [_query(1, f"question {n}", tokens=3) for n in range(4)]
    first = _answers(engine, queries)
    assert len(seen) == 1
    again = _answers(engine, queries)
    assert len(seen) == 1
    assert first == again


def test_without_shared_vision_the_answers_are_the_same(folder: Path) -> None:
    queries = [_query(1, "a", tokens=6), _query(1, "b", tokens=6), _query(2, choices=("A", "B"))]
    shared = _answers(TransformersEngine(folder), queries)
    plain = TransformersEngine(folder)
    plain._shares_vision = False
    for key, answer in _answers(plain, queries).items():
        assert answer.text == shared[key].text
        if answer.probabilities:
            assert answer.probabilities == pytest.approx(shared[key].probabilities, abs=1e-5)


@pytest.fixture(scope="module")
def engine(checkpoints: dict[str, Path]) -> TransformersEngine:
    return TransformersEngine(checkpoints["qwen3_vl"], batch_size=4)


def test_one_bad_query_leaves_its_batch_alone(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [_query(seed, tokens=3) for seed in range(4)]
    good = _answers(engine, queries)
    inner = engine._generate

    def breaking(batch: Any) -> Any:
        if any(prompt.query is queries[2] for prompt in batch):
            raise ValueError("this one is poison")
        return inner(batch)

    monkeypatch.setattr(engine, "_generate", breaking)
    answers = _answers(engine, queries)
    bad = answers.pop(queries[2].key)
    assert (bad.status, bad.finish_reason, bad.error, bad.text) == ("failed", "error", "this one is poison", "")
    assert {key: answer.text for key, answer in answers.items()} == {
        key: answer.text for key, answer in good.items() if key != bad.key
    }


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (replace(_query(0), images=()), "1 image marks and 0 images"),
        (_query(0, "more <image>"), "2 image marks and 1 images"),
        (_query(0, "stop<|im_end|>"), "control token <|im_end|>"),
        (_query(0, "<|image_pad|>"), "control token <|image_pad|>"),
        (_query(0, choices=("yes", "no")), "'yes' is not one token"),
        (_query(0, "x" * 5000), "the model takes 4096"),
        (replace(_query(0), images=(Image.new("RGB", (2000, 5)),)), "aspect ratio"),
    ],
)
def test_unusable_queries_fail_alone(engine: TransformersEngine, query: Query, why: str) -> None:
    good = _query(7, "fine", tokens=2)
    answers = _answers(engine, [query, good])
    assert answers[query.key].status == "failed"
    assert why in answers[query.key].error
    assert answers[good.key].new_tokens > 0


def test_out_of_memory_halves_the_batch(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    engine = TransformersEngine(checkpoints["qwen2_vl"], batch_size=8)
    inner, sizes = engine._generate, []

    def small(batch: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return inner(batch)

    monkeypatch.setattr(engine, "_generate", small)
    answers = _answers(engine, [_query(seed, tokens=2) for seed in range(16)])
    assert {answer.status for answer in answers.values()} <= {"ok", "truncated"}
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[7:]) <= 2, "the next batch is already small"


def test_out_of_memory_in_a_choice_ends_with_one_row(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine(checkpoints["qwen2_vl"], batch_size=4)
    inner = engine._last_logits

    def small(rows: Any) -> Any:
        if len(rows) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return inner(rows)

    monkeypatch.setattr(engine, "_last_logits", small)
    answers = _answers(engine, [_query(seed, choices=("A", "B")) for seed in range(3)])
    assert all(answer.status == "ok" for answer in answers.values())


def test_a_device_error_restarts_once_then_stops(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_engine(checkpoints["qwen2_vl"], batch_size=2)
    calls = []
    inner = TransformersEngine._generate

    def dying(self: Any, batch: Any) -> Any:
        calls.append(len(batch))
        if len(calls) in (2, 5):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return inner(self, batch)

    monkeypatch.setattr(TransformersEngine, "_generate", dying)
    queries = [_query(seed, tokens=2) for seed in range(12)]
    answered: list[str] = []
    with pytest.raises(EngineDied, match="illegal memory access"):
        answered.extend(answer.key for answer in loaded.answer(queries))
    assert len(answered) == len(set(answered)) == 6
    assert issubclass(EngineCrashed, EngineError)


def test_pulls_no_further_than_its_lookahead(engine: TransformersEngine) -> None:
    pulled = 0

    def source() -> Iterator[Query]:
        nonlocal pulled
        for seed in range(100):
            pulled += 1
            yield _query(seed, choices=("A", "B"))

    next(engine.answer(source()))
    assert pulled <= engine.lookahead


def test_reads_an_embedded_style_question(engine: TransformersEngine) -> None:
    ask = tasks.mcq("Is any abnormal cell present?", ("normal", "abnormal"))
    query, _ = get_dialect("embedded").build(ask, _image(5, 256), model_id=engine.model_id, decoding={})
    answer = _answers(engine, [query])[query.key]
    chances = get_dialect("embedded").read_choice(answer, ask)
    assert chances is not None
    assert list(chances) == ["normal", "abnormal"]
    assert sum(chances.values()) == pytest.approx(1.0)


# ---------------------------------------------------------------------------------------------- bad checkpoints


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["qwen2_vl"], tmp_path / "copy"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(EngineError, match=rf"lacks {name}"):
        load_engine(copy)


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json, model\.safetensors, tokenizer\.json, preproc"):
        load_engine(tmp_path)


def test_a_missing_shard_is_named(copy: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    with pytest.raises(EngineError, match=r"lacks model-2\.safetensors"):
        load_engine(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(EngineError, match="convert the weights to safetensors"):
        load_engine(copy)


def test_cut_off_weights_are_recognised(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(EngineError, match=f"cut off: {len(whole) - 100} bytes of {len(whole)}"):
        load_engine(copy)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x04\0\0\0\0\0\0\0null"])
def test_weights_that_are_no_safetensors(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(EngineError, match="is not a safetensors file"):
        load_engine(copy)


def test_lost_tensors_are_not_invented(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    lost = next(name for name in tensors if "layers.1" in name)
    del tensors[lost]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match="lacks 1 of the model's weights"):
        load_engine(copy)


@pytest.mark.parametrize(("file", "content"), [("config.json", "{"), ("config.json", "[]"), ("tokenizer.json", "{}")])
def test_broken_json_is_named(copy: Path, file: str, content: str) -> None:
    (copy / file).write_text(content)
    with pytest.raises(EngineError, match=r"config\.json|tokenizer"):
        load_engine(copy)


def test_an_unknown_architecture_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(EngineError, match="of type 'llama'"):
        load_engine(copy)


def test_a_missing_chat_template_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match="has no chat template"):
        load_engine(copy)


def test_paths_and_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        load_engine(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="is a file, not a folder"):
        load_engine(tmp_path / "file")
    with pytest.raises(EngineError, match="neither a folder nor in the local model cache"):
        load_engine("nobody/no-such-model")


@pytest.mark.parametrize(
    "settings", [{"engine": "magic"}, {"dtype": "int4"}, {"device": "abacus"}, {"device": "cuda:7"}, {"batch_size": 0}]
)
def test_bad_settings_are_refused(copy: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=str(next(iter(settings)))):
        load_engine(copy, **settings)


def test_the_revision_follows_the_content(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsi_chat.engines import checkpoint

    def changed_at(place: int) -> str:
        data = bytearray(original)
        data[place] ^= 1
        (copy / "model.safetensors").write_bytes(data)
        return read_checkpoint(copy).revision

    original = (copy / "model.safetensors").read_bytes()
    before = read_checkpoint(copy).revision
    assert changed_at(len(original) - 1) != before
    (copy / "model.safetensors").write_bytes(original)
    assert read_checkpoint(copy).revision == before
    # a large file is sampled: first, last and blocks between
    monkeypatch.setattr(checkpoint, "FULL_HASH_BYTES", 1000)
    monkeypatch.setattr(checkpoint, "SAMPLES", 3)
    monkeypatch.setattr(checkpoint, "SAMPLE_BYTES", 100)
    large = read_checkpoint(copy).revision
    middle = (len(original) - 100) // 2
    assert len({large, changed_at(middle), changed_at(len(original) - 1)}) == 3


# ---------------------------------------------------------------------------------------------- streaming, turns


def _heard(pieces: Any) -> tuple[list[str], Answer]:
    heard = []
    while True:
        try:
            heard.append(next(pieces))
        except StopIteration as end:
            return heard, replace(end.value, seconds=0.0)


def test_streamed_pieces_are_the_answer_given_at_once(folder: Path) -> None:
    from wsi_chat.engines.protocol import StreamingEngine, stream

    engine = TransformersEngine(folder, batch_size=2)
    assert isinstance(engine, StreamingEngine)
    for query in (_query(1, tokens=12), _query(2, "other", tokens=1), _query(3, choices=("A", "B"))):
        heard, streamed = _heard(stream(engine, query))
        whole = _answers(engine, [query])[query.key]
        assert "".join(heard) == whole.text
        assert streamed == whole
    heard, bad = _heard(stream(engine, replace(_query(0), images=())))
    assert (heard, bad.status) == ([], "failed")


def test_whoever_stops_listening_stops_the_model(engine: TransformersEngine) -> None:
    steps = []
    counting = engine._model.register_forward_pre_hook(lambda *_: steps.append(1))
    try:
        pieces = engine.stream(_query(4, tokens=400))
        next(pieces)
        pieces.close()
    finally:
        counting.remove()
    assert len(steps) < 200
    assert _answers(engine, [_query(5, tokens=2)])


def test_a_stream_survives_one_crash_without_repeating_itself(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsi_chat.engines.protocol import stream

    query = _query(1, tokens=8)
    whole = _answers(TransformersEngine(checkpoints["qwen2_vl"]), [query])[query.key]
    loaded = load_engine(checkpoints["qwen2_vl"], engine="transformers")
    inner, crashes = TransformersEngine.stream, []

    def crashing(self: Any, query: Query) -> Any:
        for piece in inner(self, query):
            yield piece
            if not crashes:
                crashes.append(1)
                raise EngineCrashed("gone")
        return whole

    monkeypatch.setattr(TransformersEngine, "stream", crashing)
    heard, _ = _heard(stream(loaded, query))
    assert "".join(heard) == whole.text
    assert crashes


def test_several_turns_and_images_are_the_stock_template_and_text(folder: Path) -> None:
    import torch

    engine, stock = TransformersEngine(folder), Stock(folder)
    turns = (
        Turn("system", "Be brief."),
        Turn("user", "<image>One?"),
        Turn("assistant", "Yes."),
        Turn("user", "And <image> this one, beside <image>?"),
    )
    query = Query("k", "vqa", turns, images=(_image(1), _image(2), _image(3)), max_tokens=6)
    prompt = engine._prompts.prompt(query)
    inputs = stock.inputs(query)
    assert list(prompt.ids) == inputs["input_ids"][0].tolist()
    text = stock.tokenizer.decode(prompt.ids)
    pads = "<|image_pad|>" * 16 if "qwen2" in str(folder) else ""
    if pads:
        seen = f"<|vision_start|>{pads}<|vision_end|>"
        assert text == (
            f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{seen}One?<|im_end|>\n"
            f"<|im_start|>assistant\nYes.<|im_end|>\n"
            f"<|im_start|>user\nAnd {seen} this one, beside {seen}?<|im_end|>\n<|im_start|>assistant\n"
        )
    with torch.inference_mode():
        out = stock.model.generate(**inputs, **GREEDY, max_new_tokens=6)
    said = out[0, inputs["input_ids"].shape[1] :].tolist()
    end = stock.tokenizer.eos_token_id
    expected = stock.tokenizer.decode(said[: said.index(end)] if end in said else said, skip_special_tokens=False)
    assert _answers(engine, [query])["k"].text == expected
    assert engine.room(query) == 4096 - len(prompt.ids)


# ---------------------------------------------------------------------------------------------- LoRA adapters


@pytest.fixture(scope="module")
def adapter(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter with weights large enough to change answers, on the Qwen2-VL checkpoint."""
    import peft
    import torch
    import transformers

    loader: Any = transformers.AutoModelForImageTextToText
    base = loader.from_pretrained(checkpoints["qwen2_vl"])
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that it renamed
        tuned = peft.get_peft_model(base, config)
    for name, weights in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weights, std=0.6)
    place = tmp_path_factory.mktemp("adapters") / "cells-lora"
    tuned.save_pretrained(place, save_embedding_layers=False)
    return place


def test_an_adapter_changes_the_answers_as_peft_does(checkpoints: dict[str, Path], adapter: Path) -> None:
    import peft
    import torch

    folder, query = checkpoints["qwen2_vl"], _query(2, choices=("A", "B", "C"))
    plain, engine = TransformersEngine(folder), TransformersEngine(folder, adapter=adapter)
    stock = Stock(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        tuned = peft.PeftModel.from_pretrained(stock.model, str(adapter)).eval()
    with torch.inference_mode():
        logs = tuned(**stock.inputs(query)).logits[0, -1].double().log_softmax(-1)
    vocabulary = stock.tokenizer.get_vocab()
    mass = [sum(math.exp(logs[vocabulary[t]]) for t in tokens) for tokens in (("A", "ĠA"), ("B",), ("C",))]
    found, before = (_answers(e, [query])[query.key].probabilities for e in (engine, plain))
    assert found is not None
    assert before is not None
    assert [found[c] for c in "ABC"] == pytest.approx([m / sum(mass) for m in mass], abs=1e-4)
    assert max(abs(found[c] - before[c]) for c in "ABC") > 0.01
    assert engine.model_name == "qwen2_vl+cells-lora"
    assert engine.model_id.startswith("qwen2_vl+cells-lora@")
    assert engine.model_id != plain.model_id


def test_an_adapter_of_another_base_or_shape_is_refused(
    checkpoints: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=r"was trained on '.*qwen2_vl', the model is 'qwen3_vl'"):
        TransformersEngine(checkpoints["qwen3_vl"], adapter=adapter)
    forged = Path(shutil.copytree(adapter, tmp_path / "forged"))
    config = json.loads((forged / "adapter_config.json").read_text())
    (forged / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "", "r": 4}))
    with pytest.raises(EngineError, match="does not fit the model"):
        TransformersEngine(checkpoints["qwen2_vl"], adapter=forged)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "lacks adapter_config.json"),
        (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "is a pickle"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}'), "of type 'PROMPT_TUNING'"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_broken_adapters_are_named(
    checkpoints: dict[str, Path], adapter: Path, tmp_path: Path, broken: Any, says: str
) -> None:
    copied = Path(shutil.copytree(adapter, tmp_path / "copied"))
    broken(copied)
    with pytest.raises(EngineError, match=says):
        TransformersEngine(checkpoints["qwen2_vl"], adapter=copied)
