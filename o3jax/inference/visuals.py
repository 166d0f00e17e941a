"""Frames of any mixture of sizes -> what the tower makes of them, a part of like sizes at a time."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from o3jax.errors import UserError
from o3jax.inputs.collate import bucket, collate, pairs_by_size
from o3jax.models.batch import Batch, Features, Patches
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.vision import VisionTower

_INPUT_KEYS = {
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
}


def read_inputs(inputs: Mapping[str, np.ndarray], model: Qwen3VL) -> Batch:
    """Returns the batch of a processor's output, its frames encoded; texts are padded to sizes that recur.

    What is handed to the tower and what it holds follow the patches that there are, not the largest frame.

    Raises:
        UserError: if an input is unknown or missing, ids are none of the model's, or as
            `o3jax.inputs.collate.collate`.
    """
    unknown = sorted(set(inputs) - _INPUT_KEYS)
    if unknown or "input_ids" not in inputs:
        what = f"unknown input '{unknown[0]}'" if unknown else "input_ids is missing"
        raise UserError(f"{what}: pass what the processor returns ({', '.join(sorted(_INPUT_KEYS))})")
    ids, rows = np.asarray(inputs["input_ids"]), model.config.text.vocab_size
    if ids.dtype.kind not in "iu" or ids.size and not 0 <= ids.min() <= ids.max() < rows:
        raise UserError(f"input_ids must be whole numbers from 0 to {rows - 1}, the rows of the embedding")
    length = bucket(np.shape(inputs["input_ids"])[-1])
    sized = pairs_by_size(inputs, model.config, length=length)
    if sized is None:
        return collate(inputs, model.config, length=length)
    parts = [_encode(model.vision, patches) for patches in sized.parts]
    values = _arrange(parts, sized.source)
    return Batch(
        sized.text, features=Features(values, sized.length[:, None] * model.config.vision.merge_unit)
    )


@jax.jit
def _encode(tower: VisionTower, patches: Patches) -> Float[Array, "tokens K D"]:
    """Returns each token of one row of frame pairs, with its DeepStack features behind it."""
    tokens, taps = tower(patches)
    return jnp.concatenate([tokens, *taps]).swapaxes(0, 1)


@jax.jit
def _arrange(parts: list[Array], source: Int[Array, "B tokens"]) -> Float[Array, "B 1 tokens K D"]:
    return jnp.concatenate(parts)[source][:, None]
