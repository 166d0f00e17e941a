"""Rotary embeddings: two axes in the vision tower, three interleaved ones in the text decoder, seconds in
the temporal encoder."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

VISION_THETA = 10_000.0
# Seconds per turn of the fastest and the slowest pair of the temporal encoder. Frame pairs of a 10 fps video
# lie 0.2 s apart, more than two in the fastest turn, so every rate from there on sees the same curve and not
# an alias of it; the slowest turn hardly moves within a window of seconds and orders a long one.
TIME_PERIODS = (0.5, 64.0)


def vision_angles(coords: Int[Array, "*dims 2"], head_dim: int) -> Float[Array, "*dims half"]:
    """Returns float32 angles [..., H/2]: the first half from the patch row, the second from its column."""
    inv_freq = VISION_THETA ** (-np.arange(0, head_dim // 2, 2, dtype=np.float32) / (head_dim // 2))
    angles = coords[..., None].astype(jnp.float32) * inv_freq
    return angles.reshape(*coords.shape[:-1], head_dim // 2)


def mrope_axes(head_dim: int, mrope_section: tuple[int, int, int]) -> np.ndarray:
    """Returns which position axis (0 time, 1 height, 2 width) drives each frequency, int [H/2].

    Qwen3-VL interleaves the axes T, H, W, T, H, W, ... and leaves the lowest frequencies to time
    (transformers, modeling_qwen3_vl.py).
    """
    axes = np.zeros(head_dim // 2, np.int32)
    for axis in (1, 2):
        axes[axis : 3 * mrope_section[axis] : 3] = axis
    return axes


def text_angles(
    positions: Int[Array, "B 3 S"], head_dim: int, theta: float, mrope_section: tuple[int, int, int]
) -> Float[Array, "B S half"]:
    """Returns float32 angles [B, S, H/2] from integer (time, height, width) positions."""
    inv_freq = theta ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    by_frequency = positions[:, mrope_axes(head_dim, mrope_section)]  # [B, H/2, S]
    return jnp.swapaxes(by_frequency, 1, 2).astype(jnp.float32) * inv_freq


def rotate(x: Float[Array, "B S N H"], cos: Array, sin: Array) -> Float[Array, "B S N H"]:
    """Returns x with each pair (j, j + H/2) of every head turned; cos and sin are [B, S, H/2]."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def time_angles(times: Float[Array, "*dims"], head_dim: int) -> Float[Array, "*dims half"]:
    """Returns float32 angles [..., H/2] from seconds, periods geometric between those of `TIME_PERIODS`."""
    turns_per_s = 1 / np.geomspace(*TIME_PERIODS, head_dim // 2)
    return times[..., None].astype(jnp.float32) * (2 * np.pi * turns_per_s).astype(np.float32)
