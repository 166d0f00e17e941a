"""One step on one and on eight devices is the same step; one program serves a bucket, whatever the depth."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from o3jax import sharding
from o3jax.errors import UserError
from o3jax.hf.names import model_leaves
from o3jax.inputs.collate import collate
from o3jax.models.batch import SupervisedBatch, take
from o3jax.models.config import EvidenceConfig
from o3jax.models.evidence import DenseFeatures, EvidenceDecoder, VisualTokens
from o3jax.models.layers import Initializer
from o3jax.models.qwen3_vl import abstract_model
from o3jax.models.runtime import Runtime
from o3jax.sft.text import text_loss, token_counts
from o3jax.sharding import (
    ShardingRules,
    batch_sharding,
    make_mesh,
    parameter_shardings,
    partition_spec,
    shard,
    use_mesh,
)
from o3jax.train.state import init_state, make_train_step
from o3jax.train.token_loss import IGNORE
from tests.support.tiny import make_inputs

LEARNING_RATE = 0.05
ROWS = [
    [3, (2, 4, 6), 5],
    [4, (4, 4), 2, (6, 4), 3],
    [9, (1, 6, 6), 4],
    [2, (2, 2), 7, (1, 4, 4), 2],
]


def labelled(inputs, config, **sizes) -> SupervisedBatch:
    """Returns the model's batch with next-token labels."""
    batch = collate(inputs, config, **sizes)
    ids, segments = batch.text.input_ids, batch.text.segment_ids
    labels = np.full_like(ids, IGNORE)
    both = (segments[:, 1:] > 0) & (segments[:, :-1] > 0)
    labels[:, :-1] = np.where(both, ids[:, 1:], IGNORE)
    return SupervisedBatch(batch, labels)


def three_steps(model, batch):
    """Returns the gradients of the first of three SGD steps, the loss of each, and the model after."""
    # A trace without decay keeps the gradient that it was given.
    optimizer = optax.chain(optax.trace(decay=0.0), optax.sgd(LEARNING_RATE))

    def one(value):
        return (
            jax.device_put(value[None], _micro(value.sharding))
            if isinstance(value, jax.Array)
            else value[None]
        )

    micro = jax.tree.map(one, batch)
    state = init_state(jax.tree.map(jnp.copy, model), optimizer)
    step = make_train_step(text_loss, optimizer, token_counts).lower(state, micro).compile()
    losses, grads = [], None
    for _ in range(3):
        state, metrics = step(state, micro)
        losses.append(float(metrics["loss"]))
        if grads is None:
            grads = jax.device_get(state.opt_state[0].trace)
    return grads, losses, state.model


def _micro(sharding: NamedSharding) -> NamedSharding:
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def assert_close(a, b):
    """Every leaf agrees to 1e-4 of its largest value."""
    b = model_leaves(b)
    for path, leaf in model_leaves(a).items():
        leaf, other = np.asarray(leaf), np.asarray(b[path])
        assert np.abs(leaf - other).max() <= 1e-4 * np.abs(leaf).max(), path


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("dense", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("dense", {"fsdp": 2, "context": 4}),
        ("moe", {"data": 2, "tensor": 2, "expert": 2}),
    ],
)
def test_one_and_eight_devices_make_the_same_steps(tiny, kind, axes):
    reference = tiny(kind)
    batch = labelled(make_inputs(ROWS, left=True), reference.config)
    grads, losses, model = three_steps(reference.ours, batch)

    mesh = make_mesh(**axes)
    placed = jax.device_put(reference.ours, parameter_shardings(reference.ours, mesh))
    assert len(placed.text.layers.q[...].sharding.device_set) == 8
    assert not placed.text.layers.q[...].sharding.is_fully_replicated
    with use_mesh(mesh):
        grads8, losses8, model8 = three_steps(placed, jax.device_put(batch, batch_sharding(mesh)))

    np.testing.assert_allclose(losses8, losses, atol=1e-5, rtol=0)
    assert losses[-1] < losses[0] - 0.1
    assert_close(grads, grads8)
    assert_close(model, model8)
    moved = model_leaves(
        jax.tree.map(lambda a, b: jnp.abs(a - b).max() / jnp.abs(a).max(), reference.ours, model)
    )
    assert min(map(float, moved.values())) > 1e-4 and max(map(float, moved.values())) > 1e-2


@pytest.mark.parametrize(
    "axes", [{"data": 2, "fsdp": 2, "context": 2}, {"fsdp": 8}, {"context": 4, "tensor": 2}], ids=str
)
def test_embeddings_of_a_batch_change_places_and_none_is_gathered(tiny, axes):
    text = tiny("dense").ours.text
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(text.embed[...]), (8, 16))
    weight = rng.standard_normal((8, 16, text.config.hidden_size)).astype(np.float32)

    def gradient(text, ids):
        return jax.grad(lambda t: (t.embedded(ids) * weight).sum())(text).embed[...]

    table, by_hand = np.asarray(text.embed[...]), np.zeros(text.embed.shape)
    np.add.at(by_hand, ids, weight)
    mesh = make_mesh(**axes)
    placed = jax.device_put(text, parameter_shardings(text, mesh))
    with use_mesh(mesh):
        there = jax.device_put(ids, batch_sharding(mesh))
        run = jax.jit(lambda t, i: shard(t.embedded(i), "batch", "sequence", None))
        np.testing.assert_array_equal(run(placed, there), table[ids])
        np.testing.assert_allclose(jax.jit(gradient)(placed, there), by_hand, atol=1e-5)
        program = run.lower(placed, there).compile().as_text()
    assert "all-to-all" in program and not re.search(r"= f32\S* all-gather", program)


def test_what_boxes_are_read_from_is_projected_where_its_rows_are():
    c = EvidenceConfig(hidden_size=64, num_heads=2)
    decoder = jax.eval_shape(lambda: EvidenceDecoder(c, 96, Initializer(jax.random.key(0))))
    B, M, T, P = 12, 3, 16, 4
    mesh = make_mesh(fsdp=4, context=2)
    rows = batch_sharding(mesh)

    def shape(*sizes: int, dtype: type = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=rows)

    def flags(*sizes: int) -> jax.ShapeDtypeStruct:
        return shape(*sizes, dtype=bool)

    dense = DenseFeatures(shape(B, T, P, 64), shape(B, T), flags(B, T), shape(B, P, 2), flags(B, P))
    visual = VisualTokens(shape(B, T, P, 96), shape(B, T), shape(B, T, P, 2), flags(B, T, P))

    def gradient(decoder, *inputs):
        return jax.grad(lambda d: d(*inputs).box.sum())(decoder)

    where = parameter_shardings(decoder, mesh)
    placed = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), decoder, where)
    with use_mesh(mesh):
        arguments = placed, shape(B, M, 64), flags(B, M), dense, visual, flags(B, T)
        program = jax.jit(gradient).lower(*arguments).compile().as_text()
    travels = re.findall(r"= \(?(\S*\[[\d,]*\]).* (?:all-gather|all-reduce|all-to-all)\(", program)
    of_all_rows = f"[{B},{T},", f"[{B},{T * P},"
    assert travels and not [one for one in travels if any(map(one.count, of_all_rows))]


def test_one_program_serves_every_grid_of_a_bucket(tiny):
    reference = tiny("dense")
    traces = []

    def counted(model, batch, counts, runtime):
        traces.append(batch.inputs.patches.values.shape)
        return text_loss(model, batch, counts, runtime)

    optimizer = optax.sgd(LEARNING_RATE)
    step = make_train_step(counted, optimizer, token_counts)
    state = init_state(jax.tree.map(jnp.copy, reference.ours), optimizer)

    def run(state, rows, length=64):
        batch = labelled(make_inputs(rows), reference.config, length=length, frame_pairs=4, patches=48)
        return step(state, take(batch, None))[0]

    state = run(state, [[2, (2, 4, 6), 5], [4, (4, 4), 2]])
    first = len(traces)
    for rows in (
        [[2, (3, 2, 8), 5], [4, (8, 4), 2]],
        [[9, (1, 6, 8), 5], [4, (2, 2), 2, (4, 4), 3]],
        [[5], [4, (6, 6), 2]],
        [[2, (4, 2, 2), 5], [7, (2, 12, 4), 2]],
        [[2, (2, 2), 1, (2, 4), 1, (1, 10, 4), 2], [3, (1, 2, 24), 3]],
    ):
        state = run(state, rows)
    assert len(traces) == first
    run(state, [[2, (2, 4, 6), 5], [4, (4, 4), 2]], length=72)  # another bucket is another program
    assert len(traces) > first


def test_the_training_program_does_not_grow_with_depth(tiny):
    config = tiny("dense").config
    batch = labelled(make_inputs(ROWS), config)
    micro = take(batch, None)
    optimizer = optax.adamw(1e-3)

    def size(layers: int) -> int:
        deep = dataclasses.replace(
            config,
            text=dataclasses.replace(config.text, num_hidden_layers=layers),
            vision=dataclasses.replace(config.vision, depth=layers),
        )
        state = jax.eval_shape(lambda model: init_state(model, optimizer), abstract_model(deep))
        step = make_train_step(text_loss, optimizer, token_counts, Runtime(remat="names"))
        return len(step.lower(state, micro).as_text())

    shallow = size(4)
    assert shallow > 10_000
    assert size(36) <= 1.1 * shallow


# --- the helpers ---


def test_shard_is_the_identity_outside_of_a_mesh():
    x = jnp.ones((4, 2))
    assert shard(x, "batch", None) is x


def test_shard_places_by_the_rules():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    x = jnp.ones((8, 3, 6))
    with use_mesh(mesh):
        y = jax.jit(lambda x: shard(2 * x, "batch", None, "mlp"))(x)
        assert y.sharding.spec == PartitionSpec(("data", "fsdp"), None, "tensor")
    with use_mesh(mesh, ShardingRules(mlp="data", batch=(), frames=())):
        y = jax.jit(lambda x: shard(2 * x, "batch", None, "mlp"))(x)
        assert y.sharding.spec == PartitionSpec(None, None, "data")


def test_an_axis_that_does_not_divide_lies_on_what_divides_it_and_that_is_said_once(caplog):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for _ in range(2):
        spec = partition_spec((6, 7, 4), ("batch", "heads", "mlp"), mesh, ShardingRules())
        assert spec == PartitionSpec("data", None, "tensor")
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "4 devices (data+fsdp) do not divide the axis batch of size 6, which lies over 2 of them",
        "2 devices (tensor) do not divide the axis heads of size 7, which is whole on each",
    ]


def test_rules_come_from_a_config_and_collisions_are_refused():
    rules = ShardingRules.of({"batch": "data", "embed": "", "heads": None}, prefix=())
    assert (rules.batch, rules.embed, rules.heads, rules.prefix) == (("data",), (), "tensor", ())
    with pytest.raises(UserError, match="config.sharding.mlp names model; the axes of a mesh are data, fsdp"):
        ShardingRules.of({"mlp": "model"})
    for fields, pair in (
        ({"heads": "fsdp", "batch": "data", "frames": ""}, "embed and heads"),
        ({"sequence": "data"}, "batch and sequence"),
        ({"expert": "tensor"}, "expert and mlp"),
        ({"vocab": "context"}, "embed and vocab"),
    ):
        with pytest.raises(UserError, match=f"config.sharding puts {pair}, axes of one array, both"):
            ShardingRules.of(fields)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_axes_of_every_parameter_are_among_those_that_are_checked(tiny, kind):
    for variable in jax.tree.leaves(tiny(kind).ours, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        axes = set(variable.get_metadata()["axes"]) - {None}
        assert any(axes <= set(names) for names in sharding._TOGETHER) or len(axes) < 2, axes


def test_other_rules_make_another_program():
    """A function that was traced by some rules is traced again by others, on the same mesh."""
    mesh, double = make_mesh(data=2, fsdp=4), jax.jit(lambda x: shard(2 * x, "batch", None))
    for rules, spec in ((ShardingRules(), ("data", "fsdp")), (ShardingRules(batch=("data",)), "data")):
        with use_mesh(mesh, rules):
            assert double(jnp.ones((8, 2))).sharding.spec == PartitionSpec(spec)


def test_mesh_mistakes():
    with pytest.raises(ValueError, match="unknown mesh axes"):
        make_mesh(model=8)
    with pytest.raises(ValueError, match="needs 4 devices"):
        make_mesh(data=4)
