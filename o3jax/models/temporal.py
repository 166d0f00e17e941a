"""The temporal encoder: dense frame pairs of a video read each other along time, at each spatial cell.

Frame pairs (T) may live on the mesh axis `context`; how attention then reaches across devices is a strategy,
chosen by name. All strategies give the same numbers and differ in what they send and hold.

Everything is in seconds: the window, the rotary angles and the taper of the window. No result depends on the
index of a frame pair, so one event filmed at two rates is one signal, sampled more or less often.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from o3jax.models.config import EvidenceConfig
from o3jax.models.layers import Initializer, checkpointed, linear, rms_norm, run_layers
from o3jax.models.rope import rotate, time_angles
from o3jax.models.runtime import Runtime
from o3jax.models.temporal_attention import halo_pairs, pad_pairs, shards, slice_pairs, temporal_attention
from o3jax.sharding import shard

EPS = 1e-6


class TemporalLayers(nnx.Module):
    """All blocks, stacked on a leading axis."""

    def __init__(self, c: EvidenceConfig, init: Initializer):
        L, D, F, N = c.temporal_layers, c.hidden_size, c.mlp_size, c.num_heads
        H = D // N
        self.attention_norm = init.scale((L, D), (None, None))
        self.qkv = init.weight((L, D, 3, N, H), (None, "embed", None, "heads", None))
        self.out = init.weight((L, N, H, D), (None, "heads", None, "embed"))
        self.mlp_norm = init.scale((L, D), (None, None))
        self.up = init.weight((L, D, F), (None, "embed", "mlp"))
        self.down = init.weight((L, F, D), (None, "mlp", "embed"))


class TemporalEncoder(nnx.Module):
    """Tower tokens of frame pairs -> the spatio-temporal feature matrix F."""

    def __init__(self, c: EvidenceConfig, tower_width: int, init: Initializer):
        self.config = c
        self.input_norm = init.scale((tower_width,), (None,))
        self.input = init.weight((tower_width, c.hidden_size), (None, "embed"))
        self.layers = TemporalLayers(c, init) if c.temporal_layers else None
        self.norm = init.scale((c.hidden_size,), (None,))

    def __call__(
        self,
        tokens: Float[Array, "B T P Din"],
        times: Float[Array, "B T"],
        valid: Bool[Array, "B T"] | Int[Array, "B T"],
        runtime: Runtime = Runtime(),
        *,
        chunk: int | None = None,
    ) -> Float[Array, "B T P D"]:
        """Returns F: each frame pair's cells, having read the same cell within L windows of their time.

        Cells are never mixed. Shifting all times by a constant changes nothing. Outputs of invalid
        pairs are finite and mean nothing.

        Args:
            tokens: the vision tower's tokens of the frame pairs, any values where not valid.
            times: mean time of each pair, seconds, not decreasing where valid, at most `max_rate` of them per
                second, as `o3jax.inputs.dense` makes them: a window is a fixed number of pairs each side,
                which would cut off denser ones.
            valid: which pairs are real.
            chunk: pairs at a time and device, through all layers, for long videos; the numbers stay the
                same. Beside its inputs and F the encoder then holds activations of chunk + 2 L halo pairs
                (also in the backward pass, which recomputes), and does (chunk + 2 L halo) / chunk of the
                work. More than one chunk over several devices also sends the chunks' inputs and F around.

        Raises:
            ValueError: if a chunk is asked for with an infinite window, or is not positive.
        """
        valid = valid.astype(bool)
        # Counted from the first pair: small numbers, exact angles.
        first = jnp.min(jnp.where(valid, times, jnp.inf), axis=1, keepdims=True)
        times = jnp.where(valid, times - first, 0)
        tokens = jnp.where(valid[:, :, None, None], tokens, 0)
        pairs = valid.shape[1]
        chunk = chunk and chunk * shards()
        if chunk is None or chunk >= pairs:
            return self._encode(tokens, times, valid, runtime)
        if chunk < 1 or math.isinf(self.config.window_s):
            raise ValueError(f"chunks of {chunk} pairs with a window of {self.config.window_s} s")
        halo = self.config.temporal_layers * halo_pairs(self.config, pairs)
        count = -(-pairs // chunk)
        inputs = [pad_pairs(x, halo, halo + count * chunk - pairs) for x in (tokens, times, valid)]

        def one(start: Array) -> Array:
            parts = [slice_pairs(x, start, chunk + 2 * halo) for x in inputs]
            return self._encode(*parts, runtime)[:, halo : halo + chunk]

        chunks = jax.lax.map(jax.checkpoint(one), jnp.arange(count) * chunk)
        return rearrange(chunks, "n b t p d -> b (n t) p d")[:, :pairs]

    def _encode(self, tokens: Array, times: Array, valid: Array, runtime: Runtime) -> Float[Array, "B T P D"]:
        c = self.config
        pairs, dtype = valid.shape[1], self.input.dtype
        tokens, times, valid = (pad_pairs(x, 0, -pairs % shards()) for x in (tokens, times, valid))
        halo = halo_pairs(c, pairs)
        angles = time_angles(times, c.hidden_size // c.num_heads)
        cos, sin = jnp.cos(angles), jnp.sin(angles)

        def turned(x: Array, name: str) -> Array:
            """Returns x [B, T, P, N, H] with the time rotated in, in float32 and cast back."""
            flat = rearrange(x.astype(jnp.float32), "b t p n h -> b t (p n) h")
            return checkpoint_name(rotate(flat, cos, sin).astype(dtype).reshape(x.shape), name)

        def block(x: Array, p: TemporalLayers) -> Array:
            h = rms_norm(x, p.attention_norm[...], EPS)
            q, k, v = jnp.moveaxis(linear(h, p.qkv[...]), 3, 0)
            q, k, v = turned(q, "q"), turned(k, "k"), checkpoint_name(v, "v")
            window = {"window_s": c.window_s, "halo": halo, "strategy": c.strategy}
            h = checkpoint_name(temporal_attention(q, k, v, times, valid, **window), "attention")
            x = x + linear(rearrange(h, "b t p n h -> b t p (n h)"), p.out[...].reshape(-1, c.hidden_size))
            h = linear(rms_norm(x, p.mlp_norm[...], EPS), p.up[...])
            x = x + linear(jax.nn.gelu(h, approximate=True), p.down[...])
            return shard(x, "batch", "frame_pairs", None, None)

        block = checkpointed(block, runtime.remat)
        x = linear(rms_norm(tokens.astype(dtype), self.input_norm[...], EPS), self.input[...])
        x = shard(x, "batch", "frame_pairs", None, None)
        if self.layers is not None:
            x = run_layers(lambda x, p, _: block(x, p), x, self.layers)
        return rms_norm(x, self.norm[...], EPS)[:, :pairs]
