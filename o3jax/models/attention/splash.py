"""The TPU's flash kernel: splash attention of jax's Pallas library, with all masks of ours.

A prefix with continuations is two parts, the prefix and what each continuation reads of itself, merged
by their float32 log-sum-exp; so is the gradient, for which both get the merged output and log-sum-exp.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
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
    made = _kernel(heads // groups, own, k.shape[2], mask.causal, shards, _INTERPRET)
    out = _spread(made, mask.causal, q, k, v, ids, (rows, heads_on, sequence))
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


@functools.lru_cache(maxsize=64)  # to make the mask of a long sequence takes a minute
def _kernel(heads: int, queries: int, keys: int, causal: bool, ways: int, interpret: bool) -> Any:
    block_q = next(size for size in _BLOCKS if queries // ways % size == 0)
    block_kv = next(size for size in _BLOCKS if keys % size == 0)
    shape = (queries, keys)
    one = masks.CausalMask(shape) if causal else masks.FullMask(shape)
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
    made: Any, causal: bool, q: Array, k: Array, v: Array, ids: tuple[Ids, Ids], axes: tuple
) -> Array:
    """Returns the attention, on each device that of its rows, heads and queries to all keys of the rows."""
    rows, heads, sequence = axes
    if jax.sharding.get_abstract_mesh().empty:
        return _attend(made, (), q, k, v, ids)
    spec = jax.tree.map(lambda _: PartitionSpec(), made)
    if causal:
        mesh = jax.sharding.get_abstract_mesh()
        spec = made.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, sequence or None)))
    queries, keys = PartitionSpec(rows, heads, None, sequence), PartitionSpec(rows, heads, sequence)
    id_spec = PartitionSpec(None, rows, sequence)
    return jax.shard_map(
        lambda made, *inputs: _attend(made, sequence, *inputs),
        in_specs=(spec, queries, keys, keys, (id_spec, id_spec)),
        out_specs=queries,
        check_vma=False,  # and no axis_names: a kernel of one device wants all axes to be its own
    )(made, q, k, v, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(
    made: Any, sequence: tuple[str, ...], q: Float[Array, "B K G S H"], k: Array, v: Array, ids: tuple
) -> Float[Array, "B K G S H"]:
    return _forward(made, sequence, q, k, v, ids)[0]


def _forward(made: Any, sequence: tuple[str, ...], q: Array, k: Array, v: Array, ids: tuple) -> tuple:
    q_ids, kv_ids = ids
    whole_k, whole_v, whole_ids = (_gathered(x, sequence, 2) for x in (k, v, kv_ids))

    def one(q: Array, k: Array, v: Array, q_id: Array, kv_id: Array) -> tuple[Array, Array]:
        out, (lse,) = made(q, k, v, kernels.SegmentIds(q_id, kv_id))
        return out.astype(jnp.float32), lse

    over_heads = jax.vmap(one, (0, 0, 0, None, None))
    over_rows = jax.vmap(over_heads, (0, 0, 0, 0, 0))
    parts = [over_rows(q, whole_k, whole_v, *part) for part in zip(q_ids, whole_ids, strict=True)]
    lse = functools.reduce(jnp.logaddexp, [part[1] for part in parts])
    out = sum(jnp.exp(one - lse)[..., None] * value for value, one in parts).astype(q.dtype)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention")
    return out, (made, q, k, v, ids, out, lse)


def _backward(sequence: tuple[str, ...], residuals: tuple, grad: Array) -> tuple:
    made, q, k, v, (q_ids, kv_ids), out, lse = residuals
    whole_k, whole_v, whole_ids = (_gathered(x, sequence, 2) for x in (k, v, kv_ids))
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
    for axis in sequence:
        dk, dv = (jax.lax.psum_scatter(x, axis, scatter_dimension=2, tiled=True) for x in (dk, dv))
    return None, dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_OPTIONS = ("mask_value", "is_mqa", "block_sizes", "residual_checkpoint_name", "mask_function")
_OPTIONS += ("attn_logits_soft_cap", "interpret")
_attend.defvjp(_forward, _backward)


def _gathered(x: Array, axes: tuple[str, ...], dimension: int) -> Array:
    for axis in axes:
        x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True)
    return x
