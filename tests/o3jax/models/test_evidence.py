"""The evidence modules on small shapes: masks, what the decoder can learn, and finite losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from o3jax.models.config import EvidenceConfig
from o3jax.models.evidence import (
    NEVER,
    DenseFeatures,
    EvidenceDecoder,
    QuestionEncoder,
    VisualTokens,
    nearest_pair,
)
from o3jax.models.layers import Initializer
from o3jax.sft.evidence import (
    EvidenceTargets,
    match_proposals,
    mention_counts,
    mention_loss,
    open_candidates,
    relevance_loss,
)
from tests.o3jax.sft.test_evidence_losses import WEIGHTS, make_targets

CONFIG = EvidenceConfig(hidden_size=16, num_heads=2, decoder_layers=2, question_layers=1, proposals=3)
WIDTH = 12  # of the language model
B, M, T, P, PAIRS, TOKENS = 2, 3, 6, 4, 3, 5


@pytest.fixture(scope="module")
def modules():
    """A decoder and a question encoder of random weights, wide enough that everything has an effect."""
    init = Initializer(jax.random.key(0), std=0.25)
    return EvidenceDecoder(CONFIG, WIDTH, init), QuestionEncoder(CONFIG, WIDTH, init)


def make_inputs(seed=0):
    """Queries, their mask, F, visual tokens and candidates, with something padded or left out in each."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def uniform(*shape):
        return rng.uniform(0, 1, shape).astype(np.float32)

    times = np.tile(0.4 * np.arange(T, dtype=np.float32), (B, 1))
    valid, cell_valid, token_valid = (
        np.ones((B, T), bool),
        np.ones((B, P), bool),
        np.ones((B, PAIRS, TOKENS), bool),
    )
    valid[1, 4:], cell_valid[1, 3:], token_valid[1, 2:], token_valid[0, 1, 3:] = False, False, False, False
    candidates = np.ones((B, T), bool)
    candidates[0, [0, 3]] = False
    return {
        "queries": normal(B, M, WIDTH),
        "valid": np.array([[True, True, False], [True, False, False]]),
        "dense": DenseFeatures(normal(B, T, P, 16), times, valid, uniform(B, P, 2), cell_valid),
        "visual": VisualTokens(
            normal(B, PAIRS, TOKENS, WIDTH),
            np.tile(np.arange(PAIRS, dtype=np.float32), (B, 1)),
            uniform(B, PAIRS, TOKENS, 2),
            token_valid,
        ),
        "candidates": candidates,
    }


def of_mentions(decoder, queries, *inputs, **named):
    """Returns the decoder's estimates for the states of mentions."""
    return decoder(decoder.naming(queries), *inputs, **named)


@pytest.fixture(scope="module")
def decode(modules):
    run = jax.jit(lambda inputs: of_mentions(modules[0], **inputs))
    return lambda inputs: jax.tree.map(np.asarray, run(inputs))


def visible(estimate, inputs):
    """What is said of real mentions."""
    return jax.tree.map(lambda x: x[inputs["valid"]], estimate)


def assert_same(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def replaced(inputs, **parts):
    return inputs | {
        k: dataclasses.replace(inputs[k], **v) if isinstance(v, dict) else v for k, v in parts.items()
    }


def test_estimates_are_what_they_claim(decode):
    inputs = make_inputs()
    out = decode(inputs)
    searched = inputs["candidates"] & inputs["dense"].valid
    for logits in (out.time_logits[:, :, None], out.interval_logits):
        assert ((logits > NEVER / 2) == searched[:, None, None]).all()
    logits = out.time_logits.astype(np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    times = inputs["dense"].times[:, None]
    mean = (weights * times).sum(-1)
    np.testing.assert_allclose(out.time_s, mean, atol=1e-5)
    spread = np.sqrt((weights * (times - mean[..., None]) ** 2).sum(-1))
    np.testing.assert_allclose(out.spread_s, spread, atol=2e-3)
    assert (out.interval[..., 0] <= out.time_s).all() and (out.time_s <= out.interval[..., 1]).all()
    assert ((out.box >= 0) & (out.box <= 1)).all() and (out.box[..., :2] < out.box[..., 2:]).all()
    assert np.ptp(visible(out, inputs).box, axis=0).max() > 1e-2  # queries differ, and so do their boxes


def test_padding_and_what_is_no_candidate_have_no_influence(decode):
    inputs = make_inputs()
    out = visible(decode(inputs), inputs)
    noise = make_inputs(seed=1)
    queries = np.where(inputs["valid"][..., None], inputs["queries"], noise["queries"])
    dense, visual = inputs["dense"], inputs["visual"]
    read = (inputs["candidates"] & dense.valid)[:, :, None, None] & dense.cell_valid[:, None, :, None]
    features = np.where(read, dense.features, 100 * noise["dense"].features)
    tokens = np.where(visual.valid[..., None], visual.tokens, 100 * noise["visual"].tokens)
    times = np.where(visual.valid.any(-1), visual.times, 0.7)
    other = replaced(
        inputs, queries=queries, dense={"features": features}, visual={"tokens": tokens, "times": times}
    )
    assert_same(visible(decode(other), inputs), out)
    # And everything that is left has one.
    assert (
        np.abs(visible(decode(replaced(inputs, queries=noise["queries"])), inputs).box - out.box).max() > 1e-3
    )
    visuals = decode(replaced(inputs, dense={"features": noise["dense"].features}))
    assert np.abs(visible(visuals, inputs).time_s - out.time_s).max() > 1e-2


def test_mentions_may_stand_in_any_order(decode):
    inputs = make_inputs()
    order = np.array([2, 0, 1])
    moved = inputs | {"queries": inputs["queries"][:, order], "valid": inputs["valid"][:, order]}
    out = decode(inputs)
    assert_same(visible(decode(moved), moved), visible(jax.tree.map(lambda x: x[:, order], out), moved))


def test_a_row_without_candidates_searches_its_whole_video(decode):
    inputs = make_inputs()
    nothing, everything = inputs["candidates"].copy(), inputs["candidates"].copy()
    nothing[1], everything[1] = False, True
    a, b = (decode(inputs | {"candidates": c}) for c in (nothing, everything))
    assert_same(visible(a, inputs), visible(b, inputs))


def test_a_row_of_padding_is_finite(modules, decode):
    inputs = make_inputs()
    valid, tokens = np.zeros((B, T), bool), np.zeros((B, PAIRS, TOKENS), bool)
    empty = replaced(
        inputs, dense={"valid": valid, "cell_valid": np.zeros((B, P), bool)}, visual={"valid": tokens}
    )
    empty["valid"] = np.zeros((B, M), bool)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(decode(empty)))


def test_the_box_is_read_from_the_nearest_pair_alone(decode):
    inputs = make_inputs()
    out = decode(inputs)
    visual, noise = inputs["visual"], make_inputs(seed=1)["visual"]
    pair = np.asarray(nearest_pair(jnp.asarray(out.time_s), visual))
    for row, mention in zip(*np.nonzero(inputs["valid"]), strict=True):
        there = [abs(t - out.time_s[row, mention]) for t in visual.times[row][visual.valid[row].any(-1)]]
        assert pair[row, mention] == np.argmin(there)
        others = visual.tokens.copy()
        own = others[row, pair[row, mention]].copy()
        others[:] = noise.tokens
        others[row, pair[row, mention]] = own
        changed = decode(replaced(inputs, visual={"tokens": others}))
        np.testing.assert_allclose(changed.box[row, mention], out.box[row, mention], atol=1e-5)
        others[row, pair[row, mention]] = noise.tokens[row, pair[row, mention]]
        changed = decode(replaced(inputs, visual={"tokens": others}))
        assert np.abs(changed.box[row, mention] - out.box[row, mention]).max() > 1e-3


def test_questions(modules):
    encoder = modules[1]
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((B, 4, WIDTH)).astype(np.float32)
    valid = np.array([[True, True, True, False], [True, True, False, False]])
    dense = make_inputs()["dense"]

    @jax.jit
    def run(embeddings, dense):
        question = encoder(embeddings, valid)
        return question, encoder.relevance(question, dense)

    question, relevance = run(embeddings, dense)
    assert ((np.asarray(relevance) > NEVER / 2) == dense.valid).all()
    noise = rng.standard_normal(embeddings.shape).astype(np.float32)
    same, _ = run(np.where(valid[..., None], embeddings, noise), dense)
    assert_same(same, question)
    swapped, _ = run(embeddings[:, [1, 0, 2, 3]], dense)
    assert np.abs(swapped - question).max() > 1e-2  # word order counts

    # The same frame in twice as many cells is as relevant; padded cells count for nothing.
    fine = DenseFeatures(
        np.concatenate([dense.features, dense.features, 1e3 * dense.features], axis=2),
        dense.times,
        dense.valid,
        np.tile(dense.cells, (1, 3, 1)),
        np.concatenate([dense.cell_valid, dense.cell_valid, 0 * dense.cell_valid], axis=1).astype(bool),
    )
    assert_same(run(embeddings, fine)[1], relevance, atol=1e-4)
    # Against float64, pooled by hand.
    x = dense.features.astype(np.float64)
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    scores = np.einsum("bd,btpd->btp", np.asarray(question, np.float64), x) / 4
    angles = dense.times[..., None] * (2 * np.pi / np.geomspace(0.5, 8192, 16))
    time_in = np.asarray(encoder.time_in[...], np.float64)
    named = np.concatenate([np.sin(angles), np.cos(angles)], -1) @ time_in
    expected = np.einsum("bd,btd->bt", np.asarray(question, np.float64), named) / 4
    for row, cells in enumerate(dense.cell_valid):
        expected[row] += np.log(np.exp(scores[row][:, cells]).mean(-1))
    np.testing.assert_allclose(relevance[dense.valid], expected[dense.valid], atol=1e-4)


def test_it_learns_one_batch():
    """Objects that appear in one cell at one time: the pattern is in F, the box in the visual tokens."""
    rng = np.random.default_rng(0)
    rows, groups, cells, pairs = 6, 10, 4, 3
    config = dataclasses.replace(CONFIG, hidden_size=32)
    init = Initializer(jax.random.key(1), std=0.1)
    decoder, encoder = EvidenceDecoder(config, WIDTH, init), QuestionEncoder(config, WIDTH, init)
    kinds = rng.standard_normal((4, 32)).astype(np.float32)
    features = 0.1 * rng.standard_normal((rows, groups, cells, 32)).astype(np.float32)
    tokens = 0.1 * rng.standard_normal((rows, pairs, cells, WIDTH)).astype(np.float32)
    times = np.tile(0.25 * np.arange(groups, dtype=np.float32), (rows, 1))
    centres = np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]], np.float32)
    queries = np.zeros((rows, 2, WIDTH), np.float32)
    truth, inside, boxes = np.zeros((rows, 2), np.float32), np.zeros((rows, groups), bool), []
    for row in range(rows):
        for mention, kind in enumerate(rng.permutation(4)[:2]):
            start, cell = rng.integers(1, groups - 3), rng.integers(cells)
            features[row, start : start + 3, cell] += kinds[kind]
            queries[row, mention, kind] = 2.0
            truth[row, mention] = times[row, start + 1]
            inside[row, start : start + 3] |= mention == 0
            tokens[row, :, cell, kind] += 3.0
            boxes.append([*(centres[cell] - 0.2), *(centres[cell] + 0.1)])
    boxes = np.array(boxes, np.float32).reshape(rows, 2, 1, 4)
    asked = np.stack([queries[:, 0], np.ones((rows, WIDTH), np.float32)], axis=1)  # about the first mention
    known = np.ones((rows, 2), bool)
    targets = EvidenceTargets(
        truth, known, np.stack([truth - 0.25, truth + 0.25], -1), known, boxes, known[..., None], known
    )
    dense = DenseFeatures(
        features,
        times,
        np.ones((rows, groups), bool),
        np.tile(centres, (rows, 1, 1)),
        np.ones((rows, cells), bool),
    )
    visual = VisualTokens(
        tokens,
        np.tile(np.arange(pairs, dtype=np.float32), (rows, 1)),
        np.tile(centres, (rows, pairs, 1, 1)),
        np.ones((rows, pairs, cells), bool),
    )
    counts = mention_counts(targets)
    optimizer = optax.adam(3e-3)

    def loss_fn(model):
        decoder, encoder = model
        question = encoder(asked, np.ones((rows, 2), bool))
        relevance = encoder.relevance(question, dense)
        candidates = open_candidates(relevance, inside, dense.valid, low=0.0)
        said = of_mentions(decoder, queries, known, dense, visual, candidates)
        slots = decoder.asking(question)
        slots = decoder(slots, np.ones(slots.shape[:2], bool), dense, visual, candidates)
        said_loss, said_sums = mention_loss(said, targets, dense.times, WEIGHTS, counts)
        matched = match_proposals(slots, targets, WEIGHTS)
        slot_loss, slot_sums = mention_loss(slots, matched, dense.times, WEIGHTS, counts)
        match_loss, match_count = relevance_loss(relevance, inside, dense.valid)
        sums = (
            {f"slot_{k}": v for k, v in slot_sums.items()}
            | said_sums
            | {"relevance": match_loss / match_count}
        )
        return said_loss + slot_loss + match_loss / match_count, sums

    @jax.jit
    def step(model, state):
        (_, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(model)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(model, updates), state, sums

    model = (decoder, encoder)
    state = optimizer.init(model)
    history = []
    for _ in range(60):
        model, state, sums = step(model, state)
        history.append({name: float(value) for name, value in sums.items()})
    first, last = history[0], history[-1]
    for name in ("time_error", "box_l1", "interval", "relevance"):
        assert last[name] < 0.5 * first[name], (name, first[name], last[name])
    assert last["slot_time_ce"] < first["slot_time_ce"] and last["slot_box_l1"] < first["slot_box_l1"]
    assert last["right"] > first["right"]
    # Every parameter takes part.
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path((decoder, encoder)), jax.tree.leaves(model), strict=True
    ):
        assert np.abs(new - old).max() > 1e-4, jax.tree_util.keystr(path)


def test_estimates_are_float32_where_the_modules_are_not():
    decoder = jax.eval_shape(
        lambda: EvidenceDecoder(CONFIG, WIDTH, Initializer(jax.random.key(0), jnp.bfloat16))
    )
    inputs = make_inputs()

    def total(decoder):
        estimate = of_mentions(decoder, **inputs)
        return sum(x.sum() for x in jax.tree.leaves(estimate)), estimate

    gradient, estimate = jax.eval_shape(jax.grad(total, has_aux=True), decoder)
    assert {x.dtype for x in jax.tree.leaves(estimate)} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("bfloat16")}


def test_the_whole_gradient_is_finite(modules):
    """Of 40 mentions about a video of one group, and of none about padding."""
    mentions, groups = 40, 1
    inputs = make_inputs()
    queries = np.zeros((B, mentions, WIDTH), np.float32)
    inputs = replaced(
        inputs,
        queries=queries,
        valid=np.arange(mentions)[None] < np.array([[mentions], [0]]),
        candidates=np.zeros((B, groups), bool),
        dense={
            "features": np.zeros((B, groups, P, 16), np.float32),
            "times": np.zeros((B, groups), np.float32),
            "valid": np.array([[True] * groups, [False] * groups]),
        },
    )
    targets = make_targets(np.random.default_rng(0), B, mentions, share=0.5)

    @jax.jit
    def run(decoder):
        def total(decoder):
            times = inputs["dense"].times
            return mention_loss(
                of_mentions(decoder, **inputs), targets, times, WEIGHTS, mention_counts(targets)
            )[0]

        return jax.value_and_grad(total)(decoder)

    loss, gradient = run(modules[0])
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
