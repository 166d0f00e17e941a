"""Groups of samples against a sampler that has no cache: every step a whole forward pass of the trainer's
graph; and what sharing must not change: slots, windows, neighbours, padding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from experiments.flops import flops
from o3jax.errors import UserError
from o3jax.generate import group
from o3jax.generate.cache import prefill
from o3jax.generate.group import Rollouts, sample_groups
from o3jax.generate.sampler import Ending, greedy
from o3jax.generate.sampling import Sampling, StopStrings
from o3jax.inputs.collate import collate
from o3jax.models.batch import map_arrays, take
from o3jax.models.text import for_decoding
from tests.o3jax.generate.test_sampling import by_transformers
from tests.support.batches import changed
from tests.support.tiny import make_inputs

G, T, PAD = 4, 20, 0
# A video each, of different grids, in prompts of different lengths.
ROWS = [
    [3, (4, 6), 5, (2, 6, 4), 2],
    [30, (1, 2, 4)],
    [4, (1, 10, 12), 7, (4, 4), 3],
]
ENDS = tuple(range(1, 16))  # of 320 tokens: some samples end early, some never
FILTERS = Sampling(0.9, top_p=0.95, top_k=40, min_p=0.02)


@pytest.fixture(scope="module")
def models(tiny):
    """The model as the trainer has it, and as generation wants it."""
    trainer = jax.tree.map(lambda a: a, tiny("dense").ours)
    # Logits of a standard deviation of 1.5: in float32, an error grows with them.
    trainer.text.lm_head = jax.tree.map(lambda head: head / 2, trainer.text.lm_head)
    decoder = jax.tree.map(lambda a: a, trainer)
    decoder.text.layers = for_decoding(decoder.text.layers)
    return trainer, decoder


@pytest.fixture(scope="module")
def batch(models):
    return collate(make_inputs(ROWS), models[0].config)


@pytest.fixture(scope="module")
def sample(models, batch):
    """A function that samples from the prompts; its keywords change what is asked for."""

    def run(prompts=batch, model=models[1], **changes) -> Rollouts:
        asked = {"group_size": G, "max_new_tokens": T, "eos_ids": ENDS, "pad_id": PAD}
        return sample_groups(model, prompts, jax.random.key(5), **asked | changes)

    return run


@pytest.fixture(scope="module")
def rollouts(sample):
    return sample()


@pytest.fixture(scope="module")
def forward(models):
    """A function from tokens [B, G, T] behind the prompts to log-probabilities [B, G, T, V], float64, of
    the token at each place: one pass of the trainer's graph, the prompt repeated for each sample."""
    inputs = make_inputs(ROWS)
    sizes = inputs["attention_mask"].sum(1)
    for key in ("input_ids", "attention_mask"):
        inputs[key] = np.pad(inputs[key], ((0, 0), (0, T)))
    for row, size in enumerate(sizes):
        inputs["attention_mask"][row, size : size + T] = 1
    rows = map_arrays(lambda a: np.repeat(a, G, axis=0), collate(inputs, models[0].config))
    slots = np.repeat(sizes, G)[:, None] + np.arange(T)

    @jax.jit
    def logits(model, batch):
        hidden = model.hidden(batch.text, model.encode_visuals(batch))
        return model.logits(jnp.take_along_axis(hidden, slots[..., None] - 1, axis=1))

    def run(tokens):
        filled = rows.text.input_ids.copy()
        np.put_along_axis(filled, slots, tokens.reshape(-1, T), axis=1)
        out = np.asarray(logits(models[0], changed(rows, {"text.input_ids": filled})), np.float64)
        return scipy.special.log_softmax(out, axis=-1).reshape(len(ROWS), G, T, -1)

    return run


def naive(forward, sampling) -> Rollouts:
    """Returns what a sampler without a cache draws: token by token, each from a whole forward pass."""

    @jax.jit
    def noise(*numbers):
        key = functools.reduce(jax.random.fold_in, numbers, jax.random.key(5))
        return jax.random.gumbel(key, (320,))

    tokens = np.full((len(ROWS), G, T), PAD, np.int32)
    length, finished = np.zeros((len(ROWS), G), int), np.zeros((len(ROWS), G), bool)
    logprobs = np.zeros(tokens.shape)
    for step in range(T):
        logp = forward(tokens)[:, :, step]
        for row, s in zip(*np.nonzero(~finished), strict=True):
            scores = by_transformers(logp[row, s], sampling)
            tokens[row, s, step] = chosen = np.argmax(scores + np.asarray(noise(row, s, step)))
            logprobs[row, s, step] = logp[row, s, chosen]
            length[row, s], finished[row, s] = step + 1, chosen in ENDS
    return Rollouts(tokens, logprobs, length, finished)


def assert_same(ours: Rollouts, expected: Rollouts) -> None:
    np.testing.assert_array_equal(ours.tokens, expected.tokens)
    np.testing.assert_array_equal(ours.length, expected.length)
    np.testing.assert_array_equal(ours.finished, expected.finished)
    np.testing.assert_allclose(ours.logprobs, expected.logprobs, atol=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(), FILTERS], ids=["plain", "filtered"])
def test_tokens_are_those_of_a_naive_sampler(sample, forward, sampling):
    out = sample(sampling=sampling)
    assert_same(out, naive(forward, sampling))
    assert 0 < out.finished.sum() < out.finished.size and len(np.unique(out.length)) > 3
    assert len({tuple(tokens) for tokens in out.tokens.reshape(-1, T)}) == len(ROWS) * G


def test_logprobs_are_those_of_the_trainers_graph(rollouts, forward):
    """Teacher-forced, the prompt and its video repeated for each sample."""
    logp = np.take_along_axis(forward(rollouts.tokens), rollouts.tokens[..., None], -1)[..., 0]
    there = np.arange(T) < rollouts.length[..., None]
    assert rollouts.logprobs.dtype == np.float32 and there.sum() > 100
    np.testing.assert_allclose(rollouts.logprobs[there], logp[there], atol=1e-5)
    assert (rollouts.tokens[~there] == PAD).all() and (rollouts.logprobs[~there] == 0).all()


def test_padding_on_the_left_and_given_pixels_are_the_same(models, sample, rollouts):
    inputs = make_inputs(ROWS, left=True)
    padded = collate(inputs, models[0].config, length=80, frame_pairs=4, patches=128)
    visuals = jax.jit(models[0].encode_visuals)(padded)
    assert_same(sample(padded, visuals=visuals, slots=1), rollouts)


@pytest.mark.parametrize("window", [1, 5, 32])
@pytest.mark.parametrize("slots", [1, 2, 8])
def test_slots_and_windows_change_nothing(sample, rollouts, monkeypatch, slots, window):
    monkeypatch.setattr(group, "_WINDOW", window)
    assert_same(sample(slots=slots), rollouts)


def test_caches_that_grow_change_nothing(sample, rollouts, monkeypatch):
    monkeypatch.setattr(group, "_COLUMNS", 10)
    monkeypatch.setattr(group, "_WINDOW", 5)
    assert_same(sample(slots=2), rollouts)


@pytest.mark.parametrize("clock", [0, 3, 8, 13, 29])
@pytest.mark.parametrize("need, width", [(5, 5), (6, 10), (11, 20), (21, 24)])
def test_a_grown_cache_has_each_step_in_its_column(models, clock, need, width):
    """Filled with the number of the step that wrote each column, as a ring has them."""
    empty = jax.eval_shape(lambda: group.empty_slots(models[1], 1, 1, 8, 24))
    steps = np.full(5, -1)
    for step in range(clock):
        steps[step % 5] = step
    keys = tuple(jnp.broadcast_to(steps, (1, 1, 2, 32, 5)) for _ in empty.keys)
    values = tuple(jnp.broadcast_to(steps[:, None], (1, 1, 2, 5, 32)) for _ in empty.values)
    old = dataclasses.replace(empty, keys=keys, values=values, clock=jnp.int32(clock))
    new = group.with_columns(old, need)
    assert all(k.shape[-1] == width for k in new.keys)
    for step in range(max(0, clock - 5), clock):
        assert all((np.asarray(k)[..., step % width] == step).all() for k in new.keys)
        assert all((np.asarray(v)[..., step % width, :] == step).all() for v in new.values)


def test_neighbours_change_nothing(sample, batch, rollouts):
    """Fewer prompts, and the shortest first: the longest takes its place and goes on when all have ended."""
    for count in (1, 2):
        expected = jax.tree.map(lambda a, count=count: a[:count], rollouts)
        assert_same(sample(take(batch, slice(count)), slots=2), expected)
    prompts = take(batch, np.argsort(rollouts.length.max(1)))
    assert_same(sample(prompts, slots=2), sample(prompts))


def test_a_group_that_has_ended_keeps_its_tokens(sample, batch):
    """It stays in its slot as long as one that came later runs, which then writes where its tokens began."""
    asked = {"group_size": 2, "max_new_tokens": 6, "eos_ids": tuple(range(1, 110))}
    prompts = map_arrays(lambda array: np.repeat(array[1:2], 16, axis=0), batch)
    alone = sample(prompts, slots=1, **asked)
    # Two slots pass through all of them: some take the place of a short one and outlive the other.
    assert {2, 4, 6} <= set(alone.length.max(1).tolist())
    assert_same(sample(prompts, slots=2, **asked), alone)


def test_temperature_zero_is_greedy(sample, models, batch):
    out = sample(sampling=Sampling(0.0))
    expected = greedy(models[1], batch, Ending(T, ENDS, PAD))
    for s in range(G):
        np.testing.assert_array_equal(out.tokens[:, s], expected.tokens)
        np.testing.assert_array_equal(out.length[:, s], expected.length)
        np.testing.assert_allclose(out.logprobs[:, s], expected.logprobs, atol=1e-5)


@dataclasses.dataclass
class Calls:
    """What the device was asked for, and how many caches changed their place in memory meanwhile."""

    prefilled: int = 0
    steps: int = 0
    windows: int = 0
    moved: int = 0


@pytest.fixture
def calls(monkeypatch):
    counted = Calls()

    def prefilled(model, batch, *args):
        counted.prefilled += len(batch.text.input_ids)
        return prefill(model, batch, *args)

    def watched(original, at):
        def run(*args, **options):
            def caches(slots):
                return jax.tree.leaves((slots.prefix.keys, slots.prefix.values, slots.keys, slots.values))

            before, clock = caches(args[at]), int(args[at].clock)
            places = [a.unsafe_buffer_pointer() for a in before]
            after = original(*args, **options)
            counted.moved += sum(
                not old.is_deleted() or new.unsafe_buffer_pointer() != place
                for old, new, place in zip(before, caches(after), places, strict=True)
            )
            counted.steps += int(after.clock) - clock
            counted.windows += original is window
            return after

        return run

    window = group.decode_window
    monkeypatch.setattr(group, "prefill", prefilled)
    monkeypatch.setattr(group, "admit", watched(group.admit, 6))
    monkeypatch.setattr(group, "decode_window", watched(window, 2))
    return counted


@pytest.mark.parametrize("slots", [1, 3])
def test_a_prompt_is_prefilled_once_and_caches_stay_where_they_are(sample, rollouts, calls, slots):
    assert_same(sample(slots=slots), rollouts)
    assert calls.prefilled == len(ROWS) and calls.moved == 0
    longest = rollouts.length.max(1) - 1
    assert calls.steps == (longest.sum() if slots == 1 else longest.max())


def test_windows_end_when_every_sample_has(sample, models, calls):
    """A head that likes the end tokens: no sample needs all steps, and none are made that nobody needs."""
    eager = jax.tree.map(lambda a: a, models[1])
    eager.text.lm_head = jax.tree.map(lambda head: head.at[:, np.array(ENDS)].multiply(8), eager.text.lm_head)
    out = sample(model=eager)
    assert out.finished.all() and out.length.max() < T - 2
    assert calls.steps == out.length.max() - 1 and calls.windows == 1


def test_admission_costs_one_prompt_whatever_the_group(models, batch):
    """Operations of the jaxpr: the prefill of one prompt and the logits of its last token."""
    model, one = models[1], take(batch, slice(1))
    key, static = jax.random.key(0), {"sampling": Sampling(), "eos_ids": ENDS}

    def cost(samples):
        slots = jax.eval_shape(lambda: group.empty_slots(model, 2, samples, one.text.input_ids.shape[1], T))
        hidden, prefix = jax.eval_shape(lambda: prefill(model, one, 0))
        admit = functools.partial(group.admit, **static)
        return flops(admit, model, hidden, prefix, key, np.zeros(1, int), np.zeros(1, int), slots)

    head = 2 * model.text.lm_head[...].size
    assert cost(1) == cost(8) == head < flops(lambda m, b: prefill(m, b, 0), model, one) / 5


def test_samples_end_at_stop_strings_whatever_the_window(sample, rollouts, monkeypatch):
    """Each token is a word of three digits; the strings lie across two tokens."""

    def decode(tokens):
        return "".join(f"{token:03d}" for token in tokens)

    strings = (decode(rollouts.tokens[0, 0, 5:7])[1:5], decode(rollouts.tokens[2, 1, 2:4])[2:4])
    stop, expected = StopStrings(strings, decode), jax.tree.map(np.copy, rollouts)
    for at in np.ndindex(expected.length.shape):
        for count in range(1, rollouts.length[at] + 1):
            if any(string in decode(rollouts.tokens[at][:count]) for string in strings):
                expected.length[at], expected.finished[at] = count, True
                expected.tokens[at][count:], expected.logprobs[at][count:] = PAD, 0
                break
    assert (expected.length < rollouts.length).sum() >= 2
    for slots, window in ((3, 32), (1, 5), (2, 1)):
        monkeypatch.setattr(group, "_WINDOW", window)
        assert_same(sample(slots=slots, stop=stop), expected)


@pytest.mark.parametrize("wrong", ["group_size", "max_new_tokens", "slots"])
def test_wrong_arguments_are_named(sample, wrong):
    with pytest.raises(UserError, match=wrong):
        sample(**{wrong: 0})
