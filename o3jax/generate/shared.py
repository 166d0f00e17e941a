"""Greedy generation after several continuations of one prefix, such as questions about one video.

A row holds a prefix once and behind it its continuations, each of which reads the prefix and itself, at the
positions that it would have alone. So one prefill serves all, and the keys and values of the prefix are
stored and read once. Several rows, whose prefixes differ, go on together.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from o3jax.generate.cache import Cache, prefill
from o3jax.generate.loop import put, repeat_steps
from o3jax.generate.sampler import Ending, Generated, most_probable
from o3jax.models.attention import group_attention
from o3jax.models.batch import Batch
from o3jax.models.layers import rms_norm
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures


@functools.partial(jax.jit, static_argnames=("prefix", "ending"))
def greedy_continuations(
    model: Qwen3VL,
    batch: Batch,
    ends: Int[Array, "B G"],
    positions: Int[Array, "B G"],
    visuals: VisualFeatures,
    videos: Int[Array, " B"],
    *,
    prefix: int,
    ending: Ending,
) -> Generated:
    """Returns the most probable text after each continuation, rows B * G, as `greedy` would after each alone.

    Args:
        batch: `prefix` slots for each row's prefix, then as many for each of its G continuations; both are
            padded on the right. `continuation_ids` are 0 in the prefix and 1 to G behind it.
        ends: the slot of each continuation's last token; any slot for one that is padding.
        positions: where the first generated token of each stands, on all three axes.
        visuals: of the videos that the rows are about.
        videos: the number of each row's video.
        ending: its penalty is of what stands in the prefix and the continuation.
    """
    max_new_tokens, pad_id, penalty = ending.max_new_tokens, ending.pad_id, ending.repetition_penalty
    text, row = model.text, batch.text
    rows, count = ends.shape
    seen = VisualFeatures(visuals.tokens[videos], visuals.taps[:, videos], None, None)
    hidden, cache = prefill(model, batch, 0, seen, ends)
    filled = row.segment_ids > 0
    prompt = rearrange(filled[:, prefix:], "b (g w) -> b g w", g=count)
    width = prompt.shape[-1]
    there = jnp.pad(prompt, ((0, 0), (0, 0), (0, max_new_tokens)))
    shared, own = _parted(cache, prefix, count, max_new_tokens)
    out = Generated(
        jnp.full((rows, count, max_new_tokens), pad_id, jnp.int32),
        jnp.zeros((rows, count, max_new_tokens), jnp.float32),
        jnp.zeros((rows, count), jnp.int32),
        jnp.zeros((rows, count, 0), hidden.dtype),
    )
    finals = jnp.asarray(ending.eos_ids, jnp.int32)
    before = None
    if penalty != 1:
        size = model.config.text.vocab_size
        before = _tokens_before(jnp.where(filled, row.input_ids, size), prefix, count, size)

    def choose(
        step: Array, hidden: Float[Array, "B G D"], done: Array, before: Array | None, out: Generated
    ) -> tuple:
        token, chosen = most_probable(model.logits(hidden), before, penalty)
        token = jnp.where(done, pad_id, token)
        if before is not None:
            before = before | jax.nn.one_hot(token, before.shape[-1], dtype=bool)
        out = dataclasses.replace(
            out,
            tokens=out.tokens.at[..., step].set(token),
            logprobs=out.logprobs.at[..., step].set(jnp.where(done, 0.0, chosen)),
            length=out.length + ~done,
        )
        return token, done | jnp.isin(token, finals), before, out

    def extend(step: Array, token: Int[Array, "B G"], own: tuple) -> tuple[Float[Array, "B G D"], tuple]:
        x = text.embed[...][token]
        at = (positions + step - 1)[:, None]
        rope = text.rope(jnp.broadcast_to(at, (rows, 3, count)), x.dtype)
        column = width + step - 1
        allowed = there | ((jnp.arange(there.shape[-1]) >= width) & (jnp.arange(there.shape[-1]) <= column))

        def attend(q, k, v, state):
            prefix_kv, (keys, values) = state
            keys, values = put(keys, k, column, axis=4), put(values, v, column, axis=3)
            kept = group_attention(q, prefix_kv, (keys, values), filled[:, :prefix], allowed)
            return kept, (keys, values)

        written = []
        for layer, *state in zip(text.layers, shared, own, strict=True):
            x, kv = text.layer(layer, x, rope, attend, state)
            written.append(kv)
        return rms_norm(x, text.norm[...], text.config.rms_norm_eps), tuple(written)

    def going(carry: tuple) -> Array:
        step, _, done = carry[:3]
        return (step < max_new_tokens) & ~done.all()

    def body(carry: tuple) -> tuple:
        step, token, done, before, own, out = carry
        hidden, own = extend(step, token, own)
        token, done, before, out = choose(step, hidden, done, before, out)
        return step + 1, token, done, before, own, out

    token, done, before, out = choose(jnp.int32(0), hidden, ~prompt.any(-1), before, out)
    out = repeat_steps(going, body, (jnp.int32(1), token, done, before, own, out))[-1]
    return jax.tree.map(lambda x: x.reshape(rows * count, *x.shape[2:]), out)


def _parted(cache: Cache, prefix: int, count: int, new: int) -> tuple[tuple, tuple]:
    """Returns each layer's keys and values of the prefix; and of each continuation, with `new` free slots."""
    shared, own = [], []
    for k, v in zip(cache.keys, cache.values, strict=True):
        shared.append((k[..., :prefix], v[:, :, :prefix]))
        keys = rearrange(k[..., prefix:], "b k h (g w) -> b g k h w", g=count)
        values = rearrange(v[:, :, prefix:], "b k (g w) h -> b g k w h", g=count)
        free, none = (0, new), (0, 0)
        own.append((jnp.pad(keys, [*[none] * 4, free]), jnp.pad(values, [*[none] * 3, free, none])))
    return tuple(shared), tuple(own)


def _tokens_before(ids: Int[Array, "B S"], prefix: int, count: int, size: int) -> Bool[Array, "B G V"]:
    """Returns which of `size` tokens stand in the prefix or in each continuation; an id of `size` is none."""
    rows = len(ids)
    begun, each = jnp.zeros((rows, size), bool), jnp.zeros((rows, count, size), bool)
    begun = begun.at[jnp.arange(rows)[:, None], ids[:, :prefix]].set(True, mode="drop")
    own = rearrange(ids[:, prefix:], "b (g w) -> b g w", g=count)
    at = jnp.arange(rows)[:, None, None], jnp.arange(count)[None, :, None], own
    return begun[:, None] | each.at[at].set(True, mode="drop")
