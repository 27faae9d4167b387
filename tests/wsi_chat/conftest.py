"""Tiny random checkpoints of every architecture that the transformers engine runs, and questions to ask them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsi_chat.engines import Engine
from wsi_chat.schema import Answer, Query, Turn

from .model_server import serve as serve

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SIDE, PATCH = 56, 14
"""Of the families with a fixed image size, so small that a model runs in a moment."""

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ 'IMAGE' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
# as Gemma 3's own: it writes the first token, puts the system's words before the user's, and trims
GEMMA = (
    "{{ bos_token }}{%- set prefix = '' -%}"
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- set messages = messages[1:] -%}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}"
    "{{ prefix if loop.first else '' }}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<start_of_image>' }}{%- else -%}{{ part['text'] | trim }}{%- endif -%}"
    "{%- endfor -%}{{ '<end_of_turn>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
QWEN_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
INTERNVL_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<ref>", "</ref>",
    "<box>", "</box>",
)  # fmt: skip
GEMMA_SPECIAL = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
    "<image_soft_token>",
)  # fmt: skip


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices: threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ checkpoints


def _tokenizer(special: tuple[str, ...], **settings: Any) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {token: n for n, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    # ' A' is a token of its own beside 'A'; ' B' is not
    letters["ĠA"] = len(letters)
    core = Tokenizer(models.BPE(vocab=letters, merges=[("Ġ", "A")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **settings)


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, **more,
    }  # fmt: skip


def _save(model: Any, tokenizer: Any, folder: Path, *, std: float = 0.25) -> None:
    import torch
    import transformers

    for weights in model.parameters():
        # large enough that answers differ from image to image
        torch.nn.init.normal_(weights, std=std)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=0.9,
        repetition_penalty=1.5,
    )  # fmt: skip
    model.save_pretrained(folder)


def _build_qwen(family: str, folder: Path) -> None:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer = _tokenizer(QWEN_SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template)
    patch = 16 if family == "qwen3_vl" else 14
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = _text(tokenizer, rope_parameters=rope)
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
        rope["mrope_interleaved"] = True
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        kind, config = transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLConfig
    ids = tokenizer.convert_tokens_to_ids
    made = config(
        text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip
    _save(kind(made), tokenizer, folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=patch).save_pretrained(folder)


def _siglip() -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False,
    }  # fmt: skip


def _build_gemma3(family: str, folder: Path) -> None:
    import transformers
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = _tokenizer(
        GEMMA_SPECIAL, eos_token="<eos>", pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", chat_template=GEMMA,
        extra_special_tokens={
            "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        },
    )  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids
    # a window so short that it cuts off the start of a question, and a layer that looks beyond it
    text = _text(
        tokenizer, head_dim=16, query_pre_attn_scalar=16, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    made = transformers.Gemma3Config(
        text_config=text, vision_config=_siglip(), mm_tokens_per_image=4, image_token_index=ids("<image_soft_token>"),
        boi_token_index=ids("<start_of_image>"), eoi_token_index=ids("<end_of_image>"),
    )  # fmt: skip
    _save(transformers.Gemma3ForConditionalGeneration(made), tokenizer, folder)
    images = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor = transformers.Gemma3Processor(images, tokenizer, chat_template=GEMMA, image_seq_length=4)
    processor.save_pretrained(folder)


def _build_paligemma(family: str, folder: Path) -> None:
    import transformers
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = _tokenizer(
        GEMMA_SPECIAL[:4], eos_token="<eos>", pad_token="<pad>", bos_token="<bos>", unk_token="<unk>"
    )
    images = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = (SIDE // PATCH) ** 2
    processor = transformers.PaliGemmaProcessor(images, tokenizer)  # adds its tokens for places
    text = _text(tokenizer, head_dim=16, model_type="gemma")
    if family == "paligemma2":
        text |= {"model_type": "gemma2", "query_pre_attn_scalar": 16, "sliding_window": 4096}
        text |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0}
    made = transformers.PaliGemmaConfig(
        text_config=text, vision_config=_siglip(), image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32, hidden_size=32,
    )  # fmt: skip
    _save(transformers.PaliGemmaForConditionalGeneration(made), tokenizer, folder)
    processor.save_pretrained(folder)


def _build_internvl(family: str, folder: Path) -> None:
    import transformers
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\\n")
    tokenizer = _tokenizer(
        INTERNVL_SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template,
        extra_special_tokens={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH],
    }  # fmt: skip
    made = transformers.InternVLConfig(
        text_config=_text(tokenizer, model_type="qwen2"), vision_config=vision, image_seq_length=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), tie_word_embeddings=False,
    )  # fmt: skip
    _save(transformers.InternVLForConditionalGeneration(made), tokenizer, folder)
    tokenizer.save_pretrained(folder)
    # its whole processor cannot be made without torchvision: these are the files that it would save
    GotOcr2ImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    (folder / "processor_config.json").write_text(
        '{"image_seq_length": 4, "processor_class": "InternVLProcessor"}', encoding="utf-8"
    )


BUILDERS: dict[str, Callable[[str, Path], None]] = {
    **dict.fromkeys(QWEN, _build_qwen),
    "gemma3": _build_gemma3,
    "paligemma": _build_paligemma,
    "paligemma2": _build_paligemma,
    "internvl": _build_internvl,
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's name -> the folder of a checkpoint with a few thousand random weights; not to be written to."""
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def build(family: str) -> Path:
        import torch

        torch.manual_seed(11)
        BUILDERS[family](family, root / family)
        return root / family

    return build


# ------------------------------------------------------------------------------------------------ questions


def _image(seed: int, side: int = 112) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def _query(
    seed: int, text: str = "What?", *, choices: tuple[str, ...] = (), tokens: int = 12, system: str = ""
) -> Query:
    """A question about one image of noise."""
    turns = (Turn("system", system),) if system else ()
    return Query(
        key=f"{seed}/{text}/{choices}",
        task="mcq" if choices else "vqa",
        turns=(*turns, Turn("user", f"<image>{text}")),
        images=(_image(seed),),
        choices=choices,
        max_tokens=tokens,
    )


def _answers(engine: Engine, queries: list[Query]) -> dict[str, Answer]:
    """Every answer by its key, the time it took left out."""
    answers = list(engine.answer(iter(queries)))
    assert sorted(a.key for a in answers) == sorted(q.key for q in queries)
    return {answer.key: replace(answer, seconds=0.0) for answer in answers}


def _heard(pieces: Any) -> tuple[list[str], Answer]:
    """The pieces of a stream, and its answer."""
    heard = []
    while True:
        try:
            heard.append(next(pieces))
        except StopIteration as end:
            return heard, replace(end.value, seconds=0.0)


@pytest.fixture(scope="session")
def asking() -> SimpleNamespace:
    """Functions to put questions and to gather answers: image, query, answers, heard."""
    return SimpleNamespace(image=_image, query=_query, answers=_answers, heard=_heard)


class Reference:
    """A checkpoint as anyone would run it: transformers' own model and processor, one question at a time."""

    def __init__(self, folder: Path) -> None:
        import transformers

        self.folder = folder
        self.model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)

    def inputs(self, query: Query) -> dict[str, Any]:
        """Everything that the model takes for one question."""
        if self.folder.name in QWEN:
            return self._of_qwen(query)
        return self._of_internvl(query) if self.folder.name == "internvl" else self._of_gemma(query)

    def _of_qwen(self, query: Query) -> dict[str, Any]:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        seen = Qwen2VLImageProcessorPil.from_pretrained(self.folder)(images=list(query.images), return_tensors="pt")
        text = self._chatml(query)
        for grid in seen["image_grid_thw"]:
            text = text.replace(
                "<image>", f"<|vision_start|>{'<|image_pad|>' * (int(grid.prod()) // 4)}<|vision_end|>", 1
            )
        given = dict(self.tokenizer(text, return_tensors="pt"))
        image_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        return {
            "input_ids": given["input_ids"],
            "attention_mask": given["attention_mask"],
            "mm_token_type_ids": (given["input_ids"] == image_id).int(),
            **seen,
        }

    def _of_internvl(self, query: Query) -> dict[str, Any]:
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

        cut = GotOcr2ImageProcessorPil.from_pretrained(self.folder)
        seen = cut(images=list(query.images), crop_to_patches=True, return_tensors="pt")
        text = self._chatml(query)
        for tiles in seen["num_patches"]:
            text = text.replace("<image>", f"<img>{'<IMG_CONTEXT>' * (4 * int(tiles))}</img>\n", 1)
        given = dict(self.tokenizer(text, return_tensors="pt"))
        return {name: given[name] for name in ("input_ids", "attention_mask")} | {"pixel_values": seen["pixel_values"]}

    @staticmethod
    def _chatml(query: Query) -> str:
        turns = "".join(f"<|im_start|>{turn.role}\n{turn.text}<|im_end|>\n" for turn in query.turns)
        return f"{turns}<|im_start|>assistant\n"

    def _of_gemma(self, query: Query) -> dict[str, Any]:
        import torch
        import transformers

        processor: Any = transformers.AutoProcessor.from_pretrained(self.folder)
        if processor.chat_template is None:
            # with tensors asked for, numpy 2 warns of how the processor makes its labels
            given = processor(images=list(query.images), text=query.turns[0].text, return_tensors="np")
            return {name: torch.from_numpy(value) for name, value in given.items() if name != "labels"}
        images = iter(query.images)
        messages = []
        for turn in query.turns:
            parts: list[dict[str, Any]] = []
            for number, words in enumerate(turn.text.split("<image>")):
                parts += [{"type": "image", "image": next(images)}] if number else []
                parts += [{"type": "text", "text": words}] if words else []
            messages.append({"role": turn.role, "content": parts})
        return dict(
            processor.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        )

    def logs(self, query: Query) -> Any:
        """Log-probabilities of the next token, (vocabulary,)."""
        import torch

        with torch.inference_mode():
            return self.model(**self.inputs(query)).logits[0, -1].double().log_softmax(-1)

    def generated(self, query: Query, **more: Any) -> Any:
        """What the model generates greedily; where nothing more is asked, ids (1, question and answer)."""
        import torch

        plain: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "temperature": 1.0}
        with torch.inference_mode():
            return self.model.generate(**self.inputs(query), **plain, max_new_tokens=query.max_tokens, **more)

    def said(self, query: Query) -> tuple[str, bool, int]:
        """The text of the answer, whether it was cut off, and the question's length in tokens."""
        length = int(self.inputs(query)["input_ids"].shape[1])
        ids = self.generated(query)[0, length:].tolist()
        end = self.tokenizer.eos_token_id
        cut = end not in ids
        return self.tokenizer.decode(ids if cut else ids[: ids.index(end)], skip_special_tokens=False), cut, length


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    return Reference
