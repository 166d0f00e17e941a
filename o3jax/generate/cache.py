"""The key/value cache, the prefill that fills it and the step that extends it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from o3jax.generate.loop import put
from o3jax.models.attention import attention, cached_attention
from o3jax.models.batch import Batch, TextRow
from o3jax.models.layers import map_layers, rms_norm
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures, causal_mask
from o3jax.models.text import inject
from o3jax.sharding import shard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Rotated keys and values of every layer, and which of the slots hold a token.

    Rows may be padded on either side: what a slot holds is told by `filled`, and where a new token
    stands by `position`, never by the slot's number.
    """

    # One per layer, as the product with queries reads them; of stacked layers stacked.
    keys: tuple[Float[Array, "B K H T"], ...] | Float[Array, "L B K H T"]
    values: tuple[Float[Array, "B K T H"], ...] | Float[Array, "L B K T H"]
    filled: Bool[Array, "B T"]
    length: Int[Array, ""]  # the slot of the next token, the same for all rows
    position: Int[Array, " B"]  # the M-RoPE position of the next token, all three axes


KEYS, VALUES = ("batch", "kv_heads", None, "prefix"), ("batch", "kv_heads", "prefix", None)  # their axes


@functools.partial(jax.jit, static_argnames=("new_tokens", "kernel"))
def prefill(
    model: Qwen3VL,
    batch: Batch,
    new_tokens: int,
    visuals: VisualFeatures | None = None,
    ends: Int[Array, "B Q"] | None = None,
    kernel: str = "xla",
) -> tuple[Float[Array, "B D"] | Float[Array, "B Q D"], Cache]:
    """Returns the final hidden state of each row's last token, and a cache with room for `new_tokens`.

    `visuals` is what `model.encode_visuals` returned for the batch; None computes it. `ends` asks for the
    states at these slots instead: the last tokens of a row's continuations. The model's layers are best
    separate (`o3jax.models.text.for_decoding`); stacked ones make a program that does not grow with depth.
    """
    text, row = model.text, batch.text
    mask = causal_mask(row)
    x, taps = model.embed(row, model.encode_visuals(batch) if visuals is None else visuals)
    rope = text.rope(row.positions, x.dtype)

    def attend(q, k, v, state):
        keys = jnp.pad(rearrange(k, "b t k h -> b k h t"), ((0, 0), (0, 0), (0, 0), (0, new_tokens)))
        values = jnp.pad(rearrange(v, "b t k h -> b k t h"), ((0, 0), (0, 0), (0, new_tokens), (0, 0)))
        return attention(q, k, v, mask, kernel), (shard(keys, *KEYS), shard(values, *VALUES))

    def layer(x, p, index):
        x, kept = text.layer(p, x, rope, attend, None)
        return inject(x, taps, row.visual_index, index), kept

    x, (keys, values) = map_layers(layer, x, text.layers)
    valid = row.segment_ids > 0
    size = valid.shape[1]
    last = size - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    wanted = last[:, None] if ends is None else ends
    x = jnp.take_along_axis(x, wanted[..., None], axis=1)
    x = x[:, 0] if ends is None else x
    filled = jnp.pad(valid, ((0, 0), (0, new_tokens)))
    cache = Cache(keys, values, filled, jnp.int32(size), row.next_position)
    return rms_norm(x, text.norm[...], text.config.rms_norm_eps), cache


@jax.jit
def prefill_behind(model: Qwen3VL, row: TextRow, before: Cache) -> tuple[Float[Array, "B D"], Cache]:
    """Returns what `prefill` does for a text whose beginning is in a cache: that of the whole text.

    Args:
        row: what follows, without visual tokens, padded on the right.
        before: without room for new tokens.
    """
    text, there = model.text, row.segment_ids > 0
    x = text.embedded(row.input_ids)
    rope = text.rope(row.positions, x.dtype)
    size = there.shape[1]
    own = jnp.tril(jnp.ones((size, size), bool)) & there[:, None]
    seen = jnp.broadcast_to(before.filled[:, None], (len(x), size, before.filled.shape[1]))
    allowed = jnp.concatenate([seen, own], axis=2)

    def attend(q, k, v, state):
        k = jnp.concatenate([state[0], rearrange(k, "b t k h -> b k h t")], axis=3)
        v = jnp.concatenate([state[1], rearrange(v, "b t k h -> b k t h")], axis=2)
        return cached_attention(q, k, v, allowed), (k, v)

    keys, values = [], []
    for layer, k, v in zip(text.layers, before.keys, before.values, strict=True):
        x, (k, v) = text.layer(layer, x, rope, attend, (k, v))
        keys.append(k)
        values.append(v)
    last = size - 1 - jnp.argmax(there[:, ::-1], axis=1)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    filled = jnp.concatenate([before.filled, there], axis=1)
    cache = Cache(tuple(keys), tuple(values), filled, jnp.int32(filled.shape[1]), row.next_position)
    return rms_norm(x, text.norm[...], text.config.rms_norm_eps), cache


def extend(model: Qwen3VL, tokens: Int[Array, " B"], cache: Cache) -> tuple[Float[Array, "B D"], Cache]:
    """Returns the final hidden state of one more token per row, and the cache with it."""
    text = model.text
    x = text.embedded(tokens)[:, None]
    positions = jnp.broadcast_to(cache.position[:, None, None], (len(tokens), 3, 1))
    rope = text.rope(positions, x.dtype)
    filled = jax.lax.dynamic_update_slice_in_dim(
        cache.filled, jnp.ones((len(tokens), 1), bool), cache.length, axis=1
    )

    def attend(q, k, v, state):
        k = put(state[0], k[:, 0], cache.length, axis=3)
        v = put(state[1], v[:, 0], cache.length, axis=2)
        return cached_attention(q, k, v, filled[:, None]), (k, v)

    keys, values = [], []
    for layer, k, v in zip(text.layers, cache.keys, cache.values, strict=True):
        x, (k, v) = text.layer(layer, x, rope, attend, (k, v))
        keys.append(k)
        values.append(v)
    x = rms_norm(x[:, 0], text.norm[...], text.config.rms_norm_eps)
    return x, Cache(tuple(keys), tuple(values), filled, cache.length + 1, cache.position + 1)
