"""Texts that come and go are those that each prompt has alone, and as `greedy` writes them."""

from __future__ import annotations

import collections
import dataclasses

import jax
import numpy as np
import pytest

from o3jax.generate.cache import prefill, prefill_behind
from o3jax.generate.continuous import Choice, Continuous
from o3jax.generate.sampler import Ending, greedy, said
from o3jax.inputs.collate import collate
from o3jax.models.batch import TextRow
from o3jax.models.text import for_decoding
from tests.support.tiny import make_inputs

T, PAD, ENDS = 20, 0, tuple(range(1, 16))
ROWS = [[3, (4, 6), 5], [2, (4, 6)], [30, (4, 6)], [1, (4, 6), 2]]
LENGTHS = (16, 16, 48, 16)  # that they are padded to: the third does not fit where the first are


@pytest.fixture(scope="module")
def model(tiny):
    ours = jax.tree.map(lambda a: a, tiny("dense").ours)
    ours.text.lm_head = jax.tree.map(lambda head: head / 2, ours.text.lm_head)
    ours.text.layers = for_decoding(ours.text.layers)
    return ours


def prompts_of(model):
    return [
        collate(make_inputs([row], seed=number), model.config, length=length)
        for number, (row, length) in enumerate(zip(ROWS, LENGTHS, strict=True))
    ]


def run(model, prompts, choices, *, slots=3, steps=4, penalty=1.0):
    """Returns what each prompt is answered with; each begins when there is room."""
    texts = Continuous(model, slots, Ending(T, ENDS, PAD, penalty))
    waiting, owners, found = collections.deque(enumerate(prompts)), {}, {}
    while waiting or owners:
        while waiting and texts.free():
            number, prompt = waiting.popleft()
            hidden, cache = prefill(model, prompt, 0)
            there = None if penalty == 1 else said(prompt.text, model.config.text.vocab_size)
            owners[texts.begin(hidden, cache, there, choices[number])] = number
        for slot, text in texts.window(steps, 1 if waiting else len(owners)).items():
            count = int(text.length[0])
            if count >= T or int(text.tokens[0, count - 1]) in ENDS:
                found[owners.pop(slot)] = text.tokens[0, :count], texts.states(slot)[: count - 1]
                texts.end(slot)
    return [found[number] for number in range(len(prompts))]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_each_text_is_that_of_greedy_alone(model, penalty):
    prompts = prompts_of(model)
    found = run(model, prompts, [Choice()] * len(prompts), penalty=penalty)
    lengths = set()
    for (tokens, states), prompt in zip(found, prompts, strict=True):
        alone = greedy(model, prompt, Ending(T, ENDS, PAD, penalty))
        count = int(alone.length[0])
        lengths.add(count)
        np.testing.assert_array_equal(tokens, alone.tokens[0, :count])
        np.testing.assert_allclose(states, alone.states[0, : count - 1], rtol=2e-4, atol=2e-4)
    assert len(lengths) > 1 and T in lengths  # some end, some are cut off


def test_a_drawn_text_does_not_depend_on_its_neighbours(model):
    prompts = prompts_of(model)
    choices = [Choice(0.9, 0.8, 5), Choice(), Choice(1.3, 1.0, 6), Choice(0.9, 0.8, 7)]
    alone = [run(model, [p], [c], steps=T)[0][0] for p, c in zip(prompts, choices, strict=True)]
    together = run(model, prompts, choices)
    for (tokens, _), expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(tokens, expected)
    again = run(model, prompts[:1], [Choice(0.9, 0.8, 6)])[0][0]
    assert again.tolist() != alone[0].tolist()  # another seed


def test_a_nucleus_of_nothing_is_the_most_probable_token(model):
    prompts = prompts_of(model)[:2]
    drawn = run(model, prompts, [Choice(1.0, 1e-6, 3)] * 2)
    best = run(model, prompts, [Choice()] * 2)
    assert [tokens.tolist() for tokens, _ in drawn] == [tokens.tolist() for tokens, _ in best]


def test_what_is_drawn_follows_the_model(model):
    """First tokens of 400 seeds against the softmax of the logits at the temperature asked."""
    prompt = prompts_of(model)[0]
    hidden, cache = prefill(model, prompt, 0)
    logits = np.asarray(model.logits(hidden), np.float64)[0] / 0.8
    p = np.exp(logits - logits.max())
    p /= p.sum()
    counts = np.zeros(len(p))
    texts = Continuous(model, 3, Ending(T, ENDS, PAD))
    for seed in range(400):
        slot = texts.begin(hidden, cache, None, Choice(0.8, 1.0, seed))
        counts[int(texts._state.slots.tokens[slot, 0, 0])] += 1
        texts.end(slot)
    top = np.argsort(p)[-5:]
    error = np.sqrt(400 * p[top] * (1 - p[top]))
    assert (np.abs(counts[top] - 400 * p[top]) < 4 * error).all()


def test_a_prompt_in_two_parts_is_that_of_one(model):
    """Keys, values and the last state of what follows a prefix, which is padded, as of the whole prompt."""
    whole = prompts_of(model)[2]
    text, cut = jax.tree.map(np.asarray, whole.text), 20

    def part(start, stop, size):
        there = slice(start, stop)
        rows = {name: getattr(text, name)[..., there] for name in ("input_ids", "segment_ids", "positions")}
        pad = size - rows["input_ids"].shape[-1]
        rows = {n: np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, pad)]) for n, a in rows.items()}
        none = np.full((1, size), -1, np.int32)
        return TextRow(**rows, visual_index=none, next_position=text.next_position)

    count = int((text.segment_ids > 0).sum())
    assert (text.visual_index[0, cut:] >= 0).sum() == 6  # of the picture, which is at the end: without it
    count = int(np.flatnonzero(text.visual_index[0] >= 0)[0])
    alone = dataclasses.replace(whole, text=part(0, count, 48))
    hidden, cache = prefill(model, alone, 0)
    _, before = prefill(model, dataclasses.replace(whole, text=part(0, cut, 24)), 0)
    found, after = prefill_behind(model, part(cut, count, 32), before)
    np.testing.assert_allclose(found, hidden, rtol=1e-4, atol=1e-4)
    places = [*range(cut), *range(24, 24 + count - cut)]
    assert np.flatnonzero(after.filled[0]).tolist() == places
    for mine, theirs in zip(after.keys, cache.keys, strict=True):
        np.testing.assert_allclose(mine[..., places], theirs[..., :count], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(after.position, text.next_position)
