"""The plain kernel, in blocks of queries."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from o3jax.models.attention.mask import Mask
from o3jax.models.attention.softmax import HIDDEN, bias, dot, weigh
from o3jax.sharding import divides, mesh_axes

# Queries of one block. Its scores stay in the cache of a CPU core, and are all that is ever held of them.
_BLOCK = 128
# Blocks that read the same keys form a span; a causal span reads no key beyond its end, which saves almost
# half of the work. A program holds so many spans at most, however long the sequence is.
_SPANS = 8


def xla(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    axes: tuple[str, str | None],
) -> Float[Array, "B S N H"]:
    """Returns what `o3jax.models.attention.attention` does, on any backend."""
    ids = mask.q_segments, mask.kv_segments, mask.q_continuations, mask.kv_continuations
    where = mesh_axes(axes[0]), mesh_axes(axes[1]), mesh_axes("kv_heads")
    rows, sequence, heads = where
    if not sequence or not divides((*q.shape[:2], k.shape[1], k.shape[2]), (rows, sequence, sequence, heads)):
        return _attend(q, k, v, (*ids, None), mask.causal)
    # A row over several devices: each gathers the keys once, and goes through its own queries. Left to the
    # compiler, the keys would be gathered for each block.
    arrays, places = PartitionSpec(*where), PartitionSpec(rows, sequence)

    def part(q: Array, k: Array, v: Array, *ids: Array | None) -> Array:
        offset = jax.lax.axis_index(sequence) * q.shape[1]
        q_segments, kv_segments, ours, theirs = ids
        k, v, kv_segments, theirs = (
            x if x is None else jax.lax.all_gather(x, sequence, axis=1, tiled=True)
            for x in (k, v, kv_segments, theirs)
        )
        return _attend(q, k, v, (q_segments, kv_segments, ours, theirs, offset), mask.causal)

    return jax.shard_map(
        part,
        in_specs=(arrays, arrays, arrays, *[None if x is None else places for x in ids]),
        out_specs=arrays,
        axis_names={*rows, *sequence, *heads},
        check_vma=False,
    )(q, k, v, *[x if x is None else jnp.asarray(x) for x in ids])


def _attend(q: Array, k: Array, v: Array, ids: tuple, causal: bool) -> Float[Array, "B S N H"]:
    """Returns the attention of what is here; `ids` are the arrays of a Mask."""
    q = rearrange(q * q.shape[-1] ** -0.5, "b s (k g) h -> b k g s h", k=k.shape[2])
    k, v = rearrange(k, "b t k h -> b k t h"), rearrange(v, "b t k h -> b k t h")
    return rearrange(_in_blocks(q, k, v, ids, causal), "b k g s h -> b s (k g) h")


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
    mask = Mask(*ids[:4], causal=causal, offset=ids[4])
    ahead = causal and ids[4] is None  # else it is not known which keys a query reads at most

    def block(at: Array | int, size: int, keys: int) -> tuple[Array, Array, Array]:
        some = jax.lax.dynamic_slice_in_dim(q, at, size, 3)
        scores = dot("bkgsh,bkth->bkgst", some, k[:, :, :keys])
        allowed = mask.block(at, size, keys)[:, None, None]
        highest, weights, total = weigh(_hide(scores, allowed, causal))
        return highest, total, dot("bkgst,bkth->bkgsh", weights, v[:, :, :keys]) / total

    parts = []
    for start, count, size, keys in _spans(q.shape[3], k.shape[2], ahead, whole=not causal):
        if count == 1:
            parts.append(block(start, size, keys))
        else:
            many = jax.lax.map(functools.partial(block, size=size, keys=keys), _starts(q, start, count, size))
            parts.append([rearrange(x, "n b k g s h -> b k g (n s) h") for x in many])
    highest, total, out = (jnp.concatenate(part, axis=3) for part in zip(*parts, strict=True))
    kept = (highest, total, out.astype(v.dtype))
    highest, total, out = (checkpoint_name(x, "attention") for x in kept)  # see `layers.checkpointed`
    return out, (q, k, v, ids, highest, total, out)


def _backward(causal: bool, residuals: tuple, grad: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, ids, highest, total, out = residuals
    mask = Mask(*ids[:4], causal=causal, offset=ids[4])
    # Weights are not divided by their sum here either, but what they are multiplied with.
    grad = grad / total
    highest, mean = (rearrange(x, "b k g s -> b k 1 g s") for x in (highest[..., 0], jnp.sum(grad * out, -1)))
    grad, columns, dq = grad.astype(v.dtype), rearrange(k, "b k t h -> b k h t"), []

    def block(sums: tuple, at: Array | int, size: int, keys: int) -> tuple[tuple, Array]:
        some_q, some_grad = (jax.lax.dynamic_slice_in_dim(x, at, size, 3) for x in (q, grad))
        top, middle = (jax.lax.dynamic_slice_in_dim(x, at, size, 4) for x in (highest, mean))
        allowed = rearrange(mask.block(at, size, keys), "b s t -> b 1 t 1 s")
        # Keys before queries, and dq with its axes swapped: no product has to bring scores into another
        # order first.
        scores = dot("bkth,bkgsh->bktgs", k[:, :, :keys], some_q)
        weights = jnp.exp(_hide(scores, allowed, causal) - top)
        dscores = weights * (dot("bkth,bkgsh->bktgs", v[:, :, :keys], some_grad) - middle)
        dk, dv = sums
        dk = dk.at[:, :, :keys].add(dot("bktgs,bkgsh->bkth", dscores, some_q))
        dv = dv.at[:, :, :keys].add(dot("bktgs,bkgsh->bkth", weights, some_grad))
        return (dk, dv), dot("bkht,bktgs->bkhgs", columns[..., :keys], dscores)

    sums = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for start, count, size, keys in _spans(q.shape[3], k.shape[2], causal and ids[4] is None):
        if count == 1:
            sums, part = block(sums, start, size, keys)
        else:
            run = functools.partial(block, size=size, keys=keys)
            sums, parts = jax.lax.scan(run, sums, _starts(q, start, count, size))
            part = rearrange(parts, "n b k h g s -> b k h g (n s)")
        dq.append(part)
    dq = rearrange(jnp.concatenate(dq, axis=4), "b k h g s -> b k g s h")
    return dq.astype(q.dtype), sums[0].astype(k.dtype), sums[1].astype(v.dtype), None


_in_blocks.defvjp(_forward, _backward)


def _spans(queries: int, keys: int, causal: bool, whole: bool = False) -> Iterator[tuple[int, int, int, int]]:
    """Yields of each span its first query, how many blocks of how many queries, and how many keys these read.

    Few queries are one block where `whole` is set: one product is fastest.
    """
    if whole and queries <= _BLOCK * _SPANS:
        yield 0, 1, queries, keys
        return
    length = _BLOCK * -(-queries // (_BLOCK * _SPANS))
    for start in range(0, queries, length):
        stop = min(start + length, queries)
        full, read = (stop - start) // _BLOCK, min(stop, keys) if causal else keys
        if full:
            yield start, full, _BLOCK, read
        if start + full * _BLOCK < stop:
            yield start + full * _BLOCK, 1, stop - start - full * _BLOCK, read


def _starts(q: Array, start: int, count: int, size: int) -> Int[Array, " count"]:
    """Returns the first query of each block.

    Bound to the queries: the masks of all blocks, which depend on no activation, would else be made before
    the loop where it is run again for a gradient (`jax.checkpoint`), and stand there as [S, T].
    """
    return jax.lax.optimization_barrier((start + size * jnp.arange(count), q[0, 0, 0, 0, 0]))[0]


def _hide(scores: Array, allowed: Bool[Array, "*dims"], causal: bool) -> Array:
    # Added, where one would rather choose: XLA:CPU then makes the two products, the mask and the softmax
    # one operation. Not so with causal blocks, where choosing is faster.
    return jnp.where(allowed, scores, HIDDEN) if causal else scores + bias(allowed)
