"""What the vision tower and the text decoder share: parameters, norms, the loop over layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

REMAT = ("none", "full", "names")


class Initializer:
    """Makes parameters: normal(0, std) for weights, ones for scales, zeros for biases."""

    def __init__(self, key: jax.Array, dtype: jnp.dtype = jnp.float32, std: float = 0.02):
        self.rngs = nnx.Rngs(key)
        self.dtype = dtype
        self.std = std

    def weight(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
        value = self.std * jax.random.normal(self.rngs(), shape, jnp.float32)
        return nnx.Param(value.astype(self.dtype), axes=axes)

    def scale(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
        return nnx.Param(jnp.ones(shape, self.dtype), axes=axes)

    def bias(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
        return nnx.Param(jnp.zeros(shape, self.dtype), axes=axes)


def rms_norm(x: Float[Array, "*dims D"], scale: Array, eps: float) -> Float[Array, "*dims D"]:
    """Returns x / rms(x), normalised in float32 and cast back before the scale, as Qwen3 does."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale


def layer_norm(x: Float[Array, "*dims D"], scale: Array, bias: Array) -> Float[Array, "*dims D"]:
    """Returns LayerNorm(x) with eps 1e-6, statistics in float32."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, -1, keepdims=True)
    var = jnp.mean(jnp.square(wide - mean), -1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(var + 1e-6)).astype(x.dtype) * scale + bias


def checkpointed(fn: Callable, remat: str) -> Callable:
    """Returns `fn` under a rematerialisation policy.

    "none" keeps every residual, "full" only the inputs, "names" the inputs, the rotated q, k, v and
    the attention output (so that the backward pass does not repeat attention).

    Raises:
        ValueError: if the policy is none of `REMAT`.
    """
    if remat == "none":
        return fn
    if remat == "full":
        return jax.checkpoint(fn)
    if remat == "names":
        policy = jax.checkpoint_policies.save_only_these_names("q", "k", "v", "attention")
        return jax.checkpoint(fn, policy=policy)
    raise ValueError(f"unknown remat policy '{remat}'; available: {', '.join(REMAT)}")


def num_layers(layers: nnx.Module | nnx.List) -> int:
    """Returns how many layers a stack holds, stacked on a leading axis or unstacked into a list."""
    return len(layers) if isinstance(layers, nnx.List) else jax.tree.leaves(layers)[0].shape[0]


def run_layers(body: Callable, carry: Any, layers: nnx.Module | nnx.List) -> Any:
    """Returns the carry after `carry = body(carry, layer, index)` over all layers.

    Stacked layers are scanned, so the program does not grow with depth; unstacked layers are
    unrolled, which decoding needs (a scan would copy the cache at every step).
    """
    if isinstance(layers, nnx.List):
        for index, layer in enumerate(layers):
            carry = body(carry, layer, index)
        return carry

    def step(carry, xs):
        return body(carry, *xs), None

    return jax.lax.scan(step, carry, (layers, jnp.arange(num_layers(layers))))[0]


def stack(layers: nnx.Module | nnx.List) -> nnx.Module:
    """Returns the layers stacked on a leading axis, as training and export want them."""
    if not isinstance(layers, nnx.List):
        return layers
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers)


def unstack(layers: nnx.Module | nnx.List) -> nnx.List:
    """Returns one module per layer from layers stacked on a leading axis."""
    if isinstance(layers, nnx.List):
        return layers
    return nnx.List([jax.tree.map(lambda a, i=i: a[i], layers) for i in range(num_layers(layers))])
