"""The plain kernel, in blocks of queries."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from o3jax.models.attention.mask import Mask
from o3jax.models.attention.softmax import HIDDEN, bias, dot, weigh

# Queries of one block of the plain kernel. A causal block reads no key beyond its end, which saves
# almost half of the work, and its scores stay in the cache of a CPU core.
_BLOCK = 128


def xla(
    q: Float[Array, "B S N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], mask: Mask
) -> Float[Array, "B S N H"]:
    """Returns what `o3jax.models.attention.attention` does, on any backend."""
    q = rearrange(q * q.shape[-1] ** -0.5, "b s (k g) h -> b k g s h", k=k.shape[2])
    k, v = rearrange(k, "b t k h -> b k t h"), rearrange(v, "b t k h -> b k t h")
    ids = mask.q_segments, mask.kv_segments, mask.q_continuations, mask.kv_continuations
    return rearrange(_in_blocks(q, k, v, ids, mask.causal), "b k g s h -> b s (k g) h")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _in_blocks(
    q: Float[Array, "B K G S H"], k: Array, v: Array, ids: tuple, causal: bool
) -> Float[Array, "B K G S H"]:
    """Returns the attention of scaled queries; `ids` are the arrays of a Mask.

    Its gradient keeps each query's highest score and sum of weights, and makes the scores from them again,
    a block at a time: to store those of every layer and to load them takes longer than one more product.
    """
    return _forward(q, k, v, ids, causal)[0]


def _forward(q: Array, k: Array, v: Array, ids: tuple, causal: bool) -> tuple[Array, tuple]:
    allowed, parts = Mask(*ids, causal=causal).dense()[:, None, None], []
    for queries, keys in _blocks(q.shape[3], k.shape[2], causal, whole=not causal):
        scores = dot("bkgsh,bkth->bkgst", q[..., queries, :], k[:, :, keys])
        highest, weights, total = weigh(_hide(scores, allowed[..., queries, keys], causal))
        parts.append((highest, total, dot("bkgst,bkth->bkgsh", weights, v[:, :, keys]) / total))
    highest, total, out = (jnp.concatenate(part, axis=3) for part in zip(*parts, strict=True))
    kept = (highest, total, out.astype(v.dtype))
    highest, total, out = (checkpoint_name(x, "attention") for x in kept)  # see `layers.checkpointed`
    return out, (q, k, v, ids, highest, total, out)


def _backward(causal: bool, residuals: tuple, grad: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, ids, highest, total, out = residuals
    allowed = rearrange(Mask(*ids, causal=causal).dense(), "b s t -> b 1 t 1 s")
    # Weights are not divided by their sum here either, but what they are multiplied with.
    grad = grad / total
    highest, mean = (rearrange(x, "b k g s -> b k 1 g s") for x in (highest[..., 0], jnp.sum(grad * out, -1)))
    grad, columns, dq = grad.astype(v.dtype), rearrange(k, "b k t h -> b k h t"), []
    dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for queries, keys in _blocks(q.shape[3], k.shape[2], causal):
        some_q, some_k, some_grad = q[..., queries, :], k[:, :, keys], grad[..., queries, :]
        # Keys before queries, and dq with its axes swapped: no product has to bring scores into another
        # order first.
        scores = dot("bkth,bkgsh->bktgs", some_k, some_q)
        weights = jnp.exp(_hide(scores, allowed[:, :, keys, :, queries], causal) - highest[..., queries])
        dscores = weights * (dot("bkth,bkgsh->bktgs", v[:, :, keys], some_grad) - mean[..., queries])
        dq.append(dot("bkht,bktgs->bkhgs", columns[..., keys], dscores))
        dk = dk.at[:, :, keys].add(dot("bktgs,bkgsh->bkth", dscores, some_q))
        dv = dv.at[:, :, keys].add(dot("bktgs,bkgsh->bkth", weights, some_grad))
    dq = rearrange(jnp.concatenate(dq, axis=4), "b k h g s -> b k g s h")
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_in_blocks.defvjp(_forward, _backward)


def _blocks(queries: int, keys: int, causal: bool, whole: bool = False) -> list[tuple[slice, slice]]:
    """Returns which queries are computed together, and which keys they read."""
    size = queries if whole else _BLOCK
    return [(slice(i, i + size), slice(0, i + size if causal else keys)) for i in range(0, queries, size)]


def _hide(scores: Array, allowed: Bool[Array, "*dims"], causal: bool) -> Array:
    # Added, where one would rather choose: XLA:CPU then makes the two products, the mask and the softmax
    # one operation. Not so with causal blocks, where choosing is faster.
    return jnp.where(allowed, scores, HIDDEN) if causal else scores + bias(allowed)
