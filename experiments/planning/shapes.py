"""The shapes of one row of a training config, as the data pipelines make it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from o3jax.gspo.rows import UpdateBatch, UpdateShape
from o3jax.models.batch import (
    Batch,
    DenseStream,
    EvidenceTargets,
    EvidenceTruth,
    Features,
    Patches,
    Questions,
    Search,
    SupervisedBatch,
    TextRow,
    VisualPlaces,
)
from o3jax.models.config import Config, VisionConfig


def supervised_rows(config: Config, c: Any) -> SupervisedBatch:
    """Returns the shapes of a row of an SFT config; of its text alone where there are no evidence modules."""
    S, pairs = c.row_length, c.row_frame_pairs
    text = TextRow(_ints(S), _ints(S), _ints(3, S), _ints(S))
    if c.questions_per_row > 1:
        text = dataclasses.replace(text, continuation_ids=_ints(S))
    inputs = Batch(text, patches=patches(config.vision, pairs, c.row_patches))
    if config.evidence is None:
        return SupervisedBatch(inputs, _ints(S))
    e, unit = c.evidence_shape, config.vision.merge_unit
    T, Q, M, K = e.frame_pairs, e.questions, e.mentions, e.boxes
    inputs = Batch(
        text,
        patches=inputs.patches,
        dense=DenseStream(
            times=_floats(T),
            cells=_floats(e.patches // unit, 2),
            patches=patches(config.vision, T, e.patches),
            clip=_ints(T),
            clock=_floats(T),
        ),
        places=VisualPlaces(
            times=_floats(pairs),
            centres=_floats(pairs, c.row_patches // unit, 2),
            clip=_ints(pairs),
            clock=_floats(pairs),
        ),
        questions=Questions(_ints(Q, e.question_length), _ints(Q, M), clip=_ints(Q)),
    )
    mentions = EvidenceTargets(
        time=_floats(Q, M),
        has_time=_flags(Q, M),
        interval=_floats(Q, M, 2),
        has_interval=_flags(Q, M),
        boxes=_floats(Q, M, K, 4),
        has_box=_flags(Q, M, K),
        judged=_flags(Q, M),
    )
    search = Search(*[_flags(Q, T)] * 3)
    return SupervisedBatch(inputs, _ints(S), EvidenceTruth(mentions, search=search))


def prompt_rows(config: Config, c: Any) -> Batch:
    """Returns the shapes of a prompt of a GSPO config as rollouts read it: with what the tower made of it."""
    S, pairs = c.row_length, c.row_frame_pairs
    text = TextRow(_ints(S), _ints(S), _ints(3, S), _ints(S), next_position=_ints())
    return Batch(text, features=_features(config.vision, pairs, c.row_patches, c.compute_dtype))


def _features(vision: VisionConfig, pairs: int, patches: int, dtype: str) -> Features:
    tokens, taps = patches // vision.merge_unit, len(vision.deepstack_visual_indexes)
    values = (pairs, tokens, 1 + taps, vision.out_hidden_size)
    return Features(jax.ShapeDtypeStruct(values, jnp.dtype(dtype)), _ints(pairs))


def update_rows(config: Config, c: Any, shape: UpdateShape) -> UpdateBatch:
    """Returns the shapes of an update row of a GSPO config; a frozen tower has left features in it."""
    S, N, T, vision = shape.length, shape.sequences, shape.response, config.vision
    text = TextRow(_ints(S), _ints(S), _ints(3, S), _ints(S), continuation_ids=_ints(S))
    if c.lr_multipliers.vision:
        inputs = Batch(text, patches=patches(vision, shape.frame_pairs, shape.patches))
    else:
        features = _features(vision, shape.frame_pairs, shape.patches, c.compute_dtype)
        inputs = Batch(text, features=features)
    return UpdateBatch(
        inputs,
        response_ids=_ints(N, T),
        response_index=_ints(N, T),
        response_mask=_flags(N, T),
        sequence=_ints(N, 2),
        advantages=_floats(N),
        logp_old=_floats(N, T),
        logp_ref=_floats(N, T) if c.kl_coef else None,
    )


def patches(vision: VisionConfig, pairs: int, size: int) -> Patches:
    """Returns the shapes of so many frame pairs of `size` patches each."""
    return Patches(
        values=jax.ShapeDtypeStruct((pairs, size, vision.patch_dim), jnp.uint8),
        length=_ints(pairs),
        coords=_ints(pairs, size, 2),
        pos_index=_ints(pairs, size, 4),
        pos_weight=_floats(pairs, size, 4),
    )


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _flags(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bool_)
