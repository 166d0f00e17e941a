"""The Qwen3-VL vision tower: patches of frame pairs -> language tokens and DeepStack features.

Frame pairs (or images) sit on the batch axis, so no frame sees another one and there is no mask across
frames; pairs of one bucket may differ in size, so there is one along patches.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from o3jax.models.attention import Mask, attention
from o3jax.models.batch import TYPES, Patches
from o3jax.models.config import VisionConfig
from o3jax.models.layers import Initializer, checkpointed, layer_norm, linear, run_layers
from o3jax.models.rope import rotate, vision_angles
from o3jax.models.runtime import Runtime
from o3jax.sharding import shard

for _kind in TYPES:  # here and not in their module, because where rows are made there is no jax
    jax.tree_util.register_dataclass(_kind)


class VisionLayers(nnx.Module):
    """All blocks, stacked on a leading axis."""

    def __init__(self, c: VisionConfig, init: Initializer):
        L, D, F, N, H = c.depth, c.hidden_size, c.intermediate_size, c.num_heads, c.head_dim
        self.norm1_scale = init.scale((L, D), (None, None))
        self.norm1_bias = init.bias((L, D), (None, None))
        self.qkv = init.weight((L, D, 3, N, H), (None, "embed", None, "heads", None))
        self.qkv_bias = init.bias((L, 3, N, H), (None, None, "heads", None))
        self.out = init.weight((L, N, H, D), (None, "heads", None, "embed"))
        self.out_bias = init.bias((L, D), (None, None))
        self.norm2_scale = init.scale((L, D), (None, None))
        self.norm2_bias = init.bias((L, D), (None, None))
        self.fc1 = init.weight((L, D, F), (None, "embed", "mlp"))
        self.fc1_bias = init.bias((L, F), (None, "mlp"))
        self.fc2 = init.weight((L, F, D), (None, "mlp", "embed"))
        self.fc2_bias = init.bias((L, D), (None, None))


class Merger(nnx.Module):
    """Merges 2 x 2 patches into one language token; `leading` stacks several mergers."""

    def __init__(self, c: VisionConfig, init: Initializer, norm_width: int, leading: tuple[int, ...] = ()):
        wide = c.hidden_size * c.merge_unit
        none = (None,) * len(leading)
        self.norm_scale = init.scale((*leading, norm_width), (*none, None))
        self.norm_bias = init.bias((*leading, norm_width), (*none, None))
        self.fc1 = init.weight((*leading, wide, wide), (*none, "embed", "mlp"))
        self.fc1_bias = init.bias((*leading, wide), (*none, "mlp"))
        self.fc2 = init.weight((*leading, wide, c.out_hidden_size), (*none, "mlp", "embed"))
        self.fc2_bias = init.bias((*leading, c.out_hidden_size), (*none, None))

    def __call__(self, x: Float[Array, "R P D"]) -> Float[Array, "R tokens out"]:
        """Returns language tokens; LayerNorm acts before or after the merge, as its width says."""
        rows, patches, width = x.shape
        unit = self.fc1.shape[-2] // width
        norm_width = self.norm_scale.shape[-1]
        x = layer_norm(x.reshape(rows, -1, norm_width), self.norm_scale[...], self.norm_bias[...])
        x = linear(x.reshape(rows, patches // unit, unit * width), self.fc1[...]) + self.fc1_bias[...]
        x = jax.nn.gelu(shard(x, "frames", None, "mlp"), approximate=False)
        return linear(x, self.fc2[...]) + self.fc2_bias[...]


class VisionTower(nnx.Module):
    """The whole tower."""

    def __init__(self, c: VisionConfig, init: Initializer):
        self.config = c
        taps = len(c.deepstack_visual_indexes)
        self.patch_embed = init.weight((c.patch_dim, c.hidden_size), (None, "embed"))
        self.patch_embed_bias = init.bias((c.hidden_size,), (None,))
        self.pos_embed = init.weight((c.num_position_embeddings, c.hidden_size), (None, "embed"))
        self.layers = VisionLayers(c, init)
        self.merger = Merger(c, init, c.hidden_size)
        self.deepstack_mergers = Merger(c, init, c.hidden_size * c.merge_unit, (taps,)) if taps else None

    def __call__(
        self,
        patches: Patches,
        runtime: Runtime = Runtime(),
    ) -> tuple[Float[Array, "B tokens D"], Float[Array, "taps B tokens D"]]:
        """Returns language tokens [B, T * P / 4, D] and one such array per DeepStack tap.

        Patches are in merge-block order, four consecutive ones per token.
        """
        c, dtype = self.config, self.merger.norm_scale.dtype
        values = patches.values
        batch, pairs, size = values.shape[:3]
        rows = batch * pairs

        def flat(a: Array) -> Array:
            return shard(a.reshape(rows, *a.shape[2:]), "frames", *[None] * (a.ndim - 2))

        if values.dtype == jnp.uint8:
            values = values.astype(jnp.float32) / 127.5 - 1.0
        x = linear(flat(values.astype(dtype)), self.patch_embed[...]) + self.patch_embed_bias[...]
        taps = self.pos_embed[...].astype(jnp.float32)[flat(patches.pos_index)]  # [rows, P, 4, D]
        x = x + jnp.einsum("rpkd,rpk->rpd", taps, flat(patches.pos_weight)).astype(dtype)

        angles = vision_angles(flat(patches.coords), c.head_dim)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        valid = (jnp.arange(size) < patches.length.reshape(rows, 1)).astype(jnp.int32)
        mask = Mask(q_segments=valid, kv_segments=valid)

        def block(x: Array, p: VisionLayers) -> Array:
            h = layer_norm(x, p.norm1_scale[...], p.norm1_bias[...])
            # Split: the gradients are then joined, where those of indexed parts are padded and summed.
            q, k, v = (x[:, :, 0] for x in jnp.split(linear(h, p.qkv[...]) + p.qkv_bias[...], 3, axis=2))
            # Rotated in float32 and cast back, as the reference implementation does.
            q = checkpoint_name(rotate(q.astype(jnp.float32), cos, sin).astype(dtype), "q")
            k = checkpoint_name(rotate(k.astype(jnp.float32), cos, sin).astype(dtype), "k")
            h = attention(q, k, checkpoint_name(v, "v"), mask, runtime.kernel, ("frames", None))
            x = (
                x
                + linear(h.reshape(*h.shape[:2], -1), p.out[...].reshape(-1, c.hidden_size))
                + p.out_bias[...]
            )
            h = layer_norm(x, p.norm2_scale[...], p.norm2_bias[...])
            h = shard(linear(h, p.fc1[...]) + p.fc1_bias[...], "frames", None, "mlp")
            x = x + second(h, p.fc2[...]) + p.fc2_bias[...]
            return shard(x, "frames", None, None)

        # Its gradient keeps h alone; to store what lies in between for each block takes longer.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def second(h: Array, w: Array) -> Array:
            return linear(jax.nn.gelu(h, approximate=True), w)

        # Attention within a frame is a small part of a block's work, and what it keeps a large part of its
        # memory: it is made again.
        block = checkpointed(block, "full" if runtime.remat in ("names", "offload") else runtime.remat)
        tap_numbers = {layer: tap for tap, layer in enumerate(c.deepstack_visual_indexes)}
        tap_of_layer = jnp.asarray([tap_numbers.get(layer, -1) for layer in range(c.depth)])

        def body(carry, p, index):
            x, kept = carry
            x = block(x, p)
            tap = tap_of_layer[index]
            kept = jax.lax.cond(
                tap >= 0, lambda: jax.lax.dynamic_update_index_in_dim(kept, x, tap, 0), lambda: kept
            )
            return x, kept

        kept = jnp.zeros((len(c.deepstack_visual_indexes), *x.shape), dtype)
        x, kept = run_layers(body, (x, kept), self.layers)
        tokens = shard(self.merger(x).reshape(batch, -1, c.out_hidden_size), "batch", "sequence", None)
        if self.deepstack_mergers is None:
            return tokens, jnp.zeros((0, *tokens.shape), dtype)
        features = jax.lax.map(lambda xs: xs[0](xs[1]), (self.deepstack_mergers, kept))
        return tokens, shard(features.reshape(-1, *tokens.shape), None, "batch", "sequence", None)
