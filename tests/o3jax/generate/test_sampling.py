"""Filters against transformers' own, frequencies against exact probabilities, keys and stop strings."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation import logits_process as theirs

from o3jax.errors import UserError
from o3jax.generate.sampling import Sampling, StopStrings, draw, filtered, sample_keys

WORDS = 16
LOGITS = st.lists(st.integers(-60, 60), min_size=WORDS, max_size=WORDS, unique=True)
SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_p=st.one_of(st.just(1.0), st.floats(0, 1)),
    top_k=st.sampled_from([0, 1, 5, WORDS, 40]),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
)


def by_transformers(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """Returns what transformers' generate would draw from, in its order."""
    steps = [theirs.TemperatureLogitsWarper(float(s.temperature))]
    if s.top_k:
        steps.append(theirs.TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        steps.append(theirs.TopPLogitsWarper(s.top_p))
    if s.min_p:
        steps.append(theirs.MinPLogitsWarper(s.min_p))
    scores = torch.from_numpy(np.atleast_2d(logits))
    for step in steps:
        scores = step(None, scores)
    return scores.numpy().reshape(logits.shape)


@settings(max_examples=150, deadline=None)
@given(LOGITS, SETTINGS)
@example(list(range(WORDS)), Sampling(1.0, 0.0, 0, 0.0))  # nothing but the best
@example(list(range(WORDS)), Sampling(1.0, 1.0, 0, 1.0))
@example([10 * i for i in range(-6, 10)], Sampling(2.5, 0.9, 5, 0.05))  # each filter takes something away
def test_filters_are_those_of_transformers(values, s):
    logits = np.array(values) / 10
    expected = by_transformers(logits, s)
    for step in (-1e-5, 1e-5):  # not where a rounding error decides
        top_p = min(1.0, max(0.0, s.top_p + step)) if s.top_p < 1 else 1.0
        near = dataclasses.replace(s, top_p=top_p, min_p=min(1.0, s.min_p * (1 + step)))
        assume((np.isinf(by_transformers(logits, near)) == np.isinf(expected)).all())
    ours = filtered(jnp.asarray(logits, jnp.float32), s)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_equal_tokens_stay_or_go_together():
    logits = jnp.log(jnp.array([0.1, 0.3, 0.3, 0.3]))
    for s in (Sampling(top_k=2), Sampling(top_p=0.5), Sampling(min_p=0.9)):
        assert np.isfinite(filtered(logits, s)).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    "s", [Sampling(), Sampling(0.7, 0.9, 8, 0.0), Sampling(1.5, min_p=0.1)], ids=["plain", "top", "min_p"]
)
def test_frequencies_are_the_probabilities(s):
    logits = np.random.default_rng(1).normal(0, 1.5, WORDS).astype(np.float32)
    keys = sample_keys(jax.random.key(0), jnp.arange(4), 2500)
    tokens, logprobs = draw(jnp.broadcast_to(logits, (4, 1, WORDS)), keys, jnp.arange(4), s)
    kept = by_transformers(logits.astype(np.float64), s)
    probabilities = np.exp(kept - kept.max()) / np.exp(kept - kept.max()).sum()
    counts = np.bincount(np.ravel(tokens), minlength=WORDS)
    assert not counts[probabilities == 0].any()
    there = probabilities > 0
    assert 3 <= there.sum() and chisquare(counts[there], 10_000 * probabilities[there]).pvalue > 0.01
    own = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    np.testing.assert_allclose(logprobs, own[np.asarray(tokens)], atol=1e-6)


def test_temperature_zero_takes_the_best_whatever_the_filters():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4, WORDS)), jnp.float32)
    keys = sample_keys(jax.random.key(0), jnp.arange(3), 4)
    tokens, _ = draw(logits, keys, jnp.zeros(3, int), Sampling(0.0, top_p=0.5, top_k=3))
    np.testing.assert_array_equal(tokens, logits.argmax(-1))


def test_every_prompt_sample_and_step_has_noise_of_its_own():
    """Equal logits: what is drawn is the noise. Two draws that shared a key would be the same."""
    keys = sample_keys(jax.random.key(3), jnp.array([0, 1, 2, 7]), 5)
    drawn = [draw(jnp.zeros((4, 1, 10_000)), keys, jnp.full(4, step), Sampling())[0] for step in range(6)]
    assert len(np.unique(drawn)) >= 6 * 4 * 5 - 3  # 120 of 10,000: a coincidence or two
    alone = sample_keys(jax.random.key(3), jnp.array([7]), 2)
    np.testing.assert_array_equal(jax.random.key_data(alone[0]), jax.random.key_data(keys[3, :2]))


TEXT = st.text("ab<>", max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, max_size=12), st.lists(st.text("ab<>", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_stop_string_ends_with_the_token_that_completes_it(pieces, strings):
    stop = StopStrings(tuple(strings), lambda tokens: "".join(pieces[t] for t in tokens))
    ends = [
        count
        for count in range(len(pieces) + 1)
        if any(string in "".join(pieces[:count]) for string in strings)
    ]
    assert stop.length(np.arange(len(pieces))) == (min(ends) if ends else None)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": -0.1}],
)
def test_impossible_settings_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)


@pytest.mark.parametrize("strings", [("",), "abc"])
def test_stop_strings_must_be_some(strings):
    with pytest.raises(UserError, match="stop strings"):
        StopStrings(strings, str)
