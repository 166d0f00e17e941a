"""Windowed attention along time at each spatial cell, over a mesh by one of several strategies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Shaped

from o3jax.models.config import EvidenceConfig

_AXIS = "context"  # of the mesh
_BLOCK = 128  # queries at a time, where every query reads every key
_HIDDEN = -1e30  # the score of a key that may not be read: finite, so that a query without keys is too


def halo_pairs(c: EvidenceConfig, pairs: int) -> int:
    """Returns how many frame pairs the window reaches to each side at `max_rate`, at most all others.

    Raises:
        ValueError: if the window is not positive; infinity is a window too.
    """
    if not c.window_s > 0:
        raise ValueError(f"evidence.window_s is {c.window_s}; a window is a positive number of seconds")
    # Rounded first: 0.28 s at 12.5 per second are 3.5000000000000004 pairs to the machine.
    return math.ceil(round(min(c.window_s * c.max_rate, pairs - 1), 6))


class Keys(NamedTuple):
    """What queries read."""

    k: Float[Array, "B T P N H"]
    v: Float[Array, "B T P N H"]
    times: Float[Array, "B T"]
    valid: Bool[Array, "B T"]

    def padded(self, left: int, right: int) -> Keys:
        """Returns the keys with invalid ones on both sides."""
        return Keys(*[pad_pairs(x, left, right) for x in self])


def pad_pairs(x: Shaped[Array, "B T *dims"], left: int, right: int) -> Shaped[Array, "B padded *dims"]:
    """Returns x with zeros in front of its frame pairs and behind them."""
    return jnp.pad(x, [(0, 0), (left, right)] + [(0, 0)] * (x.ndim - 2))


def slice_pairs(
    x: Shaped[Array, "B T *dims"], start: Array | int, size: int
) -> Shaped[Array, "B size *dims"]:
    """Returns so many frame pairs of x."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _bias(times: Float[Array, "B Q"], keys: Keys, window_s: float) -> Float[Array, "B Q T"]:
    """Returns what is added to the scores: the log of a Hann window over the distance in seconds.

    A hard edge would let a pair in or out by its rounding and a sum over few pairs jump with the rate;
    the Hann window sums to nearly the same at every rate. Infinite windows weigh all alike.
    """
    distance = jnp.abs(times[:, :, None] - keys.times[:, None, :])
    readable = keys.valid[:, None, :] & (distance < window_s)
    taper = jnp.cos(jnp.where(readable, distance, 0) * (math.pi / 2 / window_s))
    return jnp.where(readable, 2 * jnp.log(jnp.maximum(taper, 1e-12)), _HIDDEN)


def _dense(
    q: Float[Array, "B Q P N H"], times: Float[Array, "B Q"], keys: Keys, window_s: float
) -> tuple[Float[Array, "B Q P N H"], Float[Array, "B Q P N"]]:
    """Returns attention of queries at `times` to all keys, and the log of the softmax's sum; float32."""
    bias = jax.lax.stop_gradient(_bias(times, keys, window_s))
    scores = jnp.einsum(
        "bqpnh,bkpnh->bpnqk", q * q.shape[-1] ** -0.5, keys.k, preferred_element_type=jnp.float32
    )
    scores = scores + bias[:, None, None]
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum(
        "bpnqk,bkpnh->bqpnh",
        (weights / total).astype(keys.v.dtype),
        keys.v,
        preferred_element_type=jnp.float32,
    )
    return out, rearrange((top + jnp.log(total))[..., 0], "b p n q -> b q p n")


def _blocked(q: Array, times: Array, keys: Keys, window_s: float) -> tuple[Array, Array]:
    """Returns `_dense`, computed a block of queries at a time and again in the backward pass."""
    pairs = q.shape[1]
    if pairs <= _BLOCK:
        return _dense(q, times, keys, window_s)
    blocks = -(-pairs // _BLOCK)

    def split(x: Array) -> Array:
        x = pad_pairs(x, 0, blocks * _BLOCK - pairs)
        return rearrange(x, "b (n s) ... -> n b s ...", n=blocks)

    block = jax.checkpoint(lambda xs: _dense(*xs, keys, window_s))
    out = jax.lax.map(block, (split(q), split(times)))
    return jax.tree.map(lambda x: rearrange(x, "n b s ... -> b (n s) ...")[:, :pairs], out)


def _windowed(q: Array, times: Array, keys: Keys, halo: int, window_s: float) -> Float[Array, "B T P N H"]:
    """Returns attention of queries to keys that go `halo` pairs further on both sides.

    Query i stands at key i + halo. Blocks of queries read their own keys and the halo around; a few
    queries read everything, which is then less work.
    """
    batch, pairs = q.shape[:2]
    if pairs <= 3 * halo:
        return _blocked(q, times, keys, window_s)[0]
    block = max(halo, 16)
    blocks = -(-pairs // block)
    keys = keys.padded(0, (blocks + 2) * block - keys.valid.shape[1])

    def fold(x: Array) -> Array:
        return x.reshape(batch * blocks, block, *x.shape[2:])

    def around(x: Array) -> Array:
        parts = [fold(slice_pairs(x, shift * block, blocks * block)) for shift in range(3)]
        return jnp.concatenate(parts, axis=1)[:, : block + 2 * halo]

    q, times = (fold(pad_pairs(x, 0, blocks * block - pairs)) for x in (q, times))
    out = _dense(q, times, Keys(*[around(x) for x in keys]), window_s)[0]
    return out.reshape(batch, blocks * block, *out.shape[2:])[:, :pairs]


def _whole(q: Array, keys: Keys, halo: int, window_s: float) -> Float[Array, "B T P N H"]:
    """Returns attention among pairs that are all here."""
    if keys.valid.shape[1] <= 3 * halo:
        return _blocked(q, keys.times, keys, window_s)[0]
    return _windowed(q, keys.times, keys.padded(halo, halo), halo, window_s)


def _neighbourhood(keys: Keys, reach: int, size: int) -> tuple[Array, Array]:
    """Returns times and validity of this device's pairs and `reach` ones on both sides."""
    start = jax.lax.axis_index(_AXIS) * size
    return tuple(
        slice_pairs(pad_pairs(x, reach, reach), start, size + 2 * reach) for x in (keys.times, keys.valid)
    )


def _halo(q: Array, keys: Keys, halo: int, window_s: float, ways: int) -> Array:
    """Returns attention after the neighbours sent the edge of their keys, over several hops if need be.

    Wire: the keys and values of 2 x halo pairs, whatever the length of the video.
    """
    size = q.shape[1]
    kv = jnp.stack([keys.k, keys.v])  # one message per hop and side
    left, right = [], []
    for hop in range(1, -(-halo // size) + 1):
        count = min(size, halo - (hop - 1) * size)
        forward = [(device, device + hop) for device in range(ways - hop)]
        backward = [(target, source) for source, target in forward]
        left.insert(0, jax.lax.ppermute(kv[:, :, size - count :], _AXIS, forward))
        right.append(jax.lax.ppermute(kv[:, :, :count], _AXIS, backward))
    k, v = jnp.concatenate([*left, kv, *right], axis=2)
    times, valid = _neighbourhood(keys, halo, size)
    return _windowed(q, slice_pairs(times, halo, size), Keys(k, v, times, valid), halo, window_s)


def _allgather(q: Array, keys: Keys, halo: int, window_s: float, ways: int) -> Array:
    """Returns attention after every device got all keys.

    Wire: the keys and values of all pairs of the other devices.
    """
    size = q.shape[1]
    k, v = jax.lax.all_gather(jnp.stack([keys.k, keys.v]), _AXIS, axis=2, tiled=True)
    start = jax.lax.axis_index(_AXIS) * size
    k, v = (slice_pairs(pad_pairs(x, halo, halo), start, size + 2 * halo) for x in (k, v))
    times, valid = _neighbourhood(keys, halo, size)
    return _windowed(q, slice_pairs(times, halo, size), Keys(k, v, times, valid), halo, window_s)


def _alltoall(q: Array, keys: Keys, halo: int, window_s: float, ways: int) -> Array:
    """Returns attention after every device got all pairs of some cells, and then gave its result back.

    Wire: of q, k, v and the output, what belongs to the other devices' cells. Cells that do not divide
    are padded.
    """
    cells = q.shape[2]
    qkv = jnp.stack([q, keys.k, keys.v])
    qkv = jnp.pad(qkv, [(0, 0)] * 3 + [(0, -cells % ways)] + [(0, 0)] * 2)
    q, k, v = jax.lax.all_to_all(qkv, _AXIS, split_axis=3, concat_axis=2, tiled=True)
    out = _whole(q, keys._replace(k=k, v=v), halo, window_s).astype(q.dtype)
    return jax.lax.all_to_all(out, _AXIS, split_axis=1, concat_axis=2, tiled=True)[:, :, :cells]


def _ring(q: Array, keys: Keys, halo: int, window_s: float, ways: int) -> Array:
    """Returns attention after all keys passed by once, a device's share at a time; for global windows.

    The parts are merged by the logs of their sums. Each device holds one share at a time; the backward
    pass holds all of them, a layer at a time.
    Wire: the keys and values of all pairs of the other devices.
    """
    size, device = q.shape[1], jax.lax.axis_index(_AXIS)
    here = slice_pairs(keys.times, device * size, size)
    onwards = [(source, (source + 1) % ways) for source in range(ways)]

    @jax.checkpoint
    def read(kv: Array, hop: Array | int) -> tuple[Array, Array]:
        start = (device - hop) % ways * size
        times, valid = (slice_pairs(x, start, size) for x in (keys.times, keys.valid))
        return _blocked(q, here, Keys(*kv, times, valid), window_s)

    def step(carry: tuple[Array, Array, Array], hop: Array) -> tuple[tuple[Array, Array, Array], None]:
        kv, out, log_sum = carry
        kv = jax.lax.ppermute(kv, _AXIS, onwards)
        new, new_sum = read(kv, hop)
        both = jnp.logaddexp(log_sum, new_sum)
        out = out * jnp.exp(log_sum - both)[..., None] + new * jnp.exp(new_sum - both)[..., None]
        return (kv, out, both), None

    kv = jnp.stack([keys.k, keys.v])
    (_, out, _), _ = jax.lax.scan(step, (kv, *read(kv, 0)), jnp.arange(1, ways))
    return out


Strategy = Callable[[Array, Keys, int, float, int], Array]


STRATEGIES: dict[str, Strategy] = {
    "halo": _halo,
    "allgather": _allgather,
    "alltoall": _alltoall,
    "ring": _ring,
}


def shards() -> int:
    """Returns over how many devices the pairs are spread; 1 outside of a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(_AXIS, 1)


def temporal_attention(
    q: Float[Array, "B T P N H"],
    k: Float[Array, "B T P N H"],
    v: Float[Array, "B T P N H"],
    times: Float[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    window_s: float,
    halo: int,
    strategy: str,
) -> Float[Array, "B T P N H"]:
    """Returns softmax attention along T at each cell, the keys weighted by a Hann window in seconds.

    Pair i reads the valid pairs less than `window_s` from it, which must lie at most `halo` pairs
    from it. Inside `use_mesh` the pairs are spread over the axis `context`; a number
    that does not divide is padded. Softmax in float32. Zero where not valid.

    Args:
        q, k, v: times are already rotated in.
        times: seconds, not decreasing where valid.
        halo: see `halo_pairs`.
        strategy: one of `STRATEGIES`.

    Raises:
        ValueError: if no strategy has this name.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy '{strategy}'; available: {', '.join(STRATEGIES)}")
    pairs, ways = q.shape[1], shards()
    keys = Keys(k, v, times, valid)
    if ways == 1:
        out = _whole(q, keys, halo, window_s)
    else:
        fill = -pairs % ways
        q, keys = pad_pairs(q, 0, fill), keys.padded(0, fill)
        halo = min(halo, q.shape[1] - q.shape[1] // ways)  # no further than the farthest device's pairs
        split, everywhere = PartitionSpec(None, _AXIS), PartitionSpec()
        out = jax.shard_map(
            lambda q, keys: STRATEGIES[strategy](q, keys, halo, window_s, ways),
            in_specs=(split, Keys(split, split, everywhere, everywhere)),
            out_specs=split,
            axis_names={_AXIS},
        )(q, keys)[:, :pairs]
    return jnp.where(valid[:, :, None, None, None], out, 0).astype(v.dtype)
