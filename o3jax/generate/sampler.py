"""Greedy generation, on the device from the prompt's last token to the last end-of-text."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from o3jax.generate.cache import Cache, extend, prefill
from o3jax.models.batch import Batch
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """What was generated; slots after a row's end hold the pad token and a log-probability of 0."""

    tokens: Int[Array, "B new"]
    logprobs: Float[Array, "B new"]  # float32, of each token under the model
    length: Int[Array, "B"]  # tokens of each row, its end-of-text included
    states: Float[Array, "B new D"]  # final-norm hidden state at each token; zero at the last one


def greedy(
    model: Qwen3VL,
    batch: Batch,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    visuals: VisualFeatures | None = None,
) -> Generated:
    """Returns the most probable continuation of each row, token by token.

    Stops when every row has produced one of `eos_ids`, at the latest after `max_new_tokens`. The
    model's layers must be separate (`for_decoding`); prompts may be padded on either side. `visuals` saves
    computing again what `model.encode_visuals` returned for the batch.
    """
    hidden, cache = prefill(model, batch, max_new_tokens, visuals)
    return _greedy_loop(model, hidden, cache, max_new_tokens, eos_ids, pad_id)


@functools.partial(jax.jit, static_argnames=("limit", "eos_ids", "pad_id"))
def _greedy_loop(
    model: Qwen3VL, hidden: Array, cache: Cache, limit: int, eos_ids: tuple[int, ...], pad_id: int
) -> Generated:
    rows = hidden.shape[0]
    ends = jnp.asarray(eos_ids, jnp.int32)
    out = Generated(
        jnp.full((rows, limit), pad_id, jnp.int32),
        jnp.zeros((rows, limit), jnp.float32),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros((rows, limit, hidden.shape[-1]), hidden.dtype),
    )

    def choose(step: Array, hidden: Array, done: Array, out: Generated) -> tuple[Array, Array, Generated]:
        logp = jax.nn.log_softmax(model.logits(hidden).astype(jnp.float32))
        token = jnp.where(done, pad_id, jnp.argmax(logp, -1).astype(jnp.int32))
        chosen = jnp.take_along_axis(logp, token[:, None], -1)[:, 0]
        out = Generated(
            out.tokens.at[:, step].set(token),
            out.logprobs.at[:, step].set(jnp.where(done, 0.0, chosen)),
            out.length + ~done,
            out.states,
        )
        return token, done | jnp.isin(token, ends), out

    def going(carry: tuple) -> Array:
        step, _, done, _, _ = carry
        return (step < limit) & ~done.all()

    def body(carry: tuple) -> tuple:
        step, token, done, cache, out = carry
        hidden, cache = extend(model, token, cache)
        out = dataclasses.replace(out, states=out.states.at[:, step - 1].set(hidden))
        token, done, out = choose(step, hidden, done, out)
        return step + 1, token, done, cache, out

    token, done, out = choose(jnp.int32(0), hidden, jnp.zeros(rows, bool), out)
    return jax.lax.while_loop(going, body, (jnp.int32(1), token, done, cache, out))[-1]
