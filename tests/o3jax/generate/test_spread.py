"""Rollouts on eight devices are those of one; weights and caches lie where their axes say."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from o3jax.generate import group
from o3jax.generate.cache import prefill
from o3jax.generate.group import sample_groups
from o3jax.generate.spread import Spread
from o3jax.inputs.collate import collate
from o3jax.models.batch import Batch, Features, map_arrays
from o3jax.models.qwen3_vl import visual_features
from o3jax.models.text import for_decoding
from o3jax.sharding import Placement, ShardingRules, make_mesh, parameter_shardings, place_rows
from tests.support.tiny import make_inputs

ROWS = [
    [3, (4, 6), 5, (2, 6, 4), 2],
    [30, (1, 2, 4)],
    [4, (1, 10, 12), 7],
    [9],
    [5, (4, 4), 6],
    [2, (1, 2, 4), 1],
]
ASKED = {"group_size": 4, "max_new_tokens": 12, "eos_ids": tuple(range(1, 16)), "pad_id": 0}


@pytest.fixture(scope="module")
def alone(tiny):
    """By kind of model: the model, six prompts with and without pixels, and their rollouts on one device."""
    made = {}

    def get(kind):
        if kind not in made:
            model = tiny(kind).ours
            batch = collate(make_inputs(ROWS), model.config, length=64)
            visuals = jax.jit(model.encode_visuals)(batch)
            values = np.asarray(visual_features(visuals.tokens, visuals.taps, batch.patches.length.shape[1]))
            features = Batch(batch.text, features=Features(values, batch.patches.length))
            decoder = jax.tree.map(lambda a: a, model)
            decoder.text.layers = for_decoding(decoder.text.layers)
            rollouts = sample_groups(decoder, batch, jax.random.key(5), **ASKED)
            made[kind] = model, {"pixels": batch, "features": features}, rollouts
        return made[kind]

    return get


def test_a_device_reads_one_of_eight_prompts(alone):
    """Floating-point operations of the compiled program of a device, against those of one that reads all."""
    model, batch, _ = alone("dense")
    rows = map_arrays(lambda a: np.concatenate([a, a[:2]]), batch["features"])
    found = []
    for mesh in (make_mesh(jax.devices()[:1]), make_mesh(fsdp=8)):
        at = Placement(mesh, ShardingRules())
        policy = jax.device_put(model, parameter_shardings(model, mesh))
        with at.use():
            compiled = prefill.lower(policy, place_rows(rows, mesh), new_tokens=0).compile()
        found.append(compiled.cost_analysis()["flops"])
    assert found[1] * 8 == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize(
    ("kind", "train", "decode", "rows", "slots"),
    [
        ("dense", {"data": 2, "fsdp": 4}, {"data": 4, "tensor": 2}, "pixels", None),
        ("dense", {"fsdp": 2, "context": 2, "tensor": 2}, {"context": 4, "tensor": 2}, "features", 4),
        ("moe", {"fsdp": 4, "expert": 2}, {"data": 2, "tensor": 2, "expert": 2}, "features", None),
    ],
)
def test_eight_devices_write_what_one_does(alone, monkeypatch, kind, train, decode, rows, slots):
    model, batch, expected = alone(kind)
    seen = []
    window = group.decode_window

    def watched(model, key, slots, *rest, **static):
        seen.append((model, slots))
        return window(model, key, slots, *rest, **static)

    monkeypatch.setattr(group, "decode_window", watched)
    monkeypatch.setattr(group, "_WINDOW", 5)
    rules = ShardingRules()
    spread = Spread(
        Placement(make_mesh(**train), rules),
        Placement(make_mesh(**decode), dataclasses.replace(rules, embed=(), sequence=())),
    )
    placed = jax.device_put(model, parameter_shardings(model, spread.prefill.mesh))
    out = sample_groups(placed, batch[rows], jax.random.key(5), slots=slots, spread=spread, **ASKED)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_array_equal(out.length, expected.length)
    np.testing.assert_array_equal(out.finished, expected.finished)
    np.testing.assert_allclose(out.logprobs, expected.logprobs, atol=1e-5)

    ways = {axis: decode.get(axis, 1) for axis in ("data", "context", "tensor")}
    for decoder, held in seen:
        for cache in (*held.prefix.keys, *held.prefix.values):
            share = ways["data"] * ways["tensor"] * ways["context"]
            assert np.prod(cache.sharding.shard_shape(cache.shape)) * share == cache.size
        for cache in (*held.keys, *held.values):
            assert (
                np.prod(cache.sharding.shard_shape(cache.shape)) * ways["data"] * ways["tensor"] == cache.size
            )
        weight = decoder.text.layers[0].q[...]
        assert np.prod(weight.sharding.shard_shape(weight.shape)) * ways["tensor"] == weight.size
