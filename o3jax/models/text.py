"""The Qwen3 text decoder with interleaved M-RoPE and DeepStack injection, dense or mixture of experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from o3jax.models.config import TextConfig
from o3jax.models.experts import moe_mlp
from o3jax.models.layers import (
    Initializer,
    checkpointed,
    linear,
    product,
    rms_norm,
    run_layers,
    stack,
    unstack,
)
from o3jax.models.rope import rotate, text_angles
from o3jax.models.runtime import Runtime
from o3jax.sharding import divides, mesh_axes, shard

# Given q [B, S, N, H] and the new k, v [B, S, K, H]: the attention output [B, S, N, H] and what the
# caller wants back from the layer (a cache, or nothing).
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


class TextLayers(nnx.Module):
    """All decoder layers, stacked on a leading axis; or a single one, as `fused` returns it."""

    def __init__(self, c: TextConfig, init: Initializer):
        L, D, F = c.num_hidden_layers, c.hidden_size, c.intermediate_size
        N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.input_norm = init.scale((L, D), (None, None))
        self.q = init.weight((L, D, N, H), (None, "embed", "heads", None))
        self.k = init.weight((L, D, K, H), (None, "embed", "kv_heads", None))
        self.v = init.weight((L, D, K, H), (None, "embed", "kv_heads", None))
        self.q_norm = init.scale((L, H), (None, None))
        self.k_norm = init.scale((L, H), (None, None))
        self.o = init.weight((L, N, H, D), (None, "heads", None, "embed"))
        self.post_norm = init.scale((L, D), (None, None))
        if c.num_experts:
            E, F = c.num_experts, c.moe_intermediate_size
            self.router = init.weight((L, D, E), (None, "embed", None))
            self.gate_up = init.weight((L, E, D, 2 * F), (None, "expert", "embed", "mlp"))
            self.down = init.weight((L, E, F, D), (None, "expert", "mlp", "embed"))
        else:
            self.gate = init.weight((L, D, F), (None, "embed", "mlp"))
            self.up = init.weight((L, D, F), (None, "embed", "mlp"))
            self.down = init.weight((L, F, D), (None, "mlp", "embed"))

    def project(self, x: Float[Array, "B S D"]) -> tuple[Array, Array, Array]:
        """Returns q [B, S, N, H], k and v [B, S, K, H], before their norms."""
        if not hasattr(self, "qkv"):
            return linear(x, self.q[...]), linear(x, self.k[...]), linear(x, self.v[...])
        return tuple(jnp.split(linear(x, self.qkv[...]), self._borders(), axis=2))

    def _borders(self) -> tuple[int, int]:
        queries, heads = self.o.shape[0], self.qkv.shape[1]
        return queries, (queries + heads) // 2

    def fused(self) -> TextLayers:
        """Returns a single layer with the weights that read the same input side by side.

        One token at a time, a product takes little longer than starting it. For one device: side by
        side, the heads of q, k and v no longer lie on a mesh axis each.
        """
        layer = jax.tree.map(lambda a: a, self)
        gates = [layer.gate[...], layer.up[...]] if hasattr(layer, "gate") else []
        qkv, gate_up = _side_by_side([layer.q[...], layer.k[...], layer.v[...]], gates)
        layer.qkv = nnx.Param(qkv)
        del layer.q, layer.k, layer.v
        if gates:
            layer.gate_up = nnx.Param(gate_up)
            del layer.gate, layer.up
        return layer

    def separate(self) -> TextLayers:
        """Returns what `fused` was called on."""
        layer = jax.tree.map(lambda a: a, self)
        parts = jnp.split(layer.qkv[...], self._borders(), axis=1)
        layer.q, layer.k, layer.v = (nnx.Param(part) for part in parts)
        del layer.qkv
        if not hasattr(layer, "router"):
            layer.gate, layer.up = (nnx.Param(layer.gate_up[:, i]) for i in range(2))
            del layer.gate_up
        return layer


@jax.jit
def _side_by_side(heads: list[Array], gates: list[Array]) -> tuple[Array, Array | None]:
    """Returns both, joined: one program, where a layer is loaded alone."""
    return jnp.concatenate(heads, axis=1), jnp.stack(gates, axis=1) if gates else None


def for_decoding(layers: TextLayers | nnx.List) -> nnx.List:
    """Returns stacked layers one by one, each `fused`, as generation wants them; twice is as once."""
    if isinstance(layers, nnx.List):
        return layers
    return nnx.List(_one_by_one(layers))


@jax.jit
def _one_by_one(layers: TextLayers) -> list[TextLayers]:
    return [layer.fused() for layer in unstack(layers)]


def for_training(layers: nnx.List) -> TextLayers:
    """Returns the layers of `for_decoding` as they were: stacked, what training and export want."""
    return stack([layer.separate() for layer in layers])


def dense_mlp(p: TextLayers, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """Returns down(silu(gate(x)) * up(x))."""
    if hasattr(p, "gate_up"):
        gate, up = jnp.moveaxis(linear(x, p.gate_up[...]), 2, 0)
    else:
        gate, up = linear(x, p.gate[...]), linear(x, p.up[...])

    # Its gradient keeps gate and up alone; to store what lies between for each layer takes longer.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def down(gate: Array, up: Array, w: Array) -> Array:
        return linear(shard(jax.nn.silu(gate) * up, "batch", "sequence", "mlp"), w)

    return down(gate, up, p.down[...])


class TextDecoder(nnx.Module):
    """Embedding, layers, final norm and head."""

    def __init__(self, c: TextConfig, tied: bool, init: Initializer):
        self.config = c
        self.embed = init.weight((c.vocab_size, c.hidden_size), ("vocab", "embed"))
        self.layers = TextLayers(c, init)
        self.norm = init.scale((c.hidden_size,), (None,))
        self.lm_head = None if tied else init.weight((c.hidden_size, c.vocab_size), ("embed", "vocab"))

    def head(self) -> Float[Array, "D V"]:
        """Returns the output projection; the transposed embedding when it is tied."""
        return self.embed[...].T if self.lm_head is None else self.lm_head[...]

    def logits(self, hidden: Float[Array, "*dims D"]) -> Float[Array, "*dims V"]:
        """Returns vocabulary logits of final-norm hidden states; a tied embedding is not transposed."""
        if self.lm_head is None:
            return product(hidden, self.embed[...], axis=1)
        return product(hidden, self.lm_head[...])

    def embedded(self, ids: Int[Array, "*dims"]) -> Float[Array, "*dims D"]:
        """Returns the embeddings of tokens, of the dtype of the norms: that which activations have."""
        return _lookup(self.embed[...], ids).astype(self.norm.dtype)

    def rope(self, positions: Int[Array, "B 3 S"], dtype: jnp.dtype) -> tuple[Array, Array]:
        """Returns cos and sin [B, S, H/2], computed in float32 and cast to the activations' dtype."""
        c = self.config
        angles = text_angles(positions, c.head_dim, c.rope_theta, c.mrope_section)
        return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)

    def layer(
        self, p: TextLayers, x: Float[Array, "B S D"], rope: tuple[Array, Array], attend: Attend, state: Any
    ) -> tuple[Float[Array, "B S D"], Any]:
        """Returns one layer's output and what `attend` returned beside the attention."""
        c = self.config
        x = checkpoint_name(x, "input")  # see `layers.checkpointed`
        h = rms_norm(x, p.input_norm[...], c.rms_norm_eps)
        q, k, v = p.project(h)
        q, k = (rms_norm(x, norm[...], c.rms_norm_eps) for x, norm in ((q, p.q_norm), (k, p.k_norm)))
        v = checkpoint_name(v, "v")
        q = checkpoint_name(rotate(shard(q, "batch", "sequence", "heads", None), *rope), "q")
        k = checkpoint_name(rotate(shard(k, "batch", "sequence", "kv_heads", None), *rope), "k")
        h, state = attend(q, k, v, state)
        # Heads and their dims as one axis: contracted as two, XLA:CPU would transpose the weights each time.
        x = x + linear(h.reshape(*h.shape[:2], -1), p.o[...].reshape(-1, c.hidden_size))
        h = rms_norm(x, p.post_norm[...], c.rms_norm_eps)
        x = x + (moe_mlp(p, h, c.num_experts_per_tok) if c.num_experts else dense_mlp(p, h))
        return shard(x, "batch", "sequence", None), state

    def __call__(
        self,
        x: Float[Array, "B S D"],
        positions: Int[Array, "B 3 S"],
        attend: Attend,
        deepstack: Float[Array, "taps B tokens D"],
        visual_index: Int[Array, "B S"],
        runtime: Runtime = Runtime(),
    ) -> Float[Array, "B S D"]:
        """Returns the final-norm hidden states of embedded inputs.

        Args:
            x: embeddings, visual tokens already in place.
            positions: (time, height, width) of each token.
            attend: reads keys and values; its state is not used here.
            deepstack: tap k is added to the visual positions after layer k.
            visual_index: which visual token stands at each position, -1 for text.
        """
        rope = self.rope(positions, x.dtype)

        def one(x: Array, p: TextLayers) -> Array:
            return self.layer(p, x, rope, attend, None)[0]

        one = checkpointed(one, runtime.remat)

        def body(x, p, index):
            return inject(one(x, p), deepstack, visual_index, index)

        x = run_layers(body, x, self.layers)
        return rms_norm(x, self.norm[...], self.config.rms_norm_eps)


def _lookup(table: Float[Array, "V D"], ids: Int[Array, "*dims"]) -> Float[Array, "*dims D"]:
    """Returns the rows of a table.

    Its columns lie on the devices that share the batch: each looks up its own columns of all their tokens,
    and these change places. Left to the compiler, over several mesh axes whole rows of tokens are gathered.
    """
    rows, sequence, columns = mesh_axes("batch"), mesh_axes("sequence"), mesh_axes("embed")
    spread = columns and ids.ndim == 2 and set(columns) <= {*rows[-1:], *sequence[-1:]}
    if not (spread and divides((*ids.shape, table.shape[1]), (rows, sequence, columns))):
        return table[ids]

    def own(table: Array, ids: Array) -> Array:
        x = table[ids]
        for axis in reversed(columns):  # the columns of the last axis are neighbours
            x = jax.lax.all_to_all(x, axis, 0 if axis in rows else 1, 2, tiled=True)
        return x

    apart = [tuple(axis for axis in some if axis not in columns) for some in (rows, sequence)]
    return jax.shard_map(
        own,
        in_specs=(PartitionSpec(None, columns), PartitionSpec(*apart)),
        out_specs=PartitionSpec(rows, sequence),
        axis_names=set(rows + sequence),
        check_vma=False,
    )(table, ids)


def inject(
    x: Float[Array, "B S D"],
    deepstack: Float[Array, "taps B tokens D"],
    visual_index: Int[Array, "B S"],
    layer: int | Int[Array, ""],
) -> Float[Array, "B S D"]:
    """Returns a layer's output with the DeepStack features for this layer, if there are any, in place."""
    taps = len(deepstack)
    if isinstance(layer, int):
        return x + visual_rows(deepstack[layer], visual_index) if layer < taps else x
    if not taps:
        return x
    return jax.lax.cond(
        layer < taps,
        lambda: x + visual_rows(deepstack[jnp.minimum(layer, taps - 1)], visual_index),
        lambda: x,
    )


def visual_rows(tokens: Float[Array, "B tokens D"], index: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """Returns the visual token at each position, zero where the position is text (index -1)."""
    rows, sequence = mesh_axes("batch"), mesh_axes("sequence")

    def chosen(tokens: Array, index: Array) -> Array:
        found = jnp.take_along_axis(tokens, jnp.maximum(index, 0)[..., None], axis=1)
        # A product, whose gradient keeps one number a position, where that of a choice keeps a row of them.
        return found * (index[..., None] >= 0).astype(found.dtype)

    if not sequence or not divides(index.shape, (rows, sequence)):
        return chosen(tokens, index)
    # A row over several devices: these gather its visual tokens, where a product would sum up all of the row.
    spread = sequence if divides(tokens.shape[1:2], (sequence,)) else ()

    def part(tokens: Array, index: Array) -> Array:
        for axis in spread:
            tokens = jax.lax.all_gather(tokens, axis, axis=1, tiled=True)
        return chosen(tokens, index)

    return jax.shard_map(
        part,
        in_specs=(PartitionSpec(rows, spread), PartitionSpec(rows, sequence)),
        out_specs=PartitionSpec(rows, sequence),
        axis_names=set(rows + sequence),
        check_vma=False,
    )(tokens, index)
