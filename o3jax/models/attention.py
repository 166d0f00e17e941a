"""One attention function, behind which kernels are chosen by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
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
    length, group = q.shape[1], q.shape[2] // k.shape[2]
    q = rearrange(q, "b s (k g) h -> b k g s h", g=group)
    k, v = rearrange(k, "b t k h -> b k t h"), rearrange(v, "b t k h -> b k t h")
    if not mask.causal:
        out = _read(_scores(q, k) + _bias(mask.dense()), v)
    else:
        allowed, blocks = mask.dense()[:, None, None], []
        for start in range(0, length, _BLOCK):
            queries, keys = slice(start, start + _BLOCK), slice(0, start + _BLOCK)
            scores = _scores(q[..., queries, :], k[:, :, keys])
            scores = jnp.where(allowed[..., queries, keys], scores, _HIDDEN)
            blocks.append(_read(scores, v[:, :, keys]))
        out = jnp.concatenate(blocks, axis=3)
    return rearrange(out, "b k g s h -> b s (k g) h")


# A finite minimum: a query with nothing to read (padding) gets an even average, not NaN.
_HIDDEN = float(np.finfo(np.float32).min)


def _bias(allowed: Bool[Array, "B S T"]) -> Float[Array, "B 1 1 S T"]:
    # Added, where one would rather choose: XLA:CPU then makes the two products, the mask and the softmax
    # one operation. (Not so with causal blocks, where choosing is faster.)
    return jnp.where(allowed[:, None, None], 0.0, _HIDDEN)


def _scores(q: Array, k: Array) -> Float[Array, "B K G S T"]:
    scaled = q * q.shape[-1] ** -0.5
    return jnp.einsum("bkgsh,bkth->bkgst", scaled, k, preferred_element_type=jnp.float32)


def _read(scores: Array, v: Array) -> Array:
    # The division comes after the product with v, on H values per query instead of T.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bkgst,bkth->bkgsh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)


def cached_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B K H T"],
    v: Float[Array, "B K T H"],
    allowed: Bool[Array, "B S T"],
) -> Float[Array, "B S N H"]:
    """Returns attention to a cache, laid out so that no step rearranges it for the two products."""
    q = rearrange(q, "b s (k g) h -> b k g s h", k=k.shape[1])
    scores = jnp.einsum("bkgsh,bkht->bkgst", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    return rearrange(_read(scores + _bias(allowed), v), "b k g s h -> b s (k g) h")


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
    shared = _part(together, *prefix, _bias(prefix_allowed[:, None])[:, 0])
    shared = [rearrange(x, "b k (g s) h -> b s k g h", s=q.shape[1]) for x in shared]
    apart = rearrange(scaled, "b s (k g) h -> b s k g h", k=heads)
    parts = (shared, _part(apart, *own, _bias(own_allowed[:, None])))
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
    highest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    value = jnp.einsum("...gt,...th->...gh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return highest, weights.sum(-1, keepdims=True), value
