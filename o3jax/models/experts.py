"""A mixture of experts: each device sorts its own tokens by expert, in blocks that meet one expert each.

No token is dropped and none meets an expert that it did not choose. With experts spread over the mesh axis
`expert`, a device computes what its experts are chosen for, and the parts of each token are summed.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from o3jax.models.layers import LowRankWeight, linear
from o3jax.sharding import divides, mesh_axes

_BLOCKS = (8, 128)  # the least and the most tokens of a block


@runtime_checkable
class Experts(Protocol):
    """The weights of a layer's experts."""

    router: nnx.Param  # [D, E]
    gate_up: nnx.Param  # [E, D, 2 F]
    down: nnx.Param  # [E, F, D]


def moe_mlp(p: Experts, x: Float[Array, "B S D"], experts_per_token: int) -> Float[Array, "B S D"]:
    """Returns the mixture of each token's top experts.

    Softmax over all experts, top-k, renormalised (Qwen3-MoE).
    """
    rows, sequence, expert = (mesh_axes(name) for name in ("batch", "sequence", "expert"))
    if not divides(x.shape[:2], (rows, sequence)):
        rows, sequence = (), ()
    weights = p.router[...], p.gate_up[...], p.down[...]
    run = functools.partial(_mixture, experts_per_token=experts_per_token)
    if not rows + sequence + expert:
        return run(x, weights, ())
    # The weights lie on the axes of `embed` too: gathered inside, so that their gradients are scattered.
    embed = tuple(axis for axis in mesh_axes("embed") if axis in rows + sequence)
    embed = embed if divides((x.shape[-1],), (embed,)) else ()
    places = (
        _place(weights[0], PartitionSpec(embed), reads_embed=True),
        _place(weights[1], PartitionSpec(expert, embed), reads_embed=True),
        _place(weights[2], PartitionSpec(expert, None, embed), reads_embed=False),
    )

    def gathered(weight: Array, place: PartitionSpec) -> Array:
        for dimension, axes in enumerate(place):
            spread = axes == embed or (axes,) == embed  # a single axis may stand there by itself
            for axis in reversed(embed if spread else ()):
                weight = jax.lax.all_gather(weight, axis, axis=dimension, tiled=True)
        return weight

    tokens = PartitionSpec(rows, sequence)
    return jax.shard_map(
        lambda x, weights: run(x, jax.tree.map(gathered, weights, places), expert),
        in_specs=(tokens, places),
        out_specs=tokens,
        axis_names=set(rows + sequence + expert),
        check_vma=False,
    )(x, weights)


def _place(weight: Array | LowRankWeight, whole: PartitionSpec, reads_embed: bool) -> Any:
    """Returns where a weight lies; of a low-rank one the factor that has its embed axis lies as it does."""
    if not isinstance(weight, LowRankWeight):
        return whole
    other = PartitionSpec(*whole[: weight.a.ndim - 2])
    a, b = (whole, other) if reads_embed else (other, whole)
    return dataclasses.replace(weight, weight=whole, a=a, b=b)


def _mixture(
    x: Array,
    weights: tuple[Array | LowRankWeight, ...],
    expert: tuple[str, ...],
    *,
    experts_per_token: int,
) -> Array:
    """Returns what this device's tokens get of the experts; `weights` are router, gate_up and down."""
    router, gate_up, down = weights
    tokens = x.reshape(-1, x.shape[-1])
    probs = jax.nn.softmax(linear(tokens, router).astype(jnp.float32), axis=-1)
    shares, chosen = jax.lax.top_k(probs, experts_per_token)
    shares = (shares / shares.sum(-1, keepdims=True)).astype(x.dtype)

    count = len(jax.tree.leaves(gate_up)[0])  # experts that are here
    if expert:
        chosen = chosen - count * jax.lax.axis_index(expert)
    here = (chosen >= 0) & (chosen < count)
    blocks = _Blocks(jnp.where(here, chosen, count), count)
    placed = blocks.place(tokens)
    gate, up = jnp.split(_product(placed, gate_up, blocks), 2, axis=-1)
    out = _product(jax.nn.silu(gate) * up, down, blocks)
    mine = out.reshape(-1, out.shape[-1])[blocks.slot] * (shares * here)[..., None]
    total = mine.sum(1).reshape(x.shape)
    return jax.lax.psum(total, expert) if expert else total


class _Blocks:
    """Where each token stands, for each of its experts: in a block of tokens of that expert.

    Attributes:
        slot: [tokens, k] of each choice, its place among all blocks' tokens.
        owner: [blocks] the expert of each block.
        used: [blocks] whether a token stands in it.
    """

    slot: Int[Array, "tokens k"]
    owner: Int[Array, " blocks"]
    used: Bool[Array, " blocks"]

    def __init__(self, chosen: Int[Array, "tokens k"], experts: int):
        """`chosen` is `experts` where the expert is not here."""
        choices = chosen.size
        self.size = min(max(_BLOCKS[0], 1 << max((choices // experts).bit_length() - 1, 0)), _BLOCKS[1])
        blocks = min(choices, choices // self.size + experts)
        flat = chosen.reshape(-1)
        tokens = jnp.bincount(flat, length=experts + 1)[:experts].astype(jnp.int32)
        last = jnp.cumsum(-(-tokens // self.size))  # behind the last block of each expert
        self.owner = jnp.minimum(jnp.searchsorted(last, jnp.arange(blocks), side="right"), experts - 1)
        self.used = jnp.arange(blocks) < last[-1]
        order = jnp.argsort(flat, stable=True)
        before = jnp.cumsum(tokens) - tokens  # choices of the experts before, in that order
        expert = flat[order]
        rank = jnp.arange(choices) - jnp.append(before, 0)[expert]
        first = jnp.append(last - -(-tokens // self.size), 0)[expert]
        where = jnp.where(expert < experts, first * self.size + rank, blocks * self.size)
        source = jnp.full(blocks * self.size, -1, jnp.int32)
        self.source = source.at[where].set(order.astype(jnp.int32) // chosen.shape[1], mode="drop")
        slot = jnp.zeros(choices, jnp.int32).at[order].set(where.astype(jnp.int32))
        self.slot = jnp.minimum(slot, blocks * self.size - 1).reshape(chosen.shape)

    def place(self, tokens: Float[Array, "tokens D"]) -> Float[Array, "blocks size D"]:
        """Returns the tokens in their blocks, zeros where none stands."""
        rows = tokens[jnp.maximum(self.source, 0)] * (self.source >= 0)[:, None].astype(tokens.dtype)
        return rows.reshape(-1, self.size, tokens.shape[1])


def _product(x: Float[Array, "blocks size D"], w: Array | LowRankWeight, blocks: _Blocks) -> Array:
    """Returns `_grouped` products, as `linear` makes those of one weight.

    Factors are small enough to stand beside each block; what blocks of an expert add to their gradients is
    summed in float32.
    """
    if not isinstance(w, LowRankWeight):
        return _grouped(x, w, blocks.owner, blocks.used)
    a, b = (factor.astype(jnp.float32)[blocks.owner].astype(x.dtype) for factor in (w.a, w.b))
    return _grouped(x, w.weight, blocks.owner, blocks.used) + w.scale * (x @ a @ b)


@jax.custom_vjp
def _grouped(
    x: Float[Array, "blocks size D"],
    w: Float[Array, "E D F"],
    owner: Int[Array, " blocks"],
    used: Bool[Array, " blocks"],
) -> Float[Array, "blocks size F"]:
    """Returns each block's product with the weight of its expert, zeros where a block is not used.

    The gradient by the weights is one sum that each block adds to in its place, where autodiff would add
    arrays as large as all experts.
    """

    def one(block: tuple) -> Array:
        x, owner, used = block
        whole = w
        if w.dtype != x.dtype:  # bound to the loop, as in `product`
            whole, owner = jax.lax.optimization_barrier((w, owner))
        return jax.lax.cond(
            used, lambda: x @ whole[owner].astype(x.dtype), lambda: jnp.zeros((len(x), w.shape[2]), x.dtype)
        )

    return jax.lax.map(one, (x, owner, used))


def _grouped_fwd(x: Array, w: Array, owner: Array, used: Array) -> tuple[Array, tuple]:
    return _grouped(x, w, owner, used), (x, w, owner, used)


def _grouped_bwd(kept: tuple, grad: Array) -> tuple[Array, Array, None, None]:
    x, w, owner, used = kept

    def one(total: Array, block: tuple) -> tuple[Array, Array]:
        x, grad, owner, used = block

        def products() -> tuple[Array, Array]:
            change = jnp.einsum("sd,sf->df", x, grad, preferred_element_type=jnp.float32)
            return jax.lax.dot_general(grad, w[owner], (((1,), (1,)), ((), ()))), change

        def nothing() -> tuple[Array, Array]:
            return jnp.zeros_like(x), jnp.zeros(w.shape[1:], jnp.float32)

        dx, change = jax.lax.cond(used, products, nothing)
        return total.at[owner].add(change), dx

    dw, dx = jax.lax.scan(one, jnp.zeros(w.shape, jnp.float32), (x, grad, owner, used))
    return dx, dw.astype(w.dtype), None, None


_grouped.defvjp(_grouped_fwd, _grouped_bwd)
