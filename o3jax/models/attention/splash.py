"""The TPU's flash kernel: splash attention of jax's Pallas library, with all masks of ours.

A prefix with continuations is two parts, the prefix and what each continuation reads of itself, merged
by their float32 log-sum-exp; so is the gradient, for which both get the merged output and log-sum-exp.

Of a row over several devices each gathers the keys. Causal queries are dealt out in a zigzag: of 2 n parts
device j computes j and 2 n - 1 - j, so that all have the same number of keys to read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as infos
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from o3jax.models.attention.mask import Mask
from o3jax.sharding import divides, mesh_axes

_LANES = 128  # heads and blocks are multiples of it
_BLOCKS = (512, 256, 128)
_INTERPRET = False  # on a CPU, to see the numbers

Ids = Int[Array, "parts B S"]


def splash(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    axes: tuple[str, str | None],
) -> Float[Array, "B S N H"]:
    """Returns what `o3jax.models.attention.attention` does, on a TPU."""
    (batch, size, heads, width), keys, groups = q.shape, k.shape[1], k.shape[2]
    q_ids, kv_ids = _parts(mask)
    q = rearrange(_padded(q * width**-0.5, size), "b s (k g) h -> b k g s h", k=groups)
    k, v = (rearrange(_padded(x, keys), "b t k h -> b k t h") for x in (k, v))
    ids = _pad_ids(q_ids, q.shape[3], -8), _pad_ids(kv_ids, k.shape[2], -9)
    rows, heads_on, sequence = mesh_axes(axes[0]), mesh_axes("kv_heads"), mesh_axes(axes[1])
    if not divides((batch, groups), (rows, heads_on)):
        rows, heads_on = (), ()
    if not (sequence and divides((q.shape[3] // _LANES, k.shape[2] // _LANES), (sequence, sequence))):
        sequence = ()
    mesh = jax.sharding.get_abstract_mesh().shape if sequence else {}
    ways = math.prod(mesh[axis] for axis in sequence)
    # Where every query reads all keys, a device's queries are as any others, and its kernel one for so many.
    own, shards = (q.shape[3], ways) if mask.causal else (q.shape[3] // ways, 1)
    dealt = len(sequence) == 1 and mask.causal and own % (2 * ways * _LANES) == 0
    made = _kernel(heads // groups, own, k.shape[2], mask.causal, shards, dealt, _INTERPRET)
    over = _Row(sequence, ways if dealt else 1)
    out = _spread(made, mask.causal, q, k, v, ids, (rows, heads_on), over)
    return rearrange(out[:, :, :, :size, :width], "b k g s h -> b s (k g) h").astype(v.dtype)


def _parts(mask: Mask) -> tuple[Ids, Ids]:
    """Returns the segments of queries and keys: one part, or two where there are continuations.

    A query reads the keys with its number in the same part; negative numbers meet none.
    """
    q, kv = jnp.asarray(mask.q_segments), jnp.asarray(mask.kv_segments)
    if mask.q_continuations is None:
        return q[None], kv[None]
    ours, theirs = jnp.asarray(mask.q_continuations), jnp.asarray(mask.kv_continuations)
    many = 1 << 15
    own_q = jnp.where(ours > 0, q * many + ours, -2)
    own_kv = jnp.where(theirs > 0, kv * many + theirs, -3)
    return jnp.stack([q, own_q]), jnp.stack([jnp.where(theirs == 0, kv, -1), own_kv])


def _padded(x: Array, size: int) -> Array:
    """Returns x [B, S, N, H] with S and H as the kernel wants them."""
    return jnp.pad(x, ((0, 0), (0, -size % _LANES), (0, 0), (0, -x.shape[-1] % _LANES)))


def _pad_ids(ids: Ids, size: int, value: int) -> Ids:
    return jnp.pad(ids, ((0, 0), (0, 0), (0, size - ids.shape[2])), constant_values=value)


@dataclasses.dataclass(frozen=True)
class _Row:
    """How a row lies over several devices: along these mesh axes, its queries dealt out to so many."""

    axes: tuple[str, ...]
    dealt: int  # 1: queries stay where they are

    def gathered(self, x: Array) -> Array:
        """Returns x [B, K, T, ...] of all devices."""
        for axis in self.axes:
            x = jax.lax.all_gather(x, axis, axis=2, tiled=True)
        return x

    def deal(self, x: Array, dimension: int, back: bool = False) -> Array:
        """Returns the parts of x along a dimension that this device has in the zigzag, or gives them back."""
        if self.dealt == 1:
            return x
        (axis,), count = self.axes, self.dealt
        # Device i has the parts 2 i and 2 i + 1. Each device gets one of even and one of odd number.
        ways = [
            [(i, part if part < count else 2 * count - 1 - part) for i, part in enumerate(parts)]
            for parts in (range(0, 2 * count, 2), range(1, 2 * count, 2))
        ]
        first, second = jnp.split(x, 2, dimension)
        swapped = jax.lax.axis_index(axis) % 2 == 1
        if not back:
            even, odd = (jax.lax.ppermute(p, axis, w) for p, w in zip((first, second), ways, strict=True))
            parts = jnp.where(swapped, odd, even), jnp.where(swapped, even, odd)
        else:
            even, odd = jnp.where(swapped, second, first), jnp.where(swapped, first, second)
            homes = [[(to, source) for source, to in way] for way in ways]
            parts = [jax.lax.ppermute(p, axis, w) for p, w in zip((even, odd), homes, strict=True)]
        return jnp.concatenate(parts, dimension)


@functools.lru_cache(maxsize=64)  # to make the mask of a long sequence takes a minute
def _kernel(
    heads: int, queries: int, keys: int, causal: bool, ways: int, dealt: bool, interpret: bool
) -> Any:
    block_q = next(size for size in _BLOCKS if queries // ways // (1 + dealt) % size == 0)
    block_kv = next(size for size in _BLOCKS if keys % size == 0)
    shape = (queries, keys)
    one = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    if dealt:
        parts = np.split(one.q_sequence, 2 * ways)
        one.q_sequence = np.concatenate([parts[i] for j in range(ways) for i in (j, 2 * ways - 1 - j)])
    sizes = kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    # As the library does, but in numpy: it would put the masks on a device, which `plan` does not have.
    shards = {"head_shards": 1, "q_seq_shards": ways, "downcast_smem_data": True}
    whole, blocks = masks.MultiHeadMask([one] * heads), (block_q, block_kv)
    forward, function = infos.process_mask(whole, blocks, **shards)
    by_keys, _ = infos.process_mask_dkv(whole, blocks, **shards, shrink_grid=True)
    return kernels.SplashAttentionKernel(
        *(forward, forward, by_keys),  # the gradient by queries goes through the same blocks
        block_sizes=sizes,
        is_mqa=True,
        save_residuals=True,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=function,
        interpret=interpret,
    )


def _spread(
    made: Any, causal: bool, q: Array, k: Array, v: Array, ids: tuple[Ids, Ids], axes: tuple, row: _Row
) -> Array:
    """Returns the attention, on each device that of its rows, heads and queries to all keys of the rows."""
    (rows, heads), sequence = axes, row.axes
    if jax.sharding.get_abstract_mesh().empty:
        return _attend(made, row, q, k, v, ids)
    spec = jax.tree.map(lambda _: PartitionSpec(), made)
    if causal:
        mesh = jax.sharding.get_abstract_mesh()
        spec = made.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, sequence or None)))
    queries, keys = PartitionSpec(rows, heads, None, sequence), PartitionSpec(rows, heads, sequence)
    id_spec = PartitionSpec(None, rows, sequence)
    return jax.shard_map(
        lambda made, *inputs: _attend(made, row, *inputs),
        in_specs=(spec, queries, keys, keys, (id_spec, id_spec)),
        out_specs=queries,
        check_vma=False,  # and no axis_names: a kernel of one device wants all axes to be its own
    )(made, q, k, v, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(
    made: Any, row: _Row, q: Float[Array, "B K G S H"], k: Array, v: Array, ids: tuple
) -> Float[Array, "B K G S H"]:
    return _forward(made, row, q, k, v, ids)[0]


def _forward(made: Any, row: _Row, q: Array, k: Array, v: Array, ids: tuple) -> tuple:
    q_ids, kv_ids = ids
    mine, mine_ids = row.deal(q, 3), row.deal(q_ids, 2)
    whole_k, whole_v, whole_ids = (row.gathered(x) for x in (k, v, kv_ids))

    def one(q: Array, k: Array, v: Array, q_id: Array, kv_id: Array) -> tuple[Array, Array]:
        out, (lse,) = made(q, k, v, kernels.SegmentIds(q_id, kv_id))
        return out.astype(jnp.float32), lse

    over_heads = jax.vmap(one, (0, 0, 0, None, None))
    over_rows = jax.vmap(over_heads, (0, 0, 0, 0, 0))
    parts = [over_rows(mine, whole_k, whole_v, *part) for part in zip(mine_ids, whole_ids, strict=True)]
    lse = functools.reduce(jnp.logaddexp, [part[1] for part in parts])
    out = sum(jnp.exp(one - lse)[..., None] * value for value, one in parts).astype(q.dtype)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return row.deal(out, 3, back=True), (made, q, k, v, ids, out, lse)


def _backward(row: _Row, residuals: tuple, grad: Array) -> tuple:
    made, q, k, v, (q_ids, kv_ids), out, lse = residuals
    q, grad, q_ids = row.deal(q, 3), row.deal(grad, 3), row.deal(q_ids, 2)
    whole_k, whole_v, whole_ids = (row.gathered(x) for x in (k, v, kv_ids))
    options = {key: made.kwargs[key] for key in _OPTIONS}

    def one(q: Array, k: Array, v: Array, out: Array, lse: Array, grad: Array, *part: Array) -> tuple:
        kept = (q, k, v, kernels.SegmentIds(*part), None, out, lse, made.dq_mask_info, made.dkv_mask_info)
        return kernels._splash_attention_bwd(False, res=kept, do=grad, **options)[3:6]

    over_heads = jax.vmap(one, (*[0] * 6, None, None))
    over_rows = jax.vmap(over_heads, (0,) * 8)
    found = [
        over_rows(q, whole_k, whole_v, out, lse, grad.astype(q.dtype), *part)
        for part in zip(q_ids, whole_ids, strict=True)
    ]
    dq, dk, dv = (sum(x.astype(jnp.float32) for x in some) for some in zip(*found, strict=True))
    dq = row.deal(dq.astype(q.dtype), 3, back=True)
    for axis in row.axes:
        dk, dv = (jax.lax.psum_scatter(x, axis, scatter_dimension=2, tiled=True) for x in (dk, dv))
    return None, dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_OPTIONS = ("mask_value", "is_mqa", "block_sizes", "residual_checkpoint_name", "mask_function")
_OPTIONS += ("attn_logits_soft_cap", "interpret")
_attend.defvjp(_forward, _backward)
