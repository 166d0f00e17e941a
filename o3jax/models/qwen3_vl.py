"""Qwen3-VL, assembled: a batch of token ids and patches -> hidden states and logits.

A batch is a dictionary of arrays, made on the host by `o3jax.prompts.collate`:

    input_ids     int32 [B, S]        segment_ids  int32 [B, S], 0 is padding
    positions     int32 [B, 3, S]     branch_ids   int32 [B, S], optional (see attention.Mask)
    visual_index  int32 [B, S]: the visual token at each position, -1 for text
    and, where there are images or videos: patches [B, T, P, C], patch_length [B, T],
    patch_coords [B, T, P, 2], pos_index and pos_weight [B, T, P, 4]

Grids are data: one compiled program serves every set of grids that is padded to the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from o3jax.models.attention import Mask, attention
from o3jax.models.config import Config
from o3jax.models.layers import Initializer
from o3jax.models.text import TextDecoder, visual_rows
from o3jax.models.vision import VisionTower
from o3jax.sharding import shard

Batch = Mapping[str, Array | np.ndarray]

VISION_KEYS = ("patches", "patch_length", "patch_coords", "pos_index", "pos_weight")


class Qwen3VL(nnx.Module):
    """The backbone; a thin container whose methods are pure functions of its parameters."""

    def __init__(self, config: Config, init: Initializer):
        self.config = config
        self.vision = VisionTower(config.vision, init)
        self.text = TextDecoder(config.text, config.tie_word_embeddings, init)

    def embed(
        self, batch: Batch, *, kernel: str = "xla", remat: str = "none"
    ) -> tuple[Float[Array, "B S D"], Float[Array, "taps B tokens D"]]:
        """Returns the input embeddings with visual tokens in place, and the DeepStack features."""
        x = self.text.embed[...][batch["input_ids"]]
        if "patches" not in batch:
            taps = jnp.zeros((0, x.shape[0], 1, x.shape[-1]), x.dtype)
            return shard(x, "batch", "sequence", None), taps
        tokens, taps = self.vision(*[batch[key] for key in VISION_KEYS], kernel=kernel, remat=remat)
        index = batch["visual_index"]
        x = jnp.where(index[..., None] >= 0, visual_rows(tokens, index).astype(x.dtype), x)
        return shard(x, "batch", "sequence", None), taps.astype(x.dtype)

    def hidden(self, batch: Batch, *, kernel: str = "xla", remat: str = "none") -> Float[Array, "B S D"]:
        """Returns the final-norm hidden states."""
        x, taps = self.embed(batch, kernel=kernel, remat=remat)
        mask = causal_mask(batch)

        def attend(q, k, v, state):
            return attention(q, k, v, mask, kernel), state

        index = batch["visual_index"]
        return self.text(x, batch["positions"], attend, taps, index, remat=remat)

    def logits(self, hidden: Float[Array, "*dims D"]) -> Float[Array, "*dims V"]:
        """Returns vocabulary logits of hidden states."""
        return self.text.logits(hidden)

    def __call__(self, batch: Batch, *, kernel: str = "xla", remat: str = "none") -> Float[Array, "B S V"]:
        """Returns logits [B, S, V]."""
        return self.logits(self.hidden(batch, kernel=kernel, remat=remat))


def causal_mask(batch: Batch) -> Mask:
    """Returns the mask of a batch: causal, within segments, branches apart from each other."""
    segments, branches = batch["segment_ids"], batch.get("branch_ids")
    return Mask(segments, segments, branches, branches, causal=True)


def abstract_model(config: Config, dtype: jnp.dtype = jnp.float32) -> Qwen3VL:
    """Returns the model with shapes in place of arrays; nothing is allocated."""
    return jax.eval_shape(lambda: Qwen3VL(config, Initializer(jax.random.key(0), dtype)))
