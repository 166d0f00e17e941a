"""Rows that hold a prompt once, against the same responses each behind a prompt of its own."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

from o3jax.gspo import update
from o3jax.gspo.update import gspo_objective, response_logprobs, sequence_counts
from o3jax.hf.names import model_leaves
from o3jax.models.batch import map_arrays
from o3jax.sharding import batch_sharding, make_mesh, parameter_shardings, use_mesh
from o3jax.train.state import init_state, make_train_step
from o3jax.train.token_loss import IGNORE, token_logprobs
from tests.support.groups import GROUP, KL, PROMPTS, ROWS, flat, make_setting
from tests.support.tiny import FUSED

MICRO, LEARNING_RATE = 2, 3e-6


@pytest.fixture(scope="module")
def setting(tiny):
    return make_setting(tiny("dense"))


@functools.cache
def logprobs_fn():
    return jax.jit(response_logprobs, compiler_options=FUSED)


@pytest.fixture(scope="module")
def logprobs(setting):
    """Of the responses in shared rows, [rows, N, T]."""
    return np.asarray(logprobs_fn()(setting.reference.ours, setting.rows))


# --- log-probabilities ---


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_token_logprobs_equal_a_log_softmax(dtype):
    """In chunks, with labels here and there, and any weight on each."""
    rng = np.random.default_rng(0)
    hidden, head = (jnp.asarray(rng.standard_normal(s), dtype) for s in ((2, 17, 8), (8, 23)))
    labels = rng.integers(0, 23, (2, 17))
    labels[0, 3:9] = labels[1, ::2] = IGNORE
    there, weights = labels != IGNORE, rng.standard_normal((2, 17)).astype(np.float32)

    def plain(hidden, head):
        logp = jax.nn.log_softmax(hidden.astype(jnp.float32) @ head.astype(jnp.float32))
        entropy = -jnp.where(there, (jnp.exp(logp) * logp).sum(-1), 0)
        logp = jnp.take_along_axis(logp, jnp.maximum(labels, 0)[..., None], 2)[..., 0]
        return (logp * weights).sum(where=there), (jnp.where(there, logp, 0), entropy)

    def ours(hidden, head):
        logp, entropy = token_logprobs(hidden, head, jnp.asarray(labels), chunk=4)
        return (logp * weights).sum() + entropy.sum() - jax.lax.stop_gradient(entropy.sum()), (logp, entropy)

    (got, scores), gradients = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(hidden, head)
    (wanted, expected), others = jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))(hidden, head)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    for mine, theirs in zip(scores, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)  # bfloat16 inputs, float32 logits
    for mine, theirs in zip(gradients, others, strict=True):
        assert mine.dtype == dtype
        mine, theirs = np.float32(mine), np.float32(theirs)
        rounding = 1e-5 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(mine, theirs, atol=rounding * np.abs(theirs).max())


def test_log_probabilities_equal_whole_logits_of_plain_rows(setting, logprobs):
    wanted = setting.truth[2].reshape(len(PROMPTS), GROUP, -1)
    np.testing.assert_allclose(logprobs, setting.rows.by_sequence(wanted), atol=1e-5)
    assert wanted.min() < -8  # spread wide enough for the tolerance to mean something


@pytest.fixture(scope="module")
def repeated_logprobs(setting):
    return np.asarray(logprobs_fn()(setting.reference.ours, setting.repeated))


def test_a_prompt_for_each_response_is_the_same(setting, repeated_logprobs):
    assert not (setting.repeated.inputs.text.continuation_ids > 1).any()
    wanted = setting.truth[2].reshape(len(PROMPTS), GROUP, -1)
    np.testing.assert_allclose(repeated_logprobs, setting.repeated.by_sequence(wanted), atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_equal_transformers(setting, logprobs, temperature):
    """Those of what is sampled: of the logits by the temperature."""
    if temperature != 1:
        at = functools.partial(response_logprobs, temperature=temperature)
        logprobs = np.asarray(jax.jit(at)(setting.reference.ours, setting.rows))
    logits = torch.from_numpy(setting.reference.logits(setting.inputs)) / temperature
    ids = torch.from_numpy(setting.inputs["input_ids"])
    logp = torch.log_softmax(logits[:, :-1], -1).gather(2, ids[:, 1:, None])[..., 0].numpy()
    for number, (row, prompt) in enumerate(zip(logp, np.repeat(range(5), GROUP), strict=True)):
        response = setting.responses[prompt][number % GROUP]
        total = int(setting.inputs["attention_mask"][number].sum())
        where = (setting.rows.sequence == [prompt, number % GROUP]).all(-1)
        theirs = row[total - 1 - len(response) : total - 1]
        np.testing.assert_allclose(logprobs[where][0, : len(response)], theirs, atol=1e-4 / temperature)


# --- the update ---


def micro_batches(batch):
    return map_arrays(lambda a: a.reshape(MICRO, ROWS // MICRO, *a.shape[1:]), batch)


def make_step(model, batch):
    """Returns a compiled step whose optimizer only keeps the gradient, as its state, and the first state."""
    optimizer = optax.GradientTransformation(
        init=lambda model: jax.tree.map(jnp.zeros_like, model),
        update=lambda grads, state, model: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    state = init_state(jax.tree.map(jnp.copy, model), optimizer)
    loss_fn = functools.partial(gspo_objective, kl_coef=KL)
    return make_train_step(loss_fn, optimizer, sequence_counts).lower(state, batch).compile(FUSED), state


@pytest.fixture(scope="module")
def one_device(setting, logprobs):
    batch = micro_batches(setting.batch(setting.rows, logprobs, setting.noise))
    step, state = make_step(setting.reference.ours, batch)
    return step, jax.tree.map(np.asarray, state)


def check_against_truth(setting, state, metrics):
    """Every gradient within 1e-5 of its largest value."""
    loss, gradients, _ = setting.truth
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    wanted, got = model_leaves(gradients), model_leaves(jax.device_get(state.opt_state))
    errors = {name: np.abs(got[name] - leaf).max() / np.abs(leaf).max() for name, leaf in wanted.items()}
    assert max(errors.values()) <= 1e-5, sorted(errors.items(), key=lambda item: -item[1])[:9]


def test_gradients_equal_those_of_repeated_prompts(setting, logprobs, one_device):
    """Two micro-batches of packed rows, most of the second one's empty; one response is masked."""
    batch = setting.batch(setting.rows, logprobs, setting.noise)
    step, state = one_device
    state, metrics = step(jax.tree.map(jnp.array, state), micro_batches(batch))
    check_against_truth(setting, state, metrics)
    real = setting.rows.sequence[..., 0] >= 0
    assert metrics["sequences"] == real.sum() == 15 and metrics["scored_sequences"] == 14
    assert metrics["tokens"] == setting.mask.sum()
    mean = flat(np.where(setting.mask, setting.noise[..., 0], 0)).sum(1) / flat(setting.mask).sum(1).clip(1)
    s, advantages = np.exp(mean), flat(setting.advantages)
    clipped = ((s > 1 + 4e-4) & (advantages > 0)) | ((s < 1 - 3e-4) & (advantages < 0))
    scored = flat(setting.mask).any(1)
    assert metrics["clip_fraction"] == pytest.approx((clipped & scored).sum() / 15) and clipped.sum() >= 2
    assert metrics["ratio"] == pytest.approx(s[scored].mean(), abs=1e-6)
    assert metrics["ratio_spread"] == pytest.approx(np.abs(s - 1)[scored].mean(), abs=1e-6)
    assert metrics["kl"] > 0 and metrics["approx_kl"] > 0


def test_gradients_of_repeated_rows(setting, repeated_logprobs, one_device):
    """The same program without sharing; what is repeated is the prompt alone."""
    step, state = one_device
    batch = micro_batches(setting.batch(setting.repeated, repeated_logprobs, setting.noise))
    check_against_truth(setting, *step(jax.tree.map(jnp.array, state), batch))


def test_gradients_on_eight_devices(setting, logprobs):
    batch = micro_batches(setting.batch(setting.rows, logprobs, setting.noise))
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model = jax.device_put(setting.reference.ours, parameter_shardings(setting.reference.ours, mesh))
    by_row = NamedSharding(mesh, PartitionSpec(None, *batch_sharding(mesh).spec))
    with use_mesh(mesh):
        batch = jax.device_put(batch, by_row)
        assert len(batch.response_ids.sharding.device_set) == 8
        step, state = make_step(model, batch)
        state, metrics = jax.device_get(step(state, batch))
    check_against_truth(setting, state, metrics)


def test_the_first_minibatch_is_on_policy_and_the_second_is_not(setting, logprobs, one_device):
    batch = setting.batch(setting.rows, logprobs, np.zeros_like(setting.noise))
    # So that each group's advantages add up to 0:
    batch = dataclasses.replace(batch, response_mask=setting.rows.response_mask)
    step, state = one_device
    state, first = step(jax.tree.map(jnp.array, state), micro_batches(batch))
    assert abs(first["ratio"] - 1) <= 1e-6 and first["ratio_spread"] <= 1e-6
    assert abs(first["loss"]) <= 1e-6 and first["clip_fraction"] == 0
    moved = jax.tree.map(lambda a, g: a - LEARNING_RATE * g, state.model, state.opt_state)
    _, second = step(dataclasses.replace(state, model=moved), micro_batches(batch))
    assert second["ratio_spread"] > 1e-3 and second["clip_fraction"] > 0.2
    assert second["loss"] < -1e-5 and second["kl"] > 1e-6


def test_on_policy_gradient_by_log_probability(setting, logprobs, monkeypatch):
    """-A / (number of responses x |y|) at each token, whatever the rows."""
    batch = setting.batch(setting.rows, logprobs, np.zeros_like(setting.noise))
    monkeypatch.setattr(update, "_response_scores", lambda logp, *rest: (logp, jnp.zeros_like(logp)))
    counts = sequence_counts(batch)
    got = jax.grad(lambda logp: gspo_objective(logp, batch, counts)[0])(jnp.asarray(logprobs))
    each = -setting.advantages / 15 / setting.mask.sum(-1).clip(1)
    wanted = batch.by_sequence(np.where(setting.mask, each[..., None], 0))
    np.testing.assert_allclose(got, wanted, atol=1e-7)
    # The published ratio needs none; for the others there is no default.
    batch = dataclasses.replace(batch, logp_old=None)
    same = jax.grad(lambda logp: gspo_objective(logp, batch, counts, ratio="one")[0])(jnp.asarray(logprobs))
    np.testing.assert_allclose(same, wanted, atol=1e-7)
    with pytest.raises(ValueError, match="logp_old"):
        gspo_objective(jnp.asarray(logprobs), batch, counts)
