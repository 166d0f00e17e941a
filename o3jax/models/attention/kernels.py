"""The kernels by their names, and the function that calls them.

A kernel takes q, k, v, the mask and the axes, and computes what `attention` says.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from jaxtyping import Array, Float

from o3jax.models.attention.mask import Mask

Kernel = Callable[[Array, Array, Array, Mask, tuple[str, str | None]], Array]

# By name the module that has a function of this name; those of other machines are imported when asked for.
KERNELS: dict[str, str] = {"xla": "xla", "splash": "splash", "cudnn": "gpu", "triton": "gpu"}


def attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    kernel: str = "xla",
    axes: tuple[str, str | None] = ("batch", "sequence"),
) -> Float[Array, "B S N H"]:
    """Returns softmax(q k^T / sqrt(H)) v, each key head serving N / K neighbouring query heads.

    The softmax is float32 whatever the inputs are. `axes` are the logical ones of B and of S and T, so that
    a kernel that works on each device knows what is there.

    Raises:
        ValueError: if no kernel has this name, or it cannot read the mask; there is no fallback.
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown attention kernel '{kernel}'; available: {', '.join(sorted(KERNELS))}")
    module = importlib.import_module(f"o3jax.models.attention.{KERNELS[kernel]}")
    run: Kernel = getattr(module, kernel)
    return run(q, k, v, mask, axes)
