"""The parts of a softmax that the kernels share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# A finite minimum: a query with nothing to read (padding) gets an even average, not NaN.
HIDDEN = float(np.finfo(np.float32).min)


def bias(allowed: Bool[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Returns what is added to scores: 0 where a key may be read, else so much that it weighs nothing."""
    return jnp.where(allowed, 0.0, HIDDEN)


def dot(equation: str, a: Array, b: Array) -> Array:
    """Returns the float32 product of two arrays, both in the lower precision of the two."""
    dtype = min(a.dtype, b.dtype, key=lambda d: d.itemsize)
    return jnp.einsum(equation, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def weigh(scores: Float[Array, "*dims T"]) -> tuple[Array, Array, Array]:
    """Returns the highest score [*dims, 1], the weights [*dims, T] relative to it, and their sum [*dims, 1].

    The division comes after the product with v, on H values per query instead of T.
    """
    highest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    return highest, weights, weights.sum(-1, keepdims=True)
