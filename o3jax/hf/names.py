"""The one table of Hugging Face tensor names and the leaves of our tree, used by import and export.

A layout is an einops pattern from the Hugging Face tensor to one layer of our leaf; read from right
to left it is the layout of the export. All of them are views: transposes and splits, never arithmetic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from einops import rearrange
from flax import nnx

from o3jax.models.config import Config


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The Hugging Face tensors that make one leaf of our tree.

    `name` holds `{}` for the layer number where `count` tensors are stacked on the leaf's first axis;
    `count` is None where one tensor is the whole leaf. `sizes` are the axes that a pattern splits.
    """

    name: str
    leaf: str
    pattern: str
    count: int | None = None
    sizes: tuple[tuple[str, int], ...] = ()

    @property
    def names(self) -> list[str]:
        """The tensors' names in the order in which they are stacked."""
        return [self.name] if self.count is None else [self.name.format(i) for i in range(self.count)]

    def to_leaf(self, tensor: np.ndarray) -> np.ndarray:
        """Returns one Hugging Face tensor as one layer of our leaf, a view."""
        return rearrange(tensor, self.pattern, **dict(self.sizes))

    def to_tensor(self, layer: np.ndarray) -> np.ndarray:
        """Returns one layer of our leaf as the Hugging Face tensor, a view."""
        theirs, ours = self.pattern.split(" -> ")
        return rearrange(layer, f"{ours} -> {theirs}", **dict(self.sizes))

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of each tensor for a leaf of this shape."""
        layer = leaf if self.count is None else leaf[1:]
        return self.to_tensor(np.broadcast_to(np.int8(0), layer)).shape


# transformers 5 keeps, and writes, the experts' matrices transposed: [E, 2F, D] and [E, D, F].
TRANSPOSED_EXPERTS = {"e d f -> e d f": "e f d -> e d f", "e f d -> e f d": "e d f -> e f d"}


def model_leaves(model: nnx.Module) -> dict[str, Any]:
    """Returns the leaves of a model's tree by dotted path, e.g. "text.layers.q"."""
    return {".".join(key.name for key in path[:-1]): leaf for path, leaf in jax.tree.leaves_with_path(model)}


def tensor_table(config: Config) -> list[Tensors]:
    """Returns every tensor of the Qwen3-VL checkpoint, in the published layout and order."""
    return [*_vision(config), *_text(config)]


def evidence_table(leaves: Iterable[str]) -> list[Tensors]:
    """Returns the tensors of the evidence modules: our leaves as they are, under their dotted paths."""
    return [Tensors(leaf, leaf, "... -> ...") for leaf in leaves if leaf.startswith("evidence.")]


def _vision(config: Config) -> list[Tensors]:
    c = config.vision
    depth, heads = c.depth, ("h", c.head_dim)
    patch = (("t", c.temporal_patch_size), ("y", c.patch_size), ("x", c.patch_size))
    root, ours = "model.visual", "vision"
    block, layers = f"{root}.blocks.{{}}", f"{ours}.layers"
    table = [
        Tensors(
            f"{root}.patch_embed.proj.weight", f"{ours}.patch_embed", "d c t y x -> (c t y x) d", None, patch
        ),
        Tensors(f"{root}.patch_embed.proj.bias", f"{ours}.patch_embed_bias", "d -> d"),
        Tensors(f"{root}.pos_embed.weight", f"{ours}.pos_embed", "p d -> p d"),
        Tensors(f"{block}.norm1.weight", f"{layers}.norm1_scale", "d -> d", depth),
        Tensors(f"{block}.norm1.bias", f"{layers}.norm1_bias", "d -> d", depth),
        Tensors(
            f"{block}.attn.qkv.weight", f"{layers}.qkv", "(c n h) d -> d c n h", depth, (("c", 3), heads)
        ),
        Tensors(f"{block}.attn.qkv.bias", f"{layers}.qkv_bias", "(c n h) -> c n h", depth, (("c", 3), heads)),
        Tensors(f"{block}.attn.proj.weight", f"{layers}.out", "d (n h) -> n h d", depth, (heads,)),
        Tensors(f"{block}.attn.proj.bias", f"{layers}.out_bias", "d -> d", depth),
        Tensors(f"{block}.norm2.weight", f"{layers}.norm2_scale", "d -> d", depth),
        Tensors(f"{block}.norm2.bias", f"{layers}.norm2_bias", "d -> d", depth),
        Tensors(f"{block}.mlp.linear_fc1.weight", f"{layers}.fc1", "f d -> d f", depth),
        Tensors(f"{block}.mlp.linear_fc1.bias", f"{layers}.fc1_bias", "f -> f", depth),
        Tensors(f"{block}.mlp.linear_fc2.weight", f"{layers}.fc2", "d f -> f d", depth),
        Tensors(f"{block}.mlp.linear_fc2.bias", f"{layers}.fc2_bias", "d -> d", depth),
        *_merger(f"{root}.merger", f"{ours}.merger", None),
    ]
    taps = len(c.deepstack_visual_indexes)
    if taps:
        table += _merger(f"{root}.deepstack_merger_list.{{}}", f"{ours}.deepstack_mergers", taps)
    return table


def _merger(theirs: str, ours: str, count: int | None) -> list[Tensors]:
    return [
        Tensors(f"{theirs}.norm.weight", f"{ours}.norm_scale", "d -> d", count),
        Tensors(f"{theirs}.norm.bias", f"{ours}.norm_bias", "d -> d", count),
        Tensors(f"{theirs}.linear_fc1.weight", f"{ours}.fc1", "f d -> d f", count),
        Tensors(f"{theirs}.linear_fc1.bias", f"{ours}.fc1_bias", "f -> f", count),
        Tensors(f"{theirs}.linear_fc2.weight", f"{ours}.fc2", "d f -> f d", count),
        Tensors(f"{theirs}.linear_fc2.bias", f"{ours}.fc2_bias", "d -> d", count),
    ]


def _text(config: Config) -> list[Tensors]:
    c = config.text
    count, heads = c.num_hidden_layers, (("h", c.head_dim),)
    root, ours = "model.language_model", "text"
    layer, layers = f"{root}.layers.{{}}", f"{ours}.layers"
    table = [
        Tensors(f"{root}.embed_tokens.weight", f"{ours}.embed", "v d -> v d"),
        Tensors(f"{layer}.input_layernorm.weight", f"{layers}.input_norm", "d -> d", count),
        Tensors(f"{layer}.self_attn.q_proj.weight", f"{layers}.q", "(n h) d -> d n h", count, heads),
        Tensors(f"{layer}.self_attn.k_proj.weight", f"{layers}.k", "(k h) d -> d k h", count, heads),
        Tensors(f"{layer}.self_attn.v_proj.weight", f"{layers}.v", "(k h) d -> d k h", count, heads),
        Tensors(f"{layer}.self_attn.q_norm.weight", f"{layers}.q_norm", "h -> h", count),
        Tensors(f"{layer}.self_attn.k_norm.weight", f"{layers}.k_norm", "h -> h", count),
        Tensors(f"{layer}.self_attn.o_proj.weight", f"{layers}.o", "d (n h) -> n h d", count, heads),
        Tensors(f"{layer}.post_attention_layernorm.weight", f"{layers}.post_norm", "d -> d", count),
    ]
    if c.num_experts:
        table += [
            Tensors(f"{layer}.mlp.gate.weight", f"{layers}.router", "e d -> d e", count),
            Tensors(f"{layer}.mlp.experts.gate_up_proj", f"{layers}.gate_up", "e d f -> e d f", count),
            Tensors(f"{layer}.mlp.experts.down_proj", f"{layers}.down", "e f d -> e f d", count),
        ]
    else:
        table += [
            Tensors(f"{layer}.mlp.gate_proj.weight", f"{layers}.gate", "f d -> d f", count),
            Tensors(f"{layer}.mlp.up_proj.weight", f"{layers}.up", "f d -> d f", count),
            Tensors(f"{layer}.mlp.down_proj.weight", f"{layers}.down", "d f -> f d", count),
        ]
    table.append(Tensors(f"{root}.norm.weight", f"{ours}.norm", "d -> d"))
    if not config.tie_word_embeddings:
        table.append(Tensors("lm_head.weight", f"{ours}.lm_head", "v d -> d v"))
    return table
