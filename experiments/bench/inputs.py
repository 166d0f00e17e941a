"""What both sides of a benchmark read: the random model as a Hugging Face folder, and the prompts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from o3jax.hf import export_weights
from o3jax.models.config import Config, TextConfig, VisionConfig
from o3jax.models.layers import Initializer
from o3jax.models.qwen3_vl import Qwen3VL

Inputs = dict[str, np.ndarray]

# 35 million parameters; the shape of the published ones (`o3jax.models.presets`).
SMALL = Config(
    TextConfig(6144, 512, 1280, 8, 8, 4, 64, rope_theta=5e6, mrope_section=(12, 10, 10)),
    VisionConfig(6, 256, 1024, 4, 512, deepstack_visual_indexes=(2, 4)),
    tie_word_embeddings=True,
    image_token_id=6140,
    video_token_id=6141,
    vision_start_token_id=6142,
    vision_end_token_id=6143,
)
# Where programs are measured or tried, and not how fast they run.
NARROW = dataclasses.replace(
    SMALL,
    text=dataclasses.replace(SMALL.text, hidden_size=128, intermediate_size=256),
    vision=dataclasses.replace(SMALL.vision, hidden_size=128, intermediate_size=256, out_hidden_size=128),
)


def write_folder(config: Config, folder: Path, dtype: jnp.dtype = jnp.float32, std: float = 0.05) -> int:
    """Writes a random model of `config` as a Hugging Face folder; returns how many parameters it has.

    The default spread is wide enough that the layers, not the tied embedding, decide the next token.
    """
    key = jax.random.key(0, impl="rbg")  # the fast generator: eight billion numbers are drawn
    model = jax.jit(lambda: Qwen3VL(config, Initializer(key, dtype, std)))()
    export_weights(model, folder)
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def prompt(
    config: Config, length: int, frame_pairs: int, grid: tuple[int, int], *, rows: int = 1, seed: int = 0
) -> Inputs:
    """Returns what a Qwen3-VL processor would, for `rows` prompts of `length` tokens.

    Each starts with one video of `frame_pairs` frame pairs, `grid` patches high and wide, every pair inside
    its own vision_start and vision_end after three tokens that stand for its timestamp; random text fills
    the rest. `tokens_of` says how many tokens a pair takes.
    """
    rng = np.random.default_rng(seed)
    visual = tokens_of(config, grid) - 5
    ids = rng.integers(0, min(config.image_token_id, config.vision_start_token_id), (rows, length))
    for pair in range(frame_pairs):
        start = pair * (visual + 5) + 3
        ids[:, start] = config.vision_start_token_id
        ids[:, start + 1 : start + 1 + visual] = config.video_token_id
        ids[:, start + 1 + visual] = config.vision_end_token_id
    patches = (rows * frame_pairs * grid[0] * grid[1], config.vision.patch_dim)
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == config.video_token_id),
        "video_grid_thw": np.tile([frame_pairs, *grid], (rows, 1)),
        "pixel_values_videos": rng.uniform(-1, 1, patches).astype(np.float32),
    }


def tokens_of(config: Config, grid: tuple[int, int]) -> int:
    """Returns the tokens of a frame pair in `prompt`, its timestamp and borders included."""
    return grid[0] * grid[1] // config.vision.merge_unit + 5


def with_labels(inputs: Inputs, config: Config) -> Inputs:
    """Returns the inputs with labels, for a loss on all text: visual tokens are ignored (-100)."""
    ids = inputs["input_ids"]
    return inputs | {"labels": np.where(ids == config.video_token_id, -100, ids)}


def with_layers(config: Config, text_layers: int, vision_depth: int) -> Config:
    """Returns the same widths with other depths; the DeepStack taps are then the first blocks."""
    taps = tuple(range(len(config.vision.deepstack_visual_indexes)))
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, num_hidden_layers=text_layers),
        vision=dataclasses.replace(config.vision, depth=vision_depth, deepstack_visual_indexes=taps),
    )
