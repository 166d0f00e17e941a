"""What the vision tower and the text decoder share: parameters, norms, the loop over layers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from o3jax.choices import REMAT

_FEW_ROWS = 12  # measured: docs/performance.md
_BLOCKS = 8  # that wide weights are converted in


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


class Abstract(Initializer):
    """Makes shapes in place of parameters: in no time, and without memory."""

    def __init__(self):
        self.dtype = jnp.float32

    def weight(self, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
        return nnx.Param(jax.ShapeDtypeStruct(shape, self.dtype), axes=axes)

    scale = bias = weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankWeight:
    """A weight W [D, *out] that low-rank factors change: `linear` computes x W + scale (x A) B."""

    weight: Float[Array, " D *out"]
    a: Float[Array, "D r"]
    b: Float[Array, "r out"]
    scale: float = dataclasses.field(metadata={"static": True})

    def reshape(self, *shape: int) -> LowRankWeight:
        """Returns the same, its weight of another shape [D, *out]."""
        return dataclasses.replace(self, weight=self.weight.reshape(*shape))


def linear(
    x: Float[Array, "*dims D"], w: Float[Array, " D *out"] | LowRankWeight
) -> Float[Array, "*dims *out"]:
    """Returns x @ w over x's last and w's first axis; further axes of w (heads, their dims) are kept."""
    if not isinstance(w, LowRankWeight):
        return _linear(x, w)
    y = _linear(x, w.weight)
    return y + w.scale * _linear(_linear(x, w.a), w.b).reshape(y.shape)


@jax.custom_vjp
def _linear(x: Array, w: Array) -> Array:
    """Returns x @ w, as `linear`.

    The gradients are those of any matmul, but written so that neither is a transposed product: XLA:CPU
    otherwise copies one operand into the other order first, inside the activation's derivative.
    """
    return product(x, w.reshape(w.shape[0], -1)).reshape(*x.shape[:-1], *w.shape[1:])


def product(x: Float[Array, "*dims D"], w: Array, axis: int = 0) -> Float[Array, "*dims F"]:
    """Returns the product of x's last axis with one axis of a matrix, of x's dtype.

    Weights of a narrower dtype than x are stored so to save memory (on a CPU, see `o3jax.load`), and
    multiplied as if they were of x's. XLA:CPU converts bfloat16 slowly, but multiplies it with itself fast.
    So few rows become three bfloat16 parts each, that sum to them; many are worth converting the weights for.
    """
    dims = (((x.ndim - 1,), (axis,)), ((), ()))
    if x.dtype == w.dtype:
        return jax.lax.dot_general(x, w, dims)
    if math.prod(x.shape[:-1]) > _FEW_ROWS or (x.dtype, w.dtype) != (jnp.float32, jnp.bfloat16):
        # In blocks, bound to the loop: else XLA converts every matrix at the start, and all stand there.
        size = w.shape[1 - axis] // math.gcd(w.shape[1 - axis], _BLOCKS)

        def block(i: Array, out: Array) -> Array:
            whole, i = jax.lax.optimization_barrier((w, i))
            part = jax.lax.dynamic_slice_in_dim(whole, i * size, size, 1 - axis).astype(x.dtype)
            return jax.lax.dynamic_update_slice_in_dim(
                out, jax.lax.dot_general(x, part, dims), i * size, x.ndim - 1
            )

        # Of x, and overwritten: zeros, too, would all stand there from the beginning.
        out = jnp.broadcast_to(x[..., :1], (*x.shape[:-1], w.shape[1 - axis]))
        return jax.lax.fori_loop(0, w.shape[1 - axis] // size, block, out)
    parts, rest = [], x
    for _ in range(3):
        parts.append(rest.astype(w.dtype))
        rest = rest - parts[-1].astype(x.dtype)
    dims = (((x.ndim,), (axis,)), ((), ()))
    return jax.lax.dot_general(jnp.stack(parts[::-1]), w, dims, preferred_element_type=x.dtype).sum(0)


def _linear_fwd(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return _linear(x, w), (x, w)


def _linear_bwd(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, w = residuals
    grad = grad.reshape(*x.shape[:-1], -1)
    leading = tuple(range(x.ndim - 1))
    dx = jax.lax.dot_general(grad, w.reshape(w.shape[0], -1), (((x.ndim - 1,), (1,)), ((), ())))
    dw = jax.lax.dot_general(x, grad, ((leading, leading), ((), ())))
    return dx, dw.reshape(w.shape)


_linear.defvjp(_linear_fwd, _linear_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: Float[Array, "*dims D"], scale: Array, eps: float) -> Float[Array, "*dims D"]:
    """Returns x / rms(x), normalised in float32 and cast back before the scale, as Qwen3 does.

    The backward pass keeps x alone, where autodiff would store every step in between for each layer.
    """
    return _normalised(x, eps)[0].astype(x.dtype) * scale


def _normalised(x: Array, eps: float) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + eps)
    return wide * inverse, inverse


def _rms_norm_fwd(x: Array, scale: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
    return rms_norm(x, scale, eps), (x, scale)


def _rms_norm_bwd(eps: float, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, scale = residuals
    unit, inverse = _normalised(x, eps)
    scaled = (grad * scale).astype(jnp.float32)
    dx = inverse * (scaled - unit * jnp.mean(scaled * unit, -1, keepdims=True))
    dscale = jnp.sum(grad * unit.astype(x.dtype), tuple(range(x.ndim - 1)))
    return dx.astype(x.dtype), dscale.astype(scale.dtype)


rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


@jax.custom_vjp
def layer_norm(x: Float[Array, "*dims D"], scale: Array, bias: Array) -> Float[Array, "*dims D"]:
    """Returns LayerNorm(x) with eps 1e-6, statistics in float32; its backward pass, too, keeps x alone."""
    return _standardised(x)[0].astype(x.dtype) * scale + bias


def _standardised(x: Array) -> tuple[Array, Array]:
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, -1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-6)
    return centred * inverse, inverse


def _layer_norm_fwd(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return layer_norm(x, scale, bias), (x, scale)


def _layer_norm_bwd(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array, Array]:
    x, scale = residuals
    unit, inverse = _standardised(x)
    scaled = (grad * scale).astype(jnp.float32)
    scaled -= jnp.mean(scaled, -1, keepdims=True)
    dx = inverse * (scaled - unit * jnp.mean(scaled * unit, -1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    dscale = jnp.sum(grad * unit.astype(x.dtype), rows)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), jnp.sum(grad, rows).astype(scale.dtype)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def checkpointed(fn: Callable, remat: str) -> Callable:
    """Returns `fn` under a rematerialisation policy.

    "none" keeps every residual, "full" only the inputs, "names" the inputs, the rotated q, k, v and
    the attention output (so that the backward pass does not repeat attention). "offload" keeps the same, but
    in the memory of the host.

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
    if remat == "offload":
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=["input", "q", "k", "v", "attention"],
            offload_src="device",
            offload_dst="pinned_host",
        )
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
    return map_layers(lambda *state: (body(*state), None), carry, layers)[0]


def map_layers(body: Callable, carry: Any, layers: nnx.Module | nnx.List) -> tuple[Any, Any]:
    """Returns the carry after `carry, kept = body(carry, layer, index)` over all layers, and what was kept.

    That is a tree of stacked arrays, of unstacked layers a tree of tuples.
    """
    if isinstance(layers, nnx.List):
        every = []
        for index, layer in enumerate(layers):
            carry, kept = body(carry, layer, index)
            every.append(kept)
        return carry, jax.tree.map(lambda *arrays: arrays, *every)
    return jax.lax.scan(lambda carry, xs: body(carry, *xs), carry, (layers, jnp.arange(num_layers(layers))))


def stack(layers: Sequence[nnx.Module]) -> nnx.Module:
    """Returns single layers as one module, stacked on a leading axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers)


def unstack(layers: nnx.Module) -> list[nnx.Module]:
    """Returns one module per layer from layers stacked on a leading axis."""
    return [jax.tree.map(lambda a, i=i: a[i], layers) for i in range(num_layers(layers))]
