"""Schedules, decay, multipliers and Muon, each against a second way to get it."""

from __future__ import annotations

import dataclasses
import math

import einops
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from configs import common
from experiments.training.trainer import optimizer_of
from o3jax.errors import UserError
from o3jax.hf import config_from_hf, load_weights
from o3jax.models.config import EvidenceConfig
from o3jax.models.layers import Initializer
from o3jax.models.qwen3_vl import Qwen3VL, abstract_model
from o3jax.train.optimizer import learning_rate, make_optimizer
from tests.o3jax.sft.test_sft import arrays


@pytest.mark.parametrize(
    ("kind", "warmup", "points"),
    [
        ("constant", 0, {0: 2.0, 7: 2.0, 50: 2.0}),
        ("constant", 4, {0: 0.0, 1: 0.5, 4: 2.0, 50: 2.0}),
        ("linear", 0, {0: 2.0, 5: 1.0, 10: 0.0, 12: 0.0}),
        ("linear", 2, {0: 0.0, 1: 1.0, 2: 2.0, 6: 1.0, 10: 0.0, 12: 0.0}),
        ("cosine", 2, {1: 1.0, 2: 2.0, 4: 1 + math.cos(math.pi / 4), 6: 1.0, 10: 0.0, 12: 0.0}),
        ("cosine", 0, {0: 2.0, 5: 1.0, 10: 0.0}),
    ],
)
def test_learning_rate(kind, warmup, points):
    schedule = learning_rate(kind, 2.0, 10, warmup)
    for step, value in points.items():
        assert float(schedule(step)) == pytest.approx(value, abs=1e-6), step


class Marks(Initializer):
    """Ones for weights, minus ones for scales and biases."""

    def weight(self, shape, axes):
        return nnx.Param(np.ones(shape, np.float32))

    def scale(self, shape, axes):
        return nnx.Param(-np.ones(shape, np.float32))

    bias = scale


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_leaves_norms_and_biases_alone(video_model, kind):
    marked = Qwen3VL(config_from_hf(video_model), Marks(jax.random.key(0)))
    optimizer = make_optimizer(
        learning_rate("constant", 0.5, 1), weight_decay=0.1, max_grad_norm=1.0, kind=kind
    )
    nothing = jax.tree.map(np.zeros_like, marked)
    update = jax.jit(lambda g, m: optimizer.update(g, optimizer.init(m), m)[0])
    updates, visuals = arrays(update(nothing, marked)), set()
    for name, leaf in arrays(marked).items():
        embedding = name.split(".")[-1] in ("embed", "pos_embed", "lm_head")
        decays = (leaf == 1).all() and not (kind == "muon" and embedding)
        expected = -0.5 * 0.1 if decays else 0
        np.testing.assert_allclose(updates[name], expected, rtol=1e-6, err_msg=name)
        visuals.add(expected)
    assert len(visuals) == 2


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_rates_scale_the_updates_of_their_parts(video_model, kind):
    """A config's rates; factors that are powers of two, so that nothing is rounded."""
    evidence = EvidenceConfig(16, 2, temporal_layers=1, decoder_layers=1, question_layers=1)
    rng = np.random.default_rng(0)

    def some(path, leaf):  # of every part: to trace Muon for all takes long
        few = path[-2].name in ("qkv", "q", "norm", "embed", "pos_embed")
        return rng.standard_normal(leaf.shape).astype(np.float32) if few else None

    shapes = abstract_model(dataclasses.replace(config_from_hf(video_model), evidence=evidence))
    model, gradient = (jax.tree_util.tree_map_with_path(some, shapes) for _ in range(2))

    @jax.jit  # one program for all factors: two would round differently
    def first_update(factors, model, gradient):
        c = common.sft()
        c.optimizer, c.max_steps, c.learning_rate, c.weight_decay = kind, 1, 1e-2, 0.1
        with c.ignore_type():
            c.lr_multipliers.update(factors)
        optimizer = optimizer_of(c, c.max_steps)
        return optimizer.update(gradient, optimizer.init(model), model)[0]

    factors = {"vision": 0.25, "text": 1.0, "evidence": 2.0}
    plain, scaled = (first_update(by, model, gradient) for by in (dict.fromkeys(factors, 1.0), factors))
    plain, scaled, visuals = arrays(plain), arrays(scaled), set()
    for name, update in plain.items():
        part = name.split(".")[0]
        assert update.any(), name
        np.testing.assert_array_equal(scaled[name], factors[part] * update, err_msg=name)
        visuals.add(part)
    assert visuals == set(factors)


def matrices(name: str, leaf: np.ndarray) -> np.ndarray:
    """Returns the matrices [count, in, out] of a projection's leaf, by the axes of its einsum."""
    kind = name.split(".")[-1]
    if kind in ("q", "k", "v"):
        return einops.rearrange(leaf, "l d n h -> l d (n h)")
    if kind == "qkv":
        return einops.rearrange(leaf, "l d c n h -> (l c) d (n h)")
    if kind in ("o", "out"):
        return einops.rearrange(leaf, "l n h d -> l (n h) d")
    return leaf if leaf.ndim == 3 else leaf[None]


def test_muon_turns_every_projection_and_leaves_the_rest_to_adamw(video_model):
    model = load_weights(video_model, config_from_hf(video_model))
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), model)
    options = {"weight_decay": 0.0, "max_grad_norm": 1e9, "kind": "muon"}
    plain, turned = (
        arrays(jax.jit(lambda g, m, o=o: o.update(g, o.init(m), m)[0])(gradient, model))
        for o in (optax.nadamw(1.0, weight_decay=0.0), make_optimizer(lambda _: 1.0, **options))
    )
    checked = 0
    for name, leaf in arrays(gradient).items():
        words = name.split(".")[-1]
        if words in ("embed", "pos_embed", "lm_head") or "norm" in words or words.endswith("bias"):
            np.testing.assert_allclose(turned[name], plain[name], rtol=1e-5, atol=1e-6, err_msg=name)
            continue
        checked += 1
        for update, momentum in zip(matrices(name, turned[name]), matrices(name, leaf), strict=True):
            left, _, right = np.linalg.svd(momentum.astype(np.float64), full_matrices=False)
            nearest = -left @ right  # the nearest orthogonal matrix, downhill
            cosine = (update * nearest).sum() / np.linalg.norm(update) / np.linalg.norm(nearest)
            assert cosine > 0.97, name
    assert checked > 12
    with pytest.raises(UserError, match="config.optimizer is 'sgd'; choose one of adamw, muon"):
        make_optimizer(lambda _: 1.0, **options | {"kind": "sgd"})
