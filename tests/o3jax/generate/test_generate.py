"""Greedy generation against transformers' own, and the cache against a forward pass that has none."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from o3jax.generate.cache import extend, prefill
from o3jax.generate.sampler import Ending, Generated, greedy
from o3jax.inputs.collate import collate
from o3jax.models.batch import Batch
from o3jax.models.text import for_decoding, for_training
from tests.support.tiny import make_inputs, our_logits

NEW = 32
PAD = 0
# Images and videos of different grids, prompts of different lengths.
ROWS = [
    [3, (4, 6), 5, (2, 6, 4), 2],
    [40],
    [4, (1, 10, 12), 7, (4, 4), 3],
]


@pytest.fixture(scope="module")
def reference(tiny):
    """The tiny model; ours has its layers fused one by one, as generation wants them."""
    made = tiny("dense")
    ours = jax.tree.map(lambda a: a, made.ours)
    ours.text.layers = for_decoding(ours.text.layers)
    return dataclasses.replace(made, ours=ours)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_layers_come_back_from_decoding_bitwise(tiny, kind):
    layers = tiny(kind).ours.text.layers
    back = dict(jax.tree.leaves_with_path(for_training(for_decoding(layers))))
    assert back.keys() == dict(jax.tree.leaves_with_path(layers)).keys()
    for path, leaf in jax.tree.leaves_with_path(layers):
        np.testing.assert_array_equal(back[path], leaf, err_msg=str(path))


@pytest.fixture(scope="module")
def expected(reference) -> np.ndarray:
    """What transformers generates for the left-padded batch."""
    inputs = make_inputs(ROWS, left=True)
    reference.torch.model.rope_deltas = None
    tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
    with torch.no_grad():
        ids = reference.torch.generate(
            **tensors, do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=PAD
        )
    return ids[:, inputs["input_ids"].shape[1] :].numpy()


def generate(reference, inputs, eos_ids=(), **sizes) -> Generated:
    batch = collate(inputs, reference.config, **sizes)
    out = greedy(reference.ours, batch, Ending(NEW, eos_ids, PAD))
    return jax.tree.map(np.asarray, out)


@pytest.fixture(scope="module")
def generated(reference) -> Generated:
    """What we generate for the right-padded batch."""
    return generate(reference, make_inputs(ROWS))


def test_tokens_equal_transformers(expected, generated):
    assert expected.shape == (3, NEW) and len(np.unique(expected)) > 20
    np.testing.assert_array_equal(generated.tokens, expected)
    assert generated.length.tolist() == [NEW] * 3


def test_padding_on_the_left_and_in_buckets_is_the_same(reference, expected):
    out = generate(reference, make_inputs(ROWS, left=True), length=96, frame_pairs=4, patches=128)
    np.testing.assert_array_equal(out.tokens, expected)


def test_an_end_token_ends_its_row_only(reference, generated):
    """The first row ends early, the second with another end token, the third runs on."""
    tokens = generated.tokens
    others = set(tokens[2].tolist())
    stops = [
        next(i for i in range(start, NEW) if tokens[row, i] not in others) for row, start in ((0, 4), (1, 9))
    ]
    ends = tuple(int(tokens[row, stop]) for row, stop in enumerate(stops))
    out = generate(reference, make_inputs(ROWS), eos_ids=ends)
    for row in range(3):
        count = next((i + 1 for i, token in enumerate(tokens[row]) if token in ends), NEW)
        assert out.length[row] == count
        np.testing.assert_array_equal(out.tokens[row, :count], tokens[row, :count])
        np.testing.assert_allclose(out.logprobs[row, :count], generated.logprobs[row, :count], atol=1e-5)
        assert (out.tokens[row, count:] == PAD).all() and (out.logprobs[row, count:] == 0).all()
    assert out.length[0] < NEW and out.length[1] < NEW and out.length[2] == NEW


def test_generation_stops_when_every_row_has_ended(reference, generated, monkeypatch):
    """Counted by the calls of `extend` that really run."""
    steps = []

    def counted(model, tokens, cache, original=extend):
        jax.debug.callback(lambda: steps.append(1))
        return original(model, tokens, cache)

    monkeypatch.setattr("o3jax.generate.sampler.extend", counted)
    ends = tuple(np.unique(generated.tokens[:, 3]).tolist())
    out = generate(reference, make_inputs(ROWS), eos_ids=ends)
    jax.effects_barrier()
    assert out.length.max() <= 4 and len(steps) == out.length.max() - 1


def continued(reference, tokens) -> Batch:
    """Returns the right-padded batch of the prompts with each row's tokens behind, all of them text."""
    inputs = make_inputs(ROWS)
    slots = [size + np.arange(tokens.shape[1]) for size in inputs["attention_mask"].sum(1)]
    for key in ("input_ids", "attention_mask"):
        inputs[key] = np.pad(inputs[key], ((0, 0), (0, tokens.shape[1])))
    for row, where in enumerate(slots):
        inputs["attention_mask"][row, where] = 1
    batch = collate(inputs, reference.config)
    for row, where in enumerate(slots):  # afterwards, because a random model may say a placeholder
        batch.text.input_ids[row, where] = tokens[row]
    return batch


def test_logprobs_equal_those_of_a_full_forward_pass(reference, generated):
    logits = our_logits(reference.ours, continued(reference, generated.tokens))
    logp = np.asarray(jax.nn.log_softmax(logits))
    for row, size in enumerate(make_inputs(ROWS)["attention_mask"].sum(1)):
        at = size - 1 + np.arange(NEW)
        want = logp[row, at, generated.tokens[row]]
        np.testing.assert_allclose(generated.logprobs[row], want, atol=1e-4)
        np.testing.assert_array_equal(logp[row, at].argmax(-1), generated.tokens[row])


@pytest.mark.parametrize("left", [False, True])
def test_the_cache_equals_that_of_a_longer_prompt(reference, generated, left):
    """Prompt, then three tokens one by one, leaves what a prefill of everything leaves."""
    model, new = reference.ours, jnp.asarray(generated.tokens[:, :4])
    fill = jax.jit(prefill, static_argnums=2)
    step = jax.jit(extend)
    _, cache = fill(model, collate(make_inputs(ROWS, left=left), reference.config), 4)
    for token in new.T[:3]:
        hidden, cache = step(model, token, cache)
    expected, longer = fill(model, continued(reference, generated.tokens[:, :3]), 1)
    np.testing.assert_allclose(hidden, expected, atol=1e-4)
    np.testing.assert_array_equal(cache.position, longer.position)
    np.testing.assert_array_equal(cache.filled.sum(1), longer.filled.sum(1))
    # One token more reads all that both hold, whatever the slots and the layout.
    np.testing.assert_allclose(step(model, new.T[3], cache)[0], step(model, new.T[3], longer)[0], atol=1e-4)
