"""Supervised fine-tuning: loss, step and packed rows, each against a second way to get it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from data_pipelines.rows.settings import RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from o3jax.errors import UserError
from o3jax.hf import config_from_hf, load_weights
from o3jax.hf.names import model_leaves
from o3jax.inputs.collate import collate
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import Batch, SupervisedBatch, TextRow, map_arrays, stack
from o3jax.models.qwen3_vl import abstract_model
from o3jax.models.runtime import Runtime
from o3jax.prompts import templates
from o3jax.prompts.tokenizer import number_tokens
from o3jax.sft.text import number_targets, text_loss, token_counts
from o3jax.train.optimizer import learning_rate
from o3jax.train.state import TrainState, make_train_step
from o3jax.train.token_loss import IGNORE, cross_entropy, token_logprobs
from tests.support.clips import sampled

LENGTH, GROUPS, PATCHES = 384, 3, 16  # of every row here, so that programs are shared
ONE = {"text": 1.0}  # counts that leave a sum what it is


@pytest.fixture(scope="module")
def setting(video_model):
    """The tiny model, its processor and a maker of rows."""
    processor = load_processor(video_model)
    model = load_weights(video_model, config_from_hf(video_model))
    return model, processor, MakeRow(processor, model.config, RowShape(LENGTH, GROUPS, PATCHES))


@pytest.fixture(scope="module")
def packed(setting):
    """A clip with three questions, and its row."""
    clip = SyntheticClips("train", 1, questions=3)[0]
    return clip, setting[2].map(clip)


def sums_and_gradients(remat):
    """Returns a compiled (model, batch) -> ((summed loss, sums), gradients)."""
    fn = jax.value_and_grad(
        functools.partial(text_loss, counts=ONE, runtime=Runtime(remat=remat)), has_aux=True
    )
    return functools.cache(lambda: jax.jit(fn))()


@pytest.fixture(scope="module")
def plain_gradients():
    return sums_and_gradients("none")


def arrays(model):
    """Returns the leaves as float64 numpy arrays by their path."""
    return {name: np.float64(leaf) for name, leaf in model_leaves(model).items()}


def assert_close(got, expected, tolerance):
    """Every leaf within `tolerance` of the largest value of its counterpart."""
    got, expected = arrays(got), arrays(expected)
    assert got.keys() == expected.keys()
    for name, leaf in expected.items():
        scale, error = np.abs(leaf).max(), np.abs(got[name] - leaf).max()
        assert scale > 0 and error <= tolerance * scale, (name, error, scale)


def as_batch(rows):
    return stack(rows)


# --- cross entropy ---


def torch_cross_entropy(hidden, head, labels, targets=None):
    """Returns (loss, correct, tokens, gradients) in float64, with the logits held whole."""
    x, w = (torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in (hidden, head))
    labels = torch.from_numpy(labels.astype(np.int64))
    logits = (x @ w)[labels != IGNORE]
    wanted = labels[labels != IGNORE]
    hard_or_soft = wanted if targets is None else torch.from_numpy(targets.astype(np.float64))[wanted]
    loss = torch.nn.functional.cross_entropy(logits, hard_or_soft, reduction="sum")
    loss.backward()
    correct = int((logits.argmax(-1) == wanted).sum())
    return loss.item(), correct, len(wanted), [x.grad.numpy(), w.grad.numpy()]


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((2, 17, 8)).astype(np.float32)
    head = rng.standard_normal((8, 23)).astype(np.float32)
    labels = rng.integers(0, 23, (2, 17)).astype(np.int32)
    labels[:, 4:7] = labels[1, 12:] = IGNORE
    labels[0, :4] = (hidden[0, :4] @ head).argmax(-1)  # so that some are correct
    return hidden, head, labels


@pytest.mark.parametrize(("chunk", "soft"), [(3, False), (128, False), (4, True)])
def test_cross_entropy_equals_torch(tokens, chunk, soft):
    hidden, head, labels = tokens
    targets = number_targets(23, [({i: float(i) for i in range(9)}, 1.5)]) if soft else None
    loss, correct, count, gradients = torch_cross_entropy(hidden, head, labels, targets)

    def summed(hidden, head):
        sums = cross_entropy(hidden, head, jnp.asarray(labels), soft_targets=targets, chunk=chunk)
        return sums["loss"] / 8, sums  # divided, as by the number of tokens

    fn = jax.jit(jax.value_and_grad(summed, (0, 1), has_aux=True))
    (got, sums), ours = fn(hidden, head)
    np.testing.assert_allclose(8 * got, loss, rtol=1e-6)
    assert (int(sums["correct"]), int(sums["tokens"])) == (correct, count) and correct >= 4
    for mine, theirs in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(8 * mine, theirs, atol=1e-5 * np.abs(theirs).max())


def test_the_head_keeps_its_precision(tokens):
    hidden, head, labels = tokens
    low = jnp.asarray(head, jnp.bfloat16)

    def loss(hidden, head):
        return cross_entropy(hidden, head, jnp.asarray(labels), chunk=3)["loss"]

    got = jax.jit(jax.grad(loss, (0, 1)))(jnp.asarray(hidden), low)
    assert [gradient.dtype for gradient in got] == [jnp.float32, jnp.bfloat16]
    *_, wanted = torch_cross_entropy(hidden, np.asarray(low, np.float32), labels)
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine.astype(np.float32), theirs, atol=1e-2 * np.abs(theirs).max())


def test_nothing_labelled_costs_nothing(tokens):
    hidden, head, _ = tokens
    nothing = jnp.full((2, 17), IGNORE, jnp.int32)

    def summed(hidden):
        sums = cross_entropy(hidden, jnp.asarray(head), nothing)
        return sums["loss"], sums

    (_, sums), gradient = jax.jit(jax.value_and_grad(summed, has_aux=True))(hidden)
    assert {name: float(value) for name, value in sums.items()} == {"loss": 0, "correct": 0, "tokens": 0}
    assert not np.asarray(gradient).any()


LONG, WORDS = 2048, 999  # positions, and a vocabulary whose size nothing else has


def made(jaxpr) -> Iterator[tuple[int, ...]]:
    """Yields the shape of every array that a program makes, those within its loops and calls too."""
    for equation in jaxpr.eqns:
        yield from (var.aval.shape for var in equation.outvars if hasattr(var.aval, "shape"))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from made(inner)


def largest_of_words(fn, *args) -> int:
    """Returns the size of the largest array over the vocabulary, alone or in a product with positions."""
    shapes = set(made(jax.make_jaxpr(fn)(*args).jaxpr))
    return max(math.prod(shape) for shape in shapes if any(n % WORDS == 0 for n in shape if n))


@jax.checkpoint  # so that only who looks inside finds them
def whole_logits(hidden, head, labels):
    logp = jax.nn.log_softmax(hidden @ head)
    return -jnp.take_along_axis(logp, jnp.maximum(labels, 0)[..., None], 2).sum()


WITHOUT_LOGITS = {
    "cross_entropy": lambda *xs: cross_entropy(*xs)["loss"],
    "softened": lambda *xs: cross_entropy(*xs, soft_targets=np.eye(WORDS, dtype=np.float32))["loss"],
    "token_logprobs": lambda *xs: token_logprobs(*xs)[0].sum(),
}


@pytest.mark.parametrize("loss", WITHOUT_LOGITS.values(), ids=WITHOUT_LOGITS)
def test_logits_exist_for_one_chunk_at_a_time(loss):
    shapes = (1, LONG, 4), (4, WORDS)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jax.ShapeDtypeStruct((1, LONG), jnp.int32)
    for differentiated in (lambda f: f, lambda f: jax.grad(f, (0, 1))):
        assert largest_of_words(differentiated(loss), *args, labels) == 64 * WORDS
        assert largest_of_words(differentiated(whole_logits), *args, labels) == LONG * WORDS


def test_training_on_text_never_holds_the_logits_of_a_row(setting):
    config = setting[0].config
    model = abstract_model(
        dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=WORDS))
    )
    row = jax.ShapeDtypeStruct((1, LONG), jnp.int32)
    positions = jax.ShapeDtypeStruct((1, 3, LONG), jnp.int32)
    batch = SupervisedBatch(Batch(TextRow(row, row, positions, row)), labels=row)

    def naive(model, batch):
        return whole_logits(model.hidden(batch.inputs.text, None), model.text.head(), batch.labels)

    table = config.text.hidden_size * WORDS  # the embeddings
    for remat in ("none", "names"):
        loss = functools.partial(text_loss, counts=ONE, runtime=Runtime(remat=remat))
        held = largest_of_words(jax.grad(loss, has_aux=True), model, batch)
        assert held == max(table, 64 * WORDS) < LONG * WORDS
    assert largest_of_words(jax.grad(naive), model, batch) == LONG * WORDS


def test_number_targets_are_bells_over_their_own_kind():
    times, integers = {3: 0.5, 5: 1.5, 8: 1.0}, {1: 10.0, 2: 20.0}
    table = number_targets(10, [(times, 0.5), (integers, 0.0)])
    np.testing.assert_allclose(table.sum(1), 1, rtol=1e-6)
    one, two = math.exp(-0.5), math.exp(-2)  # one and two deviations away
    np.testing.assert_allclose(table[3, [3, 8, 5]], np.array([1, one, two]) / (1 + one + two), rtol=1e-6)
    np.testing.assert_allclose(table[8, [3, 8, 5]], np.array([one, 1, one]) / (1 + 2 * one), rtol=1e-6)
    others = [i for i in range(10) if i not in times]
    np.testing.assert_array_equal(table[others], np.eye(10)[others])
    assert not table[np.ix_(list(times), others)].any()
    np.testing.assert_array_equal(number_targets(10, [(times, 0.0), ({}, 1.0)]), np.eye(10))


def test_softening_ranks_near_numbers_before_far_ones(setting):
    times = number_tokens(setting[1].tokenizer).times
    assert len(times) == 300
    table = number_targets(len(setting[1].tokenizer), [(times, 0.1)])
    token = {value: i for i, value in times.items()}
    row = table[token[2.0]]
    assert row[token[2.0]] > row[token[2.1]] > row[token[2.3]] > 0
    assert row[token[2.1]] == pytest.approx(row[token[1.9]], rel=1e-5)


# --- rows ---


def test_labels_are_exactly_the_responses(setting, packed):
    _, processor, _ = setting
    clip, row = packed
    end = processor.tokenizer.eos_token
    for continuation, sample in enumerate(clip.samples, start=1):
        mine = row.inputs.text.continuation_ids == continuation
        labels = row.labels[mine]
        said = processor.decode(labels[labels != IGNORE], skip_special_tokens=False)
        assert said == templates.response(sample) + end
        # Each label is the next token of its branch; the last of a branch has none.
        ids, known = row.inputs.text.input_ids[mine], labels[:-1] != IGNORE
        np.testing.assert_array_equal(labels[:-1][known], ids[1:][known])
        assert labels[-1] == IGNORE
        prompt = processor.decode(ids[: np.argmax(labels != IGNORE) + 1], skip_special_tokens=False)
        assert prompt.endswith(f"{sample.question}<|im_end|>\n<|im_start|>assistant\n")
    assert (row.labels[row.inputs.text.continuation_ids == 0] == IGNORE).all()


def row_of_its_own(setting, clip, sample):
    """Returns the row of one question, made by the processor's plain call on the whole text."""
    model, processor, _ = setting
    prompt = processor.apply_chat_template(templates.messages(sample.question, "plain"))
    frames, metadata = sampled(clip, processor)
    response = templates.response(sample) + processor.tokenizer.eos_token
    inputs = processor(text=[prompt + response], videos=[frames], video_metadata=[metadata])
    batch = collate(inputs, model.config, length=LENGTH, frame_pairs=GROUPS, patches=PATCHES)
    labels = np.full((1, LENGTH), IGNORE, np.int32)
    ids = inputs["input_ids"][0]
    count = len(processor.tokenizer(response)["input_ids"])
    labels[0, len(ids) - count - 1 : len(ids) - 1] = ids[-count:]
    text = dataclasses.replace(batch.text, continuation_ids=np.zeros((1, LENGTH), np.int32))
    return SupervisedBatch(dataclasses.replace(batch, text=text), labels)


def test_a_packed_row_equals_its_questions_asked_alone(setting, packed, plain_gradients):
    model, processor, _ = setting
    clip, row = packed
    assert row.inputs.patches.values.dtype == np.uint8
    # The processor's call normalises the patches on the host, rows leave it to the model.
    for continuation, sample in enumerate(clip.samples, start=1):
        labels = np.where(row.inputs.text.continuation_ids == continuation, row.labels, IGNORE)
        batch, other = (
            as_batch([dataclasses.replace(row, labels=labels)]),
            row_of_its_own(setting, clip, sample),
        )
        (loss, _), gradients = plain_gradients(model, batch)
        (alone, _), expected = plain_gradients(model, other)
        assert token_counts(batch)["text"] == token_counts(other)["text"] == (labels != IGNORE).sum()
        np.testing.assert_allclose(loss, alone, rtol=1e-5)
        assert_close(gradients, expected, 1e-5)


def test_a_row_too_long_is_refused(setting, packed):
    small = MakeRow(setting[1], setting[0].config, RowShape(100, GROUPS, PATCHES))
    with pytest.raises(UserError, match="more than the 100 of a row: raise config.row_length"):
        small.map(packed[0])


# --- the step ---


@pytest.mark.parametrize("remat", ["full", "names", "offload"])
def test_rematerialisation_changes_no_gradient(setting, packed, plain_gradients, remat):
    batch = as_batch([packed[1]])
    (loss, _), expected = plain_gradients(setting[0], batch)
    (got, _), gradients = sums_and_gradients(remat)(setting[0], batch)
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    assert_close(gradients, expected, 1e-5)


def keep_gradients():
    """Returns an optimizer that changes nothing; its state is the last gradient."""
    return optax.GradientTransformation(
        init=lambda model: model,
        update=lambda grads, state, model: (jax.tree.map(jnp.zeros_like, grads), grads),
    )


@pytest.fixture(scope="module")
def uneven(setting):
    """Four rows with one, two, three and no questions that count."""
    rows = [setting[2].map(SyntheticClips("train", 1, questions=max(n, 1))[n]) for n in (1, 2, 3, 0)]
    rows[-1] = dataclasses.replace(rows[-1], labels=np.full_like(rows[-1].labels, IGNORE))
    assert len({int((row.labels != IGNORE).sum()) for row in rows}) == 4
    return as_batch(rows)


def test_accumulation_equals_the_large_batch(setting, uneven):
    model = setting[0]
    results = []
    for steps in (4, 1):
        batch = map_arrays(lambda a, n=steps: a.reshape(n, 4 // n, *a.shape[1:]), uneven)
        optimizer = keep_gradients()
        state = TrainState(np.int32(0), jax.tree.map(np.array, model), jax.tree.map(np.zeros_like, model))
        step = make_train_step(text_loss, optimizer, token_counts).lower(state, batch).compile()
        state, metrics = step(state, batch)
        assert int(state.step) == 1
        assert metrics["tokens"] == (uneven.labels != IGNORE).sum()
        results.append((state.opt_state, metrics))
    (accumulated, metrics), (whole, expected) = results
    for name in ("loss", "accuracy", "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)
    for name, leaf in arrays(whole).items():  # what float32 sums in another order leave
        assert np.linalg.norm(arrays(accumulated)[name] - leaf) <= 3e-6 * np.linalg.norm(leaf), name


def test_unknown_names_are_errors(setting, packed):
    model, batch = setting[0], as_batch([packed[1]])
    with pytest.raises(UserError, match="'step'; choose one of constant, linear, cosine"):
        learning_rate("step", 1.0, 10)
    with pytest.raises(ValueError, match="unknown remat policy 'some'"):
        jax.eval_shape(functools.partial(text_loss, counts=ONE, runtime=Runtime(remat="some")), model, batch)
    with pytest.raises(ValueError, match="unknown attention kernel 'flash'; available: cudnn"):
        jax.eval_shape(
            functools.partial(text_loss, counts=ONE, runtime=Runtime(kernel="flash")), model, batch
        )
