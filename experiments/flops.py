"""`python -m experiments.flops`: what the evidence modules cost beside an 8B Qwen3-VL, by the jaxpr.

Matrix products of one training step of `configs/sft_article.py`, forward and backward, on abstract arrays:
nothing is allocated. XLA's own count takes the body of a scan once; here it counts as often as it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from configs import sft_article
from experiments.bench.gpu_table import EIGHT_B
from experiments.cli import shell
from o3jax.models.config import Config, EvidenceConfig
from o3jax.models.qwen3_vl import abstract_model, chunk_size
from o3jax.sft.evidence import EvidenceWeights
from o3jax.sft.joint import joint_loss
from o3jax.sft.text import text_loss

Shapes = dict[str, jax.ShapeDtypeStruct]


def flops(fn: Any, *args: Any) -> int:
    """Returns the floating-point operations of all matrix products that `fn(*args)` computes."""
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(_count(inner) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
    found = []
    for value in params.values():
        if isinstance(value, ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, Jaxpr):
            found.append(value)
    return found


def text_shapes(config: Config, c: Any) -> Shapes:
    """Returns the arrays of one row of a training config, without evidence."""
    vision, T, P, S = config.vision, c.row_frame_pairs, c.row_patches, c.row_length

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), jnp.int32)

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    return {
        **{
            name: ints(S)
            for name in ("input_ids", "segment_ids", "continuation_ids", "visual_index", "labels")
        },
        "positions": ints(3, S),
        "patches": jax.ShapeDtypeStruct((1, T, P, vision.patch_dim), jnp.uint8),
        "patch_length": ints(T),
        "patch_coords": ints(T, P, 2),
        "pos_index": ints(T, P, 4),
        "pos_weight": floats(T, P, 4),
    }


def evidence_shapes(config: Config, c: Any) -> Shapes:
    """Returns the arrays that the evidence modules read beside them."""
    e, vision = c.evidence_shape, config.vision
    T, P, Q, M, K, unit = e.frame_pairs, e.patches, e.questions, e.mentions, e.boxes, vision.merge_unit

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    ints, floats, flags = (functools.partial(array, dtype) for dtype in (jnp.int32, jnp.float32, bool))
    return {
        "dense_patches": array(jnp.uint8, T, P, vision.patch_dim),
        "dense_length": ints(T),
        "dense_coords": ints(T, P, 2),
        "dense_pos_index": ints(T, P, 4),
        "dense_pos_weight": floats(T, P, 4),
        "dense_times": floats(T),
        "dense_cells": floats(P // unit, 2),
        "dense_grid": ints(2),
        "visual_times": floats(c.row_frame_pairs),
        "visual_centres": floats(c.row_frame_pairs, c.row_patches // unit, 2),
        "question_ids": ints(Q, e.question_length),
        "mention_index": ints(Q, M),
        **{f"relevance_{name}": flags(Q, T) for name in ("inside", "known")},
        "true_candidates": flags(Q, T),
        **{f"target_{name}": flags(Q, M) for name in ("has_time", "has_interval", "judged")},
        "target_has_box": flags(Q, M, K),
        "target_time": floats(Q, M),
        "target_interval": floats(Q, M, 2),
        "target_boxes": floats(Q, M, K, 4),
    }


def study(config: Config, c: Any) -> dict[str, int]:
    """Returns the operations of a step on one row: of text alone, with evidence, and of its parts.

    Args:
        config: the backbone.
        c: a training config, such as `configs.sft_article.get_config()`.
    """
    whole = dataclasses.replace(config, evidence=EvidenceConfig(**c.evidence))
    plain, model = abstract_model(config), abstract_model(whole)
    row, more = text_shapes(config, c), evidence_shapes(config, c)

    def step(loss: Any) -> Any:
        return lambda model, batch: jax.grad(lambda m: loss(m, batch))(model)

    def joint(model: Any, batch: Any) -> Any:
        weights = EvidenceWeights()
        counts = dict.fromkeys(_TERMS, 1.0)
        return joint_loss(
            model, batch, counts, evidence_weight=0.4, weights=weights, candidate_low=0.1, remat=c.remat
        )[0]

    def text(model: Any, batch: Any) -> Any:
        return text_loss(model, batch, {"text": 1.0}, remat=c.remat)[0]

    def tower(model: Any, batch: Any) -> Any:
        names = ("patches", "length", "coords", "pos_index", "pos_weight")
        return model.vision(*[batch[f"dense_{name}"] for name in names])[0]

    def temporal(model: Any, tokens: Any, batch: Any) -> Any:
        def total(encoder: Any) -> Any:
            valid = batch["dense_length"] > 0
            chunk = chunk_size(valid.shape[1])
            features = encoder(tokens, batch["dense_times"], valid, chunk=chunk, remat=c.remat)
            return features.astype(jnp.float32).sum()

        return jax.grad(total)(model.evidence.temporal)

    unit, e = config.vision.merge_unit, c.evidence_shape
    tokens = jax.ShapeDtypeStruct(
        (1, e.frame_pairs, e.patches // unit, config.vision.out_hidden_size), jnp.float32
    )
    out = {
        "text": flops(step(text), plain, row),
        "joint": flops(step(joint), model, row | more),
        "dense tower": flops(tower, model, more),
        "temporal encoder": flops(temporal, model, tokens, more),
    }
    out["heads"] = out["joint"] - out["text"] - out["dense tower"] - out["temporal encoder"]
    return out


_TERMS = ("text", "relevance", "time", "time_ce", "time_error", "interval", "interval_ce")
_TERMS += ("box_l1", "box_giou", "box_iou", "confidence", "right")


def main(argv: Sequence[str]) -> None:
    del argv
    c = sft_article.get_config()
    found = study(EIGHT_B, c)
    e, rate = c.evidence_shape, c.evidence.dense_fps / 2
    print(
        f"Qwen3-VL-8B, one row of configs/sft_article.py: {c.row_length} tokens, {c.row_frame_pairs} x "
        f"{c.row_patches} patches; dense stream of {e.frame_pairs} x {e.patches} patches "
        f"({e.frame_pairs / rate:.0f} s at {c.evidence.dense_fps:g} frames per second)"
    )
    for name in ("joint", "text", "dense tower", "temporal encoder", "heads"):
        print(f"{name:18} {found[name] / 1e12:8.1f} TFLOP  {found[name] / found['joint']:6.1%}")
    print(f"evidence: {1 - found['text'] / found['joint']:.1%} of the step")


if __name__ == "__main__":
    shell.run(main)
