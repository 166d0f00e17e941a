"""By how much a model that injects F differs from the plain Qwen3-VL of the same standard files.

Transformers knows nothing of the evidence modules. Where they change the visual tokens, it computes
something else from the folder; the difference is measured on one small fixed video and stored.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from o3jax.inputs.collate import collate
from o3jax.inputs.dense import dense_stream, visual_places
from o3jax.inputs.image import VideoConfig, normalize, patchify
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Batch, Qwen3VL

_FRAMES = 8  # four dense frame pairs, of which the language model sees the first and the third
_SEEN = [0, 1, 4, 5]


def injection_difference(model: Qwen3VL) -> float:
    """Returns the largest absolute difference of a logit with and without the injection of F.

    The input is `fixed_inputs`; exactly 0 for a gate of zeros. The computation is in the parameters'
    dtype.
    """
    c = model.config
    batch = collate(fixed_inputs(c), c) | fixed_dense(c)

    def without(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        is_gate = [key.name for key in path[:-1]] == ["evidence", "injection", "gate"]
        return jnp.zeros_like(leaf) if is_gate else leaf

    on = _logits(model, batch)
    off = _logits(jax.tree_util.tree_map_with_path(without, model), batch)
    return float(jnp.abs(on - off).max())


@jax.jit
def _logits(model: Qwen3VL, batch: Batch) -> jax.Array:
    return model(batch).astype(jnp.float32)


def fixed_inputs(config: Config) -> dict[str, np.ndarray]:
    """Returns a prompt with a short video, as a Qwen3-VL processor returns it.

    Two frame pairs of 4 x 4 tokens, in which a square moves over a gradient, between a few tokens of text.
    """
    c = config.vision
    special = {
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    }
    text = [token for token in range(min(16, config.text.vocab_size)) if token not in special]
    frame = [config.vision_start_token_id, *[config.video_token_id] * 16, config.vision_end_token_id]
    ids = np.array([[*text[:4], *frame, *text[4:8], *frame, *text[8:]]])
    side = 4 * c.spatial_merge_size
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == config.video_token_id),
        "pixel_values_videos": normalize(patchify(_frames(config, 4)[_SEEN], _video(config)), _video(config)),
        "video_grid_thw": np.array([[len(_SEEN) // c.temporal_patch_size, side, side]]),
    }


def fixed_dense(config: Config) -> dict[str, np.ndarray]:
    """Returns the dense stream of the same video, 2 x 2 tokens per frame pair, and where the tokens are."""
    c = config.vision
    times_s = np.arange(_FRAMES) / config.evidence.dense_fps
    side = 4 * c.spatial_merge_size
    visuals = times_s[_SEEN].reshape(-1, c.temporal_patch_size).mean(-1)
    grid = (len(visuals), side, side)
    rows = dense_stream(_frames(config, 2), times_s, _video(config), c)
    rows |= visual_places(visuals, grid, c.spatial_merge_size, frame_pairs=len(visuals), patches=side**2)
    return {key: value[None] for key, value in rows.items()}


def _video(config: Config) -> VideoConfig:
    c = config.vision
    return VideoConfig(
        patch_size=c.patch_size, merge_size=c.spatial_merge_size, temporal_patch_size=c.temporal_patch_size
    )


def _frames(config: Config, cells: int) -> np.ndarray:
    """Returns uint8 [8, H, W, 3], `cells` tokens wide and high."""
    side = cells * config.vision.patch_size * config.vision.spatial_merge_size
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    background = np.stack([x, y, 1 - x], -1)
    frames = [
        np.where(((abs(x - at) < 0.15) & (abs(y - 0.5) < 0.15))[..., None], [0.9, 0.2, 0.1], background)
        for at in np.linspace(0.2, 0.8, _FRAMES)
    ]
    return (255 * np.stack(frames)).astype(np.uint8)
