"""Flash kernels of libraries for NVIDIA GPUs: cuDNN's, and the one that jax's Pallas library has in Triton.

Neither reads a prefix with continuations: rows of one question each, or of segments without (Triton).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from o3jax.models.attention.mask import Mask
from o3jax.sharding import divides, mesh_axes

_BLOCK = 128


def cudnn(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    axes: tuple[str, str | None],
) -> Float[Array, "B S N H"]:
    """Returns what `o3jax.models.attention.attention` does, for rows of one segment with padding behind.

    Raises:
        ValueError: if the mask has continuations.
    """
    _refuse_continuations(mask, "cudnn")
    lengths = [(jnp.asarray(x) > 0).sum(1, dtype=jnp.int32) for x in (mask.q_segments, mask.kv_segments)]

    def run(q: Array, k: Array, v: Array, queries: Array, keys: Array) -> Array:
        q, k, v = (jnp.pad(x, ((0, 0),) * 3 + ((0, -x.shape[-1] % 8),)) for x in (q, k, v))
        return jax.nn.dot_product_attention(
            *(q, k, v),
            scale=width**-0.5,
            is_causal=mask.causal,
            query_seq_lengths=queries,
            key_value_seq_lengths=keys,
            implementation="cudnn",
        )[..., :width]

    width = q.shape[-1]
    return checkpoint_name(_spread(run, axes, q, k, v, *lengths), "attention")


def triton(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    axes: tuple[str, str | None],
) -> Float[Array, "B S N H"]:
    """Returns what `o3jax.models.attention.attention` does, for queries and keys of the same segments.

    The kernel is deprecated in jax 0.11, which names tokamax as its heir.

    Raises:
        ValueError: if the mask has continuations, or queries are others than the keys.
    """
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    _refuse_continuations(mask, "triton")
    if q.shape[1] != k.shape[1]:
        raise ValueError("the attention kernel triton reads queries and keys of one length")
    size, width = q.shape[1:4:2]
    blocks = BlockSizes(*[_BLOCK, 64], *[64] * 4)

    def run(q: Array, k: Array, v: Array, segments: Array) -> Array:
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        return mha(q, k, v, segments, width**-0.5, mask.causal, blocks)

    rest = -size % _BLOCK
    q, k, v = (jnp.pad(x, ((0, 0), (0, rest), (0, 0), (0, 0))) for x in (q, k, v))
    segments = jnp.pad(jnp.asarray(mask.q_segments), ((0, 0), (0, rest)))
    return checkpoint_name(_spread(run, axes, q, k, v, segments)[:, :size], "attention")


def _refuse_continuations(mask: Mask, name: str) -> None:
    if mask.q_continuations is not None:
        raise ValueError(f"the attention kernel {name} reads no prefix with continuations; xla and splash do")


def _spread(
    run: Callable[..., Array], axes: tuple[str, str | None], q: Array, k: Array, v: Array, *rows: Any
) -> Array:
    """Returns the attention, on each device that of its rows and heads."""
    batch, heads = mesh_axes(axes[0]), mesh_axes("kv_heads")
    if mesh_axes(axes[1]):
        raise ValueError("on a GPU a row over several devices (mesh.context) needs the attention kernel xla")
    if jax.sharding.get_abstract_mesh().empty:
        return run(q, k, v, *rows)
    if not divides((q.shape[0], k.shape[2]), (batch, heads)):
        batch, heads = (), ()
    arrays, ids = PartitionSpec(batch, None, heads), PartitionSpec(batch)
    return jax.shard_map(
        run,
        in_specs=(arrays, arrays, arrays, *[ids] * len(rows)),
        out_specs=arrays,
        check_vma=False,
    )(q, k, v, *rows)
