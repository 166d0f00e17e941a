"""Adapters: the change that they are is checked by hand, the base stays, runs resume, exports are plain."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from data_pipelines.rows.settings import RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from experiments.training.trainer import export
from o3jax.errors import UserError
from o3jax.hf import config_from_hf, load_weights
from o3jax.hf.export import export_weights
from o3jax.hf.names import model_leaves
from o3jax.inputs.collate import collate
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import stack, take
from o3jax.models.config import EvidenceConfig
from o3jax.models.qwen3_vl import with_evidence
from o3jax.models.runtime import Runtime
from o3jax.sft.text import text_loss, token_counts
from o3jax.sharding import make_mesh, parameter_shardings, use_mesh
from o3jax.train.lora import LoRA, adapted_loss
from o3jax.train.optimizer import make_optimizer
from o3jax.train.state import TrainState, init_state, make_train_step
from tests.support.tiny import make_inputs, our_logits

RANK, ALPHA = 3, 12.0
DENSE = ("q", "k", "v", "o", "gate", "up", "down", "qkv", "out", "fc1", "fc2")
MOE = ("q", "o", "router", "gate_up", "down")
# Where A's and B's flat axes belong, as the model's own products read its weights.
CHANGES = {
    "q": ("ldr,lrnh->ldnh", 1),
    "k": ("ldr,lrnh->ldnh", 1),
    "v": ("ldr,lrnh->ldnh", 1),
    "qkv": ("ldr,lrcnh->ldcnh", 1),
    "o": ("lnhr,lrd->lnhd", 2),
    "out": ("lnhr,lrd->lnhd", 2),
    "gate": ("ldr,lrf->ldf", 1),
}


def lora(model, targets, seed=0):
    """Returns an adapted model whose B is no longer zero."""
    made = LoRA(model, rank=RANK, alpha=ALPHA, targets=targets, key=jax.random.key(seed))
    rng = np.random.default_rng(seed)
    for adapters in (made.vision, made.text):
        for name in adapters.names:
            b = getattr(adapters, name).b
            b[...] = 0.1 * rng.standard_normal(b.shape).astype(np.float32)
    return made


def change_by_hand(name, weight, adapter):
    """Returns alpha / r * A @ B in float64, in the axes of the weight."""
    a, b = np.float64(adapter.a[...]), np.float64(adapter.b[...])
    if weight.ndim == 4 and name in ("gate_up", "down"):  # of experts
        return ALPHA / RANK * np.einsum("ledr,lerf->ledf", a, b)
    subscripts, inputs = CHANGES.get(name, CHANGES["gate"])
    shape = weight.shape
    a = a.reshape(*shape[: 1 + inputs], RANK)
    b = b.reshape(shape[0], RANK, *shape[1 + inputs :])
    return ALPHA / RANK * np.einsum(subscripts, a, b)


@pytest.mark.parametrize(("kind", "targets"), [("dense", DENSE), ("moe", MOE)])
def test_merged_is_the_sum_by_hand(tiny, kind, targets):
    model = tiny(kind).ours
    made = lora(model, targets)
    before, after = model_leaves(model), model_leaves(made.merged())
    assert before.keys() == after.keys()
    changed = set()
    for path, weight in before.items():
        tower, *inside, name = path.split(".")
        if inside == ["layers"] and name in targets:
            adapter = getattr(getattr(made, tower), name)
            expected = np.float64(weight) + change_by_hand(name, weight, adapter)
            np.testing.assert_allclose(after[path], expected, rtol=0, atol=2e-6, err_msg=path)
            assert np.abs(expected - weight).max() > 0.1, path
            changed.add(name)
        else:
            np.testing.assert_array_equal(after[path], weight, err_msg=path)
    assert changed == set(targets)


def test_new_adapters_change_nothing(tiny):
    model = tiny("dense").ours
    made = LoRA(model, rank=RANK, alpha=ALPHA, targets=DENSE, key=jax.random.key(0))
    for (path, weight), merged in zip(
        model_leaves(model).items(), jax.tree.leaves(made.merged()), strict=True
    ):
        np.testing.assert_array_equal(merged, weight, err_msg=path)


@pytest.mark.parametrize(
    ("targets", "says"), [((), "is empty"), (("q", "q_norm"), "names 'q_norm', which is no")]
)
def test_targets_are_projections(tiny, targets, says):
    with pytest.raises(UserError, match=f"config.lora.targets {says}.* choose some of fc1, .*, down, .*up"):
        LoRA(tiny("dense").ours, rank=RANK, alpha=ALPHA, targets=targets, key=jax.random.key(0))


def test_experts_have_gate_and_up_as_one_weight(tiny):
    model = tiny("moe").ours

    def names(*targets):
        return LoRA(model, rank=RANK, alpha=ALPHA, targets=targets, key=jax.random.key(0)).text.names

    assert names("q", "gate", "up", "down") == names("q", "gate_up", "down") == ("down", "gate_up", "q")
    assert names("up", "gate_up", "gate") == ("gate_up",)
    with pytest.raises(UserError, match="names 'up' alone.* name both, or gate_up"):
        names("q", "up", "down")
    with pytest.raises(UserError, match="names 'fc3', which is no projection"):
        names("gate", "up", "fc3")


@pytest.mark.parametrize("mesh", [None, {"fsdp": 2, "expert": 2, "context": 2}], ids=str)
def test_adapted_experts_compute_what_the_merged_ones_do(tiny, mesh):
    """On one device, and where tokens, experts and the axes of weights and factors are spread."""
    reference = tiny("moe")
    made = lora(reference.ours, MOE)
    batch = collate(make_inputs([[3, (4, 6), 5], [2, (4, 6), 6]]), reference.config)
    gradient = jax.jit(jax.value_and_grad(lambda text, whole: _sum(whole, text, batch)))
    expected, by_one = gradient(made.text, made)
    np.testing.assert_allclose(expected, np.tanh(made.merged()(batch)).sum(), rtol=2e-4)
    if mesh:
        where = make_mesh(**mesh)
        made = jax.device_put(made, parameter_shardings(made, where))
        with use_mesh(where):
            got, by_many = gradient(made.text, made)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        for one, many in zip(jax.tree.leaves(by_one), jax.tree.leaves(by_many), strict=True):
            np.testing.assert_allclose(many, one, rtol=0, atol=1e-4 * np.abs(one).max())


def _sum(made, text, batch):
    whole = jax.tree.map(lambda a: a, made)
    whole.text = text
    return jax.numpy.tanh(whole.adapted()(batch)).sum()


def test_the_merged_export_is_the_adapted_model_in_transformers(tiny, tmp_path):
    reference = tiny("dense")
    made = lora(reference.ours, DENSE)
    inputs = make_inputs([[3, (4, 6), 5, (2, 6, 4), 2]])
    ours = our_logits(made.adapted(), collate(inputs, reference.config))
    export_weights(made.merged(), tmp_path / "out")
    model = type(reference.torch).from_pretrained(tmp_path / "out")
    with torch.no_grad():
        theirs = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()
    assert np.abs(theirs - reference.logits(inputs)).max() > 1
    np.testing.assert_allclose(ours[:, : theirs.shape[1]], theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("kind", "targets"), [("dense", DENSE), ("moe", ("q", "gate_up", "down"))])
def test_no_product_of_the_factors_is_made(tiny, kind, targets):
    """x A, then B: nothing of the loss or its gradient has the size of an adapted weight but the weight."""
    reference = tiny(kind)
    made = LoRA(reference.ours, rank=RANK, alpha=ALPHA, targets=targets, key=jax.random.key(0))
    batch = collate(make_inputs([[3, (4, 6), 5, (2, 6, 4), 2]]), reference.config)

    def loss(text):
        whole = jax.tree.map(lambda a: a, made)
        whole.text = text
        return whole.adapted()(batch).sum()

    layers = reference.ours.text.layers
    sizes = {getattr(layers, name)[0].size for name in made.text.names}
    made_of = [
        variable.aval.size
        for equation in _equations(jax.make_jaxpr(jax.grad(loss))(made.text).jaxpr)
        if equation.primitive.name == "dot_general" and RANK in equation.invars[0].aval.shape
        for variable in equation.outvars
    ]
    assert made_of and not sizes & set(made_of)


def _equations(jaxpr):
    """Yields the equations of a program and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


# --- training ---


@pytest.fixture(scope="module")
def setting(video_model):
    """A tiny model with evidence modules, and a batch."""
    model = load_weights(video_model, config_from_hf(video_model))
    make = MakeRow(load_processor(video_model), model.config, RowShape(192, 3, 16))
    rows = [make.map(SyntheticClips("train", 1, questions=1)[index]) for index in range(2)]
    return model, stack(rows)


def test_gradients_follow_from_those_of_the_whole_weights(setting):
    """dA = s dW B^T and dB = s A^T dW, with dW from a plain training of the merged model."""
    model, batch = setting
    made = lora(model, ("q", "qkv", "down"))
    loss = functools.partial(text_loss, counts={"text": 1.0}, runtime=Runtime(remat="names"))
    gradients = jax.jit(jax.grad(lambda m: loss(m, batch)[0]))(made.merged())
    parts = {"vision": made.vision, "text": made.text}

    def of_parts(parts):
        whole = jax.tree.map(lambda a: a, made)
        whole.vision, whole.text = parts["vision"], parts["text"]
        return adapted_loss(lambda m, b, *_: loss(m, b))(whole, batch, {})[0]

    got = jax.jit(jax.grad(of_parts))(parts)
    for tower, name in (("text", "q"), ("vision", "qkv"), ("text", "down")):
        adapter, mine = getattr(parts[tower], name), getattr(got[tower], name)
        a, b = np.float64(adapter.a[...]), np.float64(adapter.b[...])
        dw = np.float64(getattr(getattr(gradients, tower).layers, name)[...])
        dw = ALPHA / RANK * dw.reshape(len(a), a.shape[1], b.shape[2])
        for ours, expected in ((mine.a, dw @ b.swapaxes(1, 2)), (mine.b, a.swapaxes(1, 2) @ dw)):
            assert (scale := np.abs(expected).max()) > 0
            np.testing.assert_allclose(ours[...], expected, rtol=0, atol=2e-4 * scale, err_msg=name)


@pytest.fixture(scope="module")
def with_all(setting):
    """Adapters on every projection, and evidence modules."""
    c = EvidenceConfig(16, 2, temporal_layers=1, decoder_layers=1, question_layers=1)
    model = with_evidence(setting[0], c, jax.random.key(0))
    return LoRA(model, rank=RANK, alpha=ALPHA, targets=DENSE, key=jax.random.key(1))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_are_kept_for_what_stands_beside_the_base(with_all, kind):
    optimizer = make_optimizer(lambda _: 1e-2, weight_decay=0.1, max_grad_norm=1.0, kind=kind)
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer, frozen=["base"]), with_all)
    moments = {
        jax.tree_util.keystr(p): a.size for p, a in jax.tree.leaves_with_path(state.opt_state) if a.ndim
    }
    assert moments and not any(".base" in path for path in moments)
    beside = {jax.tree_util.keystr(p): a.size for p, a in jax.tree.leaves_with_path(with_all) if a.ndim}
    beside = {path: size for path, size in beside.items() if not path.startswith(".base")}
    for path, size in beside.items():
        adapter = path.endswith((".a.value", ".b.value"))
        if adapter or kind == "adamw":  # Muon has one moment for a matrix, and AdamW's two for other things
            mine = [moment for name, moment in moments.items() if name.endswith(path)]
            assert mine == [size] * (1 if kind == "muon" else 2), path


def test_rates_scale_the_updates_of_their_adapters(with_all):
    """By powers of two, so that nothing is rounded."""
    beside = jax.tree_util.tree_map_with_path(lambda p, a: None if p[0].name == "base" else a, with_all)
    rng = np.random.default_rng(0)
    gradient = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), beside)

    @jax.jit  # one program for all factors: two would round differently
    def first_update(rates, model, gradient):
        rule = make_optimizer(lambda _: 1e-2, weight_decay=0.1, max_grad_norm=1.0, lr_multipliers=rates)
        return rule.update(gradient, rule.init(model), model)[0]

    factors = {"vision": 2.0, "text": 0.25, "evidence": 1.0}
    plain, scaled = (first_update(by, beside, gradient) for by in (dict.fromkeys(factors, 1.0), factors))
    visuals = set()
    for (path, update), other in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(scaled), strict=True):
        part = path[0].name
        assert update.any(), path
        np.testing.assert_array_equal(other, factors[part] * update, err_msg=str(path))
        visuals.add(part)
    assert visuals == set(factors)


def test_only_what_stands_beside_the_base_is_trained(setting, with_all):
    made = jax.tree.map(np.array, with_all)  # the step donates what it is given
    before = {jax.tree_util.keystr(p): np.array(a) for p, a in jax.tree.leaves_with_path(made)}
    optimizer = make_optimizer(lambda _: 1e-2, weight_decay=0.1, max_grad_norm=1.0)

    def of_all(model, batch, counts, runtime):
        loss, sums = text_loss(model, batch, counts, runtime)
        # A gradient for every evidence module.
        return loss + sum(a.sum() for a in jax.tree.leaves(model.evidence)), sums

    micro = take(setting[1], None)
    step = make_train_step(adapted_loss(of_all), optimizer, token_counts, frozen=["base"])
    state = init_state(made, optimizer, frozen=["base"])
    step = step.lower(state, micro).compile()
    for _ in range(3):
        state, metrics = step(state, micro)
    assert np.isfinite(metrics["loss"])
    after = {jax.tree_util.keystr(p): np.array(a) for p, a in jax.tree.leaves_with_path(state.model)}
    assert after.keys() == before.keys()
    for path, value in before.items():
        same = np.array_equal(after[path], value)
        assert same == path.startswith(".base"), path
    assert sum(path.startswith(".base") for path in before) == len(model_leaves(setting[0]))


def test_adapters_lie_on_the_mesh_as_their_weights_do(tiny):
    made = lora(tiny("dense").ours, ("q", "o", "down"))
    shardings = parameter_shardings(made, make_mesh(fsdp=2, tensor=4))

    def spec(name, matrix):
        return tuple(getattr(getattr(shardings.text, name), matrix).get_value().spec)

    split = ("fsdp", "context")
    assert spec("q", "a") == (None, split, None) and spec("q", "b") == (None, None, "tensor")
    assert spec("o", "a") == (None, "tensor", None) and spec("o", "b") == (None, None, split)
    assert spec("down", "a") == (None, "tensor", None) and spec("down", "b") == (None, None, split)
    merged = jax.jit(lambda m: m.merged().text.layers.o[...])
    np.testing.assert_allclose(merged(jax.device_put(made, shardings)), merged(made), rtol=0, atol=1e-6)


def test_the_export_of_a_narrow_base_is_the_stored_weight_and_the_change(video_model, tmp_path):
    """The base is bfloat16, as the step computes; what is stored is float32, and so is what is exported."""
    base = load_weights(video_model, config_from_hf(video_model), dtype="bfloat16")
    made = lora(base, DENSE)
    assert made.base.text.layers.q.dtype == "bfloat16" and made.text.q.a.dtype == "float32"
    export(TrainState(np.int32(0), made, ()), video_model, tmp_path / "out", load_processor(video_model))
    source, exported = (load_file(folder / "model.safetensors") for folder in (video_model, tmp_path / "out"))
    rounded = {name: tensor.astype("bfloat16").astype("float32") for name, tensor in source.items()}
    changed = 0
    for name, tensor in source.items():
        adapter = made.text.q if name.endswith("self_attn.q_proj.weight") else None
        if adapter is not None:
            layer = int(name.split(".")[3])
            a, b = (np.float64(x[...])[layer] for x in (adapter.a, adapter.b))
            expected = tensor + ALPHA / RANK * (a @ b).T
            np.testing.assert_allclose(exported[name], expected, rtol=0, atol=2e-6)
            assert np.abs(exported[name] - rounded[name] - (expected - tensor)).max() > 1e-5
            changed += 1
        elif "embed" in name or "norm" in name:
            np.testing.assert_array_equal(exported[name], tensor, err_msg=name)
    assert changed == made.base.config.text.num_hidden_layers
