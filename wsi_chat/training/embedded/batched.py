"""Batched forward passes over the stock Qwen3-VL modules, for images of one size and packed questions.

The weights and the arithmetic are those of `transformers`; a test holds the outputs equal. Only the layout
differs: its vision attention runs image by image, and its language model knows no shared image prefix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb, repeat_kv


def here(tensor: Tensor) -> Tensor:
    """A tensor made of a NumPy array, on the device of the run (`torch.set_default_device`)."""
    return tensor.to(torch.get_default_device())


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def block_order(grid: int, merge: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the patches in the order Qwen's processor emits them (merge blocks, row-major)."""
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    shape = (grid // merge, merge, grid // merge, merge)
    return (
        rows.reshape(shape).transpose(1, 2).flatten(),
        columns.reshape(shape).transpose(1, 2).flatten(),
    )


def patchify(images: Tensor, patch: int, merge: int) -> Tensor:
    """uint8 images (B, H, W, 3) to normalised patches (B, tokens, 3 * patch * patch) in block order."""
    batch, height, width, _ = images.shape
    x = images.to(torch.float32).mul_(1 / 127.5).sub_(1.0)
    rows, columns = height // (patch * merge), width // (patch * merge)
    x = x.view(batch, rows, merge, patch, columns, merge, patch, 3)
    return x.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(batch, rows * columns * merge * merge, 3 * patch * patch)


class BatchedTower(torch.nn.Module):
    """The vision tower on a batch of equal square images: one attention call per block for the whole batch."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        grid = visual.num_grid_per_side
        rows, columns = block_order(grid, visual.spatial_merge_size)
        cos, sin = visual.rotary_pos_emb(torch.zeros(1), torch.stack([rows, columns], dim=-1))
        self.order: Tensor
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("order", rows * grid + columns, persistent=False)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Patches (B, N, 3*p*p) to merged tokens (B, N/4, out) and the deepstack features of the same shape."""
        visual = self.visual
        weight = visual.patch_embed.proj.weight.sum(2).flatten(1)
        x = functional.linear(patches, weight, visual.patch_embed.proj.bias)
        x = x + visual.pos_embed.weight[self.order]
        batch, tokens, width = x.shape
        deepstack = []
        for index, block in enumerate(visual.blocks):
            heads = block.attn.num_heads
            qkv = block.attn.qkv(block.norm1(x)).view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
            query, key = _rotate(qkv[0], self.cos, self.sin), _rotate(qkv[1], self.cos, self.sin)
            seen = functional.scaled_dot_product_attention(query, key, qkv[2])
            x = x + block.attn.proj(seen.transpose(1, 2).reshape(batch, tokens, width))
            x = x + block.mlp(block.norm2(x))
            if index in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(index)]
                deepstack.append(merger(x).view(batch, -1, visual.config.out_hidden_size))
        return visual.merger(x).view(batch, -1, visual.config.out_hidden_size), deepstack


def run_language(
    language: Any,
    embeds: Tensor,
    positions: Tensor,
    allowed: Tensor,
    *,
    deepstack: list[Tensor] | None = None,
    visual_start: int = 0,
    watch: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The language model on embeddings (B, S, D) with any attention mask.

    `positions` is (3, B, S); `allowed` (B, S, S) is true where a token may look. Deepstack features are added
    to the visual tokens, which start at `visual_start`, after each early layer. With `watch`, the attention
    logits (B, heads, S, S) of that layer come back too, masked, and the hidden states that enter it.
    """
    cos, sin = language.rotary_emb(embeds, positions)
    mask = allowed[:, None]
    x = embeds
    watched = entering = None
    batch, length, _ = x.shape
    for index, layer in enumerate(language.layers):
        attention = layer.self_attn
        normed = layer.input_layernorm(x)
        shape = (batch, length, -1, attention.head_dim)
        query = attention.q_norm(attention.q_proj(normed).view(shape)).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(normed).view(shape)).transpose(1, 2)
        value = attention.v_proj(normed).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        key = repeat_kv(key, attention.num_key_value_groups)
        value = repeat_kv(value, attention.num_key_value_groups)
        if index == watch:
            entering = x
            scores = (query @ key.transpose(2, 3)) * attention.scaling
            watched = scores.masked_fill(~mask, -1e4)
            seen = watched.softmax(-1) @ value
        else:
            seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scaling)
        x = x + attention.o_proj(seen.transpose(1, 2).reshape(batch, length, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        if deepstack is not None and index < len(deepstack):
            features = deepstack[index]
            end = visual_start + features.shape[1]
            x = torch.cat([x[:, :visual_start], x[:, visual_start:end] + features, x[:, end:]], dim=1)
    return language.norm(x), watched, entering
