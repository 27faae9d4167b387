"""Tokenizer of the embedded checkpoint: byte-level, whole words of the grammar, one token per integer 0..256.

Any text encodes (unknown words fall back to single bytes) and decodes to itself. No merges are needed:
`ignore_merges` emits a pre-token that is in the vocabulary as one token.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wsi_chat.training.embedded import wording

MAX_COORDINATE = 256
SPECIAL: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ORDINALS = tuple(f" {number}{wording.BOX_OPEN}" for number in range(1, wording.MOST_OBJECTS + 1))
"""What follows a class name before a box, one token per ordinal: unlike coordinates, ordinals must not blur."""
PHRASES: tuple[str, ...] = (
    "<region>",
    "</region>",
    wording.BOX_OPEN,
    wording.BOX_CLOSE,
    " is located at ",
    "Please answer the multiple-choice question based on the image [",
    "], and select the best option from the following options [",
    "]. Just answer the option.",
    "Locate all ",
    "Give a brief description of region.<region>",
    wording.DESCRIBE,
    "You are a helpful assistant.",
    wording.SCREEN_TOPIC,
    wording.BLOOD_TOPIC,
    wording.TYPE_TOPIC,
    wording.CATEGORY_TOPIC,
    wording.VQA_ABNORMAL,
    wording.VQA_BACKGROUND,
    wording.NEGATIVE,
    *wording.FULL_NAMES.values(),
    *ORDINALS,
)

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}"
    "{{ message['content'].replace('<image>', '<|vision_start|><|image_pad|><|vision_end|>') }}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] in ('image', 'image_url') or 'image' in part -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def _words() -> list[str]:
    """Pre-tokens (in byte-level form) of every template, class name and integer, in a fixed order."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    texts: list[str] = [f"{n} {n}" for n in range(MAX_COORDINATE + 1)]
    texts += [f"{name} {name} {name.upper()} {name.capitalize()}" for name in (*wording.CLASSES, wording.ABNORMAL)]
    texts += [f"{name} a {name}" for name in (*wording.PLURAL.values(), *wording.FULL_NAMES.values())]
    texts += [wording.MCQ, wording.GROUND, wording.REFER, *wording.EXTRA_TEXT, "system", "user", "assistant", "\n"]
    texts += [*PHRASES, "normal yes no No Yes. no cells, ; :\n"]
    words: dict[str, None] = {}
    for text in texts:
        for word, _ in split.pre_tokenize_str(text):
            words.setdefault(word, None)
    return list(words)


def build_tokenizer() -> Any:
    """The tokenizer as a `PreTrainedTokenizerFast` with Qwen's special tokens and a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *_words()]))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True, fuse_unk=False))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in PHRASES])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def token_id(tokenizer: Any, text: str) -> int:
    """The id of a text that must be one token; raises ValueError if it is not."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens, expected 1")
    return int(ids[0])
