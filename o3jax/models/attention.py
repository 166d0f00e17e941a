"""One attention function, behind which kernels are chosen by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which key each query may read, kept as structure so that a kernel need not build [S, S].

    A query reads a key of its own segment; segment 0 is padding. Within a segment, branch 0 is a
    prefix that every branch continues, and a branch reads the prefix and itself: several
    continuations of one video share its tokens. `causal` hides keys that stand after the query.
    """

    q_segments: Int[Array, "B S"]
    kv_segments: Int[Array, "B T"]
    q_branches: Int[Array, "B S"] | None = None
    kv_branches: Int[Array, "B T"] | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})

    def dense(self) -> Bool[Array, "B S T"]:
        """Returns the mask as booleans; True may be read."""
        allowed = self.q_segments[:, :, None] == self.kv_segments[:, None, :]
        if self.q_branches is not None:
            branches = self.kv_branches[:, None, :]
            allowed &= (branches == 0) | (branches == self.q_branches[:, :, None])
        if self.causal:
            size = self.q_segments.shape[1]
            allowed &= jnp.arange(size)[:, None] >= jnp.arange(self.kv_segments.shape[1])[None, :]
        return allowed


# Queries of one block of the plain kernel. A causal block reads no key beyond its end, which saves
# almost half of the work, and its scores stay in the cache of a CPU core.
_BLOCK = 128


def _xla(q: Array, k: Array, v: Array, mask: Mask) -> Array:
    q = rearrange(q * q.shape[-1] ** -0.5, "b s (k g) h -> b k g s h", k=k.shape[2])
    k, v = rearrange(k, "b t k h -> b k t h"), rearrange(v, "b t k h -> b k t h")
    ids = mask.q_segments, mask.kv_segments, mask.q_branches, mask.kv_branches
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
        scores = _dot("bkgsh,bkth->bkgst", q[..., queries, :], k[:, :, keys])
        highest, weights, total = _weigh(_hide(scores, allowed[..., queries, keys], causal))
        parts.append((highest, total, _dot("bkgst,bkth->bkgsh", weights, v[:, :, keys]) / total))
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
        scores = _dot("bkth,bkgsh->bktgs", some_k, some_q)
        weights = jnp.exp(_hide(scores, allowed[:, :, keys, :, queries], causal) - highest[..., queries])
        dscores = weights * (_dot("bkth,bkgsh->bktgs", v[:, :, keys], some_grad) - mean[..., queries])
        dq.append(_dot("bkht,bktgs->bkhgs", columns[..., keys], dscores))
        dk = dk.at[:, :, keys].add(_dot("bktgs,bkgsh->bkth", dscores, some_q))
        dv = dv.at[:, :, keys].add(_dot("bktgs,bkgsh->bkth", weights, some_grad))
    dq = rearrange(jnp.concatenate(dq, axis=4), "b k h g s -> b k g s h")
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_in_blocks.defvjp(_forward, _backward)


def _blocks(queries: int, keys: int, causal: bool, whole: bool = False) -> list[tuple[slice, slice]]:
    """Returns which queries are computed together, and which keys they read."""
    size = queries if whole else _BLOCK
    return [(slice(i, i + size), slice(0, i + size if causal else keys)) for i in range(0, queries, size)]


# A finite minimum: a query with nothing to read (padding) gets an even average, not NaN.
_HIDDEN = float(np.finfo(np.float32).min)


def _hide(scores: Array, allowed: Bool[Array, "*dims"], causal: bool) -> Array:
    # Added, where one would rather choose: XLA:CPU then makes the two products, the mask and the softmax
    # one operation. Not so with causal blocks, where choosing is faster.
    return jnp.where(allowed, scores, _HIDDEN) if causal else scores + _bias(allowed)


def _bias(allowed: Bool[Array, "*dims"]) -> Float[Array, "*dims"]:
    return jnp.where(allowed, 0.0, _HIDDEN)


def _dot(equation: str, a: Array, b: Array) -> Array:
    """Returns the float32 product of two arrays, both in the lower precision of the two."""
    dtype = min(a.dtype, b.dtype, key=lambda d: d.itemsize)
    return jnp.einsum(equation, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def _weigh(scores: Float[Array, "*dims T"]) -> tuple[Array, Array, Array]:
    """Returns the highest score, and the weights and their sum relative to it.

    The division comes after the product with v, on H values per query instead of T.
    """
    highest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    return highest, weights, weights.sum(-1, keepdims=True)


def cached_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    allowed: Bool[Array, "B S T"],
) -> Float[Array, "B S N H"]:
    """Returns attention to a cache, laid out so that no step rearranges it for the two products."""
    q = rearrange(q, "b s (k g) h -> b k g s h", k=k.shape[1])
    scores = _dot("bkgsh,bkht->bkgst", q * q.shape[-1] ** -0.5, k)
    _, weights, total = _weigh(scores + _bias(allowed[:, None, None]))
    out = _dot("bkgst,bkth->bkgsh", weights, v) / total
    return rearrange(out.astype(v.dtype), "b k g s h -> b s (k g) h")


KERNELS: dict[str, Callable[[Array, Array, Array, Mask], Array]] = {"xla": _xla}


def attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    kernel: str = "xla",
) -> Float[Array, "B S N H"]:
    """Returns softmax(q k^T / sqrt(H)) v, each key head serving N / K neighbouring query heads.

    The softmax is float32 whatever the inputs are.

    Raises:
        ValueError: if no kernel has this name; there is no fallback.
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown attention kernel '{kernel}'; available: {', '.join(sorted(KERNELS))}")
    return KERNELS[kernel](q, k, v, mask)


def group_attention(
    q: Float[Array, "B G N H"],
    prefix: tuple[Float[Array, "B K H P"], Float[Array, "B K P H"]],
    own: tuple[Float[Array, "B G K H T"], Float[Array, "B G K T H"]],
    prefix_allowed: Bool[Array, "B P"],
    own_allowed: Bool[Array, "B T"],
) -> Float[Array, "B G N H"]:
    """Returns attention of G samples, one query each, to the prefix that they share and to their own keys.

    The prefix is read once for the group: one product with the queries of all samples. The two parts are
    merged by their float32 log-sum-exp, so the result is that of one softmax over both.

    Args:
        prefix, own: keys and values, laid out as those of `cached_attention`.
        prefix_allowed, own_allowed: which of them hold a token.
    """
    heads = prefix[0].shape[1]
    scaled = q * q.shape[-1] ** -0.5
    together = rearrange(scaled, "b s (k g) h -> b k (g s) h", k=heads)
    shared = _part(together, *prefix, _bias(prefix_allowed[:, None, None]))
    shared = [rearrange(x, "b k (g s) h -> b s k g h", s=q.shape[1]) for x in shared]
    apart = rearrange(scaled, "b s (k g) h -> b s k g h", k=heads)
    parts = (shared, _part(apart, *own, _bias(own_allowed[:, None, None, None])))
    top = jnp.maximum(parts[0][0], parts[1][0])
    total, out = 0.0, 0.0
    for highest, weight, value in parts:
        scale = jnp.exp(highest - top)
        total, out = total + weight * scale, out + value * scale
    return rearrange((out / total).astype(q.dtype), "b s k g h -> b s (k g) h")


def _part(q: Array, k: Array, v: Array, bias: Array) -> tuple[Array, Array, Array]:
    """Returns each query's highest score, its sum of weights relative to that, and its sum of values.

    Sums are merged per query; to bring the scores of the two parts into one order would take longer.
    """
    scores = jnp.einsum("...gh,...ht->...gt", q, k, preferred_element_type=jnp.float32) + bias
    highest, weights, total = _weigh(scores)
    value = jnp.einsum("...gt,...th->...gh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return highest, total, value
