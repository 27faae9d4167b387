"""The embedded model: a stock Qwen3-VL configuration of about 7 M parameters, and how it starts out.

The modules are those of `transformers`; only their sizes and initial weights are chosen here. The start is not
random: patch filters are principal components of training patches, vision heads begin as neighbour look-ups,
and coordinate tokens begin on a smooth curve, so that near numbers have near embeddings.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from wsi_chat.training.embedded import wording
from wsi_chat.training.embedded.tokenizer import MAX_COORDINATE, ORDINALS, token_id

IMAGE_PX = 256
PATCH_PX = 16
MERGE = 2
GRID = IMAGE_PX // (PATCH_PX * MERGE)
"""Merged visual tokens per side; one token covers 32 x 32 px."""
VISUAL_TOKENS = GRID * GRID


def build_config(tokenizer: Any, *, width: int = 256, layers: int = 4, depth: int = 6, vision: int = 192) -> Any:
    """A Qwen3-VL configuration: LM of `layers` x `width`, vision tower of `depth` x `vision`."""
    vocabulary = -(-len(tokenizer) // 64) * 64
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": width // 64,
            "head_dim": 32,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": depth,
            "hidden_size": vision,
            "intermediate_size": 4 * vision,
            "num_heads": vision // 32,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": width,
            "num_position_embeddings": (IMAGE_PX // PATCH_PX) ** 2,
            "deepstack_visual_indexes": [depth // 2],
        },
        image_token_id=token_id(tokenizer, "<|image_pad|>"),
        video_token_id=token_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=token_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=token_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
    )


def build_model(tokenizer: Any, *, seed: int = 7, **sizes: int) -> Any:
    """A model with the starting weights of this recipe, in fp32, with greedy generation settings."""
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer, **sizes))
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    start_position_embedding(model.model.visual)
    start_neighbour_heads(model.model.visual)
    start_coordinate_tokens(model, tokenizer)
    for merger in model.model.visual.deepstack_merger_list:
        torch.nn.init.zeros_(merger.linear_fc2.weight)
        torch.nn.init.zeros_(merger.linear_fc2.bias)
    return model


@torch.no_grad()
def start_patch_filters(visual: Any, patches: np.ndarray) -> None:
    """Set the patch embedding to damped principal components of `patches` (n, 3, 16, 16), normalised values."""
    flat = torch.from_numpy(patches.reshape(len(patches), -1)).float()
    mean = flat.mean(0)
    _, scale, basis = torch.linalg.svd(flat - mean, full_matrices=False)
    weight = visual.patch_embed.proj.weight
    count = weight.shape[0]
    variance = scale[:count] ** 2 / len(flat)
    filters = basis[:count] / torch.sqrt(variance + variance[min(32, count - 1)])[:, None]
    # The two temporal slices see the same frame, so each carries half of the filter.
    weight.copy_(filters.view(count, 3, 1, PATCH_PX, PATCH_PX).expand_as(weight) / 2)
    visual.patch_embed.proj.bias.copy_(-(filters @ mean))


@torch.no_grad()
def start_position_embedding(visual: Any, amplitude: float = 0.3) -> None:
    """Sines and cosines of row and column, so that a patch knows its place from the first step."""
    side = visual.num_grid_per_side
    width = visual.pos_embed.weight.shape[1]
    steps = torch.arange(side).float()
    frequencies = math.pi / side * 2.0 ** torch.linspace(0, 3, width // 4)
    angles = steps[:, None] * frequencies
    wave = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows = wave[:, None].expand(side, side, -1)
    columns = wave[None].expand(side, side, -1)
    visual.pos_embed.weight.copy_(amplitude * torch.cat([rows, columns], dim=-1).reshape(side * side, width))


@torch.no_grad()
def start_neighbour_heads(visual: Any, strength: float = 4.0) -> None:
    """Biases of query and key that make heads look at a fixed neighbour patch, as a convolution would.

    With rotary positions, constant query and key vectors give a score that depends on the offset alone and
    peaks where the key's phase cancels it. Later blocks look further and leave two heads free.
    """
    around = [(0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (1, 1), (-1, 1), (1, -1)]
    frequencies = visual.rotary_pos_emb.inv_freq
    quarter = len(frequencies)
    for depth, block in enumerate(visual.blocks):
        heads, head_dim = block.attn.num_heads, block.attn.head_dim
        reach = 1 if depth < 2 else 2
        fixed = heads if depth < 2 else heads - 2
        bias = block.attn.qkv.bias.view(3, heads, head_dim)
        for head in range(fixed):
            row, column = around[(head + 2 * depth) % len(around)]
            for axis, offset in enumerate((row * reach, column * reach)):
                for i in range(min(3, quarter)):
                    pair = axis * quarter + i
                    phase = -float(frequencies[i]) * offset
                    scale = strength / (1.0 if depth < 2 else 1.5)
                    bias[0, head, pair] = scale
                    bias[1, head, pair] = scale * math.cos(phase)
                    bias[1, head, pair + head_dim // 2] = scale * math.sin(phase)


def coordinate_code() -> Tensor:
    """(257, 16) sines and cosines of a coordinate at eight periods (8..1024 px), a smooth code of a number."""
    value = torch.arange(MAX_COORDINATE + 1).float()
    periods = 2.0 ** torch.arange(3, 11).float()
    angles = 2 * math.pi * value[:, None] / periods
    amplitude = torch.tensor([0.5, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    return torch.cat([angles.sin() * amplitude, angles.cos() * amplitude], dim=-1)


@torch.no_grad()
def start_coordinate_tokens(model: Any, tokenizer: Any, norm: float = 1.0) -> None:
    """Put integer tokens on a smooth curve and class tokens at a readable norm; both spellings share a start."""
    weight = model.model.language_model.embed_tokens.weight
    width = weight.shape[1]
    code = coordinate_code()
    directions = torch.linalg.qr(torch.randn(width, code.shape[1]))[0].T
    curve = code @ directions
    curve = norm * curve / curve.norm(dim=-1, keepdim=True)
    mark = 0.3 * torch.nn.functional.normalize(torch.randn(width), dim=0)
    for value in range(MAX_COORDINATE + 1):
        weight[token_id(tokenizer, str(value))] = curve[value] + 0.2 * weight[token_id(tokenizer, str(value))]
        weight[token_id(tokenizer, f" {value}")] = curve[value] + mark
    for name in (*wording.CLASSES, wording.ABNORMAL):
        vector = torch.nn.functional.normalize(torch.randn(width), dim=0)
        weight[token_id(tokenizer, name)] = vector
        weight[token_id(tokenizer, f" {name}")] = vector + mark
    start_ordinal_tokens(model, tokenizer)
    model.tie_weights()


@torch.no_grad()
def start_ordinal_tokens(model: Any, tokenizer: Any) -> None:
    """Give the ordinals unrelated directions of the same norm as the class names."""
    weight = model.model.language_model.embed_tokens.weight
    for phrase in ORDINALS:
        weight[token_id(tokenizer, phrase)] = torch.nn.functional.normalize(torch.randn(weight.shape[1]), dim=0)


def parameter_count(model: Any) -> int:
    """Number of distinct parameters (tied weights counted once)."""
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
